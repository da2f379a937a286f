//! One sled database with the barrier that makes its commits survive a power cut.
//!
//! The only file that calls sled; the room beside it reads its log and syncs its folders. What it works around, each measured:
//!
//! * `flush()` calls `sync_file_range` (sled issue 1452), so a commit also calls `fdatasync` on the file
//!   `db` through a second descriptor, and files and directories are synced once after creation.
//! * A page over a quarter of sled's segment goes to an unsynced file under `blobs/`. A leaf holds at most
//!   20 items (16, and up to 4 while a sibling merges in), so with values of at most [`CHUNK`](chunks::CHUNK) bytes a leaf
//!   stays under a quarter of [`SLED_SEGMENT_BYTES`] whatever the records' sizes: longer values are cut into
//!   chunks. `blobs/` staying empty is asserted after every commit that wrote a longer value.
//! * Its cache is 256 caches, and each looks at its bound only with every 64th access to a page of its own. A scan
//!   accesses a leaf once or twice, so of a segment that is read all would stay in memory, whatever the bound. So keys
//!   that were read or written are looked up a few times over ([`READ_TOUCHES`], [`WRITE_TOUCHES`]): a leaf has about
//!   eight. That takes 5 % of the time and leaves 15 MiB of a segment of 64 in memory.
//! * sled panics on some damage: every call, and the drop, is made behind `catch_unwind`.
//! * It writes a snapshot of its page table with each opening, first to `snap.….generating`, and then takes such a file
//!   for the newest snapshot: cut short by a kill, it makes the database one that cannot be opened, as a flipped bit in a
//!   snapshot does. Without its snapshot it reads only a part of the log: see [`repair`](super::repair).
//! * It overwrites what lies behind the first thing in its log that it cannot read: see [`repair`](super::repair).
//! * After a failed write sled refuses all further ones until it is closed and opened again.
//! * After a failed sync the kernel takes pages for written that are not, and later syncs succeed without them: such a
//!   file is never written to again, see [`LazyDatabase`](super::lazy_database) and [`repair`](super::repair).

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::batch::WriteBatch;
use super::chunks;
use super::error::DatabaseError;
use super::fault;
use super::names::sync_tree;

/// sled's own segment (its I/O buffer): small, for three of these are resident per open database.
pub(crate) const SLED_SEGMENT_BYTES: usize = 512 << 10;
/// How often each scanned key is looked up again, for sled to notice how full its cache is.
const READ_TOUCHES: usize = 8;
/// Likewise of each written key: writing itself accesses its leaf a few times. With 4 it was 60 accesses a leaf, one look at the
/// bound in two leaves, and twice the memory while nobody reads.
const WRITE_TOUCHES: usize = 6;
/// How long sled may need to let go of a database that was closed.
const LET_GO_WITHIN: Duration = Duration::from_millis(500);

/// Whether a commit waits for the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Durability {
    /// `fdatasync` with every commit: survives a power cut.
    #[default]
    Fsync,
    /// Survives the process's death, not the machine's: for a battery-backed store.
    Process,
}

impl Durability {
    /// What an acknowledged record survives, in words.
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
    /// Only ever empty while it is dropped.
    db: Option<sled::Db>,
    barrier: File,
    durability: Durability,
    /// In the place of sled and the barrier.
    #[cfg(feature = "simulation")]
    disk: Option<super::simulated_disk::Disk>,
}

impl Drop for Database {
    fn drop(&mut self) {
        let db = self.db.take();
        // What was committed is on the disk: whatever goes wrong in here loses nothing.
        let _ = guard(&self.path, || {
            drop(db);
            Ok(())
        });
        // What was in use when it was closed is two epochs from being free.
        (0..3).for_each(|_| collect_garbage());
    }
}

/// The snapshots of the database in `path`, whole or not.
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

/// Whether there is any.
pub(crate) fn has_snapshots(path: &Path) -> bool {
    snapshots(path).is_ok_and(|found| !found.is_empty())
}

/// Whether sled cannot use the newest snapshot in `path`: it ends with its length before compression (8 bytes) and the
/// CRC-32 of what comes before both.
pub(crate) fn is_snapshot_damaged(path: &Path) -> std::io::Result<bool> {
    let Some(newest) = snapshots(path)?.into_iter().max() else { return Ok(false) };
    let bytes = std::fs::read(newest)?;
    let Some((content, [_, _, _, _, _, _, _, _, crc32 @ ..])) = bytes.split_last_chunk::<12>() else {
        return Ok(true);
    };
    Ok(content.is_empty() || crc32fast::hash(content) != u32::from_le_bytes(*crc32))
}

/// Removes them. Only for a log that sled has never opened: see [`repair`](super::repair).
pub(crate) fn remove_snapshots(path: &Path) -> Result<(), DatabaseError> {
    let removed = snapshots(path).and_then(|found| found.iter().try_for_each(std::fs::remove_file));
    removed.map_err(|source| DatabaseError::Io { path: path.to_path_buf(), source })
}

