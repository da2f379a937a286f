//! A sync fails once or several times; the process continues, or is killed and restarted; then power is cut. The data of
//! the failed sync is then lost, whatever was synced later.
//!
//! The disk is `lying_disk.c`, compiled here and preloaded into the process.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::at_length;
use super::child::Account;
use crate::harness::preload;

/// Rounds after which a new outbox begins: reading all of an old one takes ever longer.
const ROUNDS_OF_ONE: u32 = 20;
/// How long a child works while waiting for a failed sync, which may never occur.
const FAILS_WITHIN: Duration = Duration::from_secs(8);

/// Restores what is on disk, as a power cut would leave it.
fn cut_power(dir: &Path, shadow: &Path) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            cut_power(&entry.path(), shadow);
            continue;
        }
        let on_disk = shadow.join(entry.metadata().unwrap().ino().to_string());
        if on_disk.exists() {
            std::fs::write(entry.path(), std::fs::read(on_disk).unwrap()).unwrap();
        }
    }
}

/// Which syncs fail: those of the ledger, of segments, or any, folders included.
fn failure(round: u32, dice: &mut StdRng) -> String {
    let (part, first, count) = match round % 8 {
        0..4 => ("ledger/db", dice.random_range(0..25), 1),
        4 => ("segments/", dice.random_range(0..30), 1),
        5 => ("*", dice.random_range(0..60), 1),
        6 => ("ledger", dice.random_range(2..25), dice.random_range(2..6)),
        _ => ("*", dice.random_range(0..60), dice.random_range(2..10)),
    };
    format!("{part}:{first}:{count}")
}

#[test]
fn nothing_is_lost_when_a_sync_fails_and_the_power_is_cut_later() {
    let scratch = tempfile::tempdir().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/outbox/lying_disk.c");
    let Some(library) = preload(scratch.path(), &source) else { return };
    let (mut dir, shadow) = (scratch.path().join("outbox"), scratch.path().join("shadow"));
    let seed = rand::random();
    let mut dice = StdRng::seed_from_u64(seed);
    let (rounds, mut failed, mut dead_lettered) = (at_length(10_u32, 200), 0, 0);
    let mut account = Account::default().with_letters();
    let env = account.env.clone();
    for round in 0..rounds {
        if round > 0 && round.is_multiple_of(ROUNDS_OF_ONE) {
            dead_lettered += account.dead_lettered.len();
            account = Account::default().with_letters();
            dir = scratch.path().join(format!("outbox-{round}"));
            println!("{round} of {rounds} rounds; a sync failed in {failed}");
        }
        std::fs::create_dir(&shadow).unwrap();
        let which = failure(round, &mut dice);
        account.env = env.clone();
        for (name, value) in [
            ("LD_PRELOAD", library.as_path()),
            ("DISK_ROOT", dir.as_path()),
            ("DISK_SHADOW", shadow.as_path()),
        ] {
            account.env.push((name, value.into()));
        }
        account.env.push(("DISK_FAILS", which.clone().into()));
        let (begun, note) = (Instant::now(), shadow.join("failed"));
        let length = Duration::from_millis(dice.random_range(50..400));
        account.run(&dir, false, length, |child| {
            // However slow this machine: it works until a sync has failed, and some time after that.
            while !note.exists() && begun.elapsed() < FAILS_WITHIN {
                std::thread::sleep(Duration::from_millis(5));
            }
            std::thread::sleep(length);
            child.kill().unwrap();
        });
        if dice.random_bool(0.3) {
            // Restarted before power is cut, on a disk that has recovered.
            account.env.retain(|(name, _)| *name != "DISK_FAILS");
            account.run(&dir, false, length, |child| child.kill().unwrap());
        }
        let note = std::fs::read_to_string(shadow.join("failed")).unwrap_or_default();
        failed += u32::from(!note.is_empty());
        cut_power(&dir, &shadow);
        let outcome =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| account.settle_accounts(&dir)));
        let lost = outcome.unwrap_or_else(|_| panic!("round {round} of seed {seed}: {which}: failed {note}"));
        assert_eq!(lost, 0, "records are lost in round {round} of seed {seed}: {which}: failed {note}");
        std::fs::remove_dir_all(&shadow).unwrap();
    }
    assert!(failed * 2 > rounds, "syncs failed in {failed} of {rounds} rounds");
    dead_lettered += account.dead_lettered.len();
    assert!(dead_lettered > 100, "the child did its work: {dead_lettered}");
}
