//! A file system in a file, on a loop device: its power can be cut, and it can fail. Needs root.
//!
//! The campaign runs in a mount namespace of its own ([`enter_namespace`]): whatever becomes of it, the kernel takes the
//! mounts and the devices back with its last process.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use crate::process::{exists, run, until};

/// The smallest that mkfs.xfs makes is 300.
const MIB: u64 = 320;
const RELEASED_WITHIN: Duration = Duration::from_secs(20);
const NAMESPACE: &str = "CAMPAIGN_HAS_ITS_OWN_MOUNTS";

/// How the power is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// The device takes nothing any more from some request on.
    Device,
    /// The file system forgets what it has not written, its log included.
    FileSystem,
}

pub(crate) struct Image {
    folder: PathBuf,
    file_system: String,
    is_mounted: bool,
}

/// Begins anew in a mount namespace of its own, unless this is one. Returns only when there is nothing to do, or an error.
pub(crate) fn enter_namespace() -> Result<()> {
    if std::env::var_os(NAMESPACE).is_some() {
        return Ok(());
    }
    let program = std::env::current_exe()?;
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--propagation", "private", "--"])
        .arg(program)
        .args(std::env::args_os().skip(1));
    Err(command.env(NAMESPACE, "1").exec()).context("unshare (util-linux) cannot be started")
}

/// Why there can be no such file system here.
pub(crate) fn missing(file_system: &str) -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("mounting an image needs root".to_owned());
    }
    let mkfs = format!("mkfs.{file_system}");
    let programs = [mkfs.as_str(), "mount", "umount", "unshare", "findmnt", "cc"];
    let missing = programs.iter().find(|program| !exists(program));
    missing.map(|program| format!("there is no {program} here"))
}

impl Image {
    /// A new file system, mounted; the image is in that folder.
    pub(crate) fn new(folder: &Path, file_system: &str) -> Result<Self> {
        if let Some(reason) = missing(file_system) {
            bail!("{file_system}: {reason}");
        }
        let mut image =
            Self { folder: folder.to_owned(), file_system: file_system.to_owned(), is_mounted: false };
        fs::File::create(image.file())?.set_len(MIB << 20)?;
        fs::create_dir(image.path())?;
        let file = image.file().display().to_string();
        let options: &[&str] = match file_system {
            "ext4" => &["-q", "-F", "-m", "0"],
            "xfs" | "btrfs" => &["-q", "-f"],
            other => bail!("{other}: how to make one is not known"),
        };
        run(&format!("mkfs.{file_system}"), &[options, &[&file]].concat())?;
        let program = image.folder.join("cut_power");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cut_power.c");
        run("cc", &["-O1", "-o", &program.display().to_string(), &source.display().to_string()])?;
        image.mount()?;
        Ok(image)
    }

    fn file(&self) -> PathBuf {
        self.folder.join("image")
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> PathBuf {
        self.folder.join("mnt")
    }

    /// The loop device under it, as `loop3`.
    pub(crate) fn device(&self) -> Result<String> {
        let found = Command::new("findmnt").args(["-n", "-o", "SOURCE"]).arg(self.path()).output()?;
        let device = String::from_utf8_lossy(&found.stdout).trim().to_owned();
        let name = device.strip_prefix("/dev/").filter(|name| name.starts_with("loop"));
        Ok(name.with_context(|| format!("no loop device, but {device:?}"))?.to_owned())
    }

    fn mount(&mut self) -> Result<()> {
        let (file, path) = (self.file().display().to_string(), self.path().display().to_string());
        // As it is mounted in the field: ext4 is the one that has to be told what to do about an error.
        let options = if self.file_system == "ext4" { "loop,errors=remount-ro" } else { "loop" };
        run("mount", &["-t", &self.file_system, "-o", options, &file, &path])?;
        self.is_mounted = true;
        Ok(())
    }

    /// What has not reached the disk is gone from here on, and nothing reaches it any more.
    pub(crate) fn cut_power(&self, cut: Cut) -> Result<()> {
        let program = self.folder.join("cut_power").display().to_string();
        match cut {
            Cut::Device => run(&program, &["device", &format!("/dev/{}", self.device()?)]),
            Cut::FileSystem => run(&program, &["shutdown", &self.path().display().to_string()]),
        }
    }

    /// Has ext4 find an error: it remounts itself read-only.
    pub(crate) fn fail(&self) -> Result<()> {
        let path = format!("/sys/fs/ext4/{}/trigger_fs_error", self.device()?);
        fs::write(&path, "a campaign").with_context(|| path.clone())
    }

    /// Checks and mends it, as an operator does behind an error. It is mounted again then.
    pub(crate) fn repair(&mut self) -> Result<()> {
        self.unmount()?;
        let file = self.file().display().to_string();
        let output = Command::new("e2fsck").args(["-f", "-y", &file]).output()?;
        // 1: errors were corrected.
        let code = output.status.code();
        ensure!(matches!(code, Some(0 | 1)), "e2fsck: {code:?}: {}", String::from_utf8_lossy(&output.stdout));
        self.mount()
    }

    fn unmount(&mut self) -> Result<()> {
        let path = self.path().display().to_string();
        // A process that was killed may keep it busy for a moment longer.
        until("the file system is unmounted", RELEASED_WITHIN, || Ok(run("umount", &[&path]).ok()))?;
        self.is_mounted = false;
        let file = self.file().display().to_string();
        until("the loop device is released", RELEASED_WITHIN, || {
            let found = Command::new("losetup").args(["-j", &file]).output()?;
            Ok(found.stdout.is_empty().then_some(()))
        })
    }

    /// Mounts it as it was left, with the power back.
    pub(crate) fn remount(&mut self) -> Result<()> {
        self.unmount()?;
        self.mount()?;
        let probe = self.path().join("probe");
        fs::write(&probe, "").context("the file system stays cut off")
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        if self.is_mounted {
            // Lazily, where something still holds it: it goes with the namespace at the latest.
            let path = self.path().display().to_string();
            let _ = run("umount", &[&path]).or_else(|_| run("umount", &["-l", &path]));
        }
    }
}
