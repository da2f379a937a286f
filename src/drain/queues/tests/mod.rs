//! Order, fairness and memory, with records as the outbox reads them. Each file is one behaviour; [`model`] checks random
//! sequences against a plain log.

mod batches;
mod boundaries;
mod expiry;
mod held;
mod model;
mod order;
mod priority;
mod probes;
mod refill;
mod room;
mod walk;

use std::time::Duration;

use super::memory::MemoryLimits;
use super::*;
use crate::outbox::{Log, Ticket};
use crate::record::{Acceptor, Enrichment, Queue, Record, Timestamp, UnknownFields};

/// A record that a producer could have pushed.
fn record(kind: Kind, session: &str, transaction: &str, accepted_at: i64) -> Record {
    let ids = format!(r#""transaction_id":"{transaction}","api_session_id":"{session}","customer_id":"c""#);
    let (queue, rest) = match kind {
        Kind::Usage => (
            Queue::Usage,
            r#""connection_duration_seconds":1,"data_bytes_processed":1,"audio_duration_seconds":1,
               "request_timestamp":0,"response_timestamp":0"#,
        ),
        Kind::Started => (Queue::Lifecycle, r#""event_type":"session_started""#),
        Kind::Completed => (Queue::Lifecycle, r#""event_type":"session_completed""#),
        _ => (Queue::Quota, r#""product_code":"speech_transcription""#),
    };
    let enrichment = Enrichment { server_id: "edge-1".into(), region: "eu".into(), version: "1".into() };
    Acceptor::new(&enrichment, UnknownFields::Forward, 1 << 18)
        .at(Timestamp(accepted_at))
        .accept(queue, format!("{{{ids},{rest}}}").as_bytes())
        .unwrap()
}

fn load(lanes: &mut Lanes, kind: Kind, session: &str, seq: u64) {
    lanes.load(Unsettled::new(seq, record(kind, session, &format!("{session}-{seq}"), seq as i64)));
}

fn lanes(records: &[(Kind, &str, u64)]) -> Lanes {
    let mut lanes = Lanes::new(FEW);
    for &(kind, session, seq) in records {
        load(&mut lanes, kind, session, seq);
    }
    lanes
}

/// The only record of a parcel.
fn only(parcel: Parcel) -> (LaneKey, Item) {
    let mut items: Vec<_> = items_of(parcel).collect();
    assert_eq!(items.len(), 1);
    items.remove(0)
}

fn items_of(parcel: Parcel) -> impl Iterator<Item = (LaneKey, Item)> {
    parcel.into_iter().flat_map(|group| group.items.into_iter().map(move |item| (group.lane, item)))
}

/// The next record, sent alone.
fn pick(lanes: &mut Lanes) -> Option<(LaneKey, Item)> {
    lanes.pick(None).map(only)
}

/// Sends the next record, and returns its number.
fn send(lanes: &mut Lanes) -> Option<u64> {
    let (key, item) = pick(lanes)?;
    lanes.settle(key, &item);
    Some(item.ticket.seq)
}

fn send_all(lanes: &mut Lanes) -> Vec<u64> {
    std::iter::from_fn(|| send(lanes)).collect()
}

/// Few, so that short runs cut lanes off and evict them.
const FEW: QueueSettings =
    QueueSettings { records: 12, bytes: 1 << 20, session_records: LANE_MOST, held_lanes: 2 };
const LANE_MOST: usize = 8;
const SMALL: MemoryLimits = MemoryLimits { records: 16, bytes: 1 << 20 };

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(1)
}

/// Limits larger than anyone would set.
const LIMITS: BatchLimits =
    BatchLimits { records: 1000, bytes: 1 << 20, of_a_session: None, of_one_kind: false, pipes: 1 };

/// The numbers in a batch, by session.
fn batch_of(lanes: &mut Lanes, limits: BatchLimits) -> (Parcel, Vec<Vec<u64>>) {
    let parcel = lanes.pick(Some(limits)).unwrap_or_default();
    let numbers =
        parcel.iter().map(|group| group.items.iter().map(|item| item.ticket.seq).collect()).collect();
    (parcel, numbers)
}

/// Returns the head of every lane as refused once.
fn refuse_heads(lanes: &mut Lanes, now: Instant) {
    for (key, mut item) in std::iter::from_fn(|| pick(lanes)).collect::<Vec<_>>() {
        item.history.refusals = 1;
        lanes.put_back(key, item, now);
    }
    lanes.wake(now);
}
