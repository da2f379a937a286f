//! The `ControlPlane`'s API for single records: usage, session events, quota refreshes. [`batch`] handles batches.

use std::{str, sync::Arc};

use axum::{
    Router,
    extract::{DefaultBodyLimit, Path, State},
    handler::Handler,
    http::{HeaderMap, StatusCode},
    middleware::from_fn_with_state,
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use bytes::Bytes;
use chrono::Utc;
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    Shared,
    accounts::{Delivery, Key},
    batch,
    body::{self, Failure, Success},
    delivery::{Record, Refusal, chance_refusal, own_fate},
    fleet, forms, gate,
    headers::IDEMPOTENCY_KEY,
    kind::Kind,
    order::Step,
    traffic::Endpoint,
};

/// Granted by a quota refresh.
const QUOTA: u32 = 3600;

/// The complete API; every route is behind the weather.
pub(super) fn router(shared: &Arc<Shared>) -> Router {
    let gate = |endpoint| from_fn_with_state((Arc::clone(shared), endpoint), gate::pass);
    let batch = if shared.batch { post(batch::receive) } else { post(not_found) };
    Router::new()
        .route("/api/v1/sessions/{api_session_id}/usage-records", post(usage).layer(gate(Endpoint::Usage)))
        .route("/api/v1/records/batch", batch.layer(gate(Endpoint::Batch)))
        .route("/api/v1/sessions/{api_session_id}/started", post(started).layer(gate(Endpoint::Started)))
        .route(
            "/api/v1/sessions/{api_session_id}/completed",
            post(completed).layer(gate(Endpoint::Completed)),
        )
        .route("/api/v1/sessions/{api_session_id}/refresh", post(refresh).layer(gate(Endpoint::Refresh)))
        .route("/api/v1/servers/register", post(fleet::register).layer(gate(Endpoint::Register)))
        .route(
            "/api/v1/servers/{server_id}/heartbeat",
            put(fleet::heartbeat).layer(gate(Endpoint::Heartbeat)),
        )
        .route("/api/v1/servers/{server_id}/shutdown", post(fleet::shutdown).layer(gate(Endpoint::Shutdown)))
        .route("/api/v1/servers/{server_id}/commands", get(fleet::commands).layer(gate(Endpoint::Commands)))
        .route(
            "/api/v1/servers/{server_id}/command-results",
            post(fleet::command_result).layer(gate(Endpoint::CommandResults)),
        )
        .route("/api/v1/auth/public-keys", get(fleet::public_keys).layer(gate(Endpoint::PublicKeys)))
        .route("/api/v1/health", get(health).layer(gate(Endpoint::Health)))
        .fallback(not_found.layer(gate(Endpoint::Unknown)))
        // The gate has already read the body, within its own limit.
        .layer(DefaultBodyLimit::disable())
        .with_state(Arc::clone(shared))
}

async fn not_found() -> Response {
    body::error(StatusCode::NOT_FOUND, "no such route")
}

/// The state of a `ControlPlane`.
#[derive(Serialize, ToSchema)]
pub(super) struct Health {
    #[schema(example = "healthy")]
    status: &'static str,
    #[schema(format = DateTime)]
    timestamp: String,
}

/// Reports the `ControlPlane`'s health.
#[utoipa::path(
    get,
    path = "/api/v1/health",
    tag = "service",
    responses((status = 200, description = "It is", body = Success<Health>))
)]
pub(super) async fn health() -> Response {
    body::success(Health { status: "healthy", timestamp: Utc::now().to_rfc3339() })
}

/// A record that was taken.
#[derive(Serialize, ToSchema)]
pub(super) struct Taken {
    /// The record's.
    transaction_id: String,
}

/// The quota granted by a quota refresh.
#[derive(Serialize, ToSchema)]
pub(super) struct QuotaAnswer {
    /// The request's.
    api_session_id: String,
    #[schema(example = 3600)]
    new_quota_amount: u32,
    /// Whether this is the last quota.
    final_quota: bool,
    /// The request's.
    transaction_id: String,
    #[schema(format = DateTime)]
    timestamp: String,
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        body::error(self.status, self.reason)
    }
}

/// A request with one record: the record's session and its body.
type SingleRequest = (State<Arc<Shared>>, Path<String>, HeaderMap, Bytes);

