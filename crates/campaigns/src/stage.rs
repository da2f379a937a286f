//! Redis, the sandbox and an agent between them, in their own folder, and the actions of a seed on them.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail, ensure};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::account::{Account, Outcome};
use crate::agent::Agent;
use crate::load::{Load, Part, QUEUES};
use crate::plant::Plant;
use crate::process;
use crate::redis_server::{Mode, RedisServer, SERVER_ID};
use crate::sandbox::Sandbox;
use crate::weather;

/// How long the backlog may fail to shrink before it counts as stuck.
const STUCK_AFTER: Duration = Duration::from_secs(90);
/// Maximum time for the replica to receive what was pushed.
const REPLICATED_WITHIN_MS: u64 = 20_000;

/// Shared by all rounds of a campaign.
#[derive(Clone)]
pub(crate) struct Rig {
    /// The agent's binary.
    pub agent: PathBuf,
    /// Each seed has a folder below this one.
    pub folder: PathBuf,
    pub plant: Option<Plant>,
    /// Rounds per seed, instead of the default.
    pub per_seed: Option<u32>,
    /// The file system of `power`.
    pub file_system: String,
    /// The agent's log level.
    pub log_level: String,
    /// Set by SIGINT and SIGTERM.
    pub stop: Arc<AtomicBool>,
}

impl Rig {
    pub(crate) fn stops(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    pub(crate) fn has(&self, plant: Plant) -> bool {
        self.plant == Some(plant)
    }
}

pub(crate) struct Stage<'a> {
    pub rig: &'a Rig,
    /// Decides everything except the load, which [`Load`] decides.
    pub dice: StdRng,
    pub folder: PathBuf,
    pub mode: Mode,
    /// Whether repeated records are answered as if they were new, instead of 409.
    pub answers_again: bool,
    pub agent: Agent,
    pub sandbox: Sandbox,
    pub redis: RedisServer,
    /// Whether a push only counts once a replica has it.
    pub has_replica: bool,
    /// Whether the agent may end by itself.
    pub may_end: bool,
    pub load: Load,
    pub account: Account,
    pub violations: Vec<String>,
    /// What the agent had taken, and its last dead letter, before this seed.
    pub enqueued_before: u64,
    pub letters_before: u64,
    settled: u64,
}

impl<'a> Stage<'a> {
    /// Starts Redis and the sandbox, but not the agent.
    pub(crate) fn set(rig: &'a Rig, name: &str, seed: u64) -> Result<Self> {
        let mut dice = StdRng::seed_from_u64(seed);
        let folder = rig.folder.join(format!("{name}-{seed}"));
        if folder.exists() {
            fs::remove_dir_all(&folder).with_context(|| folder.display().to_string())?;
        }
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let mut redis = RedisServer::new(&folder.join("redis"), &[])?;
        if rig.has(Plant::NoFile) {
            redis.flags = ["--appendonly", "no"].map(str::to_owned).to_vec();
        }
        redis.start()?;
        let dice_of_sandbox = dice.random::<u32>().to_string();
        let mut flags = vec!["--seed", &dice_of_sandbox];
        let answers_again = dice.random_bool(0.5);
        if answers_again {
            flags.extend(["--duplicates", "200"]);
        }
        let sandbox = Sandbox::start(&rig.agent, &folder, &flags)?;
        let mode = if dice.random_bool(0.5) { Mode::List } else { Mode::Stream };
        let mut agent = Agent::new(&rig.agent, &folder, &sandbox.url);
        agent.set("REDIS_PORT", &redis.port.to_string());
        agent.set("SOURCE_MODE", mode.name());
        agent.set("LOG_LEVEL", &rig.log_level);
        agent.set("DELIVERY_MODE", if dice.random_bool(0.3) { "single" } else { "auto" });
        agent.set("OUTBOX_SEGMENT_BYTES", if dice.random_bool(0.5) { "1MiB" } else { "8MiB" });
        let mut stage = Self {
            rig,
            dice,
            folder,
            mode,
            answers_again,
            agent,
            sandbox,
            redis,
            has_replica: false,
            may_end: false,
            load: Load::new(seed),
            account: Account::default(),
            violations: Vec::new(),
            enqueued_before: 0,
            letters_before: 0,
            settled: 0,
        };
        stage.account.event(&format!("seeds with {}s", mode.name()));
        Ok(stage)
    }

    /// Counts an action, and appends its time to `rounds.log`, for analysing failures.
    pub(crate) fn does(&mut self, what: &str) -> Result<()> {
        self.account.event(what);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let (seconds, micros) = (now.as_secs() % 86_400, now.subsec_micros());
        let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
        let mut log = process::log(&self.folder, "rounds.log")?;
        writeln!(log, "{hours:02}:{minutes:02}:{:02}.{micros:06} {what}", seconds % 60)?;
        Ok(())
    }

