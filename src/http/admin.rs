//! `/admin/…`: the operator API, for holders of the token. Without `ADMIN_TOKEN` these paths do not exist.
//!
//! | path | does |
//! |---|---|
//! | `GET /admin/outbox` | counters, depths and sizes |
//! | `GET /admin/outbox/records` | waiting records, a page at a time |
//! | `GET /admin/outbox/records/{id}` | a waiting record with its body |
//! | `POST /admin/outbox/verify`, `…/salvage` | long jobs: see [`jobs`] |
//! | `/admin/outbox/export…`, `POST /admin/outbox/import` | moving waiting records: see [`jobs`] |
//! | `GET /admin/dead-letters` | dead letters, a page at a time |
//! | `GET /admin/dead-letters/{id}` | a dead letter with the producer's bytes |
//! | `POST /admin/dead-letters/replay`, `…/drop` | replays dead letters as records, or drops them |
//! | `GET /admin/drain` | the state of the drain |
//! | `POST /admin/drain/pause`, `…/resume`, `…/probe`, `…/release-brake` | orders to the drain |
//! | `GET /admin/audit` | the latest operator actions |
//! | `PUT /admin/drain/rate-limit` | sets the rate limit |
//! | `GET`, `PUT /admin/log-level` | the log level |
//! | `POST /admin/reload` | reloads the settings |

pub(super) mod jobs;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{
    ConnectInfo, DefaultBodyLimit, FromRequest, FromRequestParts, Path, Query, Request, State,
};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use subtle::ConstantTimeEq as _;
use tokio::sync::watch;

use super::refusals::Refusals;
use crate::admin::{
    Actor, AdminError, AuditFilter, AuditPage, DeadLetterDetail, DeadLetterPage, DrainState, Dropped,
    LetterFilter, LogLevelBody, NewBandwidth, NewRateLimit, Operator, OutboxStats, ReloadError, Replayed,
    Selection, WaitingDetail, WaitingFilter, WaitingPage, chain, find_dead_letter, find_waiting,
    list_dead_letters, list_orders, list_waiting,
};
use crate::secret::Secret;
use crate::telemetry::metrics::Metrics;

/// Maximum size of a request's body.
const BODY_BYTES: usize = 64 << 10;
/// Reading and replaying can take long on a slow disk.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// Default entries per page, and the maximum.
const PAGE: usize = 100;
const PAGE_MOST: usize = 1000;

/// The state of the admin API.
pub struct Admin {
    /// Executes the requests.
    pub operator: Arc<Operator>,
    /// The current token; `None`: the admin API is off.
    pub token: watch::Receiver<Option<Secret>>,
    /// Counts refused requests.
    pub metrics: Arc<Metrics>,
    /// Limits the log lines about refused requests.
    pub unauthorized: Refusals,
}

pub(super) fn router(admin: Arc<Admin>) -> Router {
    paths()
        .layer(DefaultBodyLimit::max(BODY_BYTES))
        // On these routes only: an unknown path must stay a plain 404.
        .route_layer(middleware::from_fn_with_state(Arc::clone(&admin), authorize))
        .with_state(admin)
}

/// All paths, by what their requests may carry. Anything else is refused: whoever asks for a pause of three minutes must not
/// get one without end.
pub(super) fn paths() -> Router<Arc<Admin>> {
    let nothing = Router::new()
        .route("/admin/outbox", get(outbox_stats))
        .route("/admin/outbox/records/{id}", get(waiting_record))
        .route("/admin/dead-letters/{id}", get(dead_letter))
        .route("/admin/drain", get(drain))
        .route("/admin/drain/pause", post(pause))
        .route("/admin/drain/resume", post(resume))
        .route("/admin/drain/probe", post(probe))
        .route("/admin/drain/release-brake", post(release_brake))
        .route("/admin/reload", post(reload))
        .merge(jobs::with_nothing());
    let query = Router::new()
        .route("/admin/outbox/records", get(waiting))
        .route("/admin/dead-letters", get(dead_letters))
        .route("/admin/audit", get(audit))
        .merge(jobs::with_query());
    let body = Router::new()
        .route("/admin/dead-letters/replay", post(replay))
        .route("/admin/dead-letters/drop", post(drop_letters))
        .route("/admin/drain/rate-limit", put(rate_limit))
        .route("/admin/drain/bandwidth", put(bandwidth))
        .route("/admin/log-level", get(log_level).put(set_log_level))
        .merge(jobs::with_body());
    let (no_query, no_body) = (middleware::from_fn(refuse_query), middleware::from_fn(refuse_body));
    nothing
        .route_layer(no_query.clone())
        .route_layer(no_body.clone())
        .merge(query.route_layer(no_body))
        .merge(body.route_layer(no_query))
        .merge(jobs::with_both())
}

