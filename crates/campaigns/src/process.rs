//! A child process that ends with its parent.

use std::fs::File;
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rand::RngExt as _;
use rustix::process::{Pid, Signal, kill_process};

/// Interval between checks of a condition.
const POLL: Duration = Duration::from_millis(5);

/// A child process. It is killed on drop, and by the kernel if the campaign is killed.
pub(crate) struct Process {
    child: Child,
    name: String,
}

impl Process {
    /// Starts a program in its own process group, so that Ctrl-C reaches only the campaign.
    pub(crate) fn start(program: &Path, name: &str, prepare: impl FnOnce(&mut Command)) -> Result<Self> {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program).process_group(0).stdin(Stdio::null());
        prepare(&mut command);
        let child = command.spawn().with_context(|| {
            format!("{name} cannot be started: is setpriv (util-linux) installed, and {}?", program.display())
        })?;
        Ok(Self { child, name: name.to_owned() })
    }

    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills it, as a crash would.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.child.kill().with_context(|| format!("{} cannot be killed", self.name))?;
        self.child.wait().with_context(|| format!("{} does not end", self.name))?;
        Ok(())
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(self.pid().cast_signed()).context("no process id")?;
        kill_process(pid, signal).with_context(|| format!("{} cannot be signalled", self.name))
    }

    /// Its exit status, if it has ended by itself.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("{}: its status is unknown", self.name))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Opens a file to which a process' output is appended.
pub(crate) fn log(folder: &Path, name: &str) -> Result<File> {
    let path = folder.join(name);
    File::options().create(true).append(true).open(&path).with_context(|| path.display().to_string())
}

/// Runs a program to its end; an error contains its output.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("{program} cannot be started"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{program} {}: {}: {}", arguments.join(" "), output.status, said.trim());
    }
    Ok(())
}

/// Whether a program is installed.
pub(crate) fn exists(program: &str) -> bool {
    let found = Command::new("sh").args(["-c", &format!("command -v {program}")]).output();
    found.is_ok_and(|output| output.status.success())
}

/// Polls until `condition` returns a value.
pub(crate) fn until<T>(
    what: &str,
    deadline: Duration,
    mut condition: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let begun = Instant::now();
    loop {
        if let Some(value) = condition()? {
            return Ok(value);
        }
        if begun.elapsed() > deadline {
            bail!("did not come true within {} s: {what}", deadline.as_secs());
        }
        std::thread::sleep(POLL);
    }
}

/// A port that was free a moment ago, below the range that the kernel assigns.
pub(crate) fn free_port() -> u16 {
    loop {
        let port = rand::rng().random_range(10_000..32_000);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
