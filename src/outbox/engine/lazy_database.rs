//! A database that is opened when needed, and no longer written to after a failed write or sync.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::batch::WriteBatch;
use super::database::{Database, Durability};
use super::error::DatabaseError;
use super::names::remove_dir;
use super::{fault, repair};

/// sled's cache per open database: a scan needs a leaf or two.
const CACHE_BYTES: u64 = 2 << 20;

/// A database, open or not.
pub(crate) struct LazyDatabase {
    path: PathBuf,
    durability: Durability,
    is_key: fn(&[u8]) -> bool,
    open: Mutex<Open>,
    /// Held during a commit.
    committing: Mutex<()>,
}

/// The open part of it.
#[derive(Default)]
struct Open {
    database: Option<Arc<Database>>,
    /// A sync has failed: it may still be read, but is renewed before it is written to.
    is_unsynced: bool,
}

impl LazyDatabase {
    /// `is_key` recognises the valid keys of this database.
    pub(crate) fn new(path: PathBuf, durability: Durability, is_key: fn(&[u8]) -> bool) -> Self {
        Self { path, durability, is_key, open: Mutex::default(), committing: Mutex::default() }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Creates the database, deleting anything in its place.
    pub(crate) fn create(&self) -> Result<(), DatabaseError> {
        let mut open = self.lock();
        *open = Open::default();
        fault::point().and_then(|()| remove_dir(&self.path)).map_err(DatabaseError::io(&self.path))?;
        open.database = Some(Arc::new(Database::create(&self.path, self.durability, CACHE_BYTES)?));
        Ok(())
    }

    /// The database, opened if necessary.
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

    /// Commits. After a failure nothing more is written to this file, unless the only cause was a lack of space.
    pub(crate) fn commit(&self, batch: WriteBatch) -> Result<(), DatabaseError> {
        // IMPORTANT: one commit at a time. A failed sync concerns other writers' data too, but only one of them would get
        // the error.
        let _turn = self.committing.lock().unwrap_or_else(PoisonError::into_inner);
        let db = {
            let mut open = self.lock();
            if open.is_unsynced {
                // IMPORTANT: closed, so that opening renews it: no later sync writes what this one did not.
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
            // sled accepts no more writes before it is opened again.
            open.database = None;
        }
    }

    /// Closes it as soon as nobody reads it any more.
    pub(crate) fn close(&self) {
        self.lock().database = None;
    }

    pub(crate) fn is_open(&self) -> bool {
        self.lock().database.is_some()
    }

    /// Its disk usage in bytes.
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
