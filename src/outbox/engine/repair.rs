//! Opens a database whose log may be damaged or not on disk: everything readable is kept.
//!
//! Left alone, sled would overwrite everything after the damage (see [`log_file`]). So if batches follow an unreadable
//! part, sled is first given a copy. If it misses anything readable, the files are kept as found, in a subfolder of the
//! database's folder, and a new database is built from the readable data and replaces the old one. The damaged part is
//! missing from it, which the counts reveal.
//!
//! After a failed sync ([`mark_unsynced`]) the log can be read, but its last pages may not be on disk, and no later sync
//! would write them: a power cut would leave a hole, and destroy what was committed after it. So a new, synced database is
//! built from everything readable. The same applies if sled cannot use its snapshot.
//!
//! IMPORTANT: when sled opens a database it fills unneeded segments with zeros. Without its snapshot it mistakes these for
//! the end of the log and overwrites everything after them. So a log whose snapshot is unusable, or missing although a
//! batch follows such zeros, is read here ([`RecoveredPairs`]) and not by sled.
//!
//! After a crash the procedure starts again: until the new database has replaced the old one, the old one is untouched.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::batch::WriteBatch;
use super::database::{
    Database, Durability, has_snapshots, is_snapshot_damaged, keep_closed, remove_snapshots,
};
use super::error::DatabaseError;
use super::fault;
use super::log_file::{self, RecoveredPairs};
use super::names::{move_file, remove_dir, sync_dir};

/// A damaged database's files as found: a subfolder of its folder.
const AS_FOUND: &str = "as-found";
/// The folder for copies and new databases.
const SCRATCH: &str = "scratch";
/// A marker file: a sync of this database has failed. It contains the inode of the file that is about to replace it, if
/// any.
const UNSYNCED: &str = "unsynced";
/// Approximate bytes written to the new database at once.
const BATCH_BYTES: usize = 1 << 20;

/// Opens the database in `path`. If it is damaged it is repaired first; if it may not be on disk (`is_unsynced`, or marked
/// so) it is renewed. `is_key` recognises its keys.
pub(crate) fn open(
    path: &Path,
    durability: Durability,
    cache: u64,
    is_key: fn(&[u8]) -> bool,
    is_unsynced: bool,
) -> Result<Database, DatabaseError> {
    if is_replaced(path) {
        finish(path)?;
    }
    let hole = hole(path)?;
    if let Some(at) = hole {
        let found = RecoveredPairs::read(&path.join("db"), is_key).map_err(DatabaseError::io(path))?;
        // Otherwise the unreadable part is one that sled no longer needs.
        if !sled_reads_all(path, cache, &found)? {
            let kept = keep(path)?;
            replace(path, cache, |put| found.scan(&[], &[], put).map_err(DatabaseError::io(path)))?;
            tracing::error!(
                at,
                path = %path.display(),
                as_found = %kept.display(),
                "a database is damaged: a new one contains everything readable, and its files are kept as found"
            );
        }
    }
    if !is_unsynced && !path.join(UNSYNCED).exists() {
        match Database::open(path, durability, cache) {
            Err(error) if error.is_of_medium() => mark_unsynced(path, &error),
            Err(error) if error.is_damage() && has_snapshots(path) => {
                tracing::warn!(%error, path = %path.display(), "sled cannot open a database with its snapshot");
            }
            opened => return opened,
        }
    }
    renew(path, cache, |key| hole.is_none() || is_key(key))?;
    Database::open(path, durability, cache).map_err(DatabaseError::of_readable)
}

/// Notes that a sync of the database in `path` has failed: it must be renewed before it is opened again, even by the next
/// process. The marker need not survive a power cut: what a power cut leaves is on disk.
pub(crate) fn mark_unsynced(path: &Path, why: &DatabaseError) {
    tracing::error!(
        error = %why,
        path = %path.display(),
        "a sync has failed, and what it should have written may be gone from the disk: the file is not written to any \
         more; before the next write all that can be read goes to a new one"
    );
    if let Err(error) = File::create(path.join(UNSYNCED)) {
        tracing::warn!(%error, path = %path.display(), "cannot mark this database as unsynced");
    }
}

