//! Batches: many records in one request, each session's in its order.
//!
//! The promise: if a record of a session is not taken, no later record of that session in the request is taken; each is
//! answered 424. A refused record does not stop its session. `break_batch_order` breaks the promise.

use std::{collections::HashSet, str, sync::Arc};

use axum::{
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::{
    Shared,
    accounts::{Delivery, Key, Receipt},
    body::{self, Failure, Success},
    chance::Probability,
    delivery::{self, Enclosed, Record, Refusal, parse_batch},
    forms,
    headers::IDEMPOTENCY_KEY,
    kind::Kind,
    order::Step,
    recent,
    weather::Weather,
};

/// A record of a batch as read.
struct BatchEntry<'a> {
    session: &'a str,
    body: &'a RawValue,
    kind: Option<Kind>,
    read: Result<(Kind, Key, Record<'a>), Refusal>,
}

impl<'a> BatchEntry<'a> {
    fn read(session: &'a str, enclosed: &Enclosed<'a>) -> Self {
        let kind = Kind::in_batch(&enclosed.kind);
        let read = kind
            .ok_or_else(|| unprocessable(format!("kind: {} is in no batch", enclosed.kind)))
            .and_then(|kind| {
                let record = Record::parse(enclosed.body.get())?;
                if session.is_empty() {
                    return Err(unprocessable("api_session_id: missing or empty"));
                }
                if !record.api_session_id.is_empty() && record.api_session_id != session {
                    return Err(unprocessable("api_session_id: not the session that it stands in"));
                }
                Ok((kind, Key::of_record(kind, &record.transaction_id), record))
            });
        Self { session, body: enclosed.body, kind, read }
    }

    fn key(&self) -> Option<Key> {
        self.read.as_ref().ok().map(|&(_, key, _)| key)
    }
}

fn unprocessable(reason: impl Into<std::borrow::Cow<'static, str>>) -> Refusal {
    Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, reason)
}

/// The answer to a batch.
#[derive(Serialize, ToSchema)]
#[schema(as = BatchOutcome)]
pub(super) struct Outcome {
    /// The request's `Idempotency-Key`.
    batch: String,
    /// How many records were in it.
    count: usize,
    /// The records that were not taken now; every other record was taken.
    exceptions: Vec<Exception>,
}

/// A record that was not taken now, by its position in the request.
#[derive(Serialize, ToSchema)]
#[schema(as = BatchException)]
pub(super) struct Exception {
    /// Counted across the request, from 0.
    index: usize,
    /// The status that the record would get alone: 409, 422, 503; or 424: an earlier record of its session was not taken.
    #[schema(minimum = 300, maximum = 599)]
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    error: Option<String>,
}

