//! The outbox from outside: real processes, real file systems, real faults.
//!
//! The default run plays a few rounds of some tests; `OUTBOX_TESTS=all` (`make test-outbox`) plays all of them.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod child;
mod command_line;
mod failed_sync;
mod full_disk;
mod golden;
mod kill;
mod liveness;
mod mount;
mod power_cut;
mod records;
mod salvage;
mod settle;
mod transfer;

use std::path::Path;
use std::time::Duration;

use dataplane_agent::outbox::{
    DeadLetter, Durability, Entry, Log, Outbox, Payload, ReadError, Reason, Settings, Threads, Unsettled,
};
use dataplane_agent::record::Timestamp;

/// Long tests run in full only on request.
fn at_length<T>(usual: T, full: T) -> T {
    if std::env::var_os("OUTBOX_TESTS").is_some() { full } else { usual }
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

/// Closes it and waits until the folder is unlocked.
fn close(outbox: Outbox, threads: Threads) {
    drop(outbox);
    assert!(threads.join(), "a thread of the outbox panicked");
}

/// Appends, and waits until it is durable.
async fn append(outbox: &Outbox, entries: Vec<Entry>) -> Result<u64, dataplane_agent::outbox::AppendError> {
    outbox.append(entries, None).await?.await.unwrap()
}

/// All waiting records of the usage log.
async fn waiting(outbox: &Outbox) -> Vec<Unsettled> {
    try_waiting(outbox).await.unwrap()
}

async fn try_waiting(outbox: &Outbox) -> Result<Vec<Unsettled>, ReadError> {
    let (mut all, mut from, end) = (Vec::new(), 0, *outbox.last().borrow() + 1);
    while from < end {
        match outbox.read(Log::Usage, from, end, 500).await {
            Ok(page) => {
                all.extend(page.records);
                from = page.next;
            }
            Err(ReadError::Damaged(_)) => tokio::time::sleep(Duration::from_millis(20)).await,
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}

/// Copies a folder, for changes that must not affect the original.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// A dead letter of a record.
fn letter(unsettled: &Unsettled) -> DeadLetter {
    let Entry::Record(record) = &unsettled.entry else { panic!("no record") };
    DeadLetter {
        id: 0,
        reason: Reason::Refused,
        detail: "status 400: no".into(),
        attempts: 2,
        first_at: unsettled.ticket.accepted_at,
        // Never too old to be kept.
        last_at: Timestamp(4_000_000_000_000_000),
        payload: Payload::Record(record.clone()),
    }
}