/// Refuses a query where none is known.
async fn refuse_query(request: Request, next: Next) -> Result<Response, Fault> {
    match request.uri().query() {
        None | Some("") => Ok(next.run(request).await),
        Some(_) => {
            let text = "this path takes no query parameters; nothing was done".to_owned();
            Err(Fault::Request(StatusCode::BAD_REQUEST, text))
        }
    }
}

/// Refuses a body where none is known. An empty object or `null` asks for nothing.
async fn refuse_body(request: Request, next: Next) -> Result<Response, Fault> {
    let (parts, body) = request.into_parts();
    let wrong = || {
        let text = "this path takes no body; nothing was done".to_owned();
        Fault::Request(StatusCode::BAD_REQUEST, text)
    };
    // One that is too large or breaks off is not empty either.
    let text = axum::body::to_bytes(body, BODY_BYTES).await.map_err(|_| wrong())?;
    let asks_for_nothing = match serde_json::from_slice(&text) {
        Ok(Value::Null) => true,
        Ok(Value::Object(fields)) => fields.is_empty(),
        _ => text.is_empty(),
    };
    if !asks_for_nothing {
        return Err(wrong());
    }
    Ok(next.run(Request::from_parts(parts, Body::empty())).await)
}

/// Admits holders of the token, and limits the time of the answer.
async fn authorize(
    State(admin): State<Arc<Admin>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
    next: Next,
) -> Response {
    let token = admin.token.borrow().clone();
    let Some(token) = token else { return StatusCode::NOT_FOUND.into_response() };
    if !has_token(request.headers(), &token) {
        admin.metrics.admin_refused.inc();
        if let Some(count) = admin.unauthorized.count() {
            tracing::warn!(
                count,
                ip = %peer.ip().to_canonical(),
                path = request.uri().path(),
                "security: refused requests to /admin without a valid token since the last message, the last from this \
                 address; the token is ADMIN_TOKEN"
            );
        }
        let challenge = [(header::WWW_AUTHENTICATE, "Bearer")];
        return (StatusCode::UNAUTHORIZED, challenge, Fault::body("admin token required")).into_response();
    }
    let answer = tokio::time::timeout(ANSWER_WITHIN, next.run(request)).await;
    answer.unwrap_or_else(|_| StatusCode::GATEWAY_TIMEOUT.into_response())
}

fn has_token(headers: &HeaderMap, token: &Secret) -> bool {
    let given = headers.get(header::AUTHORIZATION).map(|value| value.as_bytes().split_at_checked(7));
    let Some(Some((scheme, given))) = given else { return false };
    scheme.eq_ignore_ascii_case(b"bearer ") && given.ct_eq(token.expose().as_bytes()).into()
}

