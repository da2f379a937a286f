//! One sled database with the barrier that makes its commits survive a power cut.
//!
//! The only file that calls sled. What it works around, each measured:
//!
//! * `flush()` calls `sync_file_range` (sled issue 1452), so a commit also calls `fdatasync` on the file
//!   `db` through a second descriptor, and files and directories are synced once after creation.
//! * A page over a quarter of sled's segment goes to an unsynced file under `blobs/`. A leaf holds at most
//!   20 items (16, and up to 4 while a sibling merges in), so with values of at most [`CHUNK`] bytes a leaf
//!   stays under a quarter of [`SLED_SEGMENT_BYTES`] whatever the records' sizes: longer values are cut into
//!   chunks. `blobs/` staying empty is asserted after every commit that wrote a longer value.
//! * Its cache is 256 caches, and each looks at its bound only with every 64th access to a page of its own. A scan
//!   accesses a leaf once or twice, so of a segment that is read all would stay in memory, whatever the bound. So keys
//!   that were read or written are looked up a few times over ([`READ_TOUCHES`], [`WRITE_TOUCHES`]): a leaf has about
//!   eight. That takes 5 % of the time and leaves 15 MiB of a segment of 64 in memory.
//! * sled panics on some damage: every call, and the drop, is made behind `catch_unwind`.
//! * It writes a snapshot of its page table with each opening and closing, first to `snap.….generating`, and then takes
//!   such a file for the newest snapshot: cut short by a kill, it makes the database one that cannot be opened. An
//!   unfinished one is removed, and the one before it serves.
//! * After a failed write sled refuses all further ones until it is closed and opened again.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::fault;

/// sled's own segment (its I/O buffer): small, for three of these are resident per open database.
const SLED_SEGMENT_BYTES: usize = 512 << 10;
/// The longest value handed to sled: 20 of them stay under a quarter of [`SLED_SEGMENT_BYTES`].
const CHUNK: usize = 5 << 10;
/// In front of a chunked value: its length.
const FRAME: usize = 4;
/// How often each scanned key is looked up again, for sled to notice how full its cache is.
const READ_TOUCHES: usize = 8;
/// Likewise of each written key: writing itself accesses its leaf a few times.
const WRITE_TOUCHES: usize = 4;
/// How long sled may need to let go of a database that was closed.
const LET_GO_WITHIN: Duration = Duration::from_millis(500);

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
    /// It is not there.
    #[error("{}: missing", .0.display())]
    Missing(PathBuf),
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

/// The kernel's numbers for a medium that cannot be read: bad sectors, a damaged file system.
const EIO: i32 = 5;
const EUCLEAN: i32 = 117;

impl DatabaseError {
    /// Whether somebody still has it open; sled has no other word for it.
    fn is_in_use(&self) -> bool {
        matches!(self, Self::Sled { source: sled::Error::Io(error), .. }
            if error.to_string().contains("could not acquire lock"))
    }

    /// Whether the files themselves are wrong. Everything else (a full disk, no descriptors left, no permission) may
    /// pass, and then the files are as good as before.
    pub fn is_damage(&self) -> bool {
        let of_io = |error: &std::io::Error| match error.raw_os_error() {
            Some(code) => matches!(code, EIO | EUCLEAN),
            None => !self.is_in_use(),
        };
        match self {
            Self::Sled { source: sled::Error::Io(error), .. } => of_io(error),
            Self::Io { source, .. } => {
                source.kind() == std::io::ErrorKind::NotFound
                    || source.raw_os_error().is_some() && of_io(source)
            }
            Self::Panicked { .. } | Self::Missing(_) | Self::Sled { .. } => true,
        }
    }
}

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

/// Writes that are applied and made durable together.
#[derive(Default)]
pub(super) struct Batch {
    writes: sled::Batch,
    /// The keys of what may be long.
    packs: Vec<Vec<u8>>,
    chunked: bool,
}

impl Batch {
    /// Stores `value` under `key`, which must be at most [`CHUNK`] bytes.
    pub(super) fn put(&mut self, key: &[u8], value: Vec<u8>) {
        debug_assert!(value.len() <= CHUNK);
        self.writes.insert(key, value);
    }

    /// Stores `value` under `key` followed by chunk numbers; any length. Read it with [`Database::scan_chunked`].
    pub(super) fn put_chunked(&mut self, key: &[u8], value: &[u8]) {
        let framed = [&(value.len() as u32).to_be_bytes(), value].concat();
        self.chunked |= framed.len() > CHUNK;
        for (n, chunk) in framed.chunks(CHUNK).enumerate() {
            let key = chunk_key(key, n);
            self.writes.insert(key.as_slice(), chunk);
            self.packs.push(key);
        }
    }

