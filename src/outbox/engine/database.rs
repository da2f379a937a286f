//! One sled database with the barrier that makes its commits survive a power cut.
//!
//! The only file that calls sled; the modules beside it read its log and sync its folders. It works around the following,
//! each measured:
//!
//! * `flush()` calls `sync_file_range` (sled issue 1452), so a commit also calls `fdatasync` on the file
//!   `db` through a second descriptor, and files and directories are synced once after creation.
//! * A page over a quarter of sled's segment goes to an unsynced file under `blobs/`. A leaf holds at most
//!   20 items (16, and up to 4 while a sibling merges in), so with values of at most [`CHUNK`](chunks::CHUNK) bytes a leaf
//!   stays under a quarter of [`SLED_SEGMENT_BYTES`] whatever the records' sizes: longer values are cut into
//!   chunks. `blobs/` staying empty is asserted after every commit that wrote a longer value.
//! * Its cache is 256 caches, each of which checks its limit only at every 64th access to one of its pages. A scan accesses
//!   a leaf once or twice, so all of a scanned segment would stay in memory, whatever the limit. So keys that were read or
//!   written are looked up a few more times ([`READ_TOUCHES`], [`WRITE_TOUCHES`]); a leaf has about eight keys. That costs
//!   5 % of the time, and leaves 15 MiB of a 64 MiB segment in memory.
//! * sled panics on some damage: every call, and the drop, is wrapped in `catch_unwind`.
//! * Each opening writes a snapshot of the page table, first to `snap.….generating`, and later openings accept such a file
//!   as the newest snapshot: if a kill cut it short, the database cannot be opened, nor can it with a flipped bit in a
//!   snapshot. Without its snapshot sled reads only part of the log: see [`repair`](super::repair).
//! * sled overwrites everything after the first unreadable part of its log: see [`repair`](super::repair).
//! * After a failed write sled refuses all further ones until it is closed and opened again.
//! * After a failed sync the kernel treats unwritten pages as written, and later syncs succeed without them: such a file is
//!   never written to again, see [`LazyDatabase`](super::lazy_database) and [`repair`](super::repair).

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::batch::WriteBatch;
use super::chunks;
use super::error::DatabaseError;
use super::fault;
use super::names::sync_tree;

/// sled's own segment (its I/O buffer): small, because three of these are resident per open database.
pub(crate) const SLED_SEGMENT_BYTES: usize = 512 << 10;
/// How often each scanned key is looked up again, which makes sled notice that its cache is full.
const READ_TOUCHES: usize = 8;
/// The same for each written key; writing itself accesses its leaf a few times. With 4 lookups there were 60 accesses per
/// leaf, one check of the limit for two leaves, and twice the memory while nobody read.
const WRITE_TOUCHES: usize = 6;
/// How long sled may need to release a closed database.
const LET_GO_WITHIN: Duration = Duration::from_millis(500);

/// Whether a commit waits for the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Durability {
    /// `fdatasync` with every commit: survives a power cut.
    #[default]
    Fsync,
    /// Survives the end of the process, but not of the machine: for battery-backed storage.
    Process,
}

impl Durability {
    /// What an acknowledged record survives, as text.
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Fsync => "survives a power cut",
            Self::Process => "survives the process, not a power cut",
        }
    }
}

/// An open database.
pub(crate) struct Database {
    path: PathBuf,
    /// Empty only during drop.
    db: Option<sled::Db>,
    barrier: File,
    durability: Durability,
    /// Replaces sled and the barrier.
    #[cfg(feature = "simulation")]
    disk: Option<super::simulated_disk::Disk>,
}

impl Drop for Database {
    fn drop(&mut self) {
        let db = self.db.take();
        // Committed data is on disk: whatever fails here loses nothing.
        let _ = guard(&self.path, || {
            drop(db);
            Ok(())
        });
        // Memory in use at closing is two epochs from being freed.
        (0..3).for_each(|_| collect_garbage());
    }
}

/// The snapshots of the database in `path`, complete or not.
fn snapshots(path: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut snapshots = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(b"snap.") {
            snapshots.push(entry.path());
        }
    }
    Ok(snapshots)
}

/// Whether there are any.
pub(crate) fn has_snapshots(path: &Path) -> bool {
    snapshots(path).is_ok_and(|found| !found.is_empty())
}

/// Whether sled cannot use the newest snapshot in `path`: it ends with its length before compression (8 bytes) and the
/// CRC-32 of everything before both.
pub(crate) fn is_snapshot_damaged(path: &Path) -> std::io::Result<bool> {
    let Some(newest) = snapshots(path)?.into_iter().max() else { return Ok(false) };
    let bytes = std::fs::read(newest)?;
    let Some((content, [_, _, _, _, _, _, _, _, crc32 @ ..])) = bytes.split_last_chunk::<12>() else {
        return Ok(true);
    };
    Ok(content.is_empty() || crc32fast::hash(content) != u32::from_le_bytes(*crc32))
}

