//! Freeing disk space, and being full.

use super::rig::{Rig, entry, settings, transaction, usage};
use crate::outbox::engine::database::Durability;
use crate::outbox::engine::fault;
use crate::outbox::format::dead_letter::Payload;
use crate::outbox::format::log::Log;
use crate::outbox::ledger::FoundLetter;
use crate::outbox::messages::{AppendError, Settlement};
use crate::outbox::segments::segment::ReadError;
use crate::outbox::settings::Settings;
use crate::outbox::state::medium::Medium;
use crate::record::Kind;

fn settle_all_but(rig: &mut Rig, keep: usize) {
    for (n, unsettled) in rig.waiting(Log::Usage).into_iter().enumerate() {
        if keep == 0 || n % keep != 0 {
            rig.shared.state().deliver(&unsettled.ticket, Settlement::Delivered);
        }
    }
}

#[test]
fn a_few_waiting_records_do_not_keep_large_segments_alive() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(dir.path());
    for batch in 0..40 {
        rig.append(usage(batch * 100, 100, 2000)).unwrap();
    }
    assert!(rig.segments() > 4);
    // One record in four hundred waits: every segment contains some.
    settle_all_but(&mut rig, 400);
    let before: Vec<_> =
        rig.waiting(Log::Usage).into_iter().map(|unsettled| (unsettled.ticket, unsettled.entry)).collect();
    for _ in 0..20 {
        rig.chores();
        rig.tick();
        rig.check_counts();
    }
    assert!(rig.segments() <= 3, "{} segments", rig.segments());
    rig.shared.measure();
    let disk = rig.shared.used.load(std::sync::atomic::Ordering::Relaxed) - rig.shared.reserve.disk_bytes();
    assert!(disk < 6 << 20, "{disk} bytes on the disk");
    let after: Vec<_> =
        rig.waiting(Log::Usage).into_iter().map(|unsettled| (unsettled.ticket, unsettled.entry)).collect();
    assert!(before == after, "order, tickets and bytes are as they were");
    // Earlier tickets are valid, also after a restart.
    rig.shared.state().deliver(&before[0].0, Settlement::Delivered);
    rig.tick();
    drop(rig);
    let mut rig = Rig::open(dir.path());
    rig.check_counts();
    let reopened: Vec<_> =
        rig.waiting(Log::Usage).into_iter().map(|unsettled| (unsettled.ticket, unsettled.entry)).collect();
    assert!(before[1..] == reopened[..]);
    settle_all_but(&mut rig, 0);
    rig.tick();
    rig.chores();
    rig.tick();
    assert_eq!(rig.segments(), 1);
    rig.check_counts();
}

#[test]
fn a_full_outbox_refuses_and_takes_again_when_it_was_drained() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::with(Settings { max_bytes: 4 << 20, ..settings(dir.path()) }).unwrap();
    for _ in 0..3 {
        let mut taken = 0;
        let refusal = loop {
            match rig.append(usage(taken, 50, 2000)) {
                Ok(_) => taken += 50,
                Err(error) => break error,
            }
        };
        assert!(matches!(refusal, AppendError::Full("full")), "{refusal}");
        assert!(taken > 500, "{taken}");
        // Checked before each commit: one commit may exceed the limit, and sled grows its file by several of its own
        // segments.
        rig.shared.measure();
        let used = rig.shared.used.load(std::sync::atomic::Ordering::Relaxed);
        let held = used - rig.shared.ledger.disk_bytes() - rig.shared.reserve.disk_bytes();
        assert!(held < (4 << 20) + 50 * 2100 + (2 << 20), "{held}");
        // One settled record does not free enough: no flapping.
        let first = rig.waiting(Log::Usage).swap_remove(0);
        rig.shared.state().deliver(&first.ticket, Settlement::Delivered);
        rig.tick();
        assert!(rig.append(usage(taken, 1, 10)).is_err());
        settle_all_but(&mut rig, 0);
        for _ in 0..2 {
            rig.tick();
            rig.chores();
        }
        rig.tick();
        assert_eq!(rig.stats().total_depth(), 0);
        assert_eq!(rig.shared.measure(), None, "it resumes by itself");
        rig.check_counts();
    }
}

/// The segment folders.
fn folders(rig: &Rig) -> usize {
    std::fs::read_dir(rig.shared.settings.dir.join("segments")).unwrap().count()
}

#[test]
fn a_settled_segment_that_cannot_be_deleted_is_deleted_as_soon_as_it_can() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(dir.path());
    for batch in 0..10 {
        rig.append(usage(batch * 100, 100, 2000)).unwrap();
    }
    let segments = rig.segments();
    assert!(segments > 2);
    settle_all_but(&mut rig, 0);
    // After the two steps of the ledger's commit, the first folder is deleted.
    fault::fail_at(Some(2));
    rig.tick();
    assert!(!fault::is_armed(), "the deletion has failed");
    assert_eq!((rig.segments(), folders(&rig)), (1, 2));
    rig.shared.measure();
    let used = rig.shared.used.load(std::sync::atomic::Ordering::Relaxed);
    assert!(used > rig.shared.ledger.disk_bytes() + (1 << 20), "it still counts: {used}");
    rig.tick();
    assert_eq!(folders(&rig), 2, "not at every tick");
    rig.chores();
    rig.tick();
    assert_eq!(folders(&rig), 1);
    // This sealed the newest segment, which has left its tombstone.
    rig.tick();
    assert!(rig.shared.state().lingering.is_empty());
    assert!(rig.shared.ledger.tombstones().unwrap().is_empty());
}

