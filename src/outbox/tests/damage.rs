//! Files with flipped bits, cut off or missing: no crash, no wrong record, and everything undamaged is still there.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::rig::{Rig, entry, settings, transaction, usage};
use crate::outbox::api::handle::Outbox;
use crate::outbox::engine::batch::WriteBatch;
use crate::outbox::engine::database::{Database, Durability, remove_snapshots};
use crate::outbox::engine::{fault, repair};
use crate::outbox::format::codec::Entry;
use crate::outbox::format::log::Log;
use crate::outbox::messages::Settlement;
use crate::outbox::recovery::quarantine;
use crate::outbox::segments::segment::{self, Segment};
use crate::record::Kind;

/// A deterministic random number generator.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        xxhash_rust::xxh3::xxh3_64(&self.0.to_be_bytes()) % below.max(1)
    }
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { all.extend(files(&path)) } else { all.push(path) }
    }
    all.sort();
    all
}

/// Each record's segment, numbered from 1, and its content.
type Known = BTreeMap<String, (u64, Entry)>;

/// Creates an outbox of four segments, the first partly settled.
fn make(dir: &Path) -> Known {
    let mut rig = Rig::open(dir);
    let (mut known, mut n) = (Known::new(), 0);
    for segment in 1..=4 {
        for _ in 0..4 {
            let entries: Vec<Entry> = (0..40)
                .map(|_| {
                    n += 1;
                    entry([Kind::Usage, Kind::Started, Kind::Completed, Kind::Quota][n as usize % 4], n, 700)
                })
                .collect();
            known.extend(entries.iter().map(|entry| (transaction(entry), (segment, entry.clone()))));
            rig.append(entries).unwrap();
        }
        if segment < 4 {
            rig.writer.roll_if_used();
        }
    }
    for unsettled in rig.waiting(Log::Usage).into_iter().take(20) {
        known.remove(&transaction(&unsettled.entry));
        rig.shared.state().deliver(&unsettled.ticket, Settlement::Delivered);
    }
    rig.tick();
    known
}

fn damage(files: &[PathBuf], dice: &mut Dice) -> String {
    let file = &files[dice.roll(files.len() as u64) as usize];
    let mut bytes = std::fs::read(file).unwrap();
    let what = match dice.roll(10) {
        0 => {
            std::fs::remove_file(file).unwrap();
            return format!("{} removed", file.display());
        }
        1 | 2 => {
            bytes.truncate(dice.roll(bytes.len() as u64) as usize);
            "truncated"
        }
        3 => {
            let from = dice.roll(bytes.len() as u64) as usize;
            let upto = bytes.len().min(from + 4096);
            bytes[from..upto].fill(0);
            "zeroed"
        }
        _ => {
            for _ in 0..=dice.roll(3) {
                let at = dice.roll(bytes.len() as u64) as usize;
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << dice.roll(8);
                }
            }
            "flipped"
        }
    };
    std::fs::write(file, bytes).unwrap();
    format!("{} {what}", file.display())
}

/// Reads and settles everything readable, and checks it. Returns how many records of which segment are missing.
fn drain(rig: &mut Rig, known: &Known) -> BTreeMap<u64, u64> {
    let mut missing: BTreeMap<&String, u64> =
        known.iter().map(|(name, (segment, _))| (name, *segment)).collect();
    for log in [Log::Quota, Log::Started, Log::Usage, Log::Completed] {
        for unsettled in rig.waiting(log) {
            let name = transaction(&unsettled.entry);
            // Settled records may reappear if the ledger is damaged.
            if let Some((_, entry)) = known.get(&name) {
                assert!(*entry == unsettled.entry, "{name} is wrong");
                assert!(missing.remove(&name).is_some(), "{name} is there twice");
            }
            rig.shared.state().deliver(&unsettled.ticket, Settlement::Delivered);
        }
    }
    let mut by_segment = BTreeMap::new();
    for segment in missing.into_values() {
        *by_segment.entry(segment).or_insert(0) += 1;
    }
    by_segment
}

fn settle_down(rig: &mut Rig) {
    for _ in 0..4 {
        rig.tick();
        rig.chores();
        rig.tick();
    }
}

fn case(made: &Path, known: &Known, part: &str, dice: &mut Dice) {
    let dir = tempfile::tempdir().unwrap();
    copy_dir(made, dir.path());
    let what = damage(&files(&dir.path().join(part)), dice);
    let mut rig = Rig::open(dir.path());
    let missing = drain(&mut rig, known);
    settle_down(&mut rig);
    let damaged = part.rsplit('/').next().and_then(|name| name.parse::<u64>().ok());
    for (segment, records) in &missing {
        assert_eq!(Some(*segment), damaged, "{what}: {records} records of segment {segment} are missing");
    }
    rig.check_counts();
    let stats = rig.stats();
    assert_eq!(stats.total_depth(), 0, "{what}: {stats:?}");
    let lost: u64 = missing.values().sum();
    if damaged.is_some() {
        // Every missing record is accounted for.
        assert_eq!(stats.exported.iter().sum::<u64>(), lost, "{what}: {stats:?}");
        assert!(lost == 0 || quarantine::count(dir.path()).0 > 0, "{what}");
    }
    // It continues, also after a restart.
    rig.append(vec![entry(Kind::Usage, 1_000_000, 10)]).unwrap();
    rig.tick();
    drop(rig);
    let mut rig = Rig::open(dir.path());
    rig.check_counts();
    assert_eq!(rig.waiting(Log::Usage).len(), 1, "{what}");
}

