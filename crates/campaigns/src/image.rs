//! A file system in a file on a loop device, whose power can be cut and which can fail. Needs root.
//!
//! The campaign runs in its own mount namespace ([`enter_namespace`]): however it ends, the kernel releases the mounts and
//! devices with its last process.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use crate::process::{exists, run, until};

/// mkfs.xfs requires at least 300.
const MIB: u64 = 320;
const RELEASED_WITHIN: Duration = Duration::from_secs(20);
const NAMESPACE: &str = "CAMPAIGN_HAS_ITS_OWN_MOUNTS";

/// How the power is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// The device accepts nothing after some request.
    Device,
    /// The file system discards what it has not written, including its log.
    FileSystem,
}

pub(crate) struct Image {
    folder: PathBuf,
    file_system: String,
    is_mounted: bool,
}

/// Re-executes itself in a new mount namespace unless it is in one. Returns only if nothing is to be done, or on an error.
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

/// Why images cannot be used here.
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
    /// Creates and mounts a file system; the image is in the folder.
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

    /// The mount point.
    pub(crate) fn path(&self) -> PathBuf {
        self.folder.join("mnt")
    }

    /// The underlying loop device, such as `loop3`.
    pub(crate) fn device(&self) -> Result<String> {
        let found = Command::new("findmnt").args(["-n", "-o", "SOURCE"]).arg(self.path()).output()?;
        let device = String::from_utf8_lossy(&found.stdout).trim().to_owned();
        let name = device.strip_prefix("/dev/").filter(|name| name.starts_with("loop"));
        Ok(name.with_context(|| format!("no loop device, but {device:?}"))?.to_owned())
    }

    fn mount(&mut self) -> Result<()> {
        let (file, path) = (self.file().display().to_string(), self.path().display().to_string());
        // Mounted as in production: only ext4 needs to be told how to react to errors.
        let options = if self.file_system == "ext4" { "loop,errors=remount-ro" } else { "loop" };
        run("mount", &["-t", &self.file_system, "-o", options, &file, &path])?;
        self.is_mounted = true;
        Ok(())
    }

    /// Discards what has not reached the disk; from here on nothing reaches it.
    pub(crate) fn cut_power(&self, cut: Cut) -> Result<()> {
        let program = self.folder.join("cut_power").display().to_string();
        match cut {
            Cut::Device => run(&program, &["device", &format!("/dev/{}", self.device()?)]),
            Cut::FileSystem => run(&program, &["shutdown", &self.path().display().to_string()]),
        }
    }

    /// Makes ext4 detect an error and remount itself read-only.
    pub(crate) fn fail(&self) -> Result<()> {
        let path = format!("/sys/fs/ext4/{}/trigger_fs_error", self.device()?);
        fs::write(&path, "a campaign").with_context(|| path.clone())
    }

    /// Checks and repairs it, as an operator would after an error, and mounts it again.
    pub(crate) fn repair(&mut self) -> Result<()> {
        self.unmount()?;
        let file = self.file().display().to_string();
        let output = Command::new("e2fsck").args(["-f", "-y", &file]).output()?;
        // Exit code 1: errors were corrected.
        let code = output.status.code();
        ensure!(matches!(code, Some(0 | 1)), "e2fsck: {code:?}: {}", String::from_utf8_lossy(&output.stdout));
        self.mount()
    }

    fn unmount(&mut self) -> Result<()> {
        let path = self.path().display().to_string();
        // A killed process may keep it busy for a moment.
        until("the file system is unmounted", RELEASED_WITHIN, || Ok(run("umount", &[&path]).ok()))?;
        self.is_mounted = false;
        let file = self.file().display().to_string();
        until("the loop device is released", RELEASED_WITHIN, || {
            let found = Command::new("losetup").args(["-j", &file]).output()?;
            Ok(found.stdout.is_empty().then_some(()))
        })
    }

    /// Mounts it as it was left, with power restored.
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
            // Lazily if something still holds it: it disappears with the namespace at the latest.
            let path = self.path().display().to_string();
            let _ = run("umount", &[&path]).or_else(|_| run("umount", &["-l", &path]));
        }
    }
}
