//! `/sandbox/…`: the sandbox's accounts, and control of its weather.

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time;

use super::{
    Shared, body,
    delivery::Refusal,
    fleet,
    kind::Kind,
    link::{BadLink, Link},
    openapi, recent,
    weather::Weather,
};

/// The largest body of a request here, in bytes: a key set or a few commands.
const MAX_BYTES: usize = 1 << 20;
/// Time for the port to close or reopen.
const LISTENER_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Clone)]
struct Operator {
    shared: Arc<Shared>,
    /// Whether this port stays open while the `ControlPlane`'s is down.
    stays: bool,
}

/// The routes, for the port that `stays` open while the `ControlPlane` is down, or for the one that closes.
pub(super) fn router(shared: &Arc<Shared>, stays: bool) -> Router {
    Router::new()
        .route("/sandbox/accounts", get(accounts).delete(reset))
        .route("/sandbox/seen", get(seen))
        .route("/sandbox/records", get(records))
        .route("/sandbox/weather", get(weather).put(replace_weather).patch(change_weather))
        .route("/sandbox/link", get(link).put(set_link))
        .route("/sandbox/servers", get(servers).delete(forget_servers))
        .route("/sandbox/commands", get(commands).merge(post(command)))
        .route("/sandbox/openapi.json", get(openapi::serve))
        .route("/sandbox/public-keys", put(set_keys).merge(post(rotate_keys)))
        .layer(DefaultBodyLimit::max(MAX_BYTES))
        .with_state(Operator { shared: Arc::clone(shared), stays })
}

async fn accounts(State(Operator { shared, .. }): State<Operator>) -> Response {
    #[derive(Serialize)]
    struct Report<A, T, F> {
        #[serde(flatten)]
        accounts: A,
        #[serde(flatten)]
        traffic: T,
        #[serde(flatten)]
        fleet: F,
    }
    let accounts = shared.accounts().report();
    let traffic = shared.traffic().report();
    let fleet = shared.fleet().report();
    Json(Report { accounts, traffic, fleet }).into_response()
}

async fn reset(State(Operator { shared, .. }): State<Operator>) -> StatusCode {
    // Millions of entries are freed after the lock is released.
    drop(std::mem::take(&mut *shared.accounts()));
    *shared.recents() = recent::Recents::default();
    shared.traffic().reset();
    shared.fleet().reset();
    if let Some(link) = &shared.link {
        link.reset().await;
    }
    StatusCode::NO_CONTENT
}

#[derive(Deserialize)]
struct Which {
    kind: Kind,
    transaction_id: String,
}

async fn seen(State(Operator { shared, .. }): State<Operator>, Query(which): Query<Which>) -> Response {
    Json(shared.accounts().sighting(which.kind, &which.transaction_id)).into_response()
}

#[derive(Deserialize)]
struct Limit {
    limit: Option<usize>,
}

async fn records(State(Operator { shared, .. }): State<Operator>, Query(limit): Query<Limit>) -> Response {
    let records = shared.recents().newest(limit.limit.unwrap_or(recent::CAPACITY));
    Json(json!({"records": records})).into_response()
}

async fn weather(State(Operator { shared, .. }): State<Operator>) -> Response {
    Json(&*shared.weather()).into_response()
}

async fn replace_weather(State(operator): State<Operator>, body: Bytes) -> Result<Response, Refusal> {
    operator.forecast(&body, |_| Weather::default()).await
}

async fn change_weather(State(operator): State<Operator>, body: Bytes) -> Result<Response, Refusal> {
    operator.forecast(&body, Weather::clone).await
}

impl Operator {
    /// Sets the weather from `base` and the body, and answers when it is in effect.
    async fn forecast(&self, body: &[u8], base: impl Fn(&Weather) -> Weather) -> Result<Response, Refusal> {
        let patch = fleet::object(body)?;
        let weather = self.shared.change_weather(|current| {
            let new = base(current)
                .patched(patch)
                .map_err(|problems| Refusal::new(StatusCode::BAD_REQUEST, problems.join("; ")))?;
            if new.down && !self.stays {
                let reason =
                    "down: set it through --control-listen: this port would be gone with no way back";
                return Err(Refusal::new(StatusCode::CONFLICT, reason));
            }
            Ok(new)
        })?;
        let mut listening = self.shared.listening.subscribe();
        let settled = listening.wait_for(|listening| *listening != weather.down);
        match time::timeout(LISTENER_TIMEOUT, settled).await {
            Ok(Ok(_)) => Ok(Json(&*weather).into_response()),
            _ => Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "the port does not follow")),
        }
    }
}

async fn link(State(Operator { shared, .. }): State<Operator>) -> Result<Response, Refusal> {
    Ok(Json(the_link(&shared)?.report().await).into_response())
}

async fn set_link(
    State(Operator { shared, .. }): State<Operator>,
    text: String,
) -> Result<Response, Refusal> {
    let settings = text
        .parse()
        .map_err(|problem: BadLink| Refusal::new(StatusCode::BAD_REQUEST, problem.to_string()))?;
    let link = the_link(&shared)?;
    link.set(settings);
    Ok(Json(link.report().await).into_response())
}

fn the_link(shared: &Shared) -> Result<&Link, Refusal> {
    let missing = || Refusal::new(StatusCode::CONFLICT, "there is no link: start the sandbox with --link");
    shared.link.as_deref().ok_or_else(missing)
}

async fn servers(State(Operator { shared, .. }): State<Operator>) -> Response {
    Json(shared.fleet().servers()).into_response()
}

async fn forget_servers(State(Operator { shared, .. }): State<Operator>) -> StatusCode {
    shared.fleet().forget_servers();
    StatusCode::NO_CONTENT
}

async fn commands(State(Operator { shared, .. }): State<Operator>) -> Response {
    Json(shared.fleet().exchanged()).into_response()
}

async fn command(State(Operator { shared, .. }): State<Operator>, body: Bytes) -> Result<Response, Refusal> {
    let command = shared.fleet().command(fleet::object(&body)?)?;
    Ok((StatusCode::CREATED, Json(command)).into_response())
}

async fn rotate_keys(State(Operator { shared, .. }): State<Operator>) -> Result<Response, Refusal> {
    Ok(body::success(shared.fleet().rotate()?))
}

async fn set_keys(State(Operator { shared, .. }): State<Operator>, body: Bytes) -> Result<Response, Refusal> {
    shared.fleet().set_keys(Value::Object(fleet::object(&body)?))?;
    Ok(body::done())
}
