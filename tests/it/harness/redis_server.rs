//! A redis-server for one test, on a free port.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use redis::aio::MultiplexedConnection;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::{DEADLINE, Port, free_port, until};

pub(crate) struct RedisServer {
    pub(crate) port: Port,
    /// The port on which cluster nodes communicate.
    pub(crate) bus_port: Option<Port>,
    dir: TempDir,
    flags: Vec<String>,
    process: Option<Child>,
    connection: Option<MultiplexedConnection>,
}

impl RedisServer {
    /// Started and answering, with an append-only file.
    pub(crate) async fn start() -> Self {
        let mut server = Self::stopped();
        server.restart().await;
        server
    }

    /// Not started yet.
    pub(crate) fn stopped() -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        Self { port: free_port(), bus_port: None, dir, flags: Vec::new(), process: None, connection: None }
    }

    /// Not started yet, with additional flags for `redis-server`.
    pub(crate) fn with(flags: &[&str]) -> Self {
        let mut server = Self::stopped();
        server.flags = flags.iter().map(ToString::to_string).collect();
        server
    }

    /// Its working folder.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid().cast_signed()).expect("a process id");
        kill_process(pid, signal).expect("redis-server can be signalled");
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.as_ref().expect("redis-server runs").id()
    }

    /// Adds flags for the next start.
    pub(crate) fn add_flags(&mut self, flags: &[&str]) {
        self.flags.extend(flags.iter().map(ToString::to_string));
    }

    /// Starts it with its existing data.
    pub(crate) async fn restart(&mut self) {
        self.restart_without_waiting();
        self.answering().await;
    }

    /// Starts it without waiting until it answers.
    pub(crate) fn restart_without_waiting(&mut self) {
        let process = Command::new("redis-server")
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--save", ""])
            .args(["--appendonly", "yes", "--appendfsync", "no"])
            // A rewrite at a random time would use a core in the middle of a measurement.
            .args(["--auto-aof-rewrite-percentage", "0"])
            .arg("--dir")
            .arg(self.dir.path())
            .args(&self.flags)
            .stdout(Stdio::null())
            // An orphan must not keep the tests' output pipe open.
            .stderr(Stdio::null())
            .spawn()
            .expect("redis-server can be started: is it installed?");
        self.process = Some(process);
    }

    /// Waits until it answers.
    pub(crate) async fn answering(&mut self) {
        let client = redis::Client::open(self.url()).expect("a Redis URL");
        self.connection = Some(
            until("redis-server answers", async || {
                let mut connection = client.get_multiplexed_async_connection().await.ok()?;
                // The client's default of half a second is too short beside a test suite.
                connection.set_response_timeout(DEADLINE);
                let pong: redis::RedisResult<String> = redis::cmd("PING").query_async(&mut connection).await;
                pong.ok().map(|_| connection)
            })
            .await,
        );
    }

    /// Kills it, as a crash would.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("redis-server can be killed");
            process.wait().expect("redis-server ends");
        }
        self.connection = None;
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    /// A connection to it.
    pub(crate) fn connection(&self) -> MultiplexedConnection {
        self.connection.clone().expect("redis-server runs")
    }

    pub(crate) async fn run(&self, command: &redis::Cmd) -> redis::Value {
        command.query_async(&mut self.connection()).await.expect("redis-server obeys")
    }

    /// Pushes messages as producers do.
    pub(crate) async fn push(&self, queue: &str, messages: &[impl AsRef<[u8]>]) {
        for chunk in messages.chunks(1000) {
            let mut command = redis::cmd("LPUSH");
            command.arg(queue);
            for message in chunk {
                command.arg(message.as_ref());
            }
            self.run(&command).await;
        }
    }

    /// Adds messages to a stream as producers do.
    pub(crate) async fn add(&self, stream: &str, messages: &[impl AsRef<[u8]>]) {
        for chunk in messages.chunks(1000) {
            let mut commands = redis::pipe();
            for message in chunk {
                commands.cmd("XADD").arg(stream).arg("*").arg("data").arg(message.as_ref()).ignore();
            }
            let () = commands.query_async(&mut self.connection()).await.expect("redis-server obeys");
        }
    }

    pub(crate) async fn len(&self, key: &str) -> u64 {
        redis::cmd("LLEN").arg(key).query_async(&mut self.connection()).await.expect("a list")
    }

    /// The number of entries in a stream.
    pub(crate) async fn entries(&self, stream: &str) -> u64 {
        redis::cmd("XLEN").arg(stream).query_async(&mut self.connection()).await.expect("a stream")
    }

    /// The number of commands processed so far.
    pub(crate) async fn commands(&self) -> u64 {
        let info: String =
            redis::cmd("INFO").arg("stats").query_async(&mut self.connection()).await.expect("it answers");
        let line = info.lines().find_map(|line| line.strip_prefix("total_commands_processed:"));
        line.and_then(|count| count.trim().parse().ok()).expect("a count")
    }

    /// A whole list, from the left.
    pub(crate) async fn list(&self, key: &str) -> Vec<Vec<u8>> {
        let mut command = redis::cmd("LRANGE");
        command.arg(key).arg(0).arg(-1);
        command.query_async(&mut self.connection()).await.expect("a list")
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}
