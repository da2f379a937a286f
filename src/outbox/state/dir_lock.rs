//! The outbox's locked folder, and whether it is still at its path.
//!
//! A folder that is moved, deleted, or lost with its mount takes open files with it. A process with such files continues to
//! write and sync without errors, but the next process finds none of it.

use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// The folder's locked file.
pub(crate) struct DirLock {
    path: PathBuf,
    /// The file's identity: unique while it is open.
    identity: (u64, u64),
    lock: File,
}

fn identity(file: &Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}

impl DirLock {
    /// The lock file of the outbox in `dir`.
    pub(crate) fn path(dir: &Path) -> PathBuf {
        dir.join("lock")
    }

    /// Locks the folder for this process; `None` if another process has it.
    pub(crate) fn take(dir: &Path) -> std::io::Result<Option<Self>> {
        let path = Self::path(dir);
        let lock = File::options().create(true).truncate(false).write(true).open(&path)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => return Ok(None),
            Err(std::fs::TryLockError::Error(source)) => return Err(source),
        }
        let identity = identity(&lock.metadata()?);
        Ok(Some(Self { path, identity, lock }))
    }

    /// Whether the next process will find what is written now.
    pub(crate) fn is_in_place(&self) -> bool {
        std::fs::metadata(&self.path).is_ok_and(|found| identity(&found) == self.identity)
    }
}

impl Drop for DirLock {
    /// Closing alone does not unlock: a child process holds the file as well until it executes its program.
    fn drop(&mut self) {
        if let Err(error) = self.lock.unlock() {
            tracing::warn!(%error, path = %self.path.display(), "the outbox's lock file could not be unlocked; it is closed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_released_lock_can_be_taken_although_another_process_inherited_it() {
        let dir = tempfile::tempdir().unwrap();
        let held = DirLock::take(dir.path()).unwrap().unwrap();
        let inherited = held.lock.try_clone().unwrap();
        assert!(DirLock::take(dir.path()).unwrap().is_none(), "it is held");
        drop(held);
        assert!(DirLock::take(dir.path()).unwrap().is_some());
        drop(inherited);
    }
}
