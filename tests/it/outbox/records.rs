//! Records derived from their number: a reader can tell whether one is as created.

use dataplane_agent::outbox::{Entry, Unsettled};
use dataplane_agent::record::{Acceptor, Enrichment, Queue, Record, Timestamp, UnknownFields};

/// From 100 bytes to 200 KB.
fn size_of(n: u64) -> usize {
    match n % 100 {
        0 => 200_000,
        1..=5 => 20_000,
        6..=20 => 3_000,
        _ => 50,
    }
}

fn message(n: u64) -> String {
    let mut state = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut noise = String::with_capacity(size_of(n));
    while noise.len() < size_of(n) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        noise.push(char::from(b'a' + (state % 26) as u8));
    }
    format!(
        r#"{{"transaction_id":"t-{n}","api_session_id":"s-{}","customer_id":"c","x":"{noise}","connection_duration_seconds":1.5,"data_bytes_processed":7,"audio_duration_seconds":1,"request_timestamp":"2025-01-01T00:00:00Z","response_timestamp":"2025-01-01T00:00:01Z"}}"#,
        n % 13
    )
}

/// Usage record number `n`.
pub(super) fn record(n: u64) -> Entry {
    let enrichment = Enrichment { server_id: "a".into(), region: "b".into(), version: "c".into() };
    let acceptor = Acceptor::new(&enrichment, UnknownFields::Forward, 1 << 20);
    let at = Timestamp(1_750_000_000_000_000 + n as i64);
    Entry::Record(acceptor.at(at).accept(Queue::Usage, message(n).as_bytes()).unwrap())
}

pub(super) fn records(numbers: std::ops::Range<u64>) -> Vec<Entry> {
    numbers.map(record).collect()
}

/// Its number. Panics unless every byte is as created.
pub(super) fn number(unsettled: &Unsettled) -> u64 {
    let Entry::Record(found) = &unsettled.entry else { panic!("no record: {:?}", unsettled.entry) };
    number_of(found)
}

/// The same for a record.
pub(super) fn number_of(found: &Record) -> u64 {
    let n = found.transaction().strip_prefix("t-").unwrap().parse().unwrap();
    assert!(matches!(record(n), Entry::Record(made) if made == *found), "record {n} is mangled");
    n
}
