//! Restores the owner of an outbox: files that root created while using it are given to the agent's user.
//!
//! Otherwise the agent could not read them, and would treat them as damage.
//!
//! The folder belongs to another user, who may change it at any moment. So no name is used twice: a file is opened without
//! following links, checked, and given away, all through one descriptor. A file with a second link, which may be anywhere,
//! is left alone.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, Stat, Uid, fchown, fstat, openat, statat};
use rustix::io::Errno;

/// Gives root's files in a folder to the folder's owner on drop.
pub(super) struct KeepsOwner(Option<Owned>);

struct Owned {
    path: PathBuf,
    dir: OwnedFd,
    owner: (Uid, Gid),
}

impl KeepsOwner {
    pub(super) fn of(dir: &Path) -> Self {
        if !rustix::process::geteuid().is_root() {
            return Self(None);
        }
        // A missing folder gets the owner of whoever creates it.
        Self(Owned::of(dir).ok().filter(|owned| !owned.owner.0.is_root()))
    }
}

impl Drop for KeepsOwner {
    fn drop(&mut self) {
        if let Some(owned) = &self.0
            && let Err(error) = owned.give_back()
        {
            eprintln!("{}: cannot restore the owner of all files: {error}", owned.path.display());
        }
    }
}

impl Owned {
    fn of(dir: &Path) -> io::Result<Self> {
        let path = std::fs::canonicalize(dir)?;
        let dir = open(CWD, &path, OFlags::DIRECTORY)?;
        let stat = fstat(&dir)?;
        Ok(Self { path, dir, owner: (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid)) })
    }

    fn give_back(&self) -> io::Result<()> {
        // Without a lock file, nothing has been created either.
        let Ok(lock) = open(&self.dir, "lock", OFlags::NONBLOCK) else { return Ok(()) };
        let lock = File::from(lock);
        match lock.try_lock() {
            // IMPORTANT: the lock is held until everything is given away: an agent must not create or delete files meanwhile.
            Ok(()) => give_all(&self.dir, self.owner),
            // An agent holds the lock: we did not have the outbox open, or have it no longer.
            Err(std::fs::TryLockError::WouldBlock) => Ok(()),
            Err(std::fs::TryLockError::Error(error)) => Err(error),
        }
    }
}

fn open(dir: impl AsFd, name: impl rustix::path::Arg, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    openat(dir, name, flags | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// Gives away everything in `dir`, but not `dir` itself.
fn give_all(dir: &OwnedFd, owner: (Uid, Gid)) -> io::Result<()> {
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        // Checked before opening, because opening a device has side effects; and again once open.
        let found = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).and_then(|stat| match kind(&stat) {
            FileType::Directory => open(dir, name, OFlags::DIRECTORY).map(Some),
            FileType::RegularFile => open(dir, name, OFlags::NONBLOCK).map(Some),
            _ => Ok(None),
        });
        match found {
            Ok(Some(file)) => give(&file, owner)?,
            // A link or a device, or already gone.
            Ok(None) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn give(file: &OwnedFd, owner: (Uid, Gid)) -> io::Result<()> {
    let stat = fstat(file)?;
    let is_dir = kind(&stat) == FileType::Directory;
    let has_one_name = kind(&stat) == FileType::RegularFile && stat.st_nlink == 1;
    if stat.st_uid == 0 && (is_dir || has_one_name) {
        fchown(file, Some(owner.0), Some(owner.1))?;
    }
    if is_dir { give_all(file, owner) } else { Ok(()) }
}

fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, chown, symlink};

    use super::*;

    const AGENT: u32 = 61_234;

    #[test]
    fn only_files_inside_the_folder_change_owner_and_only_while_it_is_not_in_use() {
        if !rustix::process::geteuid().is_root() {
            assert!(std::env::var_os("CI").is_none(), "CI must run this as root");
            eprintln!("SKIPPED: changing owners needs root");
            return;
        }
        let home = tempfile::tempdir().unwrap();
        let at = |name: &str| home.path().join(name);
        fs::create_dir_all(at("outbox/segments/1")).unwrap();
        chown(at("outbox"), Some(AGENT), Some(AGENT)).unwrap();
        fs::create_dir(at("elsewhere")).unwrap();
        for name in ["outbox/lock", "outbox/segments/1/db", "elsewhere/by-link", "elsewhere/by-name"] {
            fs::write(at(name), "").unwrap();
        }
        symlink(at("elsewhere"), at("outbox/folder")).unwrap();
        symlink(at("elsewhere/by-link"), at("outbox/file")).unwrap();
        fs::hard_link(at("elsewhere/by-name"), at("outbox/second-name")).unwrap();
        symlink(at("outbox"), at("outbox-dir")).unwrap();
        let owner = |name: &str| fs::metadata(at(name)).unwrap().uid();

        let held = File::open(at("outbox/lock")).unwrap();
        held.lock().unwrap();
        drop(KeepsOwner::of(&at("outbox-dir")));
        assert_eq!(owner("outbox/segments/1/db"), 0, "an agent has it open");
        drop(held);

        drop(KeepsOwner::of(&at("outbox-dir")));
        for name in ["outbox/lock", "outbox/segments", "outbox/segments/1", "outbox/segments/1/db"] {
            assert_eq!(owner(name), AGENT, "{name}");
        }
        for name in ["elsewhere", "elsewhere/by-link", "elsewhere/by-name"] {
            assert_eq!(owner(name), 0, "{name}");
        }
    }
}
