//! The folder, as it was when it was taken: whether it is still what lies at its path.
//!
//! A folder that is moved, deleted, or lost with its mount takes the open files along. Whoever has them goes on writing
//! and syncing without an error, and the next process finds nothing of it.

use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// The folder's lock file, held.
pub(crate) struct DirLock {
    path: PathBuf,
    /// Nobody else gets this number as long as the file is open.
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

    /// Takes the folder for this process alone; `None` if another process has it.
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

    /// Whether what is written now is what the next process will find.
    pub(crate) fn is_in_place(&self) -> bool {
        std::fs::metadata(&self.path).is_ok_and(|found| identity(&found) == self.identity)
    }
}

impl Drop for DirLock {
    /// Closing is not enough: a process that is being started has the file, too, until it executes its program.
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
    fn what_is_given_back_can_be_taken_though_another_process_inherited_it() {
        let dir = tempfile::tempdir().unwrap();
        let held = DirLock::take(dir.path()).unwrap().unwrap();
        let inherited = held.lock.try_clone().unwrap();
        assert!(DirLock::take(dir.path()).unwrap().is_none(), "it is held");
        drop(held);
        assert!(DirLock::take(dir.path()).unwrap().is_some());
        drop(inherited);
    }
}