/// Why a request failed.
#[derive(Debug)]
pub(super) enum Fault {
    /// The request is invalid.
    Request(StatusCode, String),
    /// The requested item does not exist.
    Missing(&'static str),
    /// The request cannot be fulfilled now.
    Failed(String),
}

/// An error of the admin API.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = Error)]
pub struct ErrorBody {
    /// The error as text.
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
                tracing::warn!(error, "a request to /admin failed");
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

/// A JSON object as the body; errors are answered in JSON too.
pub(super) struct JsonBody<T>(T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for JsonBody<T> {
    type Rejection = Fault;

    async fn from_request(request: Request, state: &S) -> Result<Self, Fault> {
        let Json(value) = Json::<Value>::from_request(request, state).await?;
        let wrong = |text: String| Fault::Request(StatusCode::UNPROCESSABLE_ENTITY, text);
        // serde also accepts an array, whose values it would take for the fields in order.
        if !value.is_object() {
            return Err(wrong("the body is not a JSON object".to_owned()));
        }
        serde_json::from_value(value).map(Self).map_err(|error| wrong(error.to_string()))
    }
}

/// The query; errors are answered in JSON.
#[derive(FromRequestParts)]
#[from_request(via(Query), rejection(Fault))]
pub(super) struct QueryArgs<T>(T);

/// A number in the path; errors are answered in JSON.
#[derive(FromRequestParts)]
#[from_request(via(Path), rejection(Fault))]
pub(super) struct Number<T>(T);

/// The requester, as named in the audit log.
pub(super) struct RequestActor(pub(super) Actor);

impl<S: Send + Sync> FromRequestParts<S> for RequestActor {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        let peer = ConnectInfo::<SocketAddr>::from_request_parts(parts, state).await;
        let ConnectInfo(peer) = peer.map_err(IntoResponse::into_response)?;
        Ok(Self(Actor::Address(peer.ip().to_canonical())))
    }
}

pub(super) type JsonResult<T> = Result<Json<T>, Fault>;
pub(super) type AdminState = State<Arc<Admin>>;

fn page_size(asked: Option<usize>) -> usize {
    asked.unwrap_or(PAGE).clamp(1, PAGE_MOST)
}

/// Counters, depths and sizes.
#[utoipa::path(
    get,
    path = "/admin/outbox",
    tag = "outbox",
    responses((status = 200, description = "The current values", body = OutboxStats))
)]
pub(super) async fn outbox_stats(State(admin): AdminState) -> Json<OutboxStats> {
    Json((&admin.operator.outbox.stats()).into())
}

/// The waiting records, a page at a time.
#[utoipa::path(
    get,
    path = "/admin/outbox/records",
    tag = "outbox",
    params(WaitingFilter),
    responses((status = 200, description = "A page", body = WaitingPage))
)]
pub(super) async fn waiting(
    State(admin): AdminState,
    QueryArgs(filter): QueryArgs<WaitingFilter>,
) -> JsonResult<WaitingPage> {
    let page = list_waiting(&admin.operator.outbox, filter.cursor.as_deref(), page_size(filter.limit));
    Ok(Json(page.await?))
}

/// A waiting record with its body.
#[utoipa::path(
    get,
    path = "/admin/outbox/records/{id}",
    tag = "outbox",
    params(("id" = u64, Path, description = "Number")),
    responses(
        (status = 200, description = "The record", body = WaitingDetail),
        (status = 404, description = "No such number", body = ErrorBody),
    )
)]
pub(super) async fn waiting_record(
    State(admin): AdminState,
    Number(id): Number<u64>,
) -> JsonResult<WaitingDetail> {
    let found = find_waiting(&admin.operator.outbox, id).await?;
    found.map(Json).ok_or(Fault::Missing("no waiting record with this number"))
}

/// Dead letters, a page at a time.
#[utoipa::path(
    get,
    path = "/admin/dead-letters",
    tag = "dead letters",
    params(LetterFilter),
    responses((status = 200, description = "A page", body = DeadLetterPage))
)]
pub(super) async fn dead_letters(
    State(admin): AdminState,
    QueryArgs(filter): QueryArgs<LetterFilter>,
) -> JsonResult<DeadLetterPage> {
    if let Some(fault) = filter.fault() {
        return Err(Fault::Request(StatusCode::BAD_REQUEST, fault.to_owned()));
    }
    Ok(Json(list_dead_letters(&admin.operator.outbox, &filter, page_size(filter.limit)).await?))
}