/// Rebuilds the database in `path` from everything readable in its log.
fn renew(path: &Path, cache: u64, is_key: impl Fn(&[u8]) -> bool) -> Result<(), DatabaseError> {
    let _closed = keep_closed(path)?;
    #[cfg(feature = "simulation")]
    if let Some(disk) = super::simulated_disk::disk() {
        return replace(path, cache, |put| {
            disk.pairs(path, &[], &[]).iter().all(|(key, value)| put(key, value));
            Ok(())
        });
    }
    let found =
        RecoveredPairs::read_whole_batches(&path.join("db"), is_key).map_err(DatabaseError::io(path))?;
    replace(path, cache, |put| found.scan(&[], &[], put).map_err(DatabaseError::io(path)))?;
    tracing::warn!(path = %path.display(), "this database was rebuilt from everything readable in its log, and synced");
    Ok(())
}

/// Where the log of the database in `path` is damaged, as far as it shows. `None` also if there is no log. IMPORTANT: sled
/// must not be given a log that cannot be read now: it would take the unreadable part for the end, and overwrite the rest.
pub(crate) fn hole(path: &Path) -> Result<Option<u64>, DatabaseError> {
    let file = path.join("db");
    if !file.exists() {
        return Ok(None);
    }
    log_file::hole(&file).map_err(DatabaseError::io(path))
}

/// Why opening the database in `path` would repair or renew it.
pub(crate) fn trouble(path: &Path) -> Option<String> {
    match hole(path) {
        Ok(Some(at)) => Some(format!("its log cannot be read at byte {at}")),
        Err(error) => Some(error.to_string()),
        Ok(None) if path.join(UNSYNCED).exists() => {
            Some("a sync of it has failed, and it is not renewed yet".to_owned())
        }
        Ok(None) => match is_snapshot_damaged(path) {
            Ok(false) => None,
            Ok(true) => Some("its snapshot is damaged: the next start rebuilds it from its log".to_owned()),
            Err(error) => Some(error.to_string()),
        },
    }
}

/// Keeps the database's files unchanged.
fn keep(path: &Path) -> Result<PathBuf, DatabaseError> {
    // Damaged repeatedly: each time gets its own folder.
    let mut kept = path.join(AS_FOUND);
    for number in 2.. {
        if !kept.exists() {
            break;
        }
        kept.set_file_name(format!("{AS_FOUND}-{number}"));
    }
    let scratch = path.join(SCRATCH);
    copy_files(path, &scratch)?;
    std::fs::rename(&scratch, &kept).map_err(DatabaseError::io(&kept))?;
    sync_dir(path).map_err(DatabaseError::unsynced(path))?;
    Ok(kept)
}

/// The folders of a database in `path` that contain a log as found.
pub(crate) fn kept(path: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let kept = entries.filter(|entry| entry.file_name().as_encoded_bytes().starts_with(AS_FOUND.as_bytes()));
    let mut kept: Vec<PathBuf> = kept.map(|entry| entry.path()).collect();
    kept.sort();
    kept
}

/// Copies the files of `path` to a new folder, durably.
fn copy_files(path: &Path, to: &Path) -> Result<(), DatabaseError> {
    let copy = || {
        let mut copies = Vec::new();
        remove_dir(to)?;
        std::fs::create_dir(to)?;
        for entry in std::fs::read_dir(path)? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                let target = to.join(entry.file_name());
                std::fs::copy(entry.path(), &target)?;
                copies.push(File::open(&target)?);
            }
        }
        Ok(copies)
    };
    let copies = copy().map_err(DatabaseError::io(path))?;
    let synced = copies.iter().try_for_each(File::sync_all).and_then(|()| sync_dir(to));
    synced.map_err(DatabaseError::unsynced(to))
}

