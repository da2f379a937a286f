//! The `ControlPlane`'s API for records: usage, alone and in batches, session events, quota refreshes.

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
use serde_json::{json, value::RawValue};

use super::{
    Shared,
    accounts::{Delivery, Key, Kind, Mode, Receipt},
    body,
    delivery::{Record, Refusal, parse_batch},
    fleet, gate,
    order::Step,
    recent,
    traffic::Endpoint,
    weather::Weather,
};

pub(super) const API_KEY: &str = "x-api-key";
pub(super) const CORRELATION_ID: &str = "x-correlation-id";
pub(super) const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// What a quota refresh grants.
const QUOTA: u32 = 3600;

/// The whole API, every route behind the weather.
pub(super) fn router(shared: &Arc<Shared>) -> Router {
    let gate = |endpoint| from_fn_with_state((Arc::clone(shared), endpoint), gate::pass);
    let single = |kind: Kind, endpoint| {
        let handler =
            move |State(shared): State<Arc<Shared>>,
                  Path(session): Path<String>,
                  headers: HeaderMap,
                  body: Bytes| async move { receive_single(&shared, kind, &session, &headers, &body) };
        post(handler).layer(gate(endpoint))
    };
    let batch = if shared.batch { post(receive_batch) } else { post(not_found) };
    Router::new()
        .route("/api/v1/sessions/{id}/usage-records", single(Kind::Usage, Endpoint::Usage))
        .route("/api/v1/usage-records/batch", batch.layer(gate(Endpoint::Batch)))
        .route("/api/v1/sessions/{id}/started", single(Kind::Started, Endpoint::Started))
        .route("/api/v1/sessions/{id}/completed", single(Kind::Completed, Endpoint::Completed))
        .route("/api/v1/sessions/{id}/refresh", single(Kind::Quota, Endpoint::Refresh))
        .route("/api/v1/servers/register", post(fleet::register).layer(gate(Endpoint::Register)))
        .route("/api/v1/servers/{id}/heartbeat", put(fleet::heartbeat).layer(gate(Endpoint::Heartbeat)))
        .route("/api/v1/servers/{id}/shutdown", post(fleet::shutdown).layer(gate(Endpoint::Shutdown)))
        .route("/api/v1/servers/{id}/commands", get(fleet::commands).layer(gate(Endpoint::Commands)))
        .route(
            "/api/v1/servers/{id}/command-results",
            post(fleet::command_result).layer(gate(Endpoint::CommandResults)),
        )
        .route("/api/v1/auth/public-keys", get(fleet::public_keys).layer(gate(Endpoint::PublicKeys)))
        .route("/api/v1/health", get(health).layer(gate(Endpoint::Health)))
        .fallback(not_found.layer(gate(Endpoint::Unknown)))
        // The gate has read the body already, within its own limit.
        .layer(DefaultBodyLimit::disable())
        .with_state(Arc::clone(shared))
}

async fn not_found() -> Response {
    body::error(StatusCode::NOT_FOUND, "no such route")
}

async fn health() -> Response {
    body::success(json!({"status": "healthy", "timestamp": Utc::now().to_rfc3339()}))
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        body::error(self.status, self.reason)
    }
}

