//! Opening a database whose log may be damaged, or may not be on the disk: what can be read is kept.
//!
//! Left alone, sled would overwrite all that lies behind the damage (see [`log_file`]). So where there is batch after
//! batch behind something that cannot be read, sled is shown a copy first. If it misses anything that can be read, the
//! files are kept as they were found, in a folder of the database's own, and a new database is made of what can be
//! read, in the place of the old one: what was damaged itself is missing in it, and is found missing by the counts.
//!
//! After a failed sync ([`mark_unsynced`]) the log can be read, but its last pages may not be on the disk, and no later
//! sync would put them there: a power cut would leave a hole, and take along what was committed behind it. So of all that
//! can be read a new, synced database is made. Likewise where sled cannot use its snapshot.
//!
//! IMPORTANT: what sled does not need any more it fills with zeros when it opens a database. Without its snapshot it takes
//! those for the end of the log and overwrites all that lies behind them. So a log whose snapshot cannot be used, or is
//! gone though a batch lies behind such zeros, is read here ([`RecoveredPairs`]), and not by sled.
//!
//! A crash in the middle begins anew: until the new database stands in its place the old one does, untouched.

use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::batch::WriteBatch;
use super::database::{
    Database, Durability, has_snapshots, is_snapshot_damaged, keep_closed, remove_snapshots,
};
use super::error::DatabaseError;
use super::fault;
use super::log_file::{self, RecoveredPairs};
use super::names::{move_file, sync_dir};

/// The files of a damaged database as they were found: a folder in its own.
const AS_FOUND: &str = "as-found";
/// Where copies and new databases are made.
const SCRATCH: &str = "scratch";
/// A file: a sync of this database has failed. It holds the inode of the file that is about to take its place, if there is one.
const UNSYNCED: &str = "unsynced";
/// About so many bytes are put into the new one at once.
const BATCH_BYTES: usize = 1 << 20;

