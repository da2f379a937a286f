//! A database that is opened when somebody needs it, and not written to any more when a write or a sync of it has failed.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::batch::WriteBatch;
use super::database::{Database, Durability};
use super::error::DatabaseError;
use super::{fault, repair};

/// sled's cache per open database: a scan needs a leaf or two.
const CACHE_BYTES: u64 = 2 << 20;

/// The place of a database, open or not.
pub(crate) struct LazyDatabase {
    path: PathBuf,
    durability: Durability,
    is_key: fn(&[u8]) -> bool,
    open: Mutex<Open>,
    /// Held by whoever commits.
    committing: Mutex<()>,
}

/// What of it is open.
#[derive(Default)]
struct Open {
    database: Option<Arc<Database>>,
    /// A sync has failed: it may be read on, and is renewed before it is written to.
    is_unsynced: bool,
}

impl LazyDatabase {
    /// Of a database whose keys are those that `is_key` knows.
    pub(crate) fn new(path: PathBuf, durability: Durability, is_key: fn(&[u8]) -> bool) -> Self {
        Self { path, durability, is_key, open: Mutex::default(), committing: Mutex::default() }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the database; what may be in its place is deleted.
    pub(crate) fn create(&self) -> Result<(), DatabaseError> {
        let mut open = self.lock();
        *open = Open::default();
        let io = |source| DatabaseError::Io { path: self.path.clone(), source };
        fault::point().map_err(io)?;
        match std::fs::remove_dir_all(&self.path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => return Err(io(source)),
            _ => {}
        }
        open.database = Some(Arc::new(Database::create(&self.path, self.durability, CACHE_BYTES)?));
        Ok(())
    }

    /// The database, opened if it was not.
    pub(crate) fn get(&self) -> Result<Arc<Database>, DatabaseError> {
        self.opened(&mut self.lock())
    }

    fn opened(&self, open: &mut Open) -> Result<Arc<Database>, DatabaseError> {
        if let Some(db) = open.database.as_ref() {
            return Ok(Arc::clone(db));
        }
        let db =
            Arc::new(repair::open(&self.path, self.durability, CACHE_BYTES, self.is_key, open.is_unsynced)?);
        *open = Open { database: Some(Arc::clone(&db)), is_unsynced: false };
        Ok(db)
    }

    /// Commits. After a failure nothing more is written to this file, unless all that failed was for want of room.
    pub(crate) fn commit(&self, batch: WriteBatch) -> Result<(), DatabaseError> {
        // IMPORTANT: one after another. A sync that fails concerns what others have written meanwhile, and only one of them
        // would hear of it.
        let _turn = self.committing.lock().unwrap_or_else(PoisonError::into_inner);
        let db = {
            let mut open = self.lock();
            if open.is_unsynced {
                // IMPORTANT: closed, and so renewed by being opened: no later sync writes what this one did not.
                open.database = None;
            }
            self.opened(&mut open)?
        };
        db.commit(batch).inspect_err(|error| self.failed(error))
    }

    fn failed(&self, error: &DatabaseError) {
        let mut open = self.lock();
        if error.leaves_doubt() {
            open.is_unsynced = true;
            repair::mark_unsynced(&self.path, error);
        }
        if !matches!(error, DatabaseError::Unsynced { .. }) {
            // sled takes no more writes before it is opened again.
            open.database = None;
        }
    }

    /// Closes it, as soon as nobody is reading it any more.
    pub(crate) fn close(&self) {
        self.lock().database = None;
    }

    pub(crate) fn is_open(&self) -> bool {
        self.lock().database.is_some()
    }

    /// What it takes on the disk, in bytes.
    pub(crate) fn disk_bytes(&self) -> u64 {
        if let Some(db) = self.lock().database.as_ref() {
            return db.disk_bytes();
        }
        #[cfg(feature = "simulation")]
        if let Some(disk) = super::simulated_disk::disk() {
            return disk.bytes(&self.path);
        }
        std::fs::metadata(self.path.join("db"))
            .map_or(0, |meta| std::os::unix::fs::MetadataExt::blocks(&meta) * 512)
    }
}
