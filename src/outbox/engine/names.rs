//! Syncs the names of files and folders, which need separate syncs.

use std::fs::File;
use std::path::Path;

/// Syncs the names in `path`, the name of `path` itself, and files that sled writes once. The database itself syncs the
/// log.
pub(crate) fn sync_names(path: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(path)? {
        let entry = entry?.path();
        if entry.is_file() && entry.file_name().is_none_or(|name| name != "db") {
            File::open(&entry)?.sync_all()?;
        }
    }
    sync_dir(path)?;
    path.parent().map_or(Ok(()), sync_dir)
}

/// Syncs every file and folder below `path`, and the name of `path` itself.
pub(super) fn sync_tree(path: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(path)? {
        let entry = entry?.path();
        if entry.is_dir() { sync_tree(&entry)? } else { File::open(&entry)?.sync_all()? }
    }
    File::open(path)?.sync_all()?;
    sync_dir(path.parent().unwrap_or(Path::new(".")))
}

/// Syncs the names in `dir`. After a failure the next call writes them again.
pub(crate) fn sync_dir(dir: &Path) -> std::io::Result<()> {
    #[cfg(feature = "simulation")]
    if let Some(disk) = super::simulated_disk::disk() {
        return disk.sync_names(dir);
    }
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    File::open(dir)?.sync_all().inspect_err(|_| {
        // The kernel may now treat the names as written. A change makes it write them again; if even that fails, nothing
        // else helps.
        let changed = dir.join("sync.tmp");
        let _ = File::create(&changed);
        let _ = std::fs::remove_file(&changed);
    })
}

/// Removes a folder with its contents, if it exists.
pub(crate) fn remove_dir(dir: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Writes a small file in one step: after a crash it is there as a whole, or as before. Its name is synced by the caller.
pub(crate) fn replace_file(path: &Path, contents: &[u8]) -> std::io::Result<()> {
    let new = path.with_added_extension("new");
    std::fs::write(&new, contents)?;
    File::open(&new)?.sync_all()?;
    std::fs::rename(&new, path)
}

/// Moves the file of the closed database in `from` to `to`, replacing the one there.
pub(crate) fn move_file(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::rename(from.join("db"), to.join("db"))?;
    #[cfg(feature = "simulation")]
    if let Some(disk) = super::simulated_disk::disk() {
        disk.rename(from, to);
    }
    Ok(())
}
