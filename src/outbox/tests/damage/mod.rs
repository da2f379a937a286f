//! Files with flipped bits, cut off or missing: no crash, no wrong record, and everything undamaged is still there. A file
//! each for a kind of damage.

mod anywhere;
mod half_made;
mod ledger;
mod packs;
mod zeros_in_a_log;

use std::path::{Path, PathBuf};

use super::rig::{Rig, entry, settings, transaction, usage};
use crate::outbox::api::handle::Outbox;
use crate::outbox::engine::database::remove_snapshots;
use crate::outbox::format::log::Log;
use crate::outbox::messages::Settlement;
use crate::outbox::recovery::quarantine;
use crate::record::Kind;

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

fn settle_down(rig: &mut Rig) {
    for _ in 0..4 {
        rig.tick();
        rig.chores();
        rig.tick();
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
