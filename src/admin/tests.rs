//! Fixtures for this module's tests: an outbox and its contents.

use std::time::{Duration, Instant};

use crate::outbox::{Durability, Entry, Outbox, Rejected, Settings, Threads};
use crate::record::{Acceptor, Enrichment, Kind, Queue, UnknownFields};

pub(super) fn open(dir: &std::path::Path) -> (Outbox, Threads) {
    Outbox::open(Settings {
        dir: dir.to_path_buf(),
        max_bytes: 1 << 30,
        min_free_bytes: 0,
        segment_bytes: 1 << 20,
        durability: Durability::Process,
        dead_letter_retention: Duration::from_hours(24),
        commit_seconds: prometheus::Histogram::with_opts(prometheus::HistogramOpts::new("c", "c")).unwrap(),
    })
    .unwrap()
}

pub(super) async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_mins(1), "never came true: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A message that is not a valid record.
pub(super) fn rejected(kind: Kind) -> Entry {
    Entry::Rejected(Rejected {
        kind,
        accepted_at: crate::time::now(),
        raw: (*b"no record").into(),
        detail: "no".into(),
    })
}

/// A record.
pub(super) fn started(n: u64) -> Entry {
    let enrichment = Enrichment { server_id: "a".into(), region: "b".into(), version: "c".into() };
    let message = format!(
        r#"{{"transaction_id":"t-{n}","api_session_id":"s","customer_id":"c","event_type":"session_started","timestamp":"2026-01-31T10:00:00Z"}}"#
    );
    let acceptor = Acceptor::new(&enrichment, UnknownFields::Forward, 1 << 20);
    let at = crate::time::now();
    Entry::Record(acceptor.at(at).accept(Queue::Lifecycle, message.as_bytes()).unwrap())
}
