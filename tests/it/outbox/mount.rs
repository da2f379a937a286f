//! A small ext4 file system in a file, mounted for a test: it can be filled, and its power can be cut. Needs root.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub(super) struct Mount {
    dir: tempfile::TempDir,
    is_mounted: bool,
}

fn run(program: &str, args: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

impl Mount {
    /// A file system of this many MiB; `None`, with a message, if it cannot be created.
    pub(super) fn new(mib: u64) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        std::fs::File::create(&image).unwrap().set_len(mib << 20).unwrap();
        std::fs::create_dir(dir.path().join("mnt")).unwrap();
        let mut mount = Self { dir, is_mounted: false };
        let made = run("mkfs.ext4", &["-q", "-F", "-m", "0", &image.display().to_string()]);
        if made && mount.mount() {
            return Some(mount);
        }
        assert!(std::env::var_os("CI").is_none(), "CI must not go without a loop-mounted ext4 image");
        eprintln!("SKIPPED: a loop-mounted ext4 image needs root and mkfs.ext4");
        None
    }

    pub(super) fn path(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    pub(super) fn mount(&mut self) -> bool {
        let image = self.dir.path().join("image").display().to_string();
        self.is_mounted = run("mount", &["-o", "loop", &image, &self.path().display().to_string()]);
        self.is_mounted
    }

    /// Discards what was not synced, as a power cut would.
    pub(super) fn cut_power(&self) {
        // EXT4_IOC_SHUTDOWN without flushing the journal.
        let program =
            "import fcntl,os,struct,sys; fcntl.ioctl(os.open(sys.argv[1],0), 0x8004587D, struct.pack('I',2))";
        assert!(
            run("python3", &["-c", program, &self.path().display().to_string()]),
            "the power cannot be cut"
        );
    }

    pub(super) fn unmount(&mut self) {
        let path = self.path().display().to_string();
        for _ in 0..100 {
            if run("umount", &[&path]) {
                self.is_mounted = false;
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        panic!("{path} cannot be unmounted");
    }

    pub(super) fn remount(&mut self) {
        // A process that copies the mount table in between (a starting container) keeps the shut-down file system alive for
        // a moment, and the kernel mounts that one again.
        for _ in 0..100 {
            self.unmount();
            assert!(self.mount(), "the file system cannot be mounted again");
            if std::fs::write(self.path().join("probe"), "").is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        panic!("the file system stays cut off");
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.is_mounted {
            run("umount", &["-l", &self.path().display().to_string()]);
        }
    }
}

/// Fills the file system of `dir` to the last block.
pub(super) fn fill(dir: &Path) -> PathBuf {
    use std::io::Write as _;
    let path = dir.join("ballast");
    let mut file = std::fs::File::create(&path).unwrap();
    for size in [1 << 20, 4096, 512] {
        while file.write_all(&vec![7; size]).is_ok() {}
    }
    // Data that could not be written is the point of this.
    let _ = file.sync_all();
    path
}