    /// Draws a duration in milliseconds.
    pub(crate) fn draw(&mut self, milliseconds: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(self.dice.random_range(milliseconds))
    }

    /// Sleeps for a drawn time, which decides when the next action happens.
    pub(crate) fn sleep(&mut self, milliseconds: std::ops::Range<u64>) {
        std::thread::sleep(self.draw(milliseconds));
    }

    /// Pushes about this many messages.
    pub(crate) fn push(&mut self, messages: usize) -> Result<()> {
        let parts = self.load.step(messages);
        self.push_parts(&parts)
    }

    pub(crate) fn push_parts(&mut self, parts: &[Part]) -> Result<()> {
        self.redis.push(self.mode, parts)?;
        if self.has_replica {
            let mut wait = redis::cmd("WAIT");
            let replicas: u64 = self.redis.run(wait.arg(1).arg(REPLICATED_WITHIN_MS))?;
            ensure!(replicas > 0, "the replica does not follow");
        }
        self.account.pushed += parts.iter().map(|(_, messages)| messages.len() as u64).sum::<u64>();
        Ok(())
    }

    /// Draws new weather.
    pub(crate) fn change_weather(&mut self) -> Result<()> {
        let (name, weather) = weather::draw(&mut self.dice);
        self.does(&format!("weather: {name}"))?;
        self.sandbox.weather(&weather)
    }

    /// Starts the agent and waits until it is connected.
    pub(crate) fn start_agent(&mut self) -> Result<()> {
        self.agent.start()?;
        self.agent_ready()
    }

    /// Waits until the agent is connected to Redis. It may only have ended meanwhile if that is allowed.
    pub(crate) fn agent_ready(&mut self) -> Result<()> {
        for _ in 0..self.agent.ready()? {
            self.does("the agent ended by itself")?;
            if !self.may_end {
                self.violations.push("the agent ended by itself".to_owned());
            }
        }
        Ok(())
    }

    /// Checks what must hold at every scrape, if there is an answer.
    pub(crate) fn check_counters(&mut self) {
        let Some(metrics) = self.agent.metrics() else { return };
        self.account.event("scrapes");
        self.violations.extend(metrics.unbalanced());
        let now = metrics.settled();
        if now < self.settled {
            self.violations.push(format!("a counter went back: {} settled, then {now}", self.settled));
        }
        self.settled = now;
    }

    /// Ends all sessions, clears the weather, and waits until nothing waits any more, or no less. Returns how many records do.
    pub(crate) fn at_rest(&mut self) -> Result<u64> {
        let rest = self.load.finish();
        self.push_parts(&rest)?;
        self.plant()?;
        self.sandbox.weather(&weather::fair())?;
        self.agent_ready()?;
        self.drained()
    }

    fn plant(&mut self) -> Result<()> {
        if self.rig.has(Plant::LoseQueue) {
            let (kill, agent) = ("planted: what waits in Redis is deleted", &mut self.agent);
            agent.kill()?;
            self.push(500)?;
            let in_flight = QUEUES.map(|queue| format!("{queue}:processing:{SERVER_ID}"));
            let () = self.redis.run(redis::cmd("DEL").arg(&QUEUES[..]).arg(&in_flight[..]))?;
            self.account.event(kill);
            self.agent.start()?;
        }
        Ok(())
    }

    /// Waits until Redis and the outbox are empty. Returns how many records are left if their number stops shrinking.
    fn drained(&mut self) -> Result<u64> {
        let (mut least, mut since) = (u64::MAX, Instant::now());
        loop {
            let in_redis = self.redis.waiting(self.mode)?;
            let depth = self.agent.health().and_then(|health| health["outbox"]["depth"].as_u64());
            let waiting = depth.map(|depth| depth + in_redis);
            match waiting {
                Some(0) => return Ok(0),
                Some(waiting) if waiting < least => (least, since) = (waiting, Instant::now()),
                _ if since.elapsed() > STUCK_AFTER => {
                    return waiting.context("the agent does not answer: see agent.log");
                }
                _ => {}
            }
            if self.agent.ended()?.is_some() {
                if !self.may_end {
                    bail!("the agent ended by itself: see agent.log");
                }
                self.agent_ready()?;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Makes the sandbox and Redis forget what is settled and reported.
    pub(crate) fn forget_settled(&mut self) -> Result<()> {
        self.sandbox.forget()?;
        self.redis.run(redis::cmd("DEL").arg("queue:quota_response"))
    }

    /// Ends everything. Deletes the folder unless something was wrong.
    pub(crate) fn close(self) -> Outcome {
        let Self { folder, agent, sandbox, redis, account, violations, .. } = self;
        drop((agent, sandbox, redis));
        if violations.is_empty() {
            // A folder that cannot be removed does no harm.
            let _ = fs::remove_dir_all(&folder);
        }
        Outcome { account, violations }
    }
}