fn receive_single(shared: &Shared, kind: Kind, session: &str, headers: &HeaderMap, body: &[u8]) -> Response {
    let judged = str::from_utf8(body)
        .map_err(|_| Refusal::new(StatusCode::BAD_REQUEST, "not UTF-8"))
        .and_then(|text| {
            let record = Record::parse(text)?;
            if !record.api_session_id.is_empty() && record.api_session_id != session {
                let reason = "api_session_id: not the session of the path";
                return Err(Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, reason));
            }
            match own_fate(&shared.weather(), &record.transaction_id, session) {
                Some(refusal) => Err(refusal),
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
    let delivery = Delivery::new(Mode::Single, session, key, step, body);
    let receipt = shared.accounts().receive(&delivery);
    shared.recents().push(kind, session, receipt, text);
    match shared.status(receipt) {
        StatusCode::OK if kind == Kind::Quota => body::success(json!({
            "api_session_id": session,
            "new_quota_amount": QUOTA,
            "final_quota": false,
            "transaction_id": record.transaction_id,
            "timestamp": Utc::now().to_rfc3339(),
        })),
        StatusCode::OK => body::success(json!({"transaction_id": record.transaction_id})),
        status => body::error(status, "processed before"),
    }
}

/// What the weather has in store for this one record.
fn own_fate(weather: &Weather, transaction: &str, session: &str) -> Option<Refusal> {
    let begins = |prefixes: &[String], id: &str| prefixes.iter().any(|prefix| id.starts_with(prefix));
    if begins(&weather.unknown_sessions, session) {
        Some(Refusal::new(StatusCode::NOT_FOUND, "the session is not known"))
    } else if begins(&weather.refuse_transactions, transaction) {
        Some(Refusal::new(weather.refusal(transaction), "the record is refused"))
    } else if begins(&weather.poison_transactions, transaction) {
        Some(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "the record broke something"))
    } else {
        None
    }
}

/// The answer to one record of a batch.
#[derive(Serialize)]
struct BatchResult<'a> {
    transaction_id: Option<&'a str>,
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

async fn receive_batch(State(shared): State<Arc<Shared>>, body: Bytes) -> Response {
    let Ok(text) = str::from_utf8(&body) else {
        return Refusal::new(StatusCode::BAD_REQUEST, "not UTF-8").into_response();
    };
    let bodies = match parse_batch(text) {
        Ok(bodies) => bodies,
        Err(refusal) => return refusal.into_response(),
    };
    let records: Vec<_> = bodies.iter().map(|body| Record::parse(body.get())).collect();
    let without_key = records.iter().flatten().filter(|record| record.idempotency_key.is_empty()).count();
    shared.traffic().batch(records.len(), without_key);

    if let Some(refusal) = whole_fate(&shared, &records) {
        return refusal.into_response();
    }
    let deliveries = judge_batch(&shared, &bodies, &records);
    let receipts = enter_batch(&shared, &bodies, &deliveries);
    let results = records.iter().zip(&deliveries).zip(receipts).map(|((record, delivery), receipt)| {
        let transaction_id = record.as_ref().ok().map(|record| &*record.transaction_id);
        match delivery {
            Err(refusal) => {
                BatchResult { transaction_id, status: refusal.status.as_u16(), error: Some(&refusal.reason) }
            }
            Ok(_) => {
                let status = receipt.map_or(StatusCode::OK, |receipt| shared.status(receipt)).as_u16();
                BatchResult { transaction_id, status, error: None }
            }
        }
    });
    body::success(json_results(results.collect()))
}

fn json_results(results: Vec<BatchResult<'_>>) -> impl Serialize {
    #[derive(Serialize)]
    struct Results<'a> {
        results: Vec<BatchResult<'a>>,
    }
    Results { results }
}

/// What the weather has in store for a batch as a whole, because of one record in it.
fn whole_fate(shared: &Shared, records: &[Result<Record<'_>, Refusal>]) -> Option<Refusal> {
    let weather = shared.weather();
    let is_refused = |record: &&Record<'_>| {
        weather.refuse_transactions.iter().any(|prefix| record.transaction_id.starts_with(&**prefix))
    };
    let refused = records.iter().flatten().find(is_refused)?;
    let refusal =
        || Refusal::new(weather.refusal(&refused.transaction_id), "a record of the batch is refused");
    shared.dice().throw(weather.refuse_batch).then(refusal)
}

/// Says of each record whether it will be processed, and hashes it.
fn judge_batch<'a>(
    shared: &Shared,
    bodies: &[&RawValue],
    records: &'a [Result<Record<'_>, Refusal>],
) -> Vec<Result<Delivery<'a>, Refusal>> {
    let weather = shared.weather();
    let judge = |(record, body): (&'a Result<Record<'_>, Refusal>, &&RawValue)| {
        let record = record.as_ref().map_err(Clone::clone)?;
        if record.api_session_id.is_empty() {
            return Err(Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, "api_session_id: missing or empty"));
        }
        if let Some(refusal) = own_fate(&weather, &record.transaction_id, &record.api_session_id) {
            return Err(refusal);
        }
        if f64::from(weather.partial_batch) > 0.0
            && let Some(status) = shared.dice().partial(&weather)
        {
            return Err(Refusal::new(status.code(), "the weather"));
        }
        let key =
            if record.idempotency_key.is_empty() { Key::NONE } else { Key::of(&record.idempotency_key) };
        let step =
            Step { kind: Kind::Usage, transaction: &record.transaction_id, sequence: record.sequence() };
        Ok(Delivery::new(Mode::Batch, &record.api_session_id, key, step, body.get().as_bytes()))
    };
    records.iter().zip(bodies).map(judge).collect()
}

/// Enters the records that will be processed, in order, under one lock.
fn enter_batch(
    shared: &Shared,
    bodies: &[&RawValue],
    deliveries: &[Result<Delivery<'_>, Refusal>],
) -> Vec<Option<Receipt>> {
    let mut accounts = shared.accounts();
    let enter = |delivery: &Result<Delivery<'_>, Refusal>| match delivery {
        Ok(delivery) => Some(accounts.receive(delivery)),
        Err(_) => {
            accounts.turn_away(Kind::Usage);
            None
        }
    };
    let receipts: Vec<_> = deliveries.iter().map(enter).collect();
    drop(accounts);
    let mut recents = shared.recents();
    for index in deliveries.len().saturating_sub(recent::CAPACITY)..deliveries.len() {
        if let (Ok(delivery), Some(receipt)) = (&deliveries[index], receipts[index]) {
            recents.push(Kind::Usage, delivery.session, receipt, bodies[index].get());
        }
    }
    receipts
}