/// Whether sled, given a copy, finds everything that was found in the log.
fn sled_reads_all(path: &Path, cache: u64, found: &RecoveredPairs) -> Result<bool, DatabaseError> {
    let scratch = path.join(SCRATCH);
    copy_files(path, &scratch)?;
    let (mut trouble, mut has_all) = (Ok(()), true);
    match Database::open(&scratch, Durability::Process, cache).map_err(DatabaseError::of_readable) {
        Ok(copy) => found
            .scan(&[], &[], |key, value| {
                match copy.get(key) {
                    Ok(held) => has_all = held.is_some_and(|held| *held == *value),
                    Err(error) if error.is_damage() => has_all = false,
                    Err(error) => trouble = Err(error),
                }
                has_all && trouble.is_ok()
            })
            .map_err(DatabaseError::io(&scratch))?,
        Err(error) if error.is_damage() => has_all = false,
        Err(error) => trouble = Err(error),
    }
    remove_dir(&scratch).map_err(DatabaseError::io(&scratch))?;
    trouble.map(|()| has_all)
}

/// Replaces the database in `path` with a new one made of the pairs passed by `scan`.
fn replace(
    path: &Path,
    cache: u64,
    scan: impl FnOnce(&mut dyn FnMut(&[u8], &[u8]) -> bool) -> Result<(), DatabaseError>,
) -> Result<(), DatabaseError> {
    let new = path.join(SCRATCH);
    remove_dir(&new).map_err(DatabaseError::io(path))?;
    if let Err(error) = fill(&new, cache, scan) {
        // The cause may be a lack of space.
        let _ = remove_dir(&new);
        return Err(error);
    }
    let sync = || sync_dir(path).map_err(DatabaseError::unsynced(path));
    // IMPORTANT: in this order. Until the new name is on disk and the old snapshots are gone, the file must not be written
    // to, for whatever reason it is replaced; and without its snapshots the extent of the old log is unknown.
    let mark = || {
        let inode = std::fs::metadata(new.join("db"))?.ino();
        let mut mark = File::create(path.join(UNSYNCED))?;
        write!(mark, "{inode}")?;
        mark.sync_all()
    };
    mark().map_err(DatabaseError::io(path))?;
    sync()?;
    fault::point().map_err(DatabaseError::io(path))?;
    move_file(&new, path).map_err(DatabaseError::io(path))?;
    sync()?;
    fault::point().map_err(DatabaseError::io(path))?;
    finish(path)
}

/// Whether the file of the database in `path` is a new one, beside which the old one's snapshots may still exist.
fn is_replaced(path: &Path) -> bool {
    let inode = std::fs::read_to_string(path.join(UNSYNCED)).ok().and_then(|inode| inode.parse().ok());
    inode.is_some() && inode == std::fs::metadata(path.join("db")).ok().map(|meta| meta.ino())
}

/// Removes the remains of a replaced database.
fn finish(path: &Path) -> Result<(), DatabaseError> {
    remove_snapshots(path)?;
    sync_dir(path).map_err(DatabaseError::unsynced(path))?;
    std::fs::remove_file(path.join(UNSYNCED)).map_err(DatabaseError::io(path))?;
    remove_dir(&path.join(SCRATCH)).map_err(DatabaseError::io(path))
}

/// Creates a database in `new`, which is on disk on return.
fn fill(
    new: &Path,
    cache: u64,
    scan: impl FnOnce(&mut dyn FnMut(&[u8], &[u8]) -> bool) -> Result<(), DatabaseError>,
) -> Result<(), DatabaseError> {
    // A failure here says nothing about stored data.
    let unsynced = |error: DatabaseError| DatabaseError::Unsynced {
        path: new.to_path_buf(),
        source: std::io::Error::other(error),
    };
    let database = Database::create(new, Durability::Fsync, cache).map_err(unsynced)?;
    let (mut batch, mut bytes, mut trouble) = (WriteBatch::default(), 0, Ok(()));
    scan(&mut |key, value| {
        batch.put_found(key, value);
        bytes += key.len() + value.len();
        if bytes >= BATCH_BYTES {
            bytes = 0;
            trouble = database.commit(std::mem::take(&mut batch));
        }
        trouble.is_ok()
    })?;
    trouble.and_then(|()| database.commit(batch)).map_err(unsynced)
}