/// Every part of an outbox in turn. By default some cases; with `OUTBOX_TESTS=all` more than two hundred.
#[test]
fn damage_never_gives_a_wrong_record_and_costs_no_other_segment() {
    let made = tempfile::tempdir().unwrap();
    let known = make(made.path());
    let cases = if std::env::var_os("OUTBOX_TESTS").is_some() { 60 } else { 8 };
    let seed = std::env::var("OUTBOX_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let mut dice = Dice(seed);
    for n in 0..cases {
        for part in [
            "segments/000000000001",
            "segments/000000000002",
            "segments/000000000003",
            "segments/000000000004",
            "ledger",
        ] {
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                case(made.path(), &known, part, &mut dice);
            }));
            assert!(outcome.is_ok(), "case {n} of {part}, seed {seed}");
        }
    }
}

#[test]
fn a_snapshot_that_a_kill_cut_short_costs_nothing() {
    for length in [0, 5, 40] {
        let dir = tempfile::tempdir().unwrap();
        let mut rig = Rig::open(dir.path());
        rig.append(usage(0, 200, 50)).unwrap();
        rig.tick();
        let before = rig.stats();
        drop(rig);
        // As sled leaves it if killed while opening a database: the newest by name, and incomplete.
        let all = files(dir.path());
        let databases: Vec<_> = all.iter().filter(|path| path.file_name().unwrap() == "db").collect();
        assert_eq!(databases.len(), 2, "a segment and the ledger");
        for database in databases {
            let whole = files(database.parent().unwrap())
                .into_iter()
                .find(|file| file.to_string_lossy().contains("snap."));
            let name =
                whole.map_or("snap.0000000000000060".into(), |whole| whole.file_name().unwrap().to_owned());
            let unfinished = database.with_file_name(format!("{}.generating", name.to_string_lossy()));
            std::fs::write(unfinished, vec![7; length]).unwrap();
        }
        let as_found: Vec<_> =
            files(dir.path()).into_iter().map(|file| (std::fs::read(&file).unwrap(), file)).collect();
        let problems = Outbox::verify(&settings(dir.path()), &mut |_| ()).unwrap().problems;
        assert!(problems.iter().any(|problem| problem.contains("snapshot is damaged")), "{problems:?}");
        for (bytes, file) in as_found {
            assert!(std::fs::read(&file).unwrap() == bytes, "verifying changed {}", file.display());
        }
        let mut rig = Rig::open(dir.path());
        let after = rig.stats();
        assert_eq!((after.quarantined_segments, &after.enqueued), (0, &before.enqueued));
        assert_eq!(rig.waiting(Log::Usage).len(), 200);
        rig.check_counts();
    }
}

/// A database with zeros in its log: without its snapshot, sled alone misses part of it.
fn with_zeros_in_its_log(dir: &Path) -> (PathBuf, BTreeMap<Vec<u8>, Vec<u8>>) {
    // The position of sled's writes depends on its threads.
    for number in 0..50 {
        let (made, alone) = (dir.join(format!("made-{number}")), dir.join(format!("alone-{number}")));
        let database = Database::create(&made, Durability::Fsync, 1 << 20).unwrap();
        let mut batch = WriteBatch::default();
        (0..400_u64).for_each(|n| batch.put(&n.to_be_bytes(), vec![1; 4_000]));
        database.commit(batch).unwrap();
        drop(database);
        let all = pairs(&Database::open(&made, Durability::Fsync, 1 << 20).unwrap());
        assert_eq!(all.len(), 400);
        copy_dir(&made, &alone);
        remove_snapshots(&alone).unwrap();
        let found =
            std::panic::catch_unwind(|| pairs(&Database::open(&alone, Durability::Fsync, 1 << 20).unwrap()));
        if !found.is_ok_and(|found| found == all) {
            return (made, all);
        }
    }
    panic!("sled alone reads all of them: none of this is needed any more");
}

fn pairs(database: &Database) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut pairs = BTreeMap::new();
    database.scan(&[], &[], |key, value| pairs.insert(key.to_vec(), value.to_vec()).is_none()).unwrap();
    pairs
}