/// A dead letter with the producer's bytes.
#[utoipa::path(
    get,
    path = "/admin/dead-letters/{id}",
    tag = "dead letters",
    params(("id" = u64, Path, description = "Number")),
    responses(
        (status = 200, description = "The dead letter", body = DeadLetterDetail),
        (status = 404, description = "No such number", body = ErrorBody),
    )
)]
pub(super) async fn dead_letter(
    State(admin): AdminState,
    Number(id): Number<u64>,
) -> JsonResult<DeadLetterDetail> {
    let found = find_dead_letter(&admin.operator.outbox, id).await?;
    found.map(Json).ok_or(Fault::Missing("no dead letter with this number"))
}

fn sound(selection: &Selection) -> Result<(), Fault> {
    match selection.fault() {
        Some(fault) => Err(Fault::Request(StatusCode::UNPROCESSABLE_ENTITY, fault.to_owned())),
        None => Ok(()),
    }
}

/// Replays dead letters as records, at most 500 at a time.
#[utoipa::path(
    post,
    path = "/admin/dead-letters/replay",
    tag = "dead letters",
    request_body = Selection,
    responses(
        (status = 200, description = "The result for each", body = Replayed),
        (status = 503, description = "The result up to the failure, and its cause", body = Replayed),
    )
)]
pub(super) async fn replay(
    State(admin): AdminState,
    RequestActor(by): RequestActor,
    JsonBody(selection): JsonBody<Selection>,
) -> Result<(StatusCode, Json<Replayed>), Fault> {
    sound(&selection)?;
    let outcome = admin.operator.replay(&by, selection).await?;
    // The answer also reports what was done before the failure.
    let status = if outcome.error.is_some() { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    Ok((status, Json(outcome)))
}

/// Deletes dead letters, at most 500 at a time.
#[utoipa::path(
    post,
    path = "/admin/dead-letters/drop",
    tag = "dead letters",
    request_body = Selection,
    responses((status = 200, description = "The number deleted", body = Dropped))
)]
pub(super) async fn drop_letters(
    State(admin): AdminState,
    RequestActor(by): RequestActor,
    JsonBody(selection): JsonBody<Selection>,
) -> JsonResult<Dropped> {
    sound(&selection)?;
    Ok(Json(admin.operator.drop_letters(&by, selection).await?))
}

/// The state of the drain.
#[utoipa::path(
    get,
    path = "/admin/drain",
    tag = "drain",
    responses((status = 200, description = "The current state", body = DrainState))
)]
pub(super) async fn drain(State(admin): AdminState) -> Json<DrainState> {
    Json(admin.operator.drain())
}

/// Pauses sending. Requests in flight are finished.
#[utoipa::path(
    post,
    path = "/admin/drain/pause",
    tag = "drain",
    responses((status = 200, description = "The current state", body = DrainState))
)]
pub(super) async fn pause(State(admin): AdminState, RequestActor(by): RequestActor) -> Json<DrainState> {
    admin.operator.pause(&by).await;
    Json(admin.operator.drain())
}

/// Resumes sending and sends the next probe now, even during a `Retry-After`.
#[utoipa::path(
    post,
    path = "/admin/drain/resume",
    tag = "drain",
    responses((status = 200, description = "The current state", body = DrainState))
)]
pub(super) async fn resume(State(admin): AdminState, RequestActor(by): RequestActor) -> Json<DrainState> {
    admin.operator.resume(&by).await;
    Json(admin.operator.drain())
}

/// Sends the next probe now, even during a `Retry-After`. While sending is paused nothing is sent: the answer has `paused`.
#[utoipa::path(
    post,
    path = "/admin/drain/probe",
    tag = "drain",
    responses((status = 200, description = "The current state", body = DrainState))
)]
pub(super) async fn probe(State(admin): AdminState, RequestActor(by): RequestActor) -> Json<DrainState> {
    admin.operator.probe(&by).await;
    Json(admin.operator.drain())
}

