//! The agent as a separate process.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use super::{Port, RedisServer, free_port, sandbox, until};

pub(crate) const SERVER_ID: &str = "edge-test-1";
pub(crate) const API_KEY: &str = "s3cret-api-key";

pub(crate) struct Agent {
    dir: TempDir,
    settings: BTreeMap<String, String>,
    _port: Port,
    /// Arguments of `ulimit`.
    limit: Option<String>,
    process: Option<Child>,
    http: reqwest::Client,
}

impl Agent {
    /// An agent between this Redis and this ControlPlane, not started yet. Its delays are short.
    pub(crate) fn new(redis: &RedisServer, control_plane: &str) -> Self {
        let port = free_port();
        let settings = [
            ("SERVER_ID", SERVER_ID),
            ("SERVER_REGION", "eu-test"),
            ("DATAPLANE_HOST", "127.0.0.1"),
            ("SERVER_PORT", &port.to_string()),
            ("CONTROL_PLANE_URL", control_plane),
            ("CONTROL_PLANE_API_KEY", API_KEY),
            ("REDIS_PORT", &redis.port.to_string()),
            ("OUTBOX_DIR", "outbox"),
            ("CONTROL_PLANE_INITIAL_ERROR_DELAY", "0.05"),
            ("CONTROL_PLANE_MAX_BACKOFF", "0.5"),
            ("CONTROL_PLANE_TIMEOUT", "5"),
        ];
        let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let dir = tempfile::tempdir().expect("a temporary folder");
        Self { dir, settings, _port: port, limit: None, process: None, http: sandbox::client() }
    }

    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.settings.insert(name.to_owned(), value.to_owned());
    }

    pub(crate) fn unset(&mut self, name: &str) {
        self.settings.remove(name);
    }

    /// Sets a limit for the next start, such as `-n 40`.
    pub(crate) fn limit(&mut self, limit: &str) {
        self.limit = Some(limit.to_owned());
    }

    /// Its working folder.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Starts it. Its output is appended to its log.
    pub(crate) fn start(&mut self) {
        assert!(self.process.is_none(), "it runs already");
        let log = File::options().create(true).append(true).open(self.log_file()).expect("a log file");
        let program = env!("CARGO_BIN_EXE_dataplane-agent");
        let mut command = match &self.limit {
            Some(limit) => {
                let mut shell = Command::new("/bin/sh");
                shell.args(["-c", &format!("ulimit {limit} && exec {program}")]);
                shell
            }
            None => Command::new(program),
        };
        let process = command
            .current_dir(self.dir.path())
            .env_clear()
            .envs(&self.settings)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log file"))
            .stderr(log)
            .spawn()
            .expect("the agent can be started");
        self.process = Some(process);
    }

    /// Waits until it is connected to Redis.
    pub(crate) async fn ready(&self) {
        until("the agent is connected to Redis", async || {
            (self.health().await?["redis_connected"] == true).then_some(())
        })
        .await;
    }

    /// Kills it, as a crash would.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("the agent can be killed");
            process.wait().expect("the agent ends");
        }
    }

    /// Runs an `outbox` command while it is stopped.
    pub(crate) fn outbox(&self, arguments: &[&str]) {
        assert!(self.process.is_none(), "it runs");
        let status = Command::new(env!("CARGO_BIN_EXE_dataplane-agent"))
            .current_dir(self.dir.path())
            .env_clear()
            .arg("outbox")
            .args(arguments)
            .args(["--outbox-dir", "outbox"])
            .stdout(Stdio::null())
            .status()
            .expect("the agent can be started");
        assert!(status.success(), "outbox {arguments:?}: {status}");
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid().cast_signed()).expect("a process id");
        kill_process(pid, signal).expect("the agent can be signalled");
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.as_ref().expect("the agent runs").id()
    }

    /// Its exit status, if it has ended by itself.
    pub(crate) fn has_ended(&mut self) -> Option<ExitStatus> {
        let process = self.process.as_mut().expect("the agent was started");
        let status = process.try_wait().expect("its status is known");
        if status.is_some() {
            self.process = None;
        }
        status
    }

    /// Waits until it has ended by itself.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let process = self.process.as_mut().expect("the agent was started");
        let status =
            until("the agent has ended", async || process.try_wait().expect("its status is known")).await;
        self.process = None;
        status
    }

    /// Stops it as systemd does, and waits until it has ended.
    pub(crate) async fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.ended().await
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.settings["SERVER_PORT"])
    }

    /// Runs another command of the program with the same settings plus these.
    pub(crate) async fn command(&self, settings: &[(&str, &str)], words: &[&str]) -> Said {
        let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_dataplane-agent"))
            .args(words)
            .current_dir(self.dir.path())
            .env_clear()
            .envs(&self.settings)
            .envs(settings.iter().copied())
            .stdin(Stdio::null())
            .output();
        let output = output.await.expect("the command can be started");
        Said {
            code: output.status.code().expect("it ends by itself"),
            out: String::from_utf8(output.stdout).expect("UTF-8"),
            err: String::from_utf8(output.stderr).expect("UTF-8"),
        }
    }

    /// The status and body of a GET; `None` while it does not answer.
    pub(crate) async fn get(&self, path: &str) -> Option<(u16, String)> {
        let answer = self.http.get(self.url(path)).send().await.ok()?;
        Some((answer.status().as_u16(), answer.text().await.ok()?))
    }

    /// Sends an order to `/admin`.
    pub(crate) async fn order(&self, path: &str) {
        let request = self.http.post(self.url(path)).bearer_auth(&self.settings["ADMIN_TOKEN"]);
        assert_eq!(request.send().await.expect("it answers").status(), 200, "{path}");
    }

    pub(crate) async fn health(&self) -> Option<Value> {
        serde_json::from_str(&self.get("/health").await?.1).ok()
    }

    /// Waits until its log contains these words: a line may follow the event by a moment.
    pub(crate) async fn says(&self, words: &str) {
        until(&format!("the log says: {words}"), async || self.log().contains(words).then_some(())).await;
    }

    /// Waits until its log contains these words this many times; fails if there are more.
    pub(crate) async fn says_times(&self, words: &str, times: usize) {
        until(&format!("the log says {times} times: {words}"), async || {
            let said = self.log().matches(words).count();
            assert!(said <= times, "{said} times {words:?}: {}", self.log());
            (said == times).then_some(())
        })
        .await;
    }

    /// Waits until its outbox is empty. This may take long as long as the backlog shrinks.
    pub(crate) async fn outbox_emptied(&self) {
        let mut least = u64::MAX;
        while least > 0 {
            least = until("the backlog becomes less", async || {
                let depth = self.health().await?["outbox"]["depth"].as_u64()?;
                (depth < least || depth == 0).then_some(depth)
            })
            .await;
        }
    }

    pub(crate) async fn metrics(&self) -> Metrics {
        let (status, text) = until("metrics are answered", async || self.get("/metrics").await).await;
        assert_eq!(status, 200, "{text}");
        Metrics(text)
    }

    fn log_file(&self) -> PathBuf {
        self.dir.path().join("agent.log")
    }

    /// Its complete log.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- the agent's log ---\n{}", self.log());
        }
    }
}

