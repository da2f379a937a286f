//! Redis is killed, restarted, frozen or unreachable; or its primary is killed, and a sentinel promotes the replica.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rand::RngExt as _;
use rustix::process::Signal;

use crate::account::Outcome;
use crate::load::Part;
use crate::oracle::{Rules, audit};
use crate::plant::Plant;
use crate::process::{Process, log, until};
use crate::redis_server::RedisServer;
use crate::stage::{Rig, Stage};

const FAULTS: u32 = 20;
const FAIL_OVERS: u32 = 5;
/// Attempts of the producer.
const PUSHES: u32 = 5;
const FOLLOWS_WITHIN: Duration = Duration::from_secs(60);

pub(crate) fn play(rig: &Rig, seed: u64) -> Result<Outcome> {
    let mut stage = Stage::set(rig, "redis", seed)?;
    if seed.is_multiple_of(2) {
        Pair::set(&mut stage)?.play(&mut stage)?;
    } else {
        alone(&mut stage)?;
    }
    Ok(stage.close())
}

/// One server, which restarts with its append-only file.
fn alone(stage: &mut Stage<'_>) -> Result<()> {
    stage.start_agent()?;
    // With some seeds it fails again before the agent has recovered from the last failure.
    let patience = [0.1, 0.7, 1.0][stage.dice.random_range(0..3)];
    for round in 0..stage.rig.per_seed.unwrap_or(FAULTS) {
        if stage.rig.stops() {
            break;
        }
        if round % 5 == 0 {
            stage.change_weather()?;
        }
        let messages = stage.dice.random_range(20..300);
        stage.push(messages)?;
        stage.sleep(0..60);
        stage.check_counters();
        if stage.dice.random_bool(0.5) {
            // So that the agent is taking messages at this moment.
            stage.push(messages)?;
        }
        if stage.rig.has(Plant::NoFile) {
            stage.agent.kill()?;
            stage.push(messages)?;
            stage.redis.kill()?;
            stage.redis.start()?;
            stage.agent.start()?;
        }
        match stage.dice.random_range(0..10) {
            0..5 => {
                stage.does("Redis killed")?;
                stage.redis.kill()?;
                if stage.dice.random_bool(0.2) {
                    stage.sleep(0..1000);
                }
                stage.redis.start()?;
            }
            5..7 => {
                stage.does("Redis stopped in order")?;
                stage.redis.stop()?;
                stage.redis.start()?;
            }
            7 => {
                stage.does("Redis frozen")?;
                stage.redis.signal(Signal::STOP)?;
                stage.sleep(0..1500);
                stage.redis.signal(Signal::CONT)?;
            }
            8 => {
                stage.does("Redis cuts its clients off")?;
                let () = stage.redis.run(
                    redis::cmd("CLIENT").arg("KILL").arg("TYPE").arg("normal").arg("SKIPME").arg("yes"),
                )?;
            }
            _ => {
                stage.does("Redis and the agent killed")?;
                stage.redis.kill()?;
                stage.agent.kill()?;
                stage.redis.start()?;
                stage.agent.start()?;
            }
        }
        stage.account.rounds += 1;
        if stage.dice.random_bool(patience) {
            stage.agent_ready()?;
        }
    }
    audit(stage, Rules::default())
}

/// A replica of the stage's Redis, the primary; and a sentinel.
struct Pair {
    replica: RedisServer,
    sentinel: RedisServer,
}

impl Pair {
    fn set(stage: &mut Stage<'_>) -> Result<Self> {
        let mut replica = RedisServer::new(&stage.folder.join("replica"), &[])?;
        replica.follow(stage.redis.port);
        replica.start()?;
        let sentinel = RedisServer::sentinel(&stage.folder.join("sentinel"), stage.redis.port)?;
        stage.agent.set("REDIS_URL", &format!("redis+sentinel://127.0.0.1:{}/main/0", sentinel.port));
        stage.has_replica = true;
        let mut pair = Self { replica, sentinel };
        pair.wait(stage)?;
        Ok(pair)
    }

