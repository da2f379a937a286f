//! Zeros in a database's log, behind which sled alone reads nothing.

use std::collections::BTreeMap;

use super::*;
use crate::outbox::engine::batch::WriteBatch;
use crate::outbox::engine::database::{Database, Durability};
use crate::outbox::engine::{fault, repair};

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
