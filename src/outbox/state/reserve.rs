//! The reserve: bytes of the disk that are given up when it is full, so that the outbox can be opened and drained.
//!
//! sled cannot open a database on a full disk, and cannot note what is settled. What is settled frees whole segments,
//! so a little room is enough to get it all back.

use std::fs::File;
use std::path::{Path, PathBuf};

/// Opening takes a MiB or two, and the ledger grows by a few hundred KiB before the first segment is deleted.
const RESERVE_BYTES: u64 = 8 << 20;
/// With less than this free, opening may fail.
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

    /// What it takes on the disk, in bytes.
    pub(crate) fn disk_bytes(&self) -> u64 {
        std::fs::metadata(&self.path).map_or(0, |meta| std::os::unix::fs::MetadataExt::blocks(&meta) * 512)
    }

    /// Gives it up if the disk is nearly full. True if there is more room now.
    pub(crate) fn give_up(&self) -> bool {
        let is_low = free_bytes(&self.dir).is_some_and(|free| free < LOW_BYTES);
        let given_up = is_low && std::fs::remove_file(&self.path).is_ok();
        if given_up {
            tracing::warn!("the disk is full: the outbox gives up its reserve to go on draining");
        }
        given_up
    }

    /// Takes it back when that leaves `min_free` and as much again.
    pub(crate) fn take_back(&self, min_free: u64) {
        let has_room = free_bytes(&self.dir).is_some_and(|free| free > min_free + 2 * RESERVE_BYTES);
        if has_room
            && !self.path.exists()
            && let Err(error) = self.allocate()
        {
            tracing::debug!(%error, "the outbox's reserve cannot be taken");
            // Half a reserve would be taken for a whole one.
            let _ = std::fs::remove_file(&self.path);
        }
    }

    fn allocate(&self) -> std::io::Result<()> {
        let file = File::create(&self.path)?;
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, RESERVE_BYTES)?;
        file.sync_all()
    }
}
