//! `/admin/…`: what an operator may do, for whoever has the token. Without `ADMIN_TOKEN` there is no such path.
//!
//! | path | does |
//! |---|---|
//! | `GET /admin/outbox` | counters, depths and sizes |
//! | `GET /admin/outbox/records` | what waits, a page at a time |
//! | `GET /admin/outbox/records/{id}` | one of them with its body |
//! | `GET /admin/dead-letters` | dead letters, a page at a time |
//! | `GET /admin/dead-letters/{id}` | one of them with the producer's bytes |
//! | `POST /admin/dead-letters/replay`, `…/drop` | makes records of some again, or drops them |
//! | `GET /admin/drain` | how the drain is |
//! | `POST /admin/drain/pause`, `…/resume`, `…/release-brake` | orders to it |
//! | `PUT /admin/drain/rate-limit` | another limit |
//! | `GET`, `PUT /admin/log-level` | the log's level |
//! | `POST /admin/reload` | reads the settings again |

use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, FromRequest, FromRequestParts, Path, Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq as _;
use tokio::sync::watch;

use crate::admin::{
    AdminError, DeadLetterDetail, DeadLetterPage, DrainState, Dropped, LetterFilter, LogLevelBody,
    NewRateLimit, Operator, OutboxStats, Replayed, Selection, WaitingDetail, WaitingFilter, WaitingPage,
    chain, find_dead_letter, find_waiting, list_dead_letters, list_waiting,
};
use crate::config::Secret;
use crate::reload::ReloadError;
use crate::telemetry::metrics::Metrics;

/// No request to the admin surface is larger.
const BODY_BYTES: usize = 64 << 10;
/// Reading and replaying take a while on a slow disk.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// A page has so many entries, unless asked otherwise, and at most so many.
const PAGE: usize = 100;
const PAGE_MOST: usize = 1000;

/// What the admin surface works with.
pub struct Admin {
    /// The hands.
    pub operator: Arc<Operator>,
    /// The token, as it is now; none: there is no admin surface.
    pub token: watch::Receiver<Option<Secret>>,
    /// Where refused requests are counted.
    pub metrics: Arc<Metrics>,
}

pub(super) fn router(admin: Arc<Admin>) -> Router {
    Router::new()
        .route("/admin/outbox", get(outbox_stats))
        .route("/admin/outbox/records", get(waiting))
        .route("/admin/outbox/records/{id}", get(waiting_record))
        .route("/admin/dead-letters", get(dead_letters))
        .route("/admin/dead-letters/{id}", get(dead_letter))
        .route("/admin/dead-letters/replay", post(replay))
        .route("/admin/dead-letters/drop", post(drop_letters))
        .route("/admin/drain", get(drain))
        .route("/admin/drain/pause", post(pause))
        .route("/admin/drain/resume", post(resume))
        .route("/admin/drain/release-brake", post(release_brake))
        .route("/admin/drain/rate-limit", put(rate_limit))
        .route("/admin/log-level", get(log_level).put(set_log_level))
        .route("/admin/reload", post(reload))
        .layer(DefaultBodyLimit::max(BODY_BYTES))
        .layer(middleware::from_fn_with_state(Arc::clone(&admin), authorize))
        .with_state(admin)
}

/// Lets in who has the token, and bounds the time of the answer.
async fn authorize(State(admin): State<Arc<Admin>>, request: Request, next: Next) -> Response {
    let token = admin.token.borrow().clone();
    let Some(token) = token else { return StatusCode::NOT_FOUND.into_response() };
    if !has_token(request.headers(), &token) {
        admin.metrics.admin_refused.inc();
        tracing::warn!(path = request.uri().path(), "security: a request to /admin without the token");
        let challenge = [(header::WWW_AUTHENTICATE, "Bearer")];
        return (StatusCode::UNAUTHORIZED, challenge, Fault::body("the admin token is needed"))
            .into_response();
    }
    let answer = tokio::time::timeout(ANSWER_WITHIN, next.run(request)).await;
    answer.unwrap_or_else(|_| StatusCode::GATEWAY_TIMEOUT.into_response())
}

fn has_token(headers: &HeaderMap, token: &Secret) -> bool {
    let given = headers.get(header::AUTHORIZATION).map(|value| value.as_bytes().split_at_checked(7));
    let Some(Some((scheme, given))) = given else { return false };
    scheme.eq_ignore_ascii_case(b"bearer ") && given.ct_eq(token.expose().as_bytes()).into()
}

/// Why a request was not fulfilled.
#[derive(Debug)]
enum Fault {
    /// What was asked makes no sense.
    Request(StatusCode, String),
    /// There is no such thing.
    Missing(&'static str),
    /// It could not be done now.
    Failed(String),
}

/// An error as the surface tells it.
#[derive(Debug, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What is wrong, for people.
    pub error: String,
}

impl Fault {
    fn body(error: impl Into<String>) -> Json<ErrorBody> {
        Json(ErrorBody { error: error.into() })
    }
}

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        match self {
            Self::Request(status, error) => (status, Self::body(error)).into_response(),
            Self::Missing(what) => (StatusCode::NOT_FOUND, Self::body(what)).into_response(),
            Self::Failed(error) => {
                tracing::warn!(error, "a request to /admin could not be fulfilled");
                (StatusCode::SERVICE_UNAVAILABLE, Self::body(error)).into_response()
            }
        }
    }
}