    /// Removes what [`Self::put_chunked`] stored of a value of `len` bytes.
    pub(super) fn remove_chunked(&mut self, key: &[u8], len: usize) {
        for n in 0..(len + FRAME).div_ceil(CHUNK) {
            self.writes.remove(chunk_key(key, n));
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
    /// Only ever empty while it is dropped.
    db: Option<sled::Db>,
    barrier: File,
    durability: Durability,
}

impl Drop for Database {
    fn drop(&mut self) {
        let db = self.db.take();
        // What was committed is on the disk: whatever goes wrong in here loses nothing.
        let _ = guard(&self.path, || {
            drop(db);
            Ok(())
        });
    }
}

/// Removes what sled began to write of a snapshot and did not finish. Says whether there was any.
fn remove_unfinished_snapshots(path: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(path) else { return false };
    let names = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let unfinished = names.filter(|name| name.extension().is_some_and(|extension| extension == "generating"));
    unfinished.filter(|name| std::fs::remove_file(name).is_ok()).count() > 0
}

impl Database {
    /// Opens the database in `path`, which must be there.
    pub(super) fn open(path: &Path, durability: Durability, cache: u64) -> Result<Self, DatabaseError> {
        // IMPORTANT: sled would make a new, empty one, and nobody would notice that records are missing.
        if !path.join("db").exists() {
            return Err(DatabaseError::Missing(path.to_path_buf()));
        }
        Self::open_or_create(path, durability, cache)
    }

    /// Creates a database in `path`, where none is.
    pub(super) fn create(path: &Path, durability: Durability, cache: u64) -> Result<Self, DatabaseError> {
        let database = Self::open_or_create(path, durability, cache)?;
        // IMPORTANT: before the first commit: a synced record in a file whose name is not synced is gone.
        sync_tree(path).map_err(|source| DatabaseError::Io { path: path.to_path_buf(), source })?;
        Ok(database)
    }

    fn open_or_create(path: &Path, durability: Durability, cache: u64) -> Result<Self, DatabaseError> {
        let begun = Instant::now();
        let db = loop {
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
                // IMPORTANT: only after sled had the database's lock: it may be about to finish one until then.
                Err(error) if error.is_damage() && remove_unfinished_snapshots(path) => {
                    tracing::warn!(%error, "sled left an unfinished snapshot, which is removed");
                }
                opened => break opened?,
            }
        };
        let barrier = File::open(path.join("db"))
            .map_err(|source| DatabaseError::Io { path: path.to_path_buf(), source })?;
        Ok(Self { path: path.to_path_buf(), db: Some(db), barrier, durability })
    }

    /// Runs a call into sled.
    fn call<T>(&self, call: impl FnOnce(&sled::Db) -> sled::Result<T>) -> Result<T, DatabaseError> {
        match &self.db {
            Some(db) => guard(&self.path, || call(db)),
            None => Err(DatabaseError::Missing(self.path.clone())),
        }
    }

    /// Applies `batch` and returns when it would survive (see [`Durability`]).
    pub(super) fn commit(&self, batch: Batch) -> Result<(), DatabaseError> {
        let io = |source| DatabaseError::Io { path: self.path.join("db"), source };
        fault::point().map_err(io)?;
        self.call(|db| {
            db.apply_batch(batch.writes)?;
            db.flush()
        })?;
        if self.durability == Durability::Fsync {
            self.barrier.sync_data().map_err(io)?;
        }
        fault::point().map_err(io)?;
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

    fn blobs_empty(&self) -> bool {
        std::fs::read_dir(self.path.join("blobs")).map_or(true, |mut entries| entries.next().is_none())
    }

    pub(super) fn get(&self, key: &[u8]) -> Result<Option<sled::IVec>, DatabaseError> {
        self.call(|db| db.get(key))
    }

    /// The pairs whose keys begin with `prefix`, from `from` on, until `visit` answers false.
    pub(super) fn scan(
        &self,
        prefix: &[u8],
        from: &[u8],
        mut visit: impl FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), DatabaseError> {
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
        })
    }

    /// The values that [`Batch::put_chunked`] stored, each under its key without the chunk's number, until `visit`
    /// answers false. `None` for one of which a part is missing.
    pub(super) fn scan_chunked(
        &self,
        prefix: &[u8],
        from: &[u8],
        mut visit: impl FnMut(&[u8], Option<&[u8]>) -> bool,
    ) -> Result<(), DatabaseError> {
        let mut value = Chunks::default();
        let mut done = false;
        self.scan(prefix, from, |key, chunk| {
            let (name, number) = key.split_at(key.len().saturating_sub(2));
            if value.is_open() && value.key != name {
                done = !visit(&value.key, None);
                value.clear();
            }
            if !done {
                value.push(name, number, chunk);
                if value.is_whole() {
                    done = !visit(name, Some(&value.bytes[FRAME..]));
                    value.clear();
                }
            }
            !done
        })?;
        if !done && value.is_open() {
            visit(&value.key, None);
        }
        Ok(())
    }

    /// The last key that begins with `prefix`.
    pub(super) fn last_key(&self, prefix: &[u8]) -> Result<Option<sled::IVec>, DatabaseError> {
        self.call(|db| Ok(db.scan_prefix(prefix).next_back().transpose()?.map(|(key, _)| key)))
    }

    /// What it takes on the disk, in bytes.
    pub(super) fn disk_bytes(&self) -> u64 {
        self.barrier.metadata().map_or(0, |meta| std::os::unix::fs::MetadataExt::blocks(&meta) * 512)
    }
}

/// A chunked value while it is put together.
#[derive(Default)]
struct Chunks {
    key: Vec<u8>,
    bytes: Vec<u8>,
    next: u16,
    is_broken: bool,
}

impl Chunks {
    fn is_open(&self) -> bool {
        self.next > 0
    }

    fn push(&mut self, key: &[u8], number: &[u8], chunk: &[u8]) {
        if !self.is_open() {
            self.key.extend_from_slice(key);
        }
        self.is_broken |= number != self.next.to_be_bytes();
        self.next = self.next.saturating_add(1);
        self.bytes.extend_from_slice(chunk);
    }

    fn is_whole(&self) -> bool {
        let len = self.bytes.first_chunk::<FRAME>().map(|len| u32::from_be_bytes(*len) as usize);
        !self.is_broken && len.is_some_and(|len| self.bytes.len() == len + FRAME)
    }

    fn clear(&mut self) {
        self.key.clear();
        self.bytes.clear();
        (self.next, self.is_broken) = (0, false);
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
