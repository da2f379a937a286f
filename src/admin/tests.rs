//! What the tests of this module work on: an outbox of their own, and messages that are no records.

use std::time::{Duration, Instant};

use crate::outbox::{Durability, Entry, Outbox, Rejected, Settings, Threads};
use crate::record::Kind;

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

pub(super) fn rejected(kind: Kind) -> Entry {
    Entry::Rejected(Rejected {
        kind,
        accepted_at: crate::clock::now(),
        raw: (*b"no record").into(),
        detail: "no".into(),
    })
}
