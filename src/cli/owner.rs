//! Whose an outbox is: what root made in it while it was looked at goes back to the user that the agent runs as.
//!
//! Without that, a file of root's that the agent may not read would look to it like damage.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, lchown};
use std::path::{Path, PathBuf};

/// Gives everything in a folder to the folder's owner, when it is dropped.
pub(super) struct KeepsOwner {
    dir: PathBuf,
    owner: Option<(u32, u32)>,
}

impl KeepsOwner {
    pub(super) fn of(dir: &Path) -> Self {
        // A folder that is not there is whoever's it will be.
        let owner = fs::metadata(dir).ok().map(|meta| (meta.uid(), meta.gid()));
        Self { dir: dir.to_path_buf(), owner }
    }
}

impl Drop for KeepsOwner {
    fn drop(&mut self) {
        if let Some(owner) = self.owner
            && let Err(error) = give(&self.dir, owner)
        {
            eprintln!("{}: not all of it belongs to its owner any more: {error}", self.dir.display());
        }
    }
}

fn give(path: &Path, (uid, gid): (u32, u32)) -> io::Result<()> {
    let meta = fs::symlink_metadata(path)?;
    if (meta.uid(), meta.gid()) != (uid, gid) {
        lchown(path, Some(uid), Some(gid))?;
    }
    if meta.is_dir() {
        for entry in fs::read_dir(path)? {
            give(&entry?.path(), (uid, gid))?;
        }
    }
    Ok(())
}
