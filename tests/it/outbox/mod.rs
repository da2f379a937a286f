//! The outbox from outside: real processes, real file systems, real faults.
//!
//! The usual run makes a few rounds of each; `OUTBOX_ROUNDS=20` (power cuts) or `=100` (kills) makes more.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod child;
mod full_disk;
mod kill;
mod mount;
mod power_cut;
mod records;
mod settle;

use std::path::Path;
use std::time::Duration;

use dataplane_agent::outbox::{Durability, Entry, Leased, Log, Outbox, ReadError, Settings, Threads};

/// How many rounds to make: `usual`, unless `OUTBOX_ROUNDS` says otherwise.
fn rounds(usual: u32) -> u32 {
    std::env::var("OUTBOX_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(usual)
}

fn settings(dir: &Path) -> Settings {
    Settings {
        dir: dir.to_path_buf(),
        max_bytes: 1 << 30,
        min_free_bytes: 0,
        segment_bytes: 4 << 20,
        durability: Durability::Fsync,
        dead_letter_retention: Duration::from_hours(24),
        commit_seconds: prometheus::Histogram::with_opts(prometheus::HistogramOpts::new("c", "c")).unwrap(),
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Closes it and waits until the folder is free.
fn close(outbox: Outbox, threads: Threads) {
    drop(outbox);
    assert!(threads.join(), "a thread of the outbox panicked");
}

/// Appends, and waits until it is durable.
async fn append(outbox: &Outbox, entries: Vec<Entry>) -> Result<u64, dataplane_agent::outbox::AppendError> {
    outbox.append(entries, None).await?.await.unwrap()
}

/// All that waits in the usage log.
async fn waiting(outbox: &Outbox) -> Vec<Leased> {
    let (mut all, mut from, end) = (Vec::new(), 0, *outbox.last().borrow() + 1);
    while from < end {
        match outbox.lease(Log::Usage, from, end, 500).await {
            Ok(lease) => {
                all.extend(lease.records);
                from = lease.next;
            }
            Err(ReadError::Aside(_)) => tokio::time::sleep(Duration::from_millis(20)).await,
            Err(error) => panic!("{error}"),
        }
    }
    all
}
