//! The folder, as it was when it was taken: whether it is still what lies at its path.
//!
//! A folder that is moved, deleted, or lost with its mount takes the open files along. Whoever has them goes on writing
//! and syncing without an error, and the next process finds nothing of it.

use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::OpenError;

/// The folder's lock file, held.
pub(super) struct Hold {
    path: PathBuf,
    /// Nobody else gets this number as long as the file is open.
    identity: (u64, u64),
    _lock: File,
}

fn identity(file: &Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}

impl Hold {
    /// Takes the folder for this process alone.
    pub(super) fn take(dir: &Path) -> Result<Self, OpenError> {
        let path = dir.join("lock");
        let folder = |source| OpenError::Folder { path: path.clone(), source };
        let lock = File::options().create(true).truncate(false).write(true).open(&path).map_err(folder)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => return Err(OpenError::Locked(dir.to_path_buf())),
            Err(std::fs::TryLockError::Error(source)) => return Err(folder(source)),
        }
        let identity = identity(&lock.metadata().map_err(folder)?);
        Ok(Self { path, identity, _lock: lock })
    }

    /// Whether what is written now is what the next process will find.
    pub(super) fn is_in_place(&self) -> bool {
        std::fs::metadata(&self.path).is_ok_and(|found| identity(&found) == self.identity)
    }
}
