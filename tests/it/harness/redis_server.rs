//! A redis-server of the test's own, on a free port.

use std::process::{Child, Command, Stdio};

use redis::aio::MultiplexedConnection;
use tempfile::TempDir;

use super::{free_port, until};

pub(crate) struct RedisServer {
    pub(crate) port: u16,
    dir: TempDir,
    process: Option<Child>,
    connection: Option<MultiplexedConnection>,
}

impl RedisServer {
    /// Started and answering; keeps what it has in an append-only file.
    pub(crate) async fn start() -> Self {
        let mut server = Self::stopped();
        server.restart().await;
        server
    }

    /// Not started yet.
    pub(crate) fn stopped() -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        Self { port: free_port(), dir, process: None, connection: None }
    }

    /// Starts it, with what it had.
    pub(crate) async fn restart(&mut self) {
        let process = Command::new("redis-server")
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--save", ""])
            .args(["--appendonly", "yes", "--appendfsync", "no"])
            .arg("--dir")
            .arg(self.dir.path())
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server can be started: is it installed?");
        self.process = Some(process);
        let client = redis::Client::open(self.url()).expect("a Redis URL");
        self.connection = Some(
            until("redis-server answers", async || {
                let mut connection = client.get_multiplexed_async_connection().await.ok()?;
                let pong: redis::RedisResult<String> = redis::cmd("PING").query_async(&mut connection).await;
                pong.ok().map(|_| connection)
            })
            .await,
        );
    }

    /// Ends it at once, as a crash does.
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

    /// Pushes messages the way producers do.
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

    pub(crate) async fn len(&self, key: &str) -> u64 {
        redis::cmd("LLEN").arg(key).query_async(&mut self.connection()).await.expect("a list")
    }

    /// All of a list, from its left end.
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