    fn play(&mut self, stage: &mut Stage<'_>) -> Result<()> {
        stage.start_agent()?;
        for round in 0..stage.rig.per_seed.unwrap_or(FAIL_OVERS) {
            if stage.rig.stops() {
                break;
            }
            if round % 2 == 0 {
                stage.change_weather()?;
            }
            let messages = stage.dice.random_range(100..500);
            let parts = stage.load.step(messages);
            self.push(stage, &parts)?;
            stage.check_counters();
            if stage.dice.random_bool(0.5) {
                // The replica has what was pushed so far, but will miss what the agent takes and acknowledges from here on.
                stage.does("fail-overs to a replica that is behind")?;
                let () = stage.redis.run(redis::cmd("CLIENT").arg("KILL").arg("TYPE").arg("replica"))?;
            } else {
                stage.does("fail-overs")?;
            }
            stage.sleep(0..200);
            if stage.dice.random_bool(0.2) {
                stage.does("the agent killed as well")?;
                stage.agent.kill()?;
                stage.agent.start()?;
            }
            self.fail_over(stage)?;
            stage.account.rounds += 1;
        }
        let rest = stage.load.finish();
        self.push(stage, &rest)?;
        audit(stage, Rules { redis_forgets: true })
    }

    /// Pushes as a careful producer does: repeatedly, to the new primary, unless the replica already has the message. On a slow
    /// machine the sentinel may promote the replica by itself.
    fn push(&mut self, stage: &mut Stage<'_>, parts: &[Part]) -> Result<()> {
        for _ in 0..PUSHES {
            match stage.push_parts(parts) {
                Ok(()) => return Ok(()),
                Err(_) => stage.does("pushed again to the new primary")?,
            }
            std::thread::sleep(Duration::from_secs(1));
            if self.primary()? == self.replica.port {
                std::mem::swap(&mut stage.redis, &mut self.replica);
            }
            stage.redis.connect()?;
            self.wait(stage)?;
        }
        bail!("the producer cannot push")
    }

    /// The primary's port according to the sentinel.
    fn primary(&mut self) -> Result<u16> {
        let mut ask = redis::cmd("SENTINEL");
        let (_, port): (String, u16) = self.sentinel.run(ask.arg("get-master-addr-by-name").arg("main"))?;
        Ok(port)
    }

    /// Kills the primary. The sentinel promotes the replica, and the old primary becomes its replica when it is back.
    fn fail_over(&mut self, stage: &mut Stage<'_>) -> Result<()> {
        stage.redis.kill()?;
        let port = self.replica.port;
        until("the sentinel has made the replica the primary", FOLLOWS_WITHIN, || {
            Ok((self.primary()? == port).then_some(()))
        })?;
        std::mem::swap(&mut stage.redis, &mut self.replica);
        // Redis disconnects its clients when its role changes.
        stage.redis.connect()?;
        self.replica.follow(port);
        self.replica.start()?;
        self.wait(stage)?;
        stage.agent_ready()
    }

    /// Waits until the replica follows and the sentinel knows it.
    fn wait(&mut self, stage: &mut Stage<'_>) -> Result<()> {
        let (redis, sentinel) = (&mut stage.redis, &mut self.sentinel);
        until("the replica follows", FOLLOWS_WITHIN, || {
            let info: String = redis.run(redis::cmd("INFO").arg("replication"))?;
            Ok((info.contains("role:master") && info.contains("state=online")).then_some(()))
        })?;
        until("the sentinel knows the replica", FOLLOWS_WITHIN, || {
            let mut ask = redis::cmd("SENTINEL");
            let replicas: Vec<Vec<String>> = sentinel.run(ask.arg("replicas").arg("main"))?;
            let flags = |replica: &Vec<String>| {
                let at = replica.iter().position(|field| field == "flags");
                at.and_then(|at| replica.get(at + 1)).is_some_and(|flags| flags == "slave")
            };
            Ok(replicas.iter().any(flags).then_some(()))
        })
    }
}

impl RedisServer {
    /// Makes it a replica of this primary at its next start.
    fn follow(&mut self, primary: u16) {
        self.flags = vec!["--replicaof".to_owned(), "127.0.0.1".to_owned(), primary.to_string()];
    }

    /// A sentinel that knows the primary as `main`.
    fn sentinel(folder: &Path, primary: u16) -> Result<Self> {
        let mut sentinel = Self::new(folder, &[])?;
        let config = folder.join("sentinel.conf");
        let text = format!(
            "port {}\nbind 127.0.0.1\ndir {}\nsentinel monitor main 127.0.0.1 {primary} 1\n\
             sentinel down-after-milliseconds main 1500\nsentinel failover-timeout main 1000\n",
            sentinel.port,
            folder.display()
        );
        fs::write(&config, text).context("the sentinel's configuration")?;
        sentinel.start_as_sentinel(&config)?;
        Ok(sentinel)
    }

    fn start_as_sentinel(&mut self, config: &Path) -> Result<()> {
        let folder = config.parent().context("a folder")?;
        let output = log(folder, "redis.log")?;
        let process = Process::start(Path::new("redis-server"), "the sentinel", |command| {
            command.arg(config).arg("--sentinel").stdout(output);
        });
        self.runs(process?)
    }
}
