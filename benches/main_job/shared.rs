//! Several agents on one Redis, of which one is gone in the middle of it.

use std::time::Instant;

use super::harness::{Agent, Mode, RedisServer, Sandbox, USAGE, until};
use super::throughput::fill_in;

const RECORDS: u32 = 200_000;
const PARTS: u32 = 100;
const AGENTS: usize = 4;

/// Four agents on one Redis, one of them killed in the middle and never started again. What its disk held goes to another
/// by export and import.
pub(crate) async fn run() {
    println!(
        "{RECORDS} records for {AGENTS} agents, one of them killed for good in the middle (asked: all delivered):"
    );
    for mode in [Mode::List, Mode::Stream] {
        share(mode).await;
    }
}

async fn share(mode: Mode) {
    let (redis, sandbox) = (RedisServer::start().await, Sandbox::start(&[]));
    let mut agents: Vec<Agent> = (0..AGENTS).map(|_| Agent::new(&redis, &sandbox.url)).collect();
    for (n, agent) in agents.iter_mut().enumerate() {
        agent.set("SERVER_ID", &format!("edge-{n}"));
        agent.set("SOURCE_MODE", mode.name());
        agent.set("ORPHAN_RECLAIM_SECONDS", "2");
        agent.start();
        agent.ready().await;
    }
    let begun = Instant::now();
    let mut taken = [0.0; AGENTS];
    for part in 0..PARTS {
        fill_in(mode, &redis, &format!("part-{part}"), RECORDS / PARTS).await;
        if part == PARTS / 2 {
            taken[0] = agents[0].metrics().await.sum("dataplane_intake_records_total", &[]);
            agents[0].kill();
        }
    }
    until("nothing is left in Redis", async || {
        let mut left = mode.len(&redis, USAGE).await;
        for n in 0..AGENTS {
            left += redis.len(&format!("{USAGE}:processing:edge-{n}")).await;
        }
        (left == 0).then_some(())
    })
    .await;
    for (taken, agent) in taken.iter_mut().zip(&agents).skip(1) {
        *taken = agent.metrics().await.sum("dataplane_intake_records_total", &[]);
    }
    let file = agents[0].dir().join("backlog.jsonl");
    let file = file.to_str().expect("a path");
    let [gone, heir, ..] = agents.as_mut_slice() else { unreachable!("there are {AGENTS}") };
    gone.outbox(&["export", file]);
    let exported = std::fs::read_to_string(file).expect("a file").lines().count();
    assert!(heir.stop().await.success());
    heir.outbox(&["import", file]);
    heir.start();
    for agent in &agents[1..] {
        agent.outbox_emptied().await;
    }
    until("all is delivered", async || {
        (sandbox.accounts().await.processed() == u64::from(RECORDS)).then_some(())
    })
    .await;
    let shares: Vec<String> =
        taken.iter().map(|taken| format!("{:.1} %", taken / f64::from(RECORDS) * 100.0)).collect();
    println!(
        "  {}: all delivered in {:.0} s; taken by each: {}; from the dead one's disk: {exported}",
        mode.name(),
        begun.elapsed().as_secs_f64(),
        shares.join(", ")
    );
    sandbox.accounts().await.assert_same_keys();
}
