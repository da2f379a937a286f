//! Goal: with sentinels, a fail-over costs a reconnect and no record. Method: a primary, a replica and a sentinel, all
//! real; the primary is killed for good.

use std::process::{Child, Command, Stdio};

use super::harness::{Agent, Port, RedisServer, Sandbox, Stage, USAGE, free_port, load, until};

struct Sentinel {
    port: Port,
    process: Child,
    _dir: tempfile::TempDir,
}

impl Sentinel {
    fn start(primary: &RedisServer) -> Self {
        let (port, dir) = (free_port(), tempfile::tempdir().unwrap());
        let config = dir.path().join("sentinel.conf");
        let text = format!(
            "port {port}\nbind 127.0.0.1\ndir {}\nsentinel monitor main 127.0.0.1 {} 1\n\
             sentinel down-after-milliseconds main 500\nsentinel failover-timeout main 2000\n",
            dir.path().display(),
            primary.port
        );
        std::fs::write(&config, text).unwrap();
        let mut command = Command::new("redis-server");
        let process = command
            .arg(&config)
            .arg("--sentinel")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { port, process, _dir: dir }
    }

    async fn primary(&self) -> Option<u16> {
        let client = redis::Client::open(format!("redis://127.0.0.1:{}/", self.port)).ok()?;
        let mut connection = client.get_multiplexed_async_connection().await.ok()?;
        let mut ask = redis::cmd("SENTINEL");
        let (_host, port): (String, u16) =
            ask.arg("get-master-addr-by-name").arg("main").query_async(&mut connection).await.ok()?;
        Some(port)
    }

    async fn knows_a_replica(&self) -> Option<()> {
        let client = redis::Client::open(format!("redis://127.0.0.1:{}/", self.port)).ok()?;
        let mut connection = client.get_multiplexed_async_connection().await.ok()?;
        let info: String = redis::cmd("INFO").arg("sentinel").query_async(&mut connection).await.ok()?;
        info.contains("slaves=1").then_some(())
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test]
async fn a_fail_over_is_followed() {
    let mut primary = RedisServer::start().await;
    let mut replica = RedisServer::with(&["--replicaof", "127.0.0.1", &primary.port.to_string()]);
    replica.restart().await;
    let sentinel = Sentinel::start(&primary);
    until("the sentinel knows both", async || sentinel.knows_a_replica().await).await;
    let sandbox = Sandbox::start(&[]);
    let mut agent = Agent::new(&primary, &sandbox.url);
    agent.unset("REDIS_PORT");
    agent.set("REDIS_URL", &format!("redis+sentinel://127.0.0.1:{}/main/0", sentinel.port));
    agent.start();
    agent.ready().await;
    primary.push(USAGE, &[load::usage("s", 0)]).await;
    until("the first is delivered", async || {
        (sandbox.accounts().await.kind("usage", "processed") == 1).then_some(())
    })
    .await;
    primary.kill();
    until("the replica is the primary", async || {
        (sentinel.primary().await? == replica.port.number()).then_some(())
    })
    .await;
    until("the agent has found it", async || {
        (agent.health().await?["redis_connected"] == true).then_some(())
    })
    .await;
    // Redis disconnects its clients when its role changes.
    replica.answering().await;
    replica.push(USAGE, &[load::usage("s", 1)]).await;
    let mut stage = Stage { redis: replica, sandbox, agent };
    stage.drained().await;
    assert_eq!(stage.sandbox.accounts().await.kind("usage", "processed"), 2);
}
