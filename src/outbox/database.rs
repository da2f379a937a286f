//! One sled database with the barrier that makes its commits survive a power cut.
//!
//! The only file that calls sled. What it works around, each measured:
//!
//! * `flush()` calls `sync_file_range` (sled issue 1452), so a commit also calls `fdatasync` on the file
//!   `db` through a second descriptor, and files and directories are synced once after creation.
//! * A page over a quarter of sled's segment goes to an unsynced file under `blobs/`. A leaf holds at most
//!   20 items (16, and up to 4 while a sibling merges in), so with values of at most [`CHUNK`] bytes a leaf
//!   stays under a quarter of [`SLED_SEGMENT_BYTES`] whatever the records' sizes: longer values are cut into
//!   chunks. `blobs/` staying empty is asserted after every commit that wrote a chunked value.
//! * sled panics on some damage: every call is made behind `catch_unwind`.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// sled's own segment (its I/O buffer): small, for three of these are resident per open database.
const SLED_SEGMENT_BYTES: usize = 512 << 10;
/// The longest value handed to sled: 20 of them stay under a quarter of [`SLED_SEGMENT_BYTES`].
pub(super) const CHUNK: usize = 5 << 10;

/// What can go wrong with a database.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// sled said no.
    #[error("{}: {source}", path.display())]
    Sled {
        /// The database's folder.
        path: PathBuf,
        /// sled's word.
        #[source]
        source: sled::Error,
    },
    /// sled panicked: its files are damaged.
    #[error("{}: damaged: {message}", path.display())]
    Panicked {
        /// The database's folder.
        path: PathBuf,
        /// What the panic said.
        message: String,
    },
    /// The file system said no.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's word.
        #[source]
        source: std::io::Error,
    },
}

/// Whether a commit waits for the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Durability {
    /// `fdatasync` with every commit: survives a power cut.
    Fsync,
    /// Survives the process's death, not the machine's: for a battery-backed store.
    Process,
}

/// Writes that are applied and made durable together.
#[derive(Default)]
pub(super) struct Batch {
    writes: sled::Batch,
    chunked: bool,
}

impl Batch {
    /// Stores `value` under `key`, which must be at most [`CHUNK`] bytes.
    pub(super) fn put(&mut self, key: &[u8], value: Vec<u8>) {
        debug_assert!(value.len() <= CHUNK);
        self.writes.insert(key, value);
    }

    /// Stores `value` under `key` followed by chunk numbers; any length.
    pub(super) fn put_chunked(&mut self, key: &[u8], value: &[u8]) {
        self.chunked |= value.len() > CHUNK;
        for (n, chunk) in value.chunks(CHUNK).enumerate() {
            self.writes.insert(chunk_key(key, n), chunk);
        }
    }

    /// Removes `key`.
    pub(super) fn remove(&mut self, key: &[u8]) {
        self.writes.remove(key);
    }
}

fn chunk_key(key: &[u8], n: usize) -> Vec<u8> {
    let mut full = key.to_vec();
    full.extend_from_slice(&(n as u16).to_be_bytes());
    full
}

/// An open database.
pub(super) struct Database {
    path: PathBuf,
    db: sled::Db,
    barrier: File,
    durability: Durability,
}

impl Database {
    /// Opens the database in `path`, creating it if it is not there.
    pub(super) fn open(path: &Path, durability: Durability, cache: u64) -> Result<Self, DatabaseError> {
        let new = !path.join("db").exists();
        let db = guard(path, || {
            sled::Config::new()
                .path(path)
                .segment_size(SLED_SEGMENT_BYTES)
                .cache_capacity(cache)
                .mode(sled::Mode::HighThroughput)
                .flush_every_ms(None)
                .open()
        })?;
        let io = |source| DatabaseError::Io { path: path.to_path_buf(), source };
        let barrier = File::open(path.join("db")).map_err(io)?;
        if new {
            // IMPORTANT: before the first commit: a synced record in a file whose name is not synced is gone.
            sync_tree(path).map_err(io)?;
        }
        Ok(Self { path: path.to_path_buf(), db, barrier, durability })
    }

    /// Applies `batch` and returns when it would survive (see [`Durability`]).
    pub(super) fn commit(&self, batch: Batch) -> Result<(), DatabaseError> {
        guard(&self.path, || {
            self.db.apply_batch(batch.writes)?;
            self.db.flush()
        })?;
        if self.durability == Durability::Fsync {
            self.barrier
                .sync_data()
                .map_err(|source| DatabaseError::Io { path: self.path.join("db"), source })?;
        }
        if batch.chunked && !self.blobs_empty() {
            return Err(DatabaseError::Panicked {
                path: self.path.clone(),
                message: "sled wrote a blob, which it never syncs: a value was too large".into(),
            });
        }
        Ok(())
    }

    fn blobs_empty(&self) -> bool {
        std::fs::read_dir(self.path.join("blobs")).map_or(true, |mut entries| entries.next().is_none())
    }

    pub(super) fn get(&self, key: &[u8]) -> Result<Option<sled::IVec>, DatabaseError> {
        guard(&self.path, || self.db.get(key))
    }

    /// The pairs whose keys begin with `prefix`, from `from` on, until `visit` answers false.
    pub(super) fn scan(
        &self,
        prefix: &[u8],
        from: &[u8],
        mut visit: impl FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), DatabaseError> {
        guard(&self.path, || {
            for pair in self.db.range(from..) {
                let (key, value) = pair?;
                if !key.starts_with(prefix) || !visit(&key, &value) {
                    break;
                }
            }
            Ok(())
        })
    }

    /// The last pair whose key begins with `prefix` and is at most `upto`.
    pub(super) fn last(
        &self,
        prefix: &[u8],
        upto: &[u8],
    ) -> Result<Option<(sled::IVec, sled::IVec)>, DatabaseError> {
        guard(&self.path, || {
            Ok(self.db.range(..=upto).next_back().transpose()?.filter(|(key, _)| key.starts_with(prefix)))
        })
    }

    /// What it takes on the disk, in bytes.
    pub(super) fn disk_bytes(&self) -> u64 {
        self.barrier.metadata().map_or(0, |meta| std::os::unix::fs::MetadataExt::blocks(&meta) * 512)
    }
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

/// Syncs every file below `path`, every folder, and the name of `path` itself.
fn sync_tree(path: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(path)? {
        let entry = entry?.path();
        if entry.is_dir() { sync_tree(&entry)? } else { File::open(&entry)?.sync_all()? }
    }
    File::open(path)?.sync_all()?;
    sync_dir(path.parent().unwrap_or(Path::new(".")))
}

/// Syncs the names in `dir`.
pub(super) fn sync_dir(dir: &Path) -> std::io::Result<()> {
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    File::open(dir)?.sync_all()
}
