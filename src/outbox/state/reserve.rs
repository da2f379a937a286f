//! The reserve: disk space that is released when the disk is full, so that the outbox can be opened and drained.
//!
//! On a full disk sled can neither open a database nor record settlements. Settled records free whole segments, so a little
//! space suffices to regain all of it.

use std::fs::File;
use std::path::{Path, PathBuf};

/// Opening takes a MiB or two, and the ledger grows by a few hundred KiB before the first segment is deleted.
const RESERVE_BYTES: u64 = 8 << 20;
/// With less free space, opening may fail.
const LOW_BYTES: u64 = 4 << 20;

pub(crate) struct DiskReserve {
    path: PathBuf,
    dir: PathBuf,
}

/// Free bytes of the file system that `dir` is on.
pub(crate) fn free_bytes(dir: &Path) -> Option<u64> {
    #[cfg(feature = "simulation")]
    if let Some(disk) = crate::outbox::engine::simulated_disk::disk() {
        return Some(disk.free_bytes());
    }
    rustix::fs::statvfs(dir).ok().map(|stat| stat.f_bavail * stat.f_frsize)
}

impl DiskReserve {
    pub(crate) fn new(dir: &Path) -> Self {
        Self { path: dir.join("reserve"), dir: dir.to_path_buf() }
    }

    /// Its disk usage in bytes.
    pub(crate) fn disk_bytes(&self) -> u64 {
        std::fs::metadata(&self.path).map_or(0, |meta| std::os::unix::fs::MetadataExt::blocks(&meta) * 512)
    }

    /// Releases it if the disk is nearly full. True if there is more space now.
    pub(crate) fn give_up(&self) -> bool {
        let is_low = free_bytes(&self.dir).is_some_and(|free| free < LOW_BYTES);
        let given_up = is_low && std::fs::remove_file(&self.path).is_ok();
        if given_up {
            tracing::warn!("the disk is full: the outbox releases its reserve to continue draining");
        }
        given_up
    }

    /// Recreates it if that leaves `min_free`, plus the reserve's size again.
    pub(crate) fn take_back(&self, min_free: u64) {
        let has_room = free_bytes(&self.dir).is_some_and(|free| free > min_free + 2 * RESERVE_BYTES);
        if has_room
            && !self.path.exists()
            && let Err(error) = self.allocate()
        {
            tracing::debug!(%error, "the outbox's reserve cannot be taken");
            // A partial reserve would pass for a complete one.
            let _ = std::fs::remove_file(&self.path);
        }
    }

    fn allocate(&self) -> std::io::Result<()> {
        let file = File::create(&self.path)?;
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, RESERVE_BYTES)?;
        file.sync_all()
    }
}
