//! A segment that cannot be opened is quarantined, and salvaging, which reads the log itself, recovers its records.

use dataplane_agent::outbox::{Outbox, Settings, Settlement};

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
        for unsettled in first.iter().take(100) {
            outbox.settle(&unsettled.ticket, Settlement::Delivered);
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

        let salvaged = outbox.salvage(false, |_| ()).await.unwrap();
        assert_eq!(salvaged.len(), 1);
        assert_eq!((salvaged[0].records, &salvaged[0].trouble), (salvaged[0].known, &Vec::new()));
        let mut numbers: Vec<u64> = waiting(&outbox).await.iter().map(records::number).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (100..3200).collect::<Vec<_>>(), "each of them, once");
        assert_eq!(outbox.stats().quarantined_segments, 0);
        assert!(outbox.salvage(false, |_| ()).await.unwrap().is_empty(), "once is enough");
        close(outbox, threads);
    });
}

#[test]
fn a_salvaging_that_stopped_goes_on_and_brings_all_back() {
    let dir = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let (outbox, threads) = Outbox::open(settings(dir.path())).unwrap();
        for n in 0..8 {
            append(&outbox, records::records(n * 400..n * 400 + 400)).await.unwrap();
        }
        assert!(outbox.flush().await);
        assert!(outbox.stats().segments > 1);
        close(outbox, threads);
        let conf = dir.path().join("segments/000000000001/conf");
        let mut bytes = std::fs::read(&conf).unwrap();
        bytes[20] ^= 1;
        std::fs::write(&conf, &bytes).unwrap();
        let (outbox, threads) = Outbox::open(settings(dir.path())).unwrap();
        let rest = waiting(&outbox).await.len();
        close(outbox, threads);
        // There is no room for recovered records.
        let full = Settings { max_bytes: 1, ..settings(dir.path()) };
        let (outbox, threads) = Outbox::open(full).unwrap();
        assert!(outbox.salvage(false, |_| ()).await.is_err());
        assert_eq!(outbox.stats().quarantined_segments, 1, "it is still to be salvaged");
        close(outbox, threads);

        let (outbox, threads) = Outbox::open(settings(dir.path())).unwrap();
        let salvaged = outbox.salvage(false, |_| ()).await.unwrap();
        assert_eq!((salvaged.len(), &salvaged[0].trouble), (1, &Vec::new()));
        assert_eq!(salvaged[0].records, 3200 - rest as u64);
        assert_eq!(waiting(&outbox).await.len(), 3200);
        assert_eq!(outbox.stats().quarantined_segments, 0);
        close(outbox, threads);
    });
}
