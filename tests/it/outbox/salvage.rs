//! A segment that cannot be opened is set aside; when somebody has mended it, its records come back.

use dataplane_agent::outbox::{Outbox, Settlement};

use super::{append, close, records, runtime, settings, waiting};

#[test]
fn what_was_set_aside_comes_back_by_salvaging() {
    let dir = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let (outbox, threads) = Outbox::open(settings(dir.path())).unwrap();
        // Some of them are large: more than one segment.
        for n in 0..8 {
            append(&outbox, records::records(n * 400..n * 400 + 400)).await.unwrap();
        }
        let first = waiting(&outbox).await;
        for leased in first.iter().take(100) {
            outbox.settle(&leased.ticket, Settlement::Delivered);
        }
        assert!(outbox.flush().await);
        assert!(outbox.stats().segments > 1);
        close(outbox, threads);

        let conf = dir.path().join("segments/000000000001/conf");
        let mut bytes = std::fs::read(&conf).unwrap();
        bytes[20] ^= 1;
        std::fs::write(&conf, &bytes).unwrap();

        let (outbox, threads) = Outbox::open(settings(dir.path())).unwrap();
        let rest = waiting(&outbox).await;
        let stats = outbox.stats();
        assert!(!rest.is_empty() && rest.len() < 3100, "{}", rest.len());
        assert_eq!(stats.quarantined_segments, 1, "{stats:?}");
        assert_eq!(stats.quarantined_records, 3100 - rest.len() as u64);
        assert_eq!(stats.total_depth(), rest.len() as u64, "what is known to be lost does not wait");
        assert_eq!(stats.enqueued[0], stats.delivered[0] + stats.exported[0] + stats.depth[0]);

        // Somebody mends it.
        bytes[20] ^= 1;
        std::fs::write(dir.path().join("quarantine/segment-000000000001/segment/conf"), &bytes).unwrap();
        let salvaged = outbox.salvage(|_| ()).await.unwrap();
        assert_eq!(salvaged.len(), 1);
        assert_eq!((salvaged[0].records, &salvaged[0].trouble), (salvaged[0].known, &Vec::new()));
        let mut numbers: Vec<u64> = waiting(&outbox).await.iter().map(records::number).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (100..3200).collect::<Vec<_>>(), "each of them, once");
        assert_eq!(outbox.stats().quarantined_segments, 0);
        assert!(outbox.salvage(|_| ()).await.unwrap().is_empty(), "once is enough");
        close(outbox, threads);
    });
}
