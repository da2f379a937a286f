//! How soon what was settled is durable.

use std::time::Duration;

use dataplane_agent::outbox::{Outbox, Settlement};

use super::{append, records, runtime, settings, waiting};

/// A copy of a folder is what a crash at this moment would leave, give or take what is being written.
fn copy(from: &std::path::Path, to: &std::path::Path) {
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

#[test]
fn what_was_settled_is_durable_within_a_hundred_milliseconds() {
    let dir = tempfile::tempdir().unwrap();
    let copied = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let (outbox, threads) = Outbox::open(settings(dir.path())).unwrap();
        append(&outbox, records::records(10..40)).await.unwrap();
        for leased in waiting(&outbox).await {
            outbox.settle(&leased.ticket, Settlement::Delivered);
        }
        // The tick is 50 ms, and a machine that is busy takes its time.
        tokio::time::sleep(Duration::from_millis(100)).await;
        copy(dir.path(), copied.path());
        super::close(outbox, threads);
        let (outbox, threads) = Outbox::open(settings(copied.path())).unwrap();
        assert_eq!(outbox.stats().total_depth(), 0);
        assert_eq!(outbox.stats().delivered.iter().sum::<u64>(), 30);
        super::close(outbox, threads);
    });
}
