//! Flipped bits in the packs of a segment, and totals older than its packs.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::*;
use crate::outbox::engine::batch::WriteBatch;
use crate::outbox::engine::database::Durability;
use crate::outbox::segments::segment::{self, Segment};

/// Flips this value wherever it occurs in the file.
fn flip_all(file: &Path, value: &[u8]) {
    let bytes = std::fs::read(file).unwrap();
    let places: Vec<usize> = memchr::memmem::find_iter(&bytes, &value[30..60]).collect();
    assert!(!places.is_empty());
    for at in places {
        flip(file, at);
    }
}

#[test]
fn a_flipped_bit_costs_the_packs_that_it_hit_and_nothing_behind_them() {
    // Random positions, where the page hit was usually rewritten later; and the third batch, wherever it is.
    let somewhere = [(60, Some(30_000)), (60, Some(100_000)), (60, Some(4_000)), (5, Some(9_000))];
    let cases = somewhere.into_iter().chain([(60, None), (5, None)]).flat_map(|(batches, at)| {
        [(true, true), (true, false), (false, true), (false, false)]
            .map(|(newest, killed)| (batches, at, newest, killed))
    });
    for (batches, at, newest, killed) in cases {
        let case = format!("{batches} {at:?} {newest} {killed}");
        let dir = tempfile::tempdir().unwrap();
        let mut rig = Rig::open(dir.path());
        for n in 0..batches {
            rig.append(usage(n * 50, 50, 300)).unwrap();
        }
        let segment = Arc::clone(&rig.shared.state().segments[0].segment);
        let pack = segment.raw_pack(Log::Usage, 101).unwrap().unwrap();
        drop(segment);
        if !newest {
            rig.writer.roll_if_used();
        }
        rig.tick();
        drop(rig);
        let segment = dir.path().join("segments/000000000001");
        if killed {
            without_snapshots(&segment);
        }
        match at {
            Some(at) => flip(&segment.join("db"), at),
            None => flip_all(&segment.join("db"), &pack),
        }
        let as_found = std::fs::read(segment.join("db")).unwrap();

        let problems = Outbox::verify(&settings(dir.path()), &mut |_| ()).unwrap().problems;
        assert!(problems.iter().any(|problem| problem.contains("cannot be read at byte")), "{problems:?}");
        assert!(std::fs::read(segment.join("db")).unwrap() == as_found, "verifying changed it");

        let mut rig = Rig::open(dir.path());
        let mut waiting: Vec<_> = rig.waiting(Log::Usage);
        waiting.sort_by_key(|unsettled| unsettled.ticket.seq);
        let missing = batches * 50 - waiting.len() as u64;
        let hit = if at.is_some() { 0..=0 } else { 1..=50 };
        assert!(hit.contains(&missing), "{case}: {missing}");
        let names: Vec<String> = waiting.iter().map(|unsettled| transaction(&unsettled.entry)).collect();
        let behind = usage((batches - 1) * 50, 50, 300);
        assert!(
            names.ends_with(&behind.iter().map(transaction).collect::<Vec<_>>()),
            "everything after it is there"
        );
        for unsettled in &waiting {
            rig.shared.state().deliver(&unsettled.ticket, Settlement::Delivered);
        }
        settle_down(&mut rig);
        let count = quarantine::count(dir.path());
        assert_eq!(count, (u64::from(missing > 0), missing), "{case}");
        if missing > 0 {
            let kept = dir.path().join("quarantine/segment-000000000001/segment/as-found/db");
            assert!(std::fs::read(kept).unwrap() == as_found, "it is kept as found");
        }
        assert_eq!(rig.stats().total_depth(), 0, "{case}");
        rig.check_counts();
    }
}

/// Nothing of its kind follows it that would show that it is missing.
#[test]
fn the_last_pack_of_a_kind_is_missed_in_the_newest_segment_too() {
    for killed in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let mut rig = Rig::open(dir.path());
        rig.append(usage(0, 20, 300)).unwrap();
        let segment = Arc::clone(&rig.shared.state().segments[0].segment);
        let pack = segment.raw_pack(Log::Usage, 1).unwrap().unwrap();
        drop(segment);
        for n in 50..60 {
            rig.append((0..10).map(|k| entry(Kind::Quota, n * 10 + k, 300)).collect()).unwrap();
        }
        rig.tick();
        drop(rig);
        let segment = dir.path().join("segments/000000000001");
        if killed {
            without_snapshots(&segment);
        }
        flip_all(&segment.join("db"), &pack);

        let mut rig = Rig::open(dir.path());
        assert_eq!(rig.waiting(Log::Usage).len(), 0);
        // New records have numbers after the missing ones.
        rig.append(usage(700, 50, 300)).unwrap();
        for log in [Log::Usage, Log::Quota] {
            for unsettled in rig.waiting(log) {
                rig.shared.state().deliver(&unsettled.ticket, Settlement::Delivered);
            }
        }
        settle_down(&mut rig);
        let (segments, missing) = quarantine::count(dir.path());
        assert!(segments == 1 && missing >= 20, "{killed}: {segments}, {missing}");
        let stats = rig.stats();
        assert_eq!(
            (stats.total_depth(), stats.delivered.iter().sum::<u64>()),
            (0, 170 - missing),
            "{killed}"
        );
        rig.check_counts();
    }
}

#[test]
fn totals_older_than_the_packs_of_a_mended_segment_give_no_number_out_twice() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(dir.path());
    rig.append(usage(0, 100, 300)).unwrap();
    rig.tick();
    let old = rig.shared.state().totals.clone();
    rig.append(usage(100, 100, 300)).unwrap();
    drop(rig);
    // The result of a repair when the page of the totals was hit.
    let segment = Segment::new(dir.path(), 1, Durability::Fsync);
    let mut batch = WriteBatch::default();
    segment::put_totals(&mut batch, &old);
    segment.commit(batch).unwrap();
    std::fs::create_dir(segment.path().join("as-found")).unwrap();
    drop(segment);

    let mut rig = Rig::open(dir.path());
    rig.append(usage(200, 50, 300)).unwrap();
    let waiting = rig.waiting(Log::Usage);
    let names: BTreeSet<String> = waiting.iter().map(|unsettled| transaction(&unsettled.entry)).collect();
    let numbers: BTreeSet<u64> = waiting.iter().map(|unsettled| unsettled.ticket.seq).collect();
    assert_eq!((names.len(), numbers.len()), (250, 250));
    for unsettled in &waiting {
        rig.shared.state().deliver(&unsettled.ticket, Settlement::Delivered);
    }
    settle_down(&mut rig);
    assert_eq!(rig.stats().total_depth(), 0);
    rig.check_counts();
}
