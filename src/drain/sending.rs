//! Sends a parcel: one record to its own endpoint, or a batch.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::batch::BatchBody;
use super::link::Circuit;
use super::queues::{Group, Item, LOGS, LaneKey, Parcel, items, items_mut, place_of, records_in};
use super::{CompletedRequest, DrainLoop, Form};
use crate::control_plane::{Answer, BatchRequest, Client, ConnectionChoice, Delivery, Failure, Opening};
use crate::outbox::Log;
use crate::record::{Kind, Record};

/// Approximate wire bytes of a request's headers.
const HEAD_BYTES: u64 = 400;

impl DrainLoop {
    /// Sends a parcel, in a batch if `batches`; `probes` is the held log that it probes.
    pub(super) fn send(&mut self, mut parcel: Parcel, batches: bool, probes: Option<Log>, now: Instant) {
        for item in items_mut(&mut parcel) {
            item.history.attempts += 1;
            if item.history.attempts == 1 {
                self.routes.begin(item.ticket.log, &mut item.history);
            }
        }
        let Some((_, first)) = first_of(&parcel) else { return };
        // Probes of a link that is down or of a missing route, and confirmations, use a new connection.
        let is_probe =
            self.link.circuit() != Circuit::Closed || probes.is_some_and(|log| self.routes.has_no_route(log));
        let is_new = is_probe || first.history.is_suspect();
        let connection = if is_new { ConnectionChoice::New } else { ConnectionChoice::Any };
        let client = Arc::clone(&self.drain.client);
        // The record's own endpoint shows whether the batch endpoint refuses everything or the record itself is refused.
        let is_doubted = records_in(&parcel) == 1
            && (first.history.is_suspect() || probes.is_some_and(|log| self.routes.may_lack_batches(log)));
        let goes_in_a_batch = batches
            && first.ticket.kind != Kind::Quota
            && self.batching.fits(&first.record)
            && !(is_doubted && self.batching.has_singles());
        if goes_in_a_batch {
            let body = self.batching.body(&parcel);
            let flight = self.link.sent(LOGS.len(), HEAD_BYTES + body.bytes.len() as u64, now);
            self.sending.push(Box::pin(async move {
                let form = Form::Batch { encoding: body.encoding, key: body.key };
                let answer = deliver_batch(&client, &parcel, body, connection).await;
                CompletedRequest { parcel, form, flight: flight.over(answer.opening), probes, answer }
            }));
        } else {
            let bytes = HEAD_BYTES + first.record.body().len() as u64;
            let (kind, route) = (first.ticket.kind, place_of(first.ticket.kind));
            let flight = match kind {
                Kind::Quota => self.link.sent_quota(route, bytes, now),
                _ => self.link.sent(route, bytes, now),
            };
            self.sending.push(Box::pin(async move {
                let answer = match first_of(&parcel) {
                    Some((_, item)) => deliver(&client, &item.record, connection).await,
                    None => nothing_sent(),
                };
                let flight = flight.over(answer.opening);
                CompletedRequest { parcel, form: Form::Single, flight, probes, answer }
            }));
        }
    }
}

/// The first record, and its lane.
pub(super) fn first_of(parcel: &Parcel) -> Option<(LaneKey, &Item)> {
    let group = parcel.first()?;
    Some((group.lane, group.items.first()?))
}

/// The result if no request was sent.
fn nothing_sent() -> Answer {
    Answer {
        result: Err(Failure::Unsendable("it has no record")),
        elapsed: Duration::ZERO,
        upload: Duration::ZERO,
        opening: Opening::default(),
        wire_bytes: 0,
    }
}

async fn deliver(client: &Client, record: &Record, connection: ConnectionChoice) -> Answer {
    client
        .deliver(Delivery {
            kind: record.kind(),
            session_id: record.session(),
            transaction_id: record.transaction(),
            body: Bytes::copy_from_slice(record.body()),
            key: record.key(),
            correlation_id: &record.correlation_id(),
            traceparent: record.traceparent(),
            connection,
        })
        .await
}

async fn deliver_batch(
    client: &Client,
    parcel: &[Group],
    body: BatchBody,
    connection: ConnectionChoice,
) -> Answer {
    let BatchBody { bytes, encoding, key, records } = body;
    let mut buffer = uuid::Uuid::encode_buffer();
    let correlation_id: &str = key.hyphenated().encode_lower(&mut buffer);
    if tracing::enabled!(tracing::Level::DEBUG) {
        for item in items(parcel) {
            // A batch has one ID: this line links it to the record's own ID.
            tracing::debug!(
                correlation_id = &*item.record.correlation_id(),
                batch = correlation_id,
                "a record is sent in a batch"
            );
        }
    }
    client
        .deliver_batch(BatchRequest { body: bytes, encoding, records, key, correlation_id, connection })
        .await
}