impl From<AdminError> for Fault {
    fn from(error: AdminError) -> Self {
        if matches!(error, AdminError::Cursor) {
            return Self::Request(StatusCode::BAD_REQUEST, error.to_string());
        }
        Self::Failed(chain(&error))
    }
}

impl From<ReloadError> for Fault {
    fn from(error: ReloadError) -> Self {
        Self::Request(StatusCode::UNPROCESSABLE_ENTITY, chain(&error))
    }
}

impl From<JsonRejection> for Fault {
    fn from(rejection: JsonRejection) -> Self {
        Self::Request(rejection.status(), rejection.body_text())
    }
}

impl From<QueryRejection> for Fault {
    fn from(rejection: QueryRejection) -> Self {
        Self::Request(rejection.status(), rejection.body_text())
    }
}

impl From<PathRejection> for Fault {
    fn from(rejection: PathRejection) -> Self {
        Self::Request(rejection.status(), rejection.body_text())
    }
}

/// A body in JSON; what is wrong with one is said in JSON, too.
#[derive(FromRequest)]
#[from_request(via(Json), rejection(Fault))]
struct Body<T>(T);

/// The query, likewise.
#[derive(FromRequestParts)]
#[from_request(via(Query), rejection(Fault))]
struct Asked<T>(T);

/// A number in the path, likewise.
#[derive(FromRequestParts)]
#[from_request(via(Path), rejection(Fault))]
struct Number<T>(T);

type Answer<T> = Result<Json<T>, Fault>;
type Hands = State<Arc<Admin>>;

fn page_size(asked: Option<usize>) -> usize {
    asked.unwrap_or(PAGE).clamp(1, PAGE_MOST)
}

async fn outbox_stats(State(admin): Hands) -> Json<OutboxStats> {
    Json((&admin.operator.outbox.stats()).into())
}

async fn waiting(State(admin): Hands, Asked(filter): Asked<WaitingFilter>) -> Answer<WaitingPage> {
    let page = list_waiting(&admin.operator.outbox, filter.cursor.as_deref(), page_size(filter.limit));
    Ok(Json(page.await?))
}

async fn waiting_record(State(admin): Hands, Number(id): Number<u64>) -> Answer<WaitingDetail> {
    let found = find_waiting(&admin.operator.outbox, id).await?;
    found.map(Json).ok_or(Fault::Missing("no record waits under this number"))
}

async fn dead_letters(State(admin): Hands, Asked(filter): Asked<LetterFilter>) -> Answer<DeadLetterPage> {
    Ok(Json(list_dead_letters(&admin.operator.outbox, &filter, page_size(filter.limit)).await?))
}

async fn dead_letter(State(admin): Hands, Number(id): Number<u64>) -> Answer<DeadLetterDetail> {
    let found = find_dead_letter(&admin.operator.outbox, id).await?;
    found.map(Json).ok_or(Fault::Missing("there is no dead letter with this number"))
}

fn sound(selection: &Selection) -> Result<(), Fault> {
    match selection.fault() {
        Some(fault) => Err(Fault::Request(StatusCode::UNPROCESSABLE_ENTITY, fault.to_owned())),
        None => Ok(()),
    }
}

async fn replay(
    State(admin): Hands,
    Body(selection): Body<Selection>,
) -> Result<(StatusCode, Json<Replayed>), Fault> {
    sound(&selection)?;
    let outcome = admin.operator.replay(selection).await?;
    // What was done until then is told all the same.
    let status = if outcome.error.is_some() { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    Ok((status, Json(outcome)))
}

async fn drop_letters(State(admin): Hands, Body(selection): Body<Selection>) -> Answer<Dropped> {
    sound(&selection)?;
    Ok(Json(admin.operator.drop_letters(selection).await?))
}

async fn drain(State(admin): Hands) -> Json<DrainState> {
    Json(admin.operator.drain())
}

async fn pause(State(admin): Hands) -> Json<DrainState> {
    admin.operator.pause(true);
    Json(admin.operator.drain())
}

async fn resume(State(admin): Hands) -> Json<DrainState> {
    admin.operator.pause(false);
    Json(admin.operator.drain())
}

async fn release_brake(State(admin): Hands) -> Json<DrainState> {
    admin.operator.release_brake().await;
    Json(admin.operator.drain())
}

async fn rate_limit(State(admin): Hands, Body(asked): Body<NewRateLimit>) -> Answer<DrainState> {
    let limit = asked.limit().map_err(|wrong| Fault::Request(StatusCode::UNPROCESSABLE_ENTITY, wrong))?;
    admin.operator.set_rate_limit(limit);
    Ok(Json(admin.operator.drain()))
}

async fn log_level(State(admin): Hands) -> Json<LogLevelBody> {
    Json(LogLevelBody { level: admin.operator.log_level.get() })
}

async fn set_log_level(State(admin): Hands, Body(asked): Body<LogLevelBody>) -> Json<LogLevelBody> {
    admin.operator.set_log_level(asked.level);
    Json(asked)
}

/// What a reload did.
#[derive(Debug, Serialize, Deserialize)]
pub struct Reloaded {
    /// Settings that have changed and take a restart.
    pub need_restart: Vec<String>,
}

async fn reload(State(admin): Hands) -> Answer<Reloaded> {
    Ok(Json(Reloaded { need_restart: admin.operator.reload().await? }))
}