impl Database {
    /// Opens the database in `path`, which must be there.
    pub(crate) fn open(path: &Path, durability: Durability, cache: u64) -> Result<Self, DatabaseError> {
        // IMPORTANT: sled would make a new, empty one, and nobody would notice that records are missing.
        if !path.join("db").exists() {
            return Err(DatabaseError::Missing(path.to_path_buf()));
        }
        Self::open_or_create(path, durability, cache)
    }

    /// Creates a database in `path`, where none is.
    pub(crate) fn create(path: &Path, durability: Durability, cache: u64) -> Result<Self, DatabaseError> {
        let database = Self::open_or_create(path, durability, cache)?;
        // IMPORTANT: before the first commit: a synced record in a file whose name is not synced is gone.
        sync_tree(path).map_err(|source| DatabaseError::Io { path: path.to_path_buf(), source })?;
        Ok(database)
    }

    fn open_or_create(path: &Path, durability: Durability, cache: u64) -> Result<Self, DatabaseError> {
        #[cfg(feature = "simulation")]
        if let Some(disk) = super::simulated_disk::disk() {
            return Self::open_on(disk, path, durability);
        }
        // IMPORTANT: before sled's. It hears of every sync of this file that fails from here on, also of one that sled keeps
        // to itself; a descriptor that is opened afterwards would not.
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
                // A database that was just closed: sled's own threads let go of it a moment later.
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
        let barrier = heard
            .or_else(|_| File::open(path.join("db")))
            .map_err(|source| DatabaseError::Io { path: path.to_path_buf(), source })?;
        let database = Self {
            path: path.to_path_buf(),
            db: Some(db),
            barrier,
            durability,
            #[cfg(feature = "simulation")]
            disk: None,
        };
        // IMPORTANT: whoever opens it acts on what he reads. A process that was killed before its barrier has left
        // pages that can be read and are not on the disk.
        database.sync()?;
        Ok(database)
    }

    #[cfg(feature = "simulation")]
    fn open_on(
        disk: super::simulated_disk::Disk,
        path: &Path,
        durability: Durability,
    ) -> Result<Self, DatabaseError> {
        let io = |source| DatabaseError::Io { path: path.to_path_buf(), source };
        if !disk.has(path) || !path.join("db").exists() {
            disk.create(path).map_err(io)?;
        }
        let barrier = File::open(path.join("db")).map_err(io)?;
        let database = Self { path: path.to_path_buf(), db: None, barrier, durability, disk: Some(disk) };
        database.sync()?;
        Ok(database)
    }

    /// Returns when all that was written would survive (see [`Durability`]).
    fn sync(&self) -> Result<(), DatabaseError> {
        if self.durability == Durability::Process {
            return Ok(());
        }
        let unsynced = |source| DatabaseError::Unsynced { path: self.path.join("db"), source };
        #[cfg(feature = "simulation")]
        if let Some(disk) = &self.disk {
            return disk.sync(&self.path).map_err(unsynced);
        }
        self.barrier.sync_data().map_err(unsynced)
    }

    /// Runs a call into sled.
    fn call<T>(&self, call: impl FnOnce(&sled::Db) -> sled::Result<T>) -> Result<T, DatabaseError> {
        match &self.db {
            Some(db) => guard(&self.path, || call(db)),
            None => Err(DatabaseError::Missing(self.path.clone())),
        }
    }

    /// Applies `batch` and returns when it would survive (see [`Durability`]).
    pub(crate) fn commit(&self, mut batch: WriteBatch) -> Result<(), DatabaseError> {
        let path = || self.path.join("db");
        fault::point().map_err(|source| DatabaseError::Io { path: path(), source })?;
        if let Err(error) = self.write(&mut batch) {
            // IMPORTANT: sled's own syncs may be what failed. This descriptor hears of a failed one as well.
            self.sync()?;
            return Err(error);
        }
        self.sync()?;
        fault::point().map_err(|source| DatabaseError::Unsynced { path: path(), source })?;
        // What is written is safe: whatever this meets, the next call will meet.
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

    /// The pairs whose keys begin with `prefix`, from `from` on, until `visit` answers false.
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

    /// The values that [`WriteBatch::put_chunked`] stored, each under its key without the chunk's number, until `visit`
    /// answers false. `None` for one of which a part is missing.
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

    /// What it takes on the disk, in bytes.
    pub(crate) fn disk_bytes(&self) -> u64 {
        #[cfg(feature = "simulation")]
        if let Some(disk) = &self.disk {
            return disk.bytes(&self.path);
        }
        self.barrier.metadata().map_or(0, |meta| std::os::unix::fs::MetadataExt::blocks(&meta) * 512)
    }
}

/// Frees what sled no longer uses: it leaves that to its collector, which is in no hurry, and whole pages wait for that.
fn collect_garbage() {
    // Any database's, so what goes wrong in here says nothing of this one.
    let _ = catch_unwind(|| crossbeam_epoch::pin().flush());
}

/// Runs a call into sled; a panic in there becomes an error here.
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

/// Waits until nobody has the database in `path` open, and keeps it closed for as long as the file is held.
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
                return Err(io(std::io::Error::other("it is still being read")));
            }
            Err(std::fs::TryLockError::Error(source)) => return Err(io(source)),
        }
    }
}