/// Removes the snapshots. Only for a log that sled has never opened: see [`repair`](super::repair).
pub(crate) fn remove_snapshots(path: &Path) -> Result<(), DatabaseError> {
    let removed = snapshots(path).and_then(|found| found.iter().try_for_each(std::fs::remove_file));
    removed.map_err(DatabaseError::io(path))
}

impl Database {
    /// Opens the existing database in `path`.
    pub(crate) fn open(path: &Path, durability: Durability, cache: u64) -> Result<Self, DatabaseError> {
        // IMPORTANT: sled would create a new, empty one, and the missing records would go unnoticed.
        if !path.join("db").exists() {
            return Err(DatabaseError::Missing(path.to_path_buf()));
        }
        Self::open_or_create(path, durability, cache)
    }

    /// Creates a database in `path`.
    pub(crate) fn create(path: &Path, durability: Durability, cache: u64) -> Result<Self, DatabaseError> {
        let database = Self::open_or_create(path, durability, cache)?;
        // IMPORTANT: before the first commit: a synced record is lost if the name of its file is not synced.
        sync_tree(path).map_err(DatabaseError::io(path))?;
        Ok(database)
    }

    fn open_or_create(path: &Path, durability: Durability, cache: u64) -> Result<Self, DatabaseError> {
        #[cfg(feature = "simulation")]
        if let Some(disk) = super::simulated_disk::disk() {
            return Self::open_on(disk, path, durability);
        }
        // IMPORTANT: opened before sled's descriptor. From here on it learns of every failed sync of this file, even of
        // those that sled ignores; a descriptor opened later would not.
        let heard = File::open(path.join("db"));
        let begun = Instant::now();
        let opened = loop {
            let opened = guard(path, || {
                sled::Config::new()
                    .path(path)
                    .segment_size(SLED_SEGMENT_BYTES)
                    .cache_capacity(cache)
                    .mode(sled::Mode::HighThroughput)
                    .flush_every_ms(None)
                    .open()
            });
            match opened {
                // The database was just closed: sled's threads release it a moment later.
                Err(error) if error.is_in_use() && begun.elapsed() < LET_GO_WITHIN => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                opened => break opened,
            }
        };
        let db = opened.map_err(|error| match heard.as_ref().map(File::sync_data) {
            Ok(Err(source)) => DatabaseError::Unsynced { path: path.join("db"), source },
            _ => error,
        })?;
        let barrier = heard.or_else(|_| File::open(path.join("db"))).map_err(DatabaseError::io(path))?;
        let database = Self {
            path: path.to_path_buf(),
            db: Some(db),
            barrier,
            durability,
            #[cfg(feature = "simulation")]
            disk: None,
        };
        // IMPORTANT: the opener acts on what it reads. A process killed before its barrier has left pages that can be read
        // but are not on disk.
        database.sync()?;
        Ok(database)
    }

    #[cfg(feature = "simulation")]
    fn open_on(
        disk: super::simulated_disk::Disk,
        path: &Path,
        durability: Durability,
    ) -> Result<Self, DatabaseError> {
        if !disk.has(path) || !path.join("db").exists() {
            disk.create(path).map_err(DatabaseError::io(path))?;
        }
        let barrier = File::open(path.join("db")).map_err(DatabaseError::io(path))?;
        let database = Self { path: path.to_path_buf(), db: None, barrier, durability, disk: Some(disk) };
        database.sync()?;
        Ok(database)
    }

    /// Returns once everything written is durable (see [`Durability`]).
    fn sync(&self) -> Result<(), DatabaseError> {
        if self.durability == Durability::Process {
            return Ok(());
        }
        #[cfg(feature = "simulation")]
        if let Some(disk) = &self.disk {
            return disk.sync(&self.path).map_err(DatabaseError::unsynced(&self.path));
        }
        self.barrier.sync_data().map_err(DatabaseError::unsynced(self.path.join("db")))
    }

    /// Runs a call into sled.
    fn call<T>(&self, call: impl FnOnce(&sled::Db) -> sled::Result<T>) -> Result<T, DatabaseError> {
        match &self.db {
            Some(db) => guard(&self.path, || call(db)),
            None => Err(DatabaseError::Missing(self.path.clone())),
        }
    }

    /// Applies `batch` and returns once it is durable (see [`Durability`]).
    pub(crate) fn commit(&self, mut batch: WriteBatch) -> Result<(), DatabaseError> {
        fault::point().map_err(DatabaseError::io(&self.path))?;
        if let Err(error) = self.write(&mut batch) {
            // IMPORTANT: sled's own sync may have failed. This descriptor learns of that failure too.
            self.sync()?;
            return Err(error);
        }
        self.sync()?;
        fault::point().map_err(DatabaseError::unsynced(&self.path))?;
        // The data is safe: if this fails, the next call will fail too.
        let _ = self.call(|db| {
            let touches = batch.packs.iter().flat_map(|key| std::iter::repeat_n(key, WRITE_TOUCHES));
            touches.map(|key| db.contains_key(key)).try_for_each(|found| found.map(drop))
        });
        if batch.chunked && !self.blobs_empty() {
            return Err(DatabaseError::Panicked {
                path: self.path.clone(),
                message: "sled wrote a blob, which it never syncs: a value was too large".into(),
            });
        }
        Ok(())
    }