/// Takes a usage record.
#[utoipa::path(
    post,
    path = "/api/v1/sessions/{api_session_id}/usage-records",
    tag = "records",
    params(("api_session_id" = String, Path, description = "Percent-encoded as one segment")),
    request_body = forms::UsageRecord,
    responses(
        (status = 200, description = "Taken", body = Success<Taken>),
        (status = 404, description = "The session is not known (yet)", body = Failure),
        (status = 409, description = "Processed before", body = Failure)
    )
)]
pub(super) async fn usage(request: SingleRequest) -> Response {
    receive_single(Kind::Usage, &request)
}

/// Takes the event that starts a session.
#[utoipa::path(
    post,
    path = "/api/v1/sessions/{api_session_id}/started",
    tag = "records",
    params(("api_session_id" = String, Path, description = "Percent-encoded as one segment")),
    request_body = forms::SessionStarted,
    responses(
        (status = 200, description = "Taken", body = Success<Taken>),
        (status = 404, description = "The session is not known (yet)", body = Failure),
        (status = 409, description = "Processed before", body = Failure)
    )
)]
pub(super) async fn started(request: SingleRequest) -> Response {
    receive_single(Kind::Started, &request)
}

/// Takes the event that completes a session.
#[utoipa::path(
    post,
    path = "/api/v1/sessions/{api_session_id}/completed",
    tag = "records",
    params(("api_session_id" = String, Path, description = "Percent-encoded as one segment")),
    request_body = forms::SessionCompleted,
    responses(
        (status = 200, description = "Taken", body = Success<Taken>),
        (status = 404, description = "The session is not known (yet)", body = Failure),
        (status = 409, description = "Processed before", body = Failure)
    )
)]
pub(super) async fn completed(request: SingleRequest) -> Response {
    receive_single(Kind::Completed, &request)
}

/// Answers a request for more quota.
#[utoipa::path(
    post,
    path = "/api/v1/sessions/{api_session_id}/refresh",
    tag = "records",
    params(("api_session_id" = String, Path, description = "Percent-encoded as one segment")),
    request_body = forms::QuotaRefresh,
    responses(
        (status = 200, description = "Taken", body = Success<QuotaAnswer>),
        (status = 404, description = "The session is not known (yet)", body = Failure),
        (status = 409, description = "Processed before", body = Failure)
    )
)]
pub(super) async fn refresh(request: SingleRequest) -> Response {
    receive_single(Kind::Quota, &request)
}

fn receive_single(kind: Kind, request: &SingleRequest) -> Response {
    let (State(shared), Path(session), headers, body) = request;
    let judged = str::from_utf8(body)
        .map_err(|_| Refusal::new(StatusCode::BAD_REQUEST, "not UTF-8"))
        .and_then(|text| {
            let record = Record::parse(text)?;
            if !record.api_session_id.is_empty() && record.api_session_id != *session {
                let reason = "api_session_id: not the session of the path";
                return Err(Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, reason));
            }
            let weather = shared.weather();
            match own_fate(&weather, &record.transaction_id, session) {
                Some(refusal) => Err(refusal),
                None if shared.dice().throw(weather.refuse_chance) => {
                    Err(chance_refusal(&weather, &record.transaction_id))
                }
                None => Ok((text, record)),
            }
        });
    let (text, record) = match judged {
        Ok(judged) => judged,
        Err(refusal) => {
            shared.accounts().turn_away(kind);
            return refusal.into_response();
        }
    };
    let key = headers.get(IDEMPOTENCY_KEY).and_then(|key| key.to_str().ok()).map_or(Key::NONE, Key::of);
    let step = Step { kind, transaction: &record.transaction_id, sequence: record.sequence() };
    let delivery = Delivery::new(session, key, step, body);
    let receipt = shared.accounts().receive(&delivery);
    shared.recents().push(kind, session, receipt, text);
    match shared.status(receipt) {
        StatusCode::OK if kind == Kind::Quota => body::success(QuotaAnswer {
            api_session_id: session.to_owned(),
            new_quota_amount: QUOTA,
            final_quota: false,
            transaction_id: record.transaction_id.into_owned(),
            timestamp: Utc::now().to_rfc3339(),
        }),
        StatusCode::OK => body::success(Taken { transaction_id: record.transaction_id.into_owned() }),
        status => body::error(status, "processed before"),
    }
}
