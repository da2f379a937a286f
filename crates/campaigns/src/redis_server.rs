//! A real redis-server with an append-only file that is synced before each answer.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use redis::{Cmd, Connection, FromRedisValue};
use rustix::process::Signal;

use crate::load::{Part, QUEUES};
use crate::process::{Process, free_port, log, until};

/// As `SERVER_ID` names this agent.
pub(crate) const SERVER_ID: &str = "edge-campaign-1";
const ANSWERS_WITHIN: Duration = Duration::from_secs(60);
/// What the producer puts into one command.
const CHUNK: usize = 500;

/// Lists or streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    List,
    Stream,
}

impl Mode {
    /// As `SOURCE_MODE` has it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::List => "list",
            Self::Stream => "stream",
        }
    }
}

pub(crate) struct RedisServer {
    pub port: u16,
    folder: PathBuf,
    /// What comes behind the usual flags.
    pub flags: Vec<String>,
    process: Option<Process>,
    connection: Option<Connection>,
}

impl RedisServer {
    /// Not started yet. What it keeps is in that folder.
    pub(crate) fn new(folder: &Path, flags: &[&str]) -> Result<Self> {
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        let flags = flags.iter().map(ToString::to_string).collect();
        Ok(Self { port: free_port(), folder: folder.to_owned(), flags, process: None, connection: None })
    }

    /// Starts it with what it had, and waits until it answers.
    pub(crate) fn start(&mut self) -> Result<()> {
        let output = log(&self.folder, "redis.log")?;
        let process = Process::start(Path::new("redis-server"), "redis-server", |command| {
            command
                .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--save", ""])
                .args(["--appendonly", "yes", "--appendfsync", "always"])
                .args(["--repl-diskless-sync-delay", "0", "--dir"])
                .arg(&self.folder)
                .args(&self.flags)
                .stdout(output);
        });
        self.runs(process?)
    }

    /// This is its process; waits until it answers.
    pub(crate) fn runs(&mut self, process: Process) -> Result<()> {
        self.process = Some(process);
        self.connect()
    }

    /// Waits until it answers.
    pub(crate) fn connect(&mut self) -> Result<()> {
        let client = redis::Client::open(format!("redis://127.0.0.1:{}/", self.port))?;
        let process = self.process.as_mut().context("redis-server was not started")?;
        self.connection = Some(until("redis-server answers", ANSWERS_WITHIN, || {
            ensure!(process.ended()?.is_none(), "redis-server has ended: see its log");
            let Ok(mut connection) = client.get_connection_with_timeout(Duration::from_secs(1)) else {
                return Ok(None);
            };
            let answers = redis::cmd("PING").query::<String>(&mut connection).is_ok();
            Ok(answers.then_some(connection))
        })?);
        Ok(())
    }

    /// Ends it at once, as a crash does.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.connection = None;
        self.process.take().context("redis-server does not run")?.kill()
    }

    /// Ends it in order.
    pub(crate) fn stop(&mut self) -> Result<()> {
        self.connection = None;
        let mut process = self.process.take().context("redis-server does not run")?;
        process.signal(Signal::TERM)?;
        until("redis-server has ended", ANSWERS_WITHIN, || process.ended()).map(|_| ())
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        self.process.as_ref().context("redis-server does not run")?.signal(signal)
    }

    pub(crate) fn run<T: FromRedisValue>(&mut self, command: &Cmd) -> Result<T> {
        let connection = self.connection.as_mut().context("redis-server does not run")?;
        command.query(connection).with_context(|| {
            let words = command.args_iter().take(3).map(|word| match word {
                redis::Arg::Simple(word) => String::from_utf8_lossy(word).into_owned(),
                _ => "…".to_owned(),
            });
            words.collect::<Vec<_>>().join(" ")
        })
    }

    /// Pushes messages the way producers do. What returns without an error is in the append-only file.
    pub(crate) fn push(&mut self, mode: Mode, parts: &[Part]) -> Result<()> {
        if parts.iter().all(|(_, messages)| messages.is_empty()) {
            return Ok(());
        }
        let connection = self.connection.as_mut().context("redis-server does not run")?;
        let mut commands = redis::pipe();
        for (queue, messages) in parts {
            for chunk in messages.chunks(CHUNK) {
                if mode == Mode::List {
                    commands.cmd("LPUSH").arg(queue).arg(chunk).ignore();
                    continue;
                }
                for message in chunk {
                    commands.cmd("XADD").arg(queue).arg("*").arg("data").arg(message).ignore();
                }
            }
        }
        commands.query::<()>(connection).context("the producer cannot push")
    }

    /// How many messages wait in it, or are in flight to the agent.
    pub(crate) fn waiting(&mut self, mode: Mode) -> Result<u64> {
        let connection = self.connection.as_mut().context("redis-server does not run")?;
        let mut commands = redis::pipe();
        for queue in QUEUES {
            if mode == Mode::Stream {
                commands.cmd("XLEN").arg(queue);
                continue;
            }
            commands.cmd("LLEN").arg(queue).cmd("LLEN").arg(format!("{queue}:processing:{SERVER_ID}"));
        }
        let lengths: Vec<u64> = commands.query(connection).context("the queues' lengths")?;
        Ok(lengths.iter().sum())
    }
}
