//! How soon settlements are durable.

use std::time::Duration;

use dataplane_agent::outbox::{Outbox, Settlement};

use super::{append, copy, records, runtime, settings, waiting};

#[test]
fn what_was_settled_is_durable_within_a_hundred_milliseconds() {
    let dir = tempfile::tempdir().unwrap();
    let copied = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let (outbox, threads) = Outbox::open(settings(dir.path())).unwrap();
        append(&outbox, records::records(10..40)).await.unwrap();
        for unsettled in waiting(&outbox).await {
            outbox.settle(&unsettled.ticket, Settlement::Delivered);
        }
        // The tick is 50 ms, and a busy machine takes longer.
        tokio::time::sleep(Duration::from_millis(100)).await;
        // What a crash at this moment would leave.
        copy(dir.path(), copied.path());
        super::close(outbox, threads);
        let (outbox, threads) = Outbox::open(settings(copied.path())).unwrap();
        assert_eq!(outbox.stats().total_depth(), 0);
        assert_eq!(outbox.stats().delivered.iter().sum::<u64>(), 30);
        super::close(outbox, threads);
    });
}
