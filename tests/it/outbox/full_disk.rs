//! A disk that is filled completely, drained, and filled again.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use dataplane_agent::outbox::{AppendError, Log, Outbox, Settings, Settlement};

use super::mount::{Mount, fill};
use super::{append, at_length, close, records, runtime, settings};

const RECOVERS_WITHIN: Duration = Duration::from_secs(20);

/// Reads and settles in small steps, patiently, as the drain does.
async fn drain(outbox: &Outbox) -> BTreeSet<u64> {
    let (mut found, mut from, end) = (BTreeSet::new(), 0, *outbox.last().borrow() + 1);
    let begun = Instant::now();
    while from < end {
        match outbox.read(Log::Usage, from, end, 500).await {
            Ok(page) => {
                for unsettled in page.records {
                    assert!(found.insert(records::number(&unsettled)), "a record is there twice");
                    outbox.settle(&unsettled.ticket, Settlement::Delivered);
                }
                from = page.next;
            }
            Err(error) => {
                assert!(begun.elapsed() < RECOVERS_WITHIN, "{error}");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
    found
}

#[test]
fn a_disk_filled_to_the_brim_loses_nothing_and_recovers_by_itself() {
    let (mib, rounds) = at_length((64, 2), (200, 5));
    let Some(mount) = Mount::new(mib) else { return };
    let dir = mount.path().join("outbox");
    let settings = || Settings { segment_bytes: 2 << 20, ..settings(&dir) };
    let mut next = 0;
    runtime().block_on(async {
        for round in 0..rounds {
            let (outbox, threads) = Outbox::open(settings()).unwrap();
            // The reserve is recreated when there is room for it.
            let begun = Instant::now();
            while !dir.join("reserve").exists() {
                assert!(begun.elapsed() < RECOVERS_WITHIN, "no reserve in round {round}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            let mut acknowledged = BTreeSet::new();
            let refusal = loop {
                match append(&outbox, records::records(next..next + 20)).await {
                    Ok(_) => acknowledged.extend(next..next + 20),
                    Err(error) => break error,
                }
                next += 20;
            };
            next += 20;
            assert!(matches!(refusal, AppendError::Storage(_) | AppendError::Full(_)), "{refusal}");
            assert!(acknowledged.len() > 500, "{}", acknowledged.len());
            let ballast = fill(&mount.path());
            close(outbox, threads);
            // Full: it opens thanks to its reserve, and drains.
            let (outbox, threads) = Outbox::open(settings()).unwrap();
            let found = drain(&outbox).await;
            assert!(acknowledged.is_subset(&found), "{} lost", acknowledged.difference(&found).count());
            let begun = Instant::now();
            loop {
                next += 100;
                match append(&outbox, vec![records::record(next / 100 * 100 + 50)]).await {
                    Ok(_) => break,
                    Err(error) => assert!(begun.elapsed() < RECOVERS_WITHIN, "round {round}: {error}"),
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            next += 100;
            drain(&outbox).await;
            assert!(outbox.flush().await);
            assert_eq!(outbox.stats().total_depth(), 0);
            assert_eq!(outbox.stats().quarantined_segments, 0);
            std::fs::remove_file(ballast).unwrap();
            close(outbox, threads);
            let (outbox, threads) = Outbox::open(settings()).unwrap();
            assert_eq!(outbox.stats().total_depth(), 0, "what was settled is settled");
            close(outbox, threads);
        }
    });
}