/// Opens the database in `path`, having mended it if it is damaged, and renewed it if it may not be on the disk: if it
/// `is_unsynced` or marked so. Its keys are those that `is_key` knows.
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
        let found = RecoveredPairs::read(&path.join("db"), is_key).map_err(|error| io(path, error))?;
        // Else what cannot be read is what sled itself had no more use for.
        if !sled_reads_all(path, cache, &found)? {
            let kept = keep(path)?;
            replace(path, cache, |put| found.scan(&[], &[], put).map_err(|error| io(path, error)))?;
            tracing::error!(
                at,
                path = %path.display(),
                as_found = %kept.display(),
                "a database is damaged: a new one holds what can be read of it, and its files are kept as they were found"
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

fn io(path: &Path, source: std::io::Error) -> DatabaseError {
    DatabaseError::Io { path: path.to_path_buf(), source }
}

/// A sync of the database in `path` has failed: it is to be renewed before it is opened again, also by the next process.
/// The mark itself need not survive a power cut: what that leaves is what is on the disk.
pub(crate) fn mark_unsynced(path: &Path, why: &DatabaseError) {
    tracing::error!(
        error = %why,
        path = %path.display(),
        "a sync has failed, and what it should have written may be gone from the disk: the file is not written to any \
         more; before the next write all that can be read goes to a new one"
    );
    if let Err(error) = File::create(path.join(UNSYNCED)) {
        tracing::warn!(%error, path = %path.display(), "this database cannot be marked as not synced");
    }
}

/// Makes the database in `path` anew of all that can be read of its log.
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
        RecoveredPairs::read_whole_batches(&path.join("db"), is_key).map_err(|error| io(path, error))?;
    replace(path, cache, |put| found.scan(&[], &[], put).map_err(|error| io(path, error)))?;
    tracing::warn!(path = %path.display(), "a new, synced database holds all that can be read of this one's log");
    Ok(())
}

/// Where the log of the database in `path` is damaged, as far as it says so itself. `None` as well where there is none.
/// IMPORTANT: sled is not to be shown a log that cannot be read just now: it takes that for its end, and overwrites the rest.
pub(crate) fn hole(path: &Path) -> Result<Option<u64>, DatabaseError> {
    let file = path.join("db");
    if !file.exists() {
        return Ok(None);
    }
    log_file::hole(&file).map_err(|error| io(path, error))
}

/// Why the database in `path` would be mended, or renewed, by being opened.
pub(crate) fn trouble(path: &Path) -> Option<String> {
    match hole(path) {
        Ok(Some(at)) => Some(format!("its log cannot be read at byte {at}")),
        Err(error) => Some(error.to_string()),
        Ok(None) if path.join(UNSYNCED).exists() => {
            Some("a sync of it has failed: it is not renewed yet".to_owned())
        }
        Ok(None) => match is_snapshot_damaged(path) {
            Ok(false) => None,
            Ok(true) => Some("its snapshot is damaged: the next start makes it anew from its log".to_owned()),
            Err(error) => Some(error.to_string()),
        },
    }
}

/// Keeps the database's files as they are.
fn keep(path: &Path) -> Result<PathBuf, DatabaseError> {
    // Damage on damage: each has its own.
    let mut kept = path.join(AS_FOUND);
    for number in 2.. {
        if !kept.exists() {
            break;
        }
        kept.set_file_name(format!("{AS_FOUND}-{number}"));
    }
    let scratch = path.join(SCRATCH);
    copy_files(path, &scratch)?;
    std::fs::rename(&scratch, &kept).map_err(|source| DatabaseError::Io { path: kept.clone(), source })?;
    sync_dir(path).map_err(|source| DatabaseError::Unsynced { path: path.to_path_buf(), source })?;
    Ok(kept)
}

/// The folders of a database in `path` that hold a log as it was found.
pub(crate) fn kept(path: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let kept = entries.filter(|entry| entry.file_name().as_encoded_bytes().starts_with(AS_FOUND.as_bytes()));
    let mut kept: Vec<PathBuf> = kept.map(|entry| entry.path()).collect();
    kept.sort();
    kept
}

/// Copies the files of `path` into a new folder, durably.
fn copy_files(path: &Path, to: &Path) -> Result<(), DatabaseError> {
    let copy = || {
        let mut copies = Vec::new();
        remove(to)?;
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
    let copies = copy().map_err(|source| DatabaseError::Io { path: path.to_path_buf(), source })?;
    let synced = copies.iter().try_for_each(File::sync_all).and_then(|()| sync_dir(to));
    synced.map_err(|source| DatabaseError::Unsynced { path: to.to_path_buf(), source })
}

fn remove(dir: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Whether sled, shown a copy, finds all that was found in the log.
fn sled_reads_all(path: &Path, cache: u64, found: &RecoveredPairs) -> Result<bool, DatabaseError> {
    let scratch = path.join(SCRATCH);
    let io = |source| DatabaseError::Io { path: scratch.clone(), source };
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
            .map_err(io)?,
        Err(error) if error.is_damage() => has_all = false,
        Err(error) => trouble = Err(error),
    }
    remove(&scratch).map_err(io)?;
    trouble.map(|()| has_all)
}

/// Puts a new database, of the pairs that `scan` hands over, in the place of the one in `path`.
fn replace(
    path: &Path,
    cache: u64,
    scan: impl FnOnce(&mut dyn FnMut(&[u8], &[u8]) -> bool) -> Result<(), DatabaseError>,
) -> Result<(), DatabaseError> {
    let io = |source| DatabaseError::Io { path: path.to_path_buf(), source };
    let new = path.join(SCRATCH);
    remove(&new).map_err(io)?;
    if let Err(error) = fill(&new, cache, scan) {
        // It may have been for want of room.
        let _ = remove(&new);
        return Err(error);
    }
    let sync =
        || sync_dir(path).map_err(|source| DatabaseError::Unsynced { path: path.to_path_buf(), source });
    // IMPORTANT: in this order. Until the new name is on the disk, and the old snapshots are not, this is not the file to be
    // written to, whatever the reason for it; and without its snapshots nobody can say how far the old log goes.
    let mark = || {
        let inode = std::fs::metadata(new.join("db"))?.ino();
        let mut mark = File::create(path.join(UNSYNCED))?;
        write!(mark, "{inode}")?;
        mark.sync_all()
    };
    mark().map_err(io)?;
    sync()?;
    fault::point().map_err(io)?;
    move_file(&new, path).map_err(io)?;
    sync()?;
    fault::point().map_err(io)?;
    finish(path)
}

/// Whether the file of the database in `path` is a new one, and the snapshots beside it may be those of the old one.
fn is_replaced(path: &Path) -> bool {
    let inode = std::fs::read_to_string(path.join(UNSYNCED)).ok().and_then(|inode| inode.parse().ok());
    inode.is_some() && inode == std::fs::metadata(path.join("db")).ok().map(|meta| meta.ino())
}

/// Removes what is left of a database that was replaced.
fn finish(path: &Path) -> Result<(), DatabaseError> {
    let io = |source| DatabaseError::Io { path: path.to_path_buf(), source };
    remove_snapshots(path)?;
    sync_dir(path).map_err(|source| DatabaseError::Unsynced { path: path.to_path_buf(), source })?;
    std::fs::remove_file(path.join(UNSYNCED)).map_err(io)?;
    remove(&path.join(SCRATCH)).map_err(io)
}

/// Makes a database in `new`, on the disk when this returns.
fn fill(
    new: &Path,
    cache: u64,
    scan: impl FnOnce(&mut dyn FnMut(&[u8], &[u8]) -> bool) -> Result<(), DatabaseError>,
) -> Result<(), DatabaseError> {
    // What fails here says nothing of what is stored.
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