/// The last operator actions, newest first: who did what, with what result.
#[utoipa::path(
    get,
    path = "/admin/audit",
    tag = "audit",
    params(AuditFilter),
    responses((status = 200, description = "The last 1,000, or fewer", body = AuditPage))
)]
pub(super) async fn audit(
    State(admin): AdminState,
    QueryArgs(filter): QueryArgs<AuditFilter>,
) -> JsonResult<AuditPage> {
    Ok(Json(list_orders(&admin.operator.outbox, filter.limit).await?))
}

/// Releases the refusal brake and sends the next probe now.
#[utoipa::path(
    post,
    path = "/admin/drain/release-brake",
    tag = "drain",
    responses((status = 200, description = "The current state", body = DrainState))
)]
pub(super) async fn release_brake(
    State(admin): AdminState,
    RequestActor(by): RequestActor,
) -> Json<DrainState> {
    admin.operator.release_brake(&by).await;
    Json(admin.operator.drain())
}

/// Limits the request rate until the next reload or restart.
#[utoipa::path(
    put,
    path = "/admin/drain/rate-limit",
    tag = "drain",
    request_body = NewRateLimit,
    responses((status = 200, description = "The current state", body = DrainState))
)]
pub(super) async fn rate_limit(
    State(admin): AdminState,
    RequestActor(by): RequestActor,
    JsonBody(asked): JsonBody<NewRateLimit>,
) -> JsonResult<DrainState> {
    let limit = asked.limit().map_err(|wrong| Fault::Request(StatusCode::UNPROCESSABLE_ENTITY, wrong))?;
    admin.operator.set_rate_limit(&by, limit).await;
    Ok(Json(admin.operator.drain()))
}

/// Limits the bytes per second on the link until the next reload or restart.
#[utoipa::path(
    put,
    path = "/admin/drain/bandwidth",
    tag = "drain",
    request_body = NewBandwidth,
    responses((status = 200, description = "The current state", body = DrainState))
)]
pub(super) async fn bandwidth(
    State(admin): AdminState,
    RequestActor(by): RequestActor,
    JsonBody(asked): JsonBody<NewBandwidth>,
) -> JsonResult<DrainState> {
    let limit = asked.limit().map_err(|wrong| Fault::Request(StatusCode::UNPROCESSABLE_ENTITY, wrong))?;
    admin.operator.set_bandwidth(&by, limit).await;
    Ok(Json(admin.operator.drain()))
}

/// The log level.
#[utoipa::path(
    get,
    path = "/admin/log-level",
    tag = "settings",
    responses((status = 200, description = "The current state", body = LogLevelBody))
)]
pub(super) async fn log_level(State(admin): AdminState) -> Json<LogLevelBody> {
    Json(LogLevelBody { level: admin.operator.log_level.get() })
}

/// Sets the log level until the next reload or restart.
#[utoipa::path(
    put,
    path = "/admin/log-level",
    tag = "settings",
    request_body = LogLevelBody,
    responses((status = 200, description = "The current state", body = LogLevelBody))
)]
pub(super) async fn set_log_level(
    State(admin): AdminState,
    RequestActor(by): RequestActor,
    JsonBody(asked): JsonBody<LogLevelBody>,
) -> Json<LogLevelBody> {
    admin.operator.set_log_level(&by, asked.level).await;
    Json(asked)
}

/// The result of a reload.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Reloaded {
    /// Changed settings that need a restart.
    pub need_restart: Vec<String>,
}

/// Reloads the settings: log level, rate limit, secrets and certificates.
#[utoipa::path(
    post,
    path = "/admin/reload",
    tag = "settings",
    responses(
        (status = 200, description = "Changes that need a restart", body = Reloaded),
        (status = 422, description = "The settings are invalid; nothing was changed", body = ErrorBody),
    )
)]
pub(super) async fn reload(State(admin): AdminState, RequestActor(by): RequestActor) -> JsonResult<Reloaded> {
    Ok(Json(Reloaded { need_restart: admin.operator.reload(&by).await? }))
}
