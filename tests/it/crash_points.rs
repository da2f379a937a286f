//! Goal: a crash of the agent, or of Redis, at any point of taking, committing and acknowledging loses no record and
//! duplicates none. Method: the points of `src/telemetry/failpoint.rs`; at each the agent dies, or is held while Redis is
//! killed and restarted.

use std::os::unix::process::ExitStatusExt;

use rustix::process::Signal;

use super::harness::{Agent, Mode, RedisServer, Sandbox, Stage, until};

/// Every point of the intake, in the order a record passes them.
const POINTS: [&str; 7] = [
    "intake::adopted",
    "intake::recovered",
    "intake::asking",
    "intake::taken",
    "intake::parsed",
    "intake::committed",
    "intake::acknowledged",
];

struct Trial {
    mode: Mode,
    stage: Stage,
    pushed: u64,
}

impl Trial {
    async fn begin(mode: Mode) -> Self {
        let (redis, sandbox) = (RedisServer::start().await, Sandbox::start(&[]));
        let mut agent = Agent::new(&redis, &sandbox.url);
        agent.set("SOURCE_MODE", mode.name());
        // Some records wait already, so that the first rounds are full.
        let pushed = mode.push_sessions(&redis, "before", 40, 40).await;
        agent.start();
        agent.ready().await;
        Self { mode, stage: Stage { redis, sandbox, agent }, pushed }
    }

    async fn push(&mut self, name: &str) {
        self.pushed += self.mode.push_sessions(&self.stage.redis, name, 20, 20).await;
    }

    /// Each time a point is reached, other work is in progress.
    fn plan(&mut self, point: &str, n: u32, action: &str) {
        self.stage.agent.set("FAILPOINT", &format!("{point}={n}={action}"));
    }

    async fn settle(mut self) {
        self.stage.agent.unset("FAILPOINT");
        self.mode.drained(&mut self.stage).await;
        let accounts = self.stage.sandbox.accounts().await;
        assert_eq!(accounts.processed(), self.pushed, "lost");
        accounts.assert_in_order_and_recognisable();
        let metrics = self.stage.agent.metrics().await;
        metrics.assert_conserved();
        let enqueued = metrics.sum("dataplane_outbox_enqueued_total", &[]);
        assert_eq!(enqueued, self.pushed as f64, "each was taken over exactly once");
    }
}

/// How often a point is passed before it takes effect. Points passed once per start can only take effect the first time.
fn times(point: &str) -> &'static [u32] {
    if matches!(point, "intake::adopted" | "intake::recovered") { &[1] } else { &[1, 2, 3] }
}

#[tokio::test]
async fn the_agent_may_crash_at_every_point_of_lists() {
    the_agent_crashes_at_every_point(Mode::List).await;
}

#[tokio::test]
async fn the_agent_may_crash_at_every_point_of_streams() {
    the_agent_crashes_at_every_point(Mode::Stream).await;
}

async fn the_agent_crashes_at_every_point(mode: Mode) {
    let mut trial = Trial::begin(mode).await;
    for point in POINTS {
        for n in times(point) {
            trial.stage.agent.kill();
            trial.push(&format!("{point}-{n}").replace("::", "-")).await;
            trial.plan(point, *n, "abort");
            trial.stage.agent.start();
            // Pushes what the agent needs to get there.
            let mut extra = 0;
            let Trial { stage: Stage { redis, agent, .. }, pushed, .. } = &mut trial;
            let status = until(&format!("the agent ends at {point}"), async || {
                let ended = agent.has_ended();
                if ended.is_none() {
                    extra += 1;
                    *pushed += mode.push_sessions(redis, &format!("{n}-{extra}-{}", &point[8..]), 1, 1).await;
                }
                ended
            })
            .await;
            assert_eq!(status.signal(), Some(Signal::ABORT.as_raw()), "{point}: {status}");
            trial.stage.agent.unset("FAILPOINT");
            trial.stage.agent.start();
            trial.stage.agent.ready().await;
        }
    }
    trial.settle().await;
}

#[tokio::test]
async fn redis_may_crash_at_every_point_of_lists() {
    redis_crashes_at_every_point(Mode::List).await;
}

#[tokio::test]
async fn redis_may_crash_at_every_point_of_streams() {
    redis_crashes_at_every_point(Mode::Stream).await;
}

async fn redis_crashes_at_every_point(mode: Mode) {
    let mut trial = Trial::begin(mode).await;
    for point in POINTS {
        for n in times(point) {
            trial.stage.agent.kill();
            trial.push(&format!("{point}-{n}").replace("::", "-")).await;
            let held = trial.stage.agent.dir().join("held");
            trial.plan(point, *n, &format!("hold:{}", held.display()));
            trial.stage.agent.start();
            let mut extra = 0;
            let Trial { stage: Stage { redis, .. }, pushed, .. } = &mut trial;
            until(&format!("the agent is held at {point}"), async || {
                if held.exists() {
                    return Some(());
                }
                extra += 1;
                *pushed += mode.push_sessions(redis, &format!("{n}-{extra}-{}", &point[8..]), 1, 1).await;
                None
            })
            .await;
            trial.stage.redis.kill();
            trial.stage.redis.restart().await;
            std::fs::remove_file(&held).unwrap();
            trial.stage.agent.ready().await;
        }
    }
    trial.settle().await;
}
