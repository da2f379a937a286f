//! The outbox's threads report progress even while the medium refuses every write: a restart must not happen if it cannot
//! help.

use std::time::Duration;

use dataplane_agent::outbox::{AppendError, Outbox};

use super::mount::Mount;
use super::{append, close, records, runtime, settings};

const DEADLINE: Duration = Duration::from_secs(60);

#[test]
fn threads_that_try_in_vain_to_write_still_take_turns() {
    let Some(mount) = Mount::new(64) else { return };
    let settings = settings(&mount.path().join("outbox"));
    runtime().block_on(async {
        let (outbox, threads) = Outbox::open(settings).unwrap();
        append(&outbox, records::records(0..20)).await.unwrap();
        // From here on every write fails.
        mount.cut_power();
        let refusal = append(&outbox, records::records(20..40)).await.unwrap_err();
        assert!(matches!(refusal, AppendError::Storage(_)), "{refusal}");
        // Appends arriving meanwhile, more than fit in the writer's queue, are refused at once: nobody waits for a medium
        // that never recovers.
        let appends = (2..42).map(|n| {
            let outbox = outbox.clone();
            tokio::spawn(async move { append(&outbox, records::records(n * 20..n * 20 + 20)).await })
        });
        for refused in appends.collect::<Vec<_>>() {
            let refusal = tokio::time::timeout(DEADLINE, refused).await.unwrap().unwrap().unwrap_err();
            assert!(matches!(refusal, AppendError::Storage(_)), "{refusal}");
        }
        for _ in 0..5 {
            assert!(tokio::time::timeout(DEADLINE, outbox.liveness()).await.is_ok(), "a thread hangs");
        }
        assert_eq!(outbox.stats().paused, Some("storage"));
        close(outbox, threads);
    });
}
