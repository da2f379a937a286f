//! Crash after crash of the agent, and of Redis: what is pushed is delivered, and taken over exactly once.

use std::time::{Duration, Instant};

use super::harness::{Mode, Stage, until};

const CRASHES: u32 = 100;
const REDIS_KILLS: u32 = 50;
/// Where the agent ends by itself, in every second round (`src/telemetry/failpoint.rs`).
const POINTS: [&str; 5] =
    ["intake::asking", "intake::taken", "intake::parsed", "intake::committed", "intake::acknowledged"];
/// Within this time of a push the moment of a crash is drawn.
const WITHIN: std::ops::Range<u64> = 0..60;

pub(crate) async fn run() {
    println!("rounds of crashes under load (asked: nothing lost, nothing taken twice, in both modes):");
    for mode in [Mode::List, Mode::Stream] {
        crashes(mode).await;
        redis_kills(mode).await;
    }
}

async fn stage(mode: Mode) -> Stage {
    Stage::set_with(&[("SOURCE_MODE", mode.name())]).await
}

async fn pause() {
    tokio::time::sleep(Duration::from_millis(rand::random_range(WITHIN))).await;
}

async fn crashes(mode: Mode) {
    let (mut stage, begun, mut pushed) = (stage(mode).await, Instant::now(), 0);
    for round in 0..CRASHES {
        pushed += mode.push_sessions(&stage.redis, &format!("crash-{round}"), 20, 10).await;
        pause().await;
        stage.agent.kill();
        if round % 2 == 1 {
            let point = POINTS[rand::random_range(0..POINTS.len())];
            stage.agent.set("FAILPOINT", &format!("{point}={}=abort", rand::random_range(1..=10)));
            stage.agent.start();
            let Stage { redis, agent, .. } = &mut stage;
            let mut extra = 0;
            until("the agent ends at its point", async || {
                let ended = agent.has_ended();
                if ended.is_none() {
                    extra += 1;
                    pushed += mode.push_sessions(redis, &format!("point-{round}-{extra}"), 1, 5).await;
                }
                ended
            })
            .await;
            stage.agent.unset("FAILPOINT");
        }
        stage.agent.start();
    }
    settle(mode, stage, pushed, &format!("{CRASHES} of the agent"), begun).await;
}

async fn redis_kills(mode: Mode) {
    let (mut stage, begun, mut pushed) = (stage(mode).await, Instant::now(), 0);
    for round in 0..REDIS_KILLS {
        pushed += mode.push_sessions(&stage.redis, &format!("round-{round}"), 40, 10).await;
        pause().await;
        stage.redis.kill();
        stage.redis.restart().await;
        stage.agent.ready().await;
    }
    settle(mode, stage, pushed, &format!("{REDIS_KILLS} of Redis"), begun).await;
}

async fn settle(mode: Mode, mut stage: Stage, pushed: u64, what: &str, begun: Instant) {
    stage.agent.ready().await;
    stage.agent.outbox_emptied().await;
    mode.drained(&mut stage).await;
    stage.assert_each_once(pushed).await;
    let again = stage.sandbox.accounts().await.sum("duplicates_same_key_and_body");
    println!(
        "  {}, {what}: {pushed} records pushed, each delivered and taken over once, {again} sent again, {:.0} s",
        mode.name(),
        begun.elapsed().as_secs_f64()
    );
}
