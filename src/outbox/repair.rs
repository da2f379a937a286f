//! Opening a database whose log may be damaged: what can be read is kept, and so is the file as it was found.
//!
//! Left alone, sled would overwrite all that lies behind the damage (see [`log_file`]). So where there is batch after
//! batch behind something that cannot be read, sled is shown a copy first. If it misses anything that can be read, the
//! files are kept as they were found, in a folder of the database's own, and a new database is made of what can be
//! read, in the place of the old one: what was damaged itself is missing in it, and is found missing by the counts.
//!
//! A crash in the middle begins anew: until the new database stands in its place the old one does, untouched.

use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::database::{Batch, Database, DatabaseError, Durability, remove_snapshots, sync_dir};
use super::log_file::{self, Pairs};

/// The files of a damaged database as they were found: a folder in its own.
const AS_FOUND: &str = "as-found";
/// Where copies and new databases are made.
const SCRATCH: &str = "scratch";
/// About so many bytes are put into the new one at once.
const BATCH_BYTES: usize = 1 << 20;

/// Opens the database in `path`, having mended it if it is damaged. Its keys are those that `is_key` knows.
pub(super) fn open(
    path: &Path,
    durability: Durability,
    cache: u64,
    is_key: fn(&[u8]) -> bool,
) -> Result<Database, DatabaseError> {
    let Some(at) = hole(path) else {
        return Database::open(path, durability, cache);
    };
    let io = |source| DatabaseError::Io { path: path.to_path_buf(), source };
    let found = Pairs::read(&path.join("db"), is_key).map_err(io)?;
    if sled_reads_all(path, cache, &found)? {
        // What cannot be read is what sled itself had no more use for.
        return Database::open(path, durability, cache);
    }
    let kept = keep(path).map_err(io)?;
    replace(path, &found, cache)?;
    tracing::error!(
        at,
        path = %path.display(),
        as_found = %kept.display(),
        "a database is damaged: a new one holds what can be read of it, and its files are kept as they were found"
    );
    Database::open(path, durability, cache)
}

/// Where the log of the database in `path` cannot be read though there is more behind it. `None` as well where that
/// cannot be found out: then whoever opens it meets the reason.
pub(super) fn hole(path: &Path) -> Option<u64> {
    log_file::hole(&path.join("db")).ok().flatten()
}

/// Keeps the database's files as they are.
fn keep(path: &Path) -> std::io::Result<PathBuf> {
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
    std::fs::rename(&scratch, &kept)?;
    sync_dir(path)?;
    Ok(kept)
}

/// The folders of a database in `path` that hold a log as it was found.
pub(super) fn kept(path: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let kept = entries.filter(|entry| entry.file_name().as_encoded_bytes().starts_with(AS_FOUND.as_bytes()));
    let mut kept: Vec<PathBuf> = kept.map(|entry| entry.path()).collect();
    kept.sort();
    kept
}

/// Copies the files of `path` into a new folder, durably.
fn copy_files(path: &Path, to: &Path) -> std::io::Result<()> {
    remove(to)?;
    std::fs::create_dir(to)?;
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            let target = to.join(entry.file_name());
            std::fs::copy(entry.path(), &target)?;
            File::open(&target)?.sync_all()?;
        }
    }
    sync_dir(to)
}

fn remove(dir: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Whether sled, shown a copy, finds all that was found in the log.
fn sled_reads_all(path: &Path, cache: u64, found: &Pairs) -> Result<bool, DatabaseError> {
    let scratch = path.join(SCRATCH);
    let io = |source| DatabaseError::Io { path: scratch.clone(), source };
    copy_files(path, &scratch).map_err(io)?;
    let (mut trouble, mut has_all) = (Ok(()), true);
    match Database::open(&scratch, Durability::Process, cache) {
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

/// Puts a new database in the place of the one in `path`.
fn replace(path: &Path, found: &Pairs, cache: u64) -> Result<(), DatabaseError> {
    let io = |source| DatabaseError::Io { path: path.to_path_buf(), source };
    let new = path.join(SCRATCH);
    remove(&new).map_err(io)?;
    let database = Database::create(&new, Durability::Fsync, cache)?;
    let (mut batch, mut bytes, mut trouble) = (Batch::default(), 0, Ok(()));
    found
        .scan(&[], &[], |key, value| {
            batch.put_found(key, value);
            bytes += key.len() + value.len();
            if bytes >= BATCH_BYTES {
                bytes = 0;
                trouble = database.commit(std::mem::take(&mut batch));
            }
            trouble.is_ok()
        })
        .map_err(io)?;
    trouble?;
    database.commit(batch)?;
    drop(database);
    // IMPORTANT: in this order. A snapshot of the old log would be taken for one of the new.
    remove_snapshots(path)?;
    sync_dir(path).map_err(io)?;
    std::fs::rename(new.join("db"), path.join("db")).map_err(io)?;
    sync_dir(path).map_err(io)?;
    remove(&new).map_err(io)
}
