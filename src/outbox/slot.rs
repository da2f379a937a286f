//! A database that is opened when somebody needs it, and closed when its writes fail.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::database::{Batch, Database, DatabaseError, Durability};
use super::{fault, repair};

/// sled's cache per open database: a scan needs a leaf or two.
const CACHE_BYTES: u64 = 2 << 20;

/// The place of a database, open or not.
pub(super) struct Slot {
    path: PathBuf,
    durability: Durability,
    is_key: fn(&[u8]) -> bool,
    open: Mutex<Option<Arc<Database>>>,
}

impl Slot {
    /// Of a database whose keys are those that `is_key` knows.
    pub(super) fn new(path: PathBuf, durability: Durability, is_key: fn(&[u8]) -> bool) -> Self {
        Self { path, durability, is_key, open: Mutex::new(None) }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Database>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the database; what may be in its place is deleted.
    pub(super) fn create(&self) -> Result<(), DatabaseError> {
        let mut open = self.lock();
        *open = None;
        let io = |source| DatabaseError::Io { path: self.path.clone(), source };
        fault::point().map_err(io)?;
        match std::fs::remove_dir_all(&self.path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => return Err(io(source)),
            _ => {}
        }
        *open = Some(Arc::new(Database::create(&self.path, self.durability, CACHE_BYTES)?));
        Ok(())
    }

    /// The database, opened if it was not.
    pub(super) fn get(&self) -> Result<Arc<Database>, DatabaseError> {
        let mut open = self.lock();
        if let Some(db) = open.as_ref() {
            return Ok(Arc::clone(db));
        }
        let db = Arc::new(repair::open(&self.path, self.durability, CACHE_BYTES, self.is_key)?);
        *open = Some(Arc::clone(&db));
        Ok(db)
    }

    /// Commits; closes the database if that fails, since sled takes no more writes then.
    pub(super) fn commit(&self, batch: Batch) -> Result<(), DatabaseError> {
        self.get()?.commit(batch).inspect_err(|_| self.close())
    }

    /// Closes it, as soon as nobody is reading it any more.
    pub(super) fn close(&self) {
        *self.lock() = None;
    }

    pub(super) fn is_open(&self) -> bool {
        self.lock().is_some()
    }

    /// What it takes on the disk, in bytes.
    pub(super) fn disk_bytes(&self) -> u64 {
        if let Some(db) = self.lock().as_ref() {
            return db.disk_bytes();
        }
        std::fs::metadata(self.path.join("db"))
            .map_or(0, |meta| std::os::unix::fs::MetadataExt::blocks(&meta) * 512)
    }
}