/// A command's output and exit code.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Said {
    /// Its JSON output.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        assert_eq!(self.code, 0, "{self:?}");
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Asserts that it failed with this message.
    #[track_caller]
    pub(crate) fn assert_failed(&self, part: &str) {
        assert!(self.code == 1 && self.err.contains(part), "{part:?}: {self:?}");
        assert!(!self.err.contains("panicked"), "{self:?}");
    }
}

/// A scrape.
#[derive(Debug)]
pub(crate) struct Metrics(pub(crate) String);

impl Metrics {
    /// The sum of a metric's samples with all of these labels.
    pub(crate) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let samples = self.0.lines().filter_map(|line| line.strip_prefix(name));
        let samples = samples.filter(|rest| rest.starts_with(['{', ' ']));
        let has =
            |rest: &&str| labels.iter().all(|(key, value)| rest.contains(&format!("{key}=\"{value}\"")));
        samples.filter(has).filter_map(|rest| rest.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// Asserts that every record is accounted for (invariant 8).
    #[track_caller]
    pub(crate) fn assert_conserved(&self) {
        for kind in ["usage", "lifecycle", "quota"] {
            let of = |name: &str| self.sum(name, &[("kind", kind)]);
            let settled = of("dataplane_delivered_total")
                + of("dataplane_duplicates_total")
                + of("dataplane_dead_lettered_total")
                + of("dataplane_exported_total");
            let (enqueued, depth) = (of("dataplane_outbox_enqueued_total"), of("dataplane_outbox_depth"));
            assert!((enqueued - settled - depth).abs() < 0.5, "{kind}: {enqueued} != {settled} + {depth}");
        }
    }
}