    fn write(&self, batch: &mut WriteBatch) -> Result<(), DatabaseError> {
        #[cfg(feature = "simulation")]
        if let Some(disk) = &self.disk {
            let written = disk.write(&self.path, std::mem::take(&mut batch.shown));
            return written
                .map_err(|source| DatabaseError::Sled { path: self.path.clone(), source: source.into() });
        }
        let writes = std::mem::take(&mut batch.writes);
        self.call(|db| {
            db.apply_batch(writes)?;
            db.flush()
        })
        .map(drop)
    }

    fn blobs_empty(&self) -> bool {
        std::fs::read_dir(self.path.join("blobs")).map_or(true, |mut entries| entries.next().is_none())
    }

    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<sled::IVec>, DatabaseError> {
        #[cfg(feature = "simulation")]
        if let Some(disk) = &self.disk {
            return Ok(disk.get(&self.path, key).map(Into::into));
        }
        self.call(|db| db.get(key))
    }

    /// Passes the pairs whose keys begin with `prefix`, from `from` on, to `visit` until it returns false.
    pub(crate) fn scan(
        &self,
        prefix: &[u8],
        from: &[u8],
        mut visit: impl FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), DatabaseError> {
        #[cfg(feature = "simulation")]
        if let Some(disk) = &self.disk {
            disk.pairs(&self.path, prefix, from).iter().all(|(key, value)| visit(key, value));
            return Ok(());
        }
        self.call(|db| {
            for pair in db.range(from..) {
                let (key, value) = pair?;
                if !key.starts_with(prefix) || !visit(&key, &value) {
                    break;
                }
                for _ in 0..READ_TOUCHES {
                    db.contains_key(&key)?;
                }
            }
            Ok(())
        })?;
        collect_garbage();
        Ok(())
    }

    /// Passes the values stored by [`WriteBatch::put_chunked`], under their keys without the chunk number, to `visit` until it
    /// returns false. `None` for a value with a missing part.
    pub(crate) fn scan_chunked(
        &self,
        prefix: &[u8],
        from: &[u8],
        visit: impl FnMut(&[u8], Option<&[u8]>) -> bool,
    ) -> Result<(), DatabaseError> {
        chunks::join(|next| self.scan(prefix, from, next), visit)
    }

    /// The last key that begins with `prefix`.
    pub(crate) fn last_key(&self, prefix: &[u8]) -> Result<Option<sled::IVec>, DatabaseError> {
        #[cfg(feature = "simulation")]
        if let Some(disk) = &self.disk {
            return Ok(disk.pairs(&self.path, prefix, prefix).pop().map(|(key, _)| key.into()));
        }
        self.call(|db| Ok(db.scan_prefix(prefix).next_back().transpose()?.map(|(key, _)| key)))
    }

    /// Its disk usage in bytes.
    pub(crate) fn disk_bytes(&self) -> u64 {
        #[cfg(feature = "simulation")]
        if let Some(disk) = &self.disk {
            return disk.bytes(&self.path);
        }
        self.barrier.metadata().map_or(0, |meta| std::os::unix::fs::MetadataExt::blocks(&meta) * 512)
    }
}

/// Frees memory that sled no longer uses: its collector is slow, and whole pages wait for it.
fn collect_garbage() {
    // This may concern any database, so a failure says nothing about this one.
    let _ = catch_unwind(|| crossbeam_epoch::pin().flush());
}

/// Runs a call into sled; a panic becomes an error.
fn guard<T>(path: &Path, call: impl FnOnce() -> sled::Result<T>) -> Result<T, DatabaseError> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(source)) => Err(DatabaseError::Sled { path: path.to_path_buf(), source }),
        Err(panic) => {
            let message = panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string))
                .unwrap_or_else(|| "a panic".into());
            Err(DatabaseError::Panicked { path: path.to_path_buf(), message })
        }
    }
}

/// Waits until nobody has the database in `path` open, and keeps it closed while the returned file is held.
pub(crate) fn keep_closed(path: &Path) -> Result<File, DatabaseError> {
    let io = |source| DatabaseError::Io { path: path.join("db"), source };
    let file = match File::options().read(true).write(true).open(path.join("db")) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(DatabaseError::Missing(path.to_path_buf()));
        }
        opened => opened.map_err(io)?,
    };
    let begun = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(std::fs::TryLockError::WouldBlock) if begun.elapsed() < LET_GO_WITHIN => {
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(std::fs::TryLockError::WouldBlock) => {
                return Err(io(std::io::Error::other("it is still in use")));
            }
            Err(std::fs::TryLockError::Error(source)) => return Err(io(source)),
        }
    }
}
