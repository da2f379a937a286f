//! The demonstration's processes: a private Redis, the sandbox and the agent, in one temporary folder.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use redis::AsyncConnectionConfig;
use redis::aio::MultiplexedConnection;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use uuid::Uuid;

/// The agent's queues.
pub(super) const QUEUES: [&str; 3] =
    ["queue:usage_records", "queue:session_lifecycle", "queue:quota_refresh"];

/// Time for a process to become ready or to stop.
const READY_WITHIN: Duration = Duration::from_secs(30);
const SERVER_ID: &str = "demo-1";

/// A temporary folder, deleted on drop.
struct Folder(PathBuf);

impl Folder {
    fn make() -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("dataplane-agent-demo-{}", Uuid::new_v4().simple()));
        // IMPORTANT: an existing folder may belong to somebody else and contain links.
        let made = std::fs::DirBuilder::new().mode(0o700).create(&path);
        made.with_context(|| format!("{}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // A failed removal is not an error, and nobody is left to report it to.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub(super) struct Stage {
    dir: Folder,
    redis: Child,
    redis_url: String,
    sandbox: Child,
    control_url: String,
    sandbox_url: String,
    agent: Child,
    agent_port: u16,
    http: reqwest::Client,
}

/// The dead letters in the mirror.
pub(super) struct DeadLetters(Vec<DeadLetter>);

/// The printed part of a dead letter. Its original message may contain numbers that no program can represent.
#[derive(serde::Deserialize)]
struct DeadLetter {
    dead_letter_id: String,
    reason: String,
    error_info: String,
}

impl DeadLetters {
    pub(super) fn total(&self) -> u64 {
        self.0.len() as u64
    }

    /// The count by reason.
    pub(super) fn reasons(&self) -> BTreeMap<String, usize> {
        let mut reasons = BTreeMap::new();
        for letter in &self.0 {
            let DeadLetter { reason, error_info, .. } = letter;
            *reasons.entry(format!("{reason}: {error_info}")).or_insert(0) += 1;
        }
        reasons
    }
}

/// A port that was free a moment ago and that the kernel does not assign: those start at 32768.
fn free_port() -> u16 {
    loop {
        let port = rand::random_range(10_000..32_000);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// A child process that dies with this one, even if this one is interrupted.
fn child(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

impl Stage {
    pub(super) async fn set() -> anyhow::Result<Self> {
        let dir = Folder::make()?;
        let redis_port = free_port();
        let redis = child(Path::new("redis-server"))
            .args([
                "--port",
                &redis_port.to_string(),
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--appendonly",
                "no",
            ])
            .arg("--dir")
            .arg(&dir.0)
            .stdout(Stdio::null())
            .spawn()
            .context("redis-server cannot be started: is it installed?")?;
        let (sandbox, sandbox_url, control_url) = start_sandbox().await?;
        let agent_port = free_port();
        let redis_url = format!("redis://127.0.0.1:{redis_port}/");
        let agent = start_agent(&dir.0, redis_port, &sandbox_url, agent_port)?;
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(5)).build()?;
        let stage =
            Self { dir, redis, redis_url, sandbox, control_url, sandbox_url, agent, agent_port, http };
        stage.wait_for_agent().await?;
        Ok(stage)
    }

    pub(super) fn redis_url(&self) -> String {
        self.redis_url.clone()
    }

    pub(super) fn agent_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.agent_port)
    }

    async fn wait_for_agent(&self) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            let health = self.get(&format!("{}/health", self.agent_url())).await;
            if health.is_ok_and(|health| health["redis_connected"] == true) {
                return Ok(());
            }
            if begun.elapsed() >= READY_WITHIN {
                let log = std::fs::read_to_string(self.dir.0.join("agent.log")).unwrap_or_default();
                bail!("the agent is not ready; its log:\n{log}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub(super) async fn kill_and_restart_agent(&mut self) -> anyhow::Result<()> {
        self.agent.kill().await?;
        let redis_port =
            self.redis_url.trim_end_matches('/').rsplit(':').next().and_then(|port| port.parse().ok());
        let redis_port = redis_port.context("the port of Redis")?;
        self.agent = start_agent(&self.dir.0, redis_port, &self.sandbox_url, self.agent_port)?;
        self.wait_for_agent().await
    }

    async fn get(&self, url: &str) -> anyhow::Result<Value> {
        Ok(serde_json::from_slice(&self.http.get(url).send().await?.bytes().await?)?)
    }

    /// Replaces the weather.
    pub(super) async fn weather(&self, weather: &Value) -> anyhow::Result<()> {
        let url = format!("{}/sandbox/weather", self.control_url);
        let answer = self.http.put(url).json(weather).send().await?;
        ensure!(answer.status().is_success(), "the sandbox refuses these faults: {}", answer.text().await?);
        Ok(())
    }

    /// Settled records without dead letters, records in the outbox, and the state of the link.
    pub(super) async fn progress(&self) -> anyhow::Result<(u64, u64, String)> {
        let health = self.get(&format!("{}/health", self.agent_url())).await?;
        let text = self.http.get(format!("{}/metrics", self.agent_url())).send().await?.text().await?;
        let sum = |name: &str| -> u64 {
            let lines = text.lines().filter(|line| line.starts_with(name));
            lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64
        };
        let settled = sum("dataplane_delivered_total") + sum("dataplane_duplicates_total");
        let depth = health["outbox"]["depth"].as_u64().unwrap_or(0);
        let link = health["components"]["control_plane"]["link"].as_str().unwrap_or("?").to_owned();
        Ok((settled, depth, link))
    }

    /// Whether Redis and the outbox are empty.
    pub(super) async fn all_settled(&self) -> anyhow::Result<bool> {
        let health = self.get(&format!("{}/health", self.agent_url())).await?;
        if health["outbox"]["depth"] != 0 {
            return Ok(false);
        }
        let mut connection = connect(&self.redis_url).await?;
        for queue in QUEUES {
            for key in [queue.to_owned(), format!("{queue}:processing:{SERVER_ID}")] {
                let left: u64 = redis::cmd("LLEN").arg(key).query_async(&mut connection).await?;
                if left > 0 {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    pub(super) async fn accounts(&self) -> anyhow::Result<Value> {
        self.get(&format!("{}/sandbox/accounts", self.control_url)).await
    }

    /// The complete mirror, which lags slightly behind the dead letters.
    pub(super) async fn dead_letters(&self) -> anyhow::Result<DeadLetters> {
        let mut connection = connect(&self.redis_url).await?;
        let begun = Instant::now();
        loop {
            let health = self.get(&format!("{}/health", self.agent_url())).await?;
            let letters: Vec<String> = redis::cmd("LRANGE")
                .arg("queue:dead_letter")
                .arg(0)
                .arg(-1)
                .query_async(&mut connection)
                .await?;
            let parsed = letters.iter().map(|text| serde_json::from_str(text));
            let mut letters: Vec<DeadLetter> = parsed.collect::<Result<_, _>>()?;
            // An agent killed before it notes what it has mirrored mirrors it again.
            letters.sort_by(|a, b| a.dead_letter_id.cmp(&b.dead_letter_id));
            letters.dedup_by(|a, b| a.dead_letter_id == b.dead_letter_id);
            if letters.len() as u64 >= health["outbox"]["dead_letters"].as_u64().unwrap_or(0) {
                return Ok(DeadLetters(letters));
            }
            ensure!(begun.elapsed() < READY_WITHIN, "the mirror of dead letters is not complete");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    pub(super) async fn quota_answers(&self) -> anyhow::Result<u64> {
        let mut connection = connect(&self.redis_url).await?;
        Ok(redis::cmd("LLEN").arg("queue:quota_response").query_async(&mut connection).await?)
    }

    /// Stops everything and removes the folder.
    pub(super) async fn strike(mut self) -> anyhow::Result<()> {
        // The agent shuts down on request; the others have nothing to lose.
        if let Some(pid) = self.agent.id() {
            let mut ask = child(Path::new("kill"));
            ask.args(["-TERM", &pid.to_string()]).status().await?;
            tokio::time::timeout(READY_WITHIN, self.agent.wait())
                .await
                .context("the agent does not stop")??;
        }
        self.sandbox.kill().await?;
        self.redis.kill().await?;
        Ok(())
    }
}

async fn start_sandbox() -> anyhow::Result<(Child, String, String)> {
    let mut sandbox = child(&std::env::current_exe()?)
        .args(["sandbox", "--listen", "127.0.0.1:0", "--control-listen", "127.0.0.1:0"])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(sandbox.stdout.take().context("the sandbox's output")?).lines();
    let mut url = async |prefix: &str| -> anyhow::Result<String> {
        let line = tokio::time::timeout(READY_WITHIN, lines.next_line()).await??.unwrap_or_default();
        Ok(line.strip_prefix(prefix).with_context(|| format!("the sandbox says {line:?}"))?.to_owned())
    };
    let main = url("listening on ").await?;
    let control = url("control on ").await?;
    Ok((sandbox, main, control))
}

fn start_agent(dir: &Path, redis_port: u16, control_plane: &str, port: u16) -> anyhow::Result<Child> {
    let log = std::fs::File::options().create(true).append(true).open(dir.join("agent.log"))?;
    let redis_port = redis_port.to_string();
    let settings = [
        ("SERVER_ID", SERVER_ID),
        ("SERVER_REGION", "demo"),
        ("DATAPLANE_HOST", "127.0.0.1"),
        ("CONTROL_PLANE_URL", control_plane),
        ("CONTROL_PLANE_API_KEY", "demo-key"),
        ("REDIS_PORT", &redis_port),
        ("OUTBOX_DIR", "outbox"),
        // An outage of seconds needs probes within seconds.
        ("CONTROL_PLANE_INITIAL_ERROR_DELAY", "0.2"),
        ("CONTROL_PLANE_MAX_BACKOFF", "2"),
        ("CONTROL_PLANE_TIMEOUT", "5"),
    ];
    let agent = child(&std::env::current_exe()?)
        .current_dir(dir)
        .args(["run", "--server-port", &port.to_string()])
        .env_clear()
        .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
        .envs(settings)
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    Ok(agent)
}

/// Connects to the demonstration's Redis, which may be slow under this load.
pub(super) async fn connect(redis_url: &str) -> anyhow::Result<MultiplexedConnection> {
    let patient = AsyncConnectionConfig::new().set_response_timeout(Some(READY_WITHIN));
    Ok(redis::Client::open(redis_url)?.get_multiplexed_async_connection_with_config(&patient).await?)
}
