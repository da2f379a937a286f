//! A real redis-server whose append-only file is synced before each answer.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use redis::{Cmd, Connection, FromRedisValue};
use rustix::process::Signal;

use crate::load::{Part, QUEUES};
use crate::process::{Process, free_port, log, until};

/// This agent's `SERVER_ID`.
pub(crate) const SERVER_ID: &str = "edge-campaign-1";
const ANSWERS_WITHIN: Duration = Duration::from_secs(60);
/// Messages per command of the producer.
const CHUNK: usize = 500;

/// Lists or streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    List,
    Stream,
}

impl Mode {
    /// The value for `SOURCE_MODE`.
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
    /// Additional flags.
    pub flags: Vec<String>,
    process: Option<Process>,
    connection: Option<Connection>,
}

impl RedisServer {
    /// Configures a server that stores its data in the folder. Does not start it.
    pub(crate) fn new(folder: &Path, flags: &[&str]) -> Result<Self> {
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        let flags = flags.iter().map(ToString::to_string).collect();
        Ok(Self { port: free_port(), folder: folder.to_owned(), flags, process: None, connection: None })
    }

    /// Starts it with its existing data, and waits until it answers.
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

    /// Sets its process, and waits until it answers.
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

    /// Kills it, as a crash would.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.connection = None;
        self.process.take().context("redis-server does not run")?.kill()
    }

    /// Shuts it down in order.
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

    /// Pushes messages as producers do. On success they are in the append-only file.
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

    /// The number of messages waiting or in flight to the agent.
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
