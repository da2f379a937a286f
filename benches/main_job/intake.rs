//! From Redis into the durable outbox, the ControlPlane being away.

use std::time::Instant;

use serde_json::json;

use super::harness::{Agent, RedisServer, Sandbox, USAGE, until};
use super::process::{peak_mib, processor_seconds};
use super::throughput::fill;

const RECORDS: u32 = 500_000;
/// For the loop, whose rate does not depend on how many there are.
const LOOP_RECORDS: u32 = 10_000;

pub(crate) async fn run() {
    let (redis, sandbox) = (RedisServer::start().await, Sandbox::start(&[]));
    sandbox.weather(json!({"down": true})).await;
    let looped = one_by_one(&redis).await;
    fill(&redis, "session", RECORDS).await;
    let mut agent = Agent::new(&redis, &sandbox.url);
    let begun = Instant::now();
    agent.start();
    until("everything is in the outbox", async || {
        (agent.health().await?["outbox"]["depth"] == RECORDS).then_some(())
    })
    .await;
    let rate = f64::from(RECORDS) / begun.elapsed().as_secs_f64();
    let micros = processor_seconds(agent.pid()) / f64::from(RECORDS) * 1e6;
    println!("intake, ControlPlane away (asked: ≥ 150000 records/s):");
    println!(
        "  {rate:.0} records/s, {:.1} times one BRPOPLPUSH and one LREM a record ({looped:.0}/s)",
        rate / looped
    );
    println!(
        "  {micros:.1} µs of the agent's processor time a record, {:.1} MiB at the peak",
        peak_mib(agent.pid())
    );
    let health = agent.health().await.expect("it answers");
    let disk = health["outbox"]["disk_bytes"].as_f64().expect("bytes");
    let bytes = health["outbox"]["bytes"].as_f64().expect("bytes");
    println!(
        "  {:.0} MiB on the disk, {:.2} of the records' JSON (asked: < 0.5)",
        disk / f64::from(1 << 20),
        disk / bytes
    );
}

async fn one_by_one(redis: &RedisServer) -> f64 {
    fill(redis, "loop", LOOP_RECORDS).await;
    let mut connection = redis.connection();
    let in_flight = format!("{USAGE}:processing");
    let begun = Instant::now();
    for _ in 0..LOOP_RECORDS {
        let mut take = redis::cmd("BRPOPLPUSH");
        take.arg(USAGE).arg(&in_flight).arg(1);
        let record: Vec<u8> = take.query_async(&mut connection).await.expect("a record");
        let mut acknowledge = redis::cmd("LREM");
        acknowledge.arg(&in_flight).arg(1).arg(&record);
        let () = acknowledge.query_async(&mut connection).await.expect("it is removed");
    }
    f64::from(LOOP_RECORDS) / begun.elapsed().as_secs_f64()
}
