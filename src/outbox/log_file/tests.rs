//! A log that sled wrote, whole and damaged.

use super::super::database::{Batch, Database, Durability};
use super::*;

/// Writes, overwrites and removes; opened now and then, so that sled moves its pages and uses its segments again.
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
            let mut batch = Batch::default();
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
        let mut held = BTreeMap::new();
        database
            .scan(b"key", b"key", |key, value| held.insert(key.to_vec(), value.to_vec()).is_none())
            .unwrap();
        let pairs = Pairs::read(&path.join("db"), |key| key.starts_with(b"key") && key.len() == 11).unwrap();
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
        let mut batch = Batch::default();
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
fn what_is_no_log_is_read_without_a_panic() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("db");
    for len in [0, 1, 19, 20, 21, 600, SEGMENT, SEGMENT + 7] {
        for byte in [0, 1, 10, 250, 255] {
            std::fs::write(&file, vec![byte; len]).unwrap();
            assert_eq!(hole(&file).unwrap(), None);
            assert!(Pairs::read(&file, |_| true).unwrap().values.is_empty());
        }
    }
}
