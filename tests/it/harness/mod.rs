//! Starts the processes under test: a real redis-server, the sandbox and the agent.
//!
//! Nothing here sleeps in order to wait: [`until`] polls a condition with a deadline.

mod agent;
mod faults;
pub(crate) mod load;
mod mode;
mod redis_server;
mod sandbox;
mod scripted;
mod signing_key;
pub(crate) mod tls;

use std::fmt::{self, Display};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

pub(crate) use agent::{API_KEY, Agent, Metrics, SERVER_ID, Said};
pub(crate) use faults::Faults;
pub(crate) use mode::Mode;
pub(crate) use redis_server::RedisServer;
pub(crate) use sandbox::Sandbox;
pub(crate) use scripted::{Received, Scripted, taken};
pub(crate) use signing_key::SigningKey;

pub(crate) const USAGE: &str = "queue:usage_records";
pub(crate) const LIFECYCLE: &str = "queue:session_lifecycle";
pub(crate) const QUOTA: &str = "queue:quota_refresh";
pub(crate) const DEAD_LETTERS: &str = "queue:dead_letter";
pub(crate) const QUOTA_ANSWERS: &str = "queue:quota_response";

/// Far longer than anything takes: only a failure reaches it.
pub(crate) const DEADLINE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(20);

/// Polls until `condition` returns a value; panics with `what` at the deadline.
pub(crate) async fn until<T>(what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(begun.elapsed() < DEADLINE, "never came true: {what}");
        tokio::time::sleep(POLL).await;
    }
}

/// A field of `/proc/<pid>/status` in MiB: `VmRSS` is the resident memory, `VmHWM` its peak.
pub(crate) fn memory_mib(pid: u32, field: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
    let line =
        status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).expect("the field");
    line.trim().trim_end_matches(" kB").parse::<f64>().expect("KiB") / 1024.0
}

/// Compiles this C source into a library for preloading, in that folder; `None`, with a message, if there is no compiler.
pub(crate) fn preload(dir: &Path, source: &Path) -> Option<PathBuf> {
    let library = dir.join("preloaded.so");
    let mut command = std::process::Command::new("cc");
    command.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source).arg("-ldl");
    match command.output() {
        Ok(compiled) => {
            assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
            Some(library)
        }
        Err(error) => {
            assert!(std::env::var_os("CI").is_none(), "CI must not go without a C compiler: {error}");
            eprintln!("SKIPPED: {} needs a C compiler: {error}", source.display());
            None
        }
    }
}

/// A port reserved until this is dropped, even while no server listens on it.
pub(crate) struct Port {
    number: u16,
    /// Bound but not listening, it blocks sockets without `SO_REUSEADDR`, such as [`Port::reserve`]'s; servers set it.
    _reserved: Socket,
}

impl Port {
    /// Reserves this port if it is free.
    pub(crate) fn reserve(number: u16) -> std::io::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, number)).into())?;
        socket.set_reuse_address(true)?;
        Ok(Self { number, _reserved: socket })
    }

    pub(crate) fn number(&self) -> u16 {
        self.number
    }
}

impl Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.number.fmt(f)
    }
}

/// A free port that the kernel does not assign by itself: those start at 32768.
pub(crate) fn free_port() -> Port {
    let ports = std::iter::repeat_with(|| rand::random_range(10_000..32_000));
    ports.take(1000).find_map(|number| Port::reserve(number).ok()).expect("a free port")
}

/// Redis, the sandbox, and an agent between them.
pub(crate) struct Stage {
    pub(crate) redis: RedisServer,
    pub(crate) sandbox: Sandbox,
    pub(crate) agent: Agent,
}

impl Stage {
    /// Starts everything, with a new outbox.
    pub(crate) async fn set() -> Self {
        Self::set_with(&[]).await
    }

    /// The same, with these settings of the agent.
    pub(crate) async fn set_with(settings: &[(&str, &str)]) -> Self {
        Self::set_around(Sandbox::start(&[]), settings).await
    }

    /// The same around this sandbox.
    pub(crate) async fn set_around(sandbox: Sandbox, settings: &[(&str, &str)]) -> Self {
        let redis = RedisServer::start().await;
        let mut agent = Agent::new(&redis, &sandbox.url);
        for (name, value) in settings {
            agent.set(name, value);
        }
        agent.start();
        agent.ready().await;
        Self { redis, sandbox, agent }
    }

    /// Waits until the streams and the outbox are empty.
    pub(crate) async fn streams_drained(&mut self) {
        until("everything is settled", async || {
            for queue in [USAGE, LIFECYCLE, QUOTA] {
                if self.redis.entries(queue).await > 0 {
                    return None;
                }
            }
            let health = self.agent.health().await?;
            (health["outbox"]["depth"] == 0).then_some(())
        })
        .await;
    }

    /// Asserts that everything pushed was enqueued once and processed once, in order.
    pub(crate) async fn assert_each_once(&self, pushed: u64) {
        let accounts = self.sandbox.accounts().await;
        assert_eq!(accounts.processed(), pushed);
        accounts.assert_in_order_and_recognisable();
        let enqueued = self.agent.metrics().await.sum("dataplane_outbox_enqueued_total", &[]);
        assert_eq!(enqueued as u64, pushed, "each was taken over exactly once");
    }

    /// Waits until Redis and the outbox are empty.
    pub(crate) async fn drained(&mut self) {
        drained(&self.redis, &self.agent).await;
    }
}

/// Waits until Redis' lists are empty, and then the outbox.
pub(crate) async fn drained(redis: &RedisServer, agent: &Agent) {
    until("everything is taken from Redis", async || {
        for queue in [USAGE, LIFECYCLE, QUOTA] {
            let in_flight = format!("{queue}:processing:{}", agent::SERVER_ID);
            if redis.len(queue).await + redis.len(&in_flight).await > 0 {
                return None;
            }
        }
        Some(())
    })
    .await;
    agent.outbox_emptied().await;
}