#[test]
fn a_log_is_read_whole_where_its_snapshot_is_damaged_and_after_a_failed_sync() {
    let dir = tempfile::tempdir().unwrap();
    let (made, all) = with_zeros_in_its_log(dir.path());
    let copied = |name: &str| {
        let copy = dir.path().join(name);
        copy_dir(&made, &copy);
        copy
    };
    let snapshots = |path: &Path| {
        files(path).into_iter().filter(|file| file.to_string_lossy().contains("snap.")).collect::<Vec<_>>()
    };
    let open = |path: &Path, is_unsynced| {
        let opened = repair::open(path, Durability::Fsync, 1 << 20, |key| key.len() == 8, is_unsynced);
        pairs(&opened.unwrap())
    };

    let damaged = copied("damaged");
    for snapshot in snapshots(&damaged) {
        flip(&snapshot, 30);
    }
    assert!(open(&damaged, false) == all);
    assert!(open(&damaged, false) == all, "and when it is opened again");
    assert!(open(&copied("unsynced"), true) == all);
}

#[test]
fn a_renewal_that_fails_anywhere_takes_nothing_along() {
    let dir = tempfile::tempdir().unwrap();
    let (made, all) = with_zeros_in_its_log(dir.path());
    let is_key = |key: &[u8]| key.len() == 8;
    for step in 0.. {
        let copy = dir.path().join(format!("step-{step}"));
        copy_dir(&made, &copy);
        fault::fail_at(Some(step));
        let renewed = repair::open(&copy, Durability::Fsync, 1 << 20, is_key, true);
        let has_failed = !fault::is_armed();
        fault::fail_at(None);
        assert_eq!(renewed.is_err(), has_failed, "step {step}");
        drop(renewed);
        let again = repair::open(&copy, Durability::Fsync, 1 << 20, is_key, false).unwrap();
        assert!(pairs(&again) == all, "step {step}");
        assert!(repair::kept(&copy).is_empty(), "step {step}: nothing counted as damaged");
        if !has_failed {
            assert!(step > 3, "it fails between its steps: {step}");
            break;
        }
    }
}

#[test]
fn a_database_whose_snapshot_is_gone_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (made, mut all) = with_zeros_in_its_log(dir.path());
    let database = Database::open(&made, Durability::Fsync, 1 << 20).unwrap();
    let mut batch = WriteBatch::default();
    batch.put(&7_u64.to_be_bytes(), vec![2; 10]);
    database.commit(batch).unwrap();
    drop(database);
    all.insert(7_u64.to_be_bytes().to_vec(), vec![2; 10]);
    remove_snapshots(&made).unwrap();
    let opened = repair::open(&made, Durability::Fsync, 1 << 20, |key| key.len() == 8, false).unwrap();
    assert!(pairs(&opened) == all);
}

#[test]
fn a_ledger_that_is_no_log_or_ends_too_early_is_told_and_kept() {
    for damage in [|_: usize| 0, |len| len / 2, |len| len] {
        let dir = tempfile::tempdir().unwrap();
        for _ in 0..2 {
            let mut rig = Rig::open(dir.path());
            rig.append(usage(0, 200, 300)).unwrap();
            for unsettled in rig.waiting(Log::Usage).into_iter().take(150) {
                rig.shared
                    .state()
                    .settle_as_dead_letter(&unsettled.ticket, super::model::letter(&unsettled.entry));
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
fn a_segment_that_a_kill_left_half_made_is_no_damage() {
    for left in [&[][..], &["conf"], &["conf", "db"]] {
        let dir = tempfile::tempdir().unwrap();
        let mut rig = Rig::open(dir.path());
        rig.append(usage(0, 200, 50)).unwrap();
        rig.tick();
        drop(rig);
        let segments = dir.path().join("segments");
        let last =
            std::fs::read_dir(&segments).unwrap().map(|entry| entry.unwrap().file_name()).max().unwrap();
        let next: u64 = last.to_string_lossy().parse::<u64>().unwrap() + 1;
        let half_made = segments.join(format!("{next:012}"));
        std::fs::create_dir(&half_made).unwrap();
        for name in left {
            std::fs::write(half_made.join(name), b"").unwrap();
        }
        let mut rig = Rig::open(dir.path());
        assert_eq!(rig.stats().quarantined_segments, 0, "{left:?}");
        assert!(!half_made.exists(), "{left:?}");
        assert_eq!(rig.waiting(Log::Usage).len(), 200);
        rig.check_counts();
    }
}

/// Leaves what a killed agent leaves: sled has not recorded where its log ends.
fn without_snapshots(database: &Path) {
    remove_snapshots(database).unwrap();
}

fn flip(file: &Path, at: usize) {
    let mut bytes = std::fs::read(file).unwrap();
    bytes[at] ^= 4;
    std::fs::write(file, bytes).unwrap();
}

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

#[test]
fn a_flipped_bit_in_the_ledger_costs_few_dead_letters_and_is_told() {
    for killed in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let mut rig = Rig::open(dir.path());
        rig.append(usage(0, 200, 300)).unwrap();
        for unsettled in rig.waiting(Log::Usage).into_iter().take(150) {
            let letter = super::model::letter(&unsettled.entry);
            rig.shared.state().settle_as_dead_letter(&unsettled.ticket, letter);
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
        let letters = super::model::letters(&rig).len();
        assert!((120..=150).contains(&letters), "{killed}: {letters}");
        assert_eq!(rig.stats().dead_letters, letters as u64);
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
