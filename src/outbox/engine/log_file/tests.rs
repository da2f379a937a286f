//! Logs written by sled, intact and damaged.

use super::super::batch::WriteBatch;
use super::super::database::{Database, Durability};
use super::pairs::{LeafPage, in_use, merge};
use super::*;
use std::collections::HashMap;
use std::ops::Bound;

/// Writes, overwrites, removes, and sometimes reopens, so that sled moves pages and reuses segments.
#[test]
fn a_log_is_read_as_sled_reads_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let mut dice = 7_u64;
    let mut roll = |below: u64| {
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (dice >> 33) % below
    };
    drop(Database::create(&path, Durability::Process, 1 << 20).unwrap());
    for _ in 0..6 {
        let database = Database::open(&path, Durability::Process, 1 << 20).unwrap();
        for _ in 0..60 {
            let mut batch = WriteBatch::default();
            for _ in 0..20 {
                let key = [b"key".as_slice(), &roll(3_000).to_be_bytes()].concat();
                if roll(3) == 0 {
                    batch.remove(&key);
                } else {
                    batch.put(&key, vec![roll(256) as u8; roll(5_000) as usize]);
                }
            }
            database.commit(batch).unwrap();
        }
        assert_eq!(hole(&path.join("db")).unwrap(), None);
        let pages = RecoveredPairs::pages(&File::open(path.join("db")).unwrap(), u64::MAX).unwrap();
        assert!(in_use(&pages).is_some_and(|chain| chain.len() > 50), "the leaves lead from one to the next");
        let mut held = BTreeMap::new();
        database
            .scan(b"key", b"key", |key, value| held.insert(key.to_vec(), value.to_vec()).is_none())
            .unwrap();
        let pairs = RecoveredPairs::read_whole_batches(&path.join("db"), |_| true).unwrap();
        let mut read = BTreeMap::new();
        pairs.scan(b"key", b"key", |key, value| read.insert(key.to_vec(), value.to_vec()).is_none()).unwrap();
        assert!(held.len() > 500 && read == held, "{} and {}", read.len(), held.len());
    }
}

#[test]
fn a_torn_end_is_no_hole_and_a_flipped_bit_before_it_is_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let database = Database::create(&path, Durability::Process, 1 << 20).unwrap();
    for n in 0..100_u64 {
        let mut batch = WriteBatch::default();
        batch.put(&n.to_be_bytes(), vec![1; 1000]);
        database.commit(batch).unwrap();
    }
    drop(database);
    let file = path.join("db");
    let bytes = std::fs::read(&file).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    for cut in [end, end - 10, end - 900] {
        std::fs::write(&file, &bytes[..cut]).unwrap();
        assert_eq!(hole(&file).unwrap(), None, "{cut}");
    }
    for at in [10, 40, 3_000, end / 2, end - 10_000] {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1;
        std::fs::write(&file, &flipped).unwrap();
        assert!(hole(&file).unwrap().is_some_and(|found| found <= at as u64), "{at}");
    }
}

#[test]
fn of_a_torn_batch_nothing_counts_as_with_sled() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let database = Database::create(&path, Durability::Process, 1 << 20).unwrap();
    let commit = |value: u8| {
        let mut batch = WriteBatch::default();
        (0..300_u64).for_each(|n| batch.put(&n.to_be_bytes(), vec![value; 4_000]));
        database.commit(batch).unwrap();
    };
    commit(1);
    let before = std::fs::read(path.join("db")).unwrap();
    commit(2);
    let after = std::fs::read(path.join("db")).unwrap();
    drop(database);
    // The number of keys with each value.
    let count = |values: &mut BTreeMap<u8, usize>, value: &[u8]| {
        *values.entry(value[0]).or_default() += 1;
        true
    };
    let (torn_path, mut seen) = (dir.path().join("torn"), Vec::new());
    let mut check = |bytes: &[u8], how: &str| {
        let _ = std::fs::remove_dir_all(&torn_path);
        std::fs::create_dir(&torn_path).unwrap();
        std::fs::write(torn_path.join("db"), bytes).unwrap();
        let (mut read, mut held) = (BTreeMap::new(), BTreeMap::new());
        let pairs = RecoveredPairs::read_whole_batches(&torn_path.join("db"), |_| true).unwrap();
        pairs.scan(&[], &[], |_, value| count(&mut read, value)).unwrap();
        let database = Database::open(&torn_path, Durability::Process, 1 << 20).unwrap();
        database.scan(&[], &[], |_, value| count(&mut held, value)).unwrap();
        assert_eq!(read, held, "{how}");
        seen.push(read);
    };
    check(&after, "whole");
    // Truncated, or with a part or a whole segment that never reached the disk.
    let first = before.iter().zip(&after).position(|(old, new)| old != new).unwrap_or(before.len());
    for at in (first + 1..after.len()).step_by(140_009) {
        check(&after[..at], &format!("cut off at {at}"));
        for (from, len) in [(at - at % 4_096, 4_096), (at - at % SEGMENT, SEGMENT)] {
            let mut torn = after.clone();
            for (n, byte) in torn.iter_mut().enumerate().skip(from).take(len) {
                *byte = before.get(n).copied().unwrap_or(0);
            }
            check(&torn, &format!("{len} bytes torn at {from}"));
        }
    }
    let is_all_of = |value| seen.iter().filter(|values| **values == BTreeMap::from([(value, 300)])).count();
    assert!(is_all_of(2) > 0 && is_all_of(1) > 20, "{seen:?}");
}

#[test]
fn a_leaf_that_no_other_leads_to_counts_for_nothing() {
    let leaf = |lsn, next, low: &[u8], high: &[u8], value| LeafPage {
        lsn,
        next,
        bounds: (Bound::Included(low.to_vec()), Bound::Excluded(high.to_vec())),
        prefix: Vec::new(),
        pairs: BTreeMap::from([(low.to_vec(), (value, 1))]),
    };
    let mut pages = HashMap::from([
        (1, leaf(10, Some(2), b"", b"m", 100)),
        (2, leaf(20, None, b"m", b"z", 200)),
        // The remains of a split that was rewritten later.
        (3, leaf(30, None, b"m", b"z", 300)),
    ]);
    let values = merge(in_use(&pages).expect("the chain is whole"), |_| true);
    assert_eq!(values, BTreeMap::from([(b"".to_vec(), (100, 1)), (b"m".to_vec(), (200, 1))]));
    pages.get_mut(&2).unwrap().next = Some(1);
    assert!(in_use(&pages).is_none(), "the chain is a cycle");
    pages.get_mut(&2).unwrap().next = Some(9);
    assert!(in_use(&pages).is_none(), "the chain leads nowhere");
}

#[test]
fn what_is_no_log_is_read_without_a_panic() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("db");
    for len in [0, 1, 19, 20, 21, 600, SEGMENT, SEGMENT + 7] {
        for byte in [0, 1, 10, 250, 255] {
            std::fs::write(&file, vec![byte; len]).unwrap();
            assert_eq!(hole(&file).unwrap(), None);
            assert!(RecoveredPairs::read(&file, |_| true).unwrap().values.is_empty());
        }
    }
}
