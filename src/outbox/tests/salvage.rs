//! Salvaging beside maintenance, which may be quarantining something at the same moment.

use super::rig::{Rig, settings, usage};
use crate::outbox::api::handle::Outbox;
use crate::outbox::format::log::Log;
use crate::outbox::recovery::quarantine;

#[test]
fn what_is_just_being_quarantined_is_left_for_the_next_time() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (outbox, threads) = Outbox::open(settings(dir.path())).unwrap();
        outbox.append(usage(0, 50, 400), None).await.unwrap().await.unwrap().unwrap();
        // The report exists, the folder does not yet: the order in which maintenance works.
        let report = quarantine::QuarantineReport::of_segment(&outbox.shared.state(), 1, "damaged");
        let folder = quarantine::dir(dir.path()).join(quarantine::segment_name(1));
        report.write(&folder).unwrap();
        assert!(outbox.salvage(false, |_| ()).await.unwrap().is_empty());
        let open: Vec<_> = outbox.quarantine().unwrap().into_iter().map(|(_, report)| report).collect();
        assert!(open.len() == 1 && open[0].salvaged_at.is_none(), "{open:?}");
        drop(outbox);
        assert!(threads.join());
    });
}

#[test]
fn the_dead_letters_of_a_ledger_that_had_to_be_begun_anew_come_back_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(dir.path());
    rig.append(usage(0, 700, 400)).unwrap();
    for unsettled in rig.waiting(Log::Usage).into_iter().take(600) {
        let letter = super::model::letter(&unsettled.entry);
        rig.shared.state().settle_as_dead_letter(&unsettled.ticket, letter);
    }
    rig.tick();
    drop(rig);
    let conf = dir.path().join("ledger/conf");
    let mut bytes = std::fs::read(&conf).unwrap();
    bytes[20] ^= 1;
    std::fs::write(&conf, &bytes).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (outbox, threads) = Outbox::open(settings(dir.path())).unwrap();
        assert_eq!((outbox.stats().dead_letters, outbox.stats().quarantined_segments), (0, 1));
        let salvaged = outbox.salvage(false, |_| ()).await.unwrap();
        assert!(salvaged[0].is_done && salvaged[0].records == 600, "{salvaged:?}");
        assert!(outbox.flush().await);
        assert_eq!((outbox.stats().dead_letters, outbox.stats().quarantined_segments), (600, 0));
        // Suppose its report is lost: what is already in the outbox must not be recovered again.
        let (name, report) = outbox.quarantine().unwrap().remove(0);
        let folder = quarantine::dir(dir.path()).join(name);
        quarantine::QuarantineReport { salvaged_at: None, ..report }.write(&folder).unwrap();
        assert_eq!(outbox.salvage(false, |_| ()).await.unwrap()[0].records, 0);
        assert!(outbox.flush().await);
        assert_eq!(outbox.stats().dead_letters, 600);
        drop(outbox);
        assert!(threads.join());
    });
}

#[test]
fn what_cannot_be_read_stays_open_until_it_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(dir.path());
    rig.append(usage(0, 200, 400)).unwrap();
    rig.tick();
    drop(rig);
    std::fs::remove_dir_all(dir.path().join("ledger")).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (outbox, threads) = Outbox::open(settings(dir.path())).unwrap();
        for _ in 0..2 {
            let salvaged = outbox.salvage(false, |_| ()).await.unwrap();
            assert!(salvaged.len() == 1 && !salvaged[0].is_done, "{salvaged:?}");
            assert_eq!(outbox.stats().quarantined_segments, 1);
        }
        assert!(outbox.salvage(true, |_| ()).await.unwrap()[0].is_done);
        assert_eq!(outbox.stats().quarantined_segments, 0);
        drop(outbox);
        assert!(threads.join());
    });
}