/// Takes many records, each session's in order.
///
/// If a record of a session is not taken, no later record of that session in the request is taken: each has the status 424. A
/// refused record (400, 413, 414, 422) does not stop its session.
#[utoipa::path(
    post,
    path = "/api/v1/records/batch",
    operation_id = "batch",
    tag = "records",
    request_body(content = forms::Batch, description = "From 1 KiB on with `Content-Encoding: zstd` or `gzip`"),
    responses(
        (status = 200, description = "What was taken, and what was not", body = Success<Outcome>),
        (status = 404, description = "There are no batches here: records come one by one", body = Failure)
    )
)]
pub(super) async fn receive(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> Response {
    let Ok(text) = str::from_utf8(&body) else {
        return Refusal::new(StatusCode::BAD_REQUEST, "not UTF-8").into_response();
    };
    let groups = match parse_batch(text) {
        Ok(groups) => groups,
        Err(refusal) => return refusal.into_response(),
    };
    let entries: Vec<BatchEntry<'_>> = groups
        .iter()
        .flat_map(|group| group.records.iter().map(|record| BatchEntry::read(&group.api_session_id, record)))
        .collect();
    shared.traffic().batch(entries.len());
    let weather = shared.weather();
    let batch = check_key(&shared, &headers, &entries);
    let as_a_whole = shared.dice().throw(weather.refuse_batch);
    if as_a_whole && let Some(refusal) = whole_fate(&shared, &weather, &entries) {
        return refusal.into_response();
    }
    let refuse_chance = if as_a_whole { Probability::default() } else { weather.refuse_chance };
    let judged = judge(&shared, &weather, refuse_chance, &entries);
    let receipts = enter(&shared, &entries, &judged);
    let exceptions = judged.into_iter().zip(receipts).enumerate();
    let exceptions = exceptions.filter_map(|(index, (judged, receipt))| {
        let (status, error) = match (judged, receipt) {
            (Ok(_), None) => return None,
            (Ok(_), Some(receipt)) => (shared.status(receipt), None),
            (Err(refusal), _) => (refusal.status, Some(refusal.reason.into_owned())),
        };
        (status != StatusCode::OK).then(|| Exception { index, status: status.as_u16(), error })
    });
    let mut outcome = Outcome { batch, count: entries.len(), exceptions: exceptions.collect() };
    make_foreign(&shared, &weather, &mut outcome);
    body::success(outcome)
}

/// Checks the batch's key. Returns it as received, or the expected key if there is none.
fn check_key(shared: &Shared, headers: &HeaderMap, entries: &[BatchEntry<'_>]) -> String {
    let expected = Key::of_batch(entries.iter().filter_map(BatchEntry::key));
    let Some(came) = headers.get(IDEMPOTENCY_KEY).and_then(|key| key.to_str().ok()) else {
        return expected.text().unwrap_or_default();
    };
    // The expected key is unknown if a record cannot be read.
    if Key::of(came) != expected && entries.iter().all(|entry| entry.read.is_ok()) {
        shared.accounts().wrong_batch_key(came, expected);
    }
    came.to_owned()
}

/// Why a batch is refused as a whole: because of a record in it, or at random.
fn whole_fate(shared: &Shared, weather: &Weather, entries: &[BatchEntry<'_>]) -> Option<Refusal> {
    let transactions = || {
        entries
            .iter()
            .filter_map(|entry| entry.read.as_ref().ok())
            .map(|(_, _, record)| &*record.transaction_id)
    };
    let is_refused = |id: &&str| weather.refuse_transactions.iter().any(|prefix| id.starts_with(&**prefix));
    if let Some(refused) = transactions().find(is_refused) {
        return Some(Refusal::new(weather.refusal(refused), "a record of the batch is refused"));
    }
    let refused = shared.dice().throw(weather.refuse_chance);
    refused.then(|| delivery::chance_refusal(weather, transactions().next().unwrap_or_default()))
}

/// Decides for each record whether it will be processed, keeping the promise, and hashes it.
fn judge<'a>(
    shared: &Shared,
    weather: &Weather,
    refuse_chance: Probability,
    entries: &'a [BatchEntry<'_>],
) -> Vec<Result<Delivery<'a>, Refusal>> {
    let mut dice = shared.dice();
    let mut stopped = HashSet::new();
    let judge = |entry: &'a BatchEntry<'_>| {
        if stopped.contains(entry.session) {
            return Err(Refusal::new(
                StatusCode::FAILED_DEPENDENCY,
                "an earlier record of its session failed",
            ));
        }
        let fate = entry.read.as_ref().map_err(Clone::clone).and_then(|(kind, key, record)| {
            if let Some(refusal) = delivery::own_fate(weather, &record.transaction_id, entry.session) {
                Err(refusal)
            } else if dice.throw(refuse_chance) {
                Err(delivery::chance_refusal(weather, &record.transaction_id))
            } else if let Some(status) = dice.partial(weather) {
                Err(Refusal::new(status.code(), "the weather"))
            } else {
                let step =
                    Step { kind: *kind, transaction: &record.transaction_id, sequence: record.sequence() };
                Ok(Delivery::new(entry.session, *key, step, entry.body.get().as_bytes()))
            }
        });
        if let Err(refusal) = &fate
            && !is_refused(refusal.status)
            && !dice.throw(weather.break_batch_order)
        {
            stopped.insert(entry.session);
        }
        fate
    };
    entries.iter().map(judge).collect()
}

/// Whether the record itself is at fault: then later records need not wait for it.
fn is_refused(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::BAD_REQUEST
            | StatusCode::PAYLOAD_TOO_LARGE
            | StatusCode::URI_TOO_LONG
            | StatusCode::UNPROCESSABLE_ENTITY
    )
}

/// Enters the records to be processed, in order, under one lock.
fn enter(
    shared: &Shared,
    entries: &[BatchEntry<'_>],
    judged: &[Result<Delivery<'_>, Refusal>],
) -> Vec<Option<Receipt>> {
    let mut accounts = shared.accounts();
    let receipts: Vec<_> = entries
        .iter()
        .zip(judged)
        .map(|(entry, judged)| match judged {
            Ok(delivery) => Some(accounts.receive(delivery)),
            Err(_) => {
                entry.kind.into_iter().for_each(|kind| accounts.turn_away(kind));
                None
            }
        })
        .collect();
    drop(accounts);
    let mut recents = shared.recents();
    let newest = entries.len().saturating_sub(recent::CAPACITY);
    for ((entry, judged), receipt) in entries.iter().zip(judged).zip(&receipts).skip(newest) {
        if let (Ok(delivery), Some(receipt)) = (judged, receipt) {
            recents.push(delivery.step.kind, entry.session, *receipt, entry.body.get());
        }
    }
    receipts
}

/// Turns the answer into one to another batch, if the weather says so.
fn make_foreign(shared: &Shared, weather: &Weather, outcome: &mut Outcome) {
    let mut dice = shared.dice();
    if !dice.throw(weather.foreign_batch) {
        return;
    }
    if dice.throw(Probability::EVEN) {
        outcome.count += 1;
    } else {
        outcome.batch = Key::of_batch([Key::of(&outcome.batch)].into_iter()).text().unwrap_or_default();
    }
}
