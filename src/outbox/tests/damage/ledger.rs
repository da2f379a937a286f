//! A damaged or missing ledger.

use super::*;
use crate::outbox::tests::model::{letter, letters};

#[test]
fn a_ledger_that_is_no_log_or_ends_too_early_is_told_and_kept() {
    for damage in [|_: usize| 0, |len| len / 2, |len| len] {
        let dir = tempfile::tempdir().unwrap();
        for _ in 0..2 {
            let mut rig = Rig::open(dir.path());
            rig.append(usage(0, 200, 300)).unwrap();
            for unsettled in rig.waiting(Log::Usage).into_iter().take(150) {
                rig.shared.state().settle_as_dead_letter(&unsettled.ticket, letter(&unsettled.entry));
            }
            rig.tick();
        }
        drop(Rig::open(dir.path()));
        let ledger = dir.path().join("ledger/db");
        let mut bytes = std::fs::read(&ledger).unwrap();
        let written = bytes.iter().rposition(|byte| *byte != 0).unwrap();
        let left = damage(written);
        if left == written {
            bytes.fill(7);
        } else {
            bytes.truncate(left);
        }
        std::fs::write(&ledger, &bytes).unwrap();
        let rig = Rig::open(dir.path());
        assert_eq!(rig.stats().quarantined_segments, 1, "{left}");
        let kept = files(&dir.path().join("quarantine"));
        assert!(kept.iter().any(|file| std::fs::read(file).unwrap() == bytes), "{left}: it is kept as found");
        rig.check_counts();
    }
}

#[test]
fn a_flipped_bit_in_the_ledger_costs_few_dead_letters_and_is_told() {
    for killed in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let mut rig = Rig::open(dir.path());
        rig.append(usage(0, 200, 300)).unwrap();
        for unsettled in rig.waiting(Log::Usage).into_iter().take(150) {
            let dead_letter = letter(&unsettled.entry);
            rig.shared.state().settle_as_dead_letter(&unsettled.ticket, dead_letter);
            if unsettled.ticket.seq % 5 == 0 {
                rig.tick();
            }
        }
        rig.tick();
        assert_eq!(rig.stats().dead_letters, 150);
        drop(rig);
        let ledger = dir.path().join("ledger");
        if killed {
            without_snapshots(&ledger);
        }
        flip(&ledger.join("db"), 20_000);
        let mut rig = Rig::open(dir.path());
        let kept = letters(&rig).len();
        assert!((120..=150).contains(&kept), "{killed}: {kept}");
        assert_eq!(rig.stats().dead_letters, kept as u64);
        assert_eq!(rig.stats().quarantined_segments, 1);
        assert!(rig.waiting(Log::Usage).len() >= 50);
        rig.check_counts();
    }
}

#[test]
fn a_ledger_that_is_gone_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(dir.path());
    rig.append(usage(0, 200, 300)).unwrap();
    rig.tick();
    drop(rig);
    std::fs::remove_dir_all(dir.path().join("ledger")).unwrap();
    let mut rig = Rig::open(dir.path());
    assert_eq!(rig.stats().quarantined_segments, 1);
    assert_eq!(rig.waiting(Log::Usage).len(), 200, "and all waiting records are there");
}