#[test]
fn dead_letters_that_cannot_be_written_stay_within_a_bound_and_none_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(dir.path());
    let mut all = std::collections::BTreeSet::new();
    for batch in 0..10 {
        let mut entries = usage(batch * 100, 100, 2000);
        entries.extend((0..20).map(|n| entry(Kind::Lifecycle, batch * 100 + n, 2000)));
        all.extend(entries.iter().map(transaction));
        rig.append(entries).unwrap();
    }
    // The ledger's disk is gone for a while.
    let (ledger, away) = (dir.path().join("ledger"), dir.path().join("away"));
    rig.shared.ledger.close();
    std::fs::rename(&ledger, &away).unwrap();
    let (mut from, end, mut most) = (0, rig.shared.state().totals.next, 0);
    let mut refused = false;
    for _ in 0..100 {
        // As the drain does: reads as far as allowed, and dead-letters what was refused.
        if from < end {
            match rig.maintenance.read(Log::Usage, from, end, 20) {
                Ok(page) => {
                    from = page.next;
                    for unsettled in page.records {
                        let letter = super::model::letter(&unsettled.entry);
                        rig.shared.state().settle_as_dead_letter(&unsettled.ticket, letter);
                    }
                }
                Err(error) => {
                    assert!(matches!(error, ReadError::Unsaved), "{error}");
                    refused = true;
                }
            }
        }
        rig.tick();
        most = most.max(rig.shared.state().letters_bytes());
    }
    assert!(refused && from < end, "reading stops");
    // Plus what maintenance moves at once (all twenty times ten), and what the drain had in memory.
    assert!(most < (64 << 10) + 200 * 2100 + 20 * 2100, "{most} bytes of dead letters in memory");
    std::fs::rename(&away, &ledger).unwrap();
    rig.tick();
    rig.tick();
    for unsettled in rig.waiting(Log::Usage) {
        let letter = super::model::letter(&unsettled.entry);
        rig.shared.state().settle_as_dead_letter(&unsettled.ticket, letter);
    }
    rig.tick();
    let mut found = std::collections::BTreeSet::new();
    let read = |(_, letter, _): FoundLetter| {
        let name = match letter.unwrap().payload {
            Payload::Record(record) => record.transaction().to_owned(),
            Payload::Raw { bytes, .. } => String::from_utf8_lossy(&bytes).into_owned(),
        };
        assert!(found.insert(name), "a dead letter is there twice");
        true
    };
    rig.shared.ledger.letters(0, read).unwrap();
    assert_eq!(found, all);
    assert_eq!(rig.stats().total_depth(), 0);
    rig.check_counts();
}

#[test]
fn a_disk_that_runs_low_pauses_the_outbox() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::with(Settings { min_free_bytes: u64::MAX / 4, ..settings(dir.path()) }).unwrap();
    let refusal = rig.append(usage(0, 1, 10));
    assert!(matches!(refusal, Err(AppendError::Full("disk_low"))));
}

#[test]
fn nothing_is_acknowledged_or_written_off_while_the_folder_is_not_in_its_place() {
    let home = tempfile::tempdir().unwrap();
    let (dir, elsewhere) = (home.path().join("outbox"), home.path().join("elsewhere"));
    let mut rig = Rig::open(&dir);
    for batch in 0..10 {
        rig.append(usage(batch * 100, 100, 2000)).unwrap();
    }
    assert!(rig.segments() > 2);
    rig.tick();
    let here = || std::fs::exists(&dir).unwrap();
    for foreign in [false, true] {
        std::fs::rename(&dir, &elsewhere).unwrap();
        if foreign {
            std::fs::create_dir(&dir).unwrap();
            std::fs::write(dir.join("lock"), "").unwrap();
        }
        // The check happens before a commit.
        let refusal = rig.append(usage(5_000, 1, 10));
        assert!(matches!(refusal, Err(AppendError::Full("folder_gone"))), "{refusal:?}");
        // Closed segments cannot be read, but are not damaged.
        let end = rig.shared.state().totals.next;
        let _ = rig.maintenance.read(Log::Usage, 0, end, 10_000);
        for _ in 0..3 {
            rig.tick();
            rig.chores();
        }
        assert_eq!(rig.shared.measure(), Some("folder_gone"));
        rig.check_counts();
        assert_eq!(rig.stats().quarantined_segments, 0);
        if foreign {
            assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1, "nothing is created in another folder");
            std::fs::remove_dir_all(&dir).unwrap();
        }
        assert!(!here(), "nothing is created in its place");
        std::fs::rename(&elsewhere, &dir).unwrap();
        assert_eq!(rig.shared.measure(), None, "it resumes by itself");
    }
    rig.append(usage(1_000, 1, 10)).unwrap();
    assert_eq!(rig.waiting(Log::Usage).len(), 1_001, "everything except what was refused");
    drop(rig);
    let mut rig = Rig::open(&dir);
    assert_eq!(rig.waiting(Log::Usage).len(), 1_001);
    rig.check_counts();
}

#[test]
fn records_in_memory_do_not_survive_a_power_cut_whatever_is_configured() {
    let of = |dir: &std::path::Path| {
        let fsync = Settings { durability: Durability::Fsync, ..settings(dir) };
        Rig::with(fsync).unwrap().shared.durability
    };
    let (memory, disk) = (tempfile::tempdir_in("/dev/shm").unwrap(), tempfile::tempdir().unwrap());
    assert_eq!(of(memory.path()), Durability::Process);
    if !matches!(Medium::of(disk.path()), Ok(Medium::Memory(_))) {
        assert_eq!(of(disk.path()), Durability::Fsync);
    }
}
