//! Goal: memory is bounded, whatever the size of the records. Method: hundreds of the largest records allowed, in the queue
//! and in flight after a crash.

use serde_json::{Value, json};

use super::harness::{Agent, RedisServer, SERVER_ID, Sandbox, USAGE, load, memory_mib, until};

/// A little below the default of `RECORD_MAX_BYTES`, because the agent adds members.
const SIZE: usize = 250 << 10;
const EACH: u32 = 200;
/// Limit of the resident memory; usual is 65 MiB, and 150 if a round is not limited in bytes.
const MEMORY_MIB: f64 = 110.0;

fn large(session: &str, number: u32, padding: &str) -> String {
    let mut record: Value = serde_json::from_str(&load::usage(session, number)).expect("JSON");
    record["padding"] = padding.into();
    record.to_string()
}

#[tokio::test]
async fn hundreds_of_the_largest_records_are_never_all_in_memory_at_once() {
    let (redis, sandbox) = (RedisServer::start().await, Sandbox::start(&[]));
    sandbox.weather(json!({"down": true})).await;
    let padding = "x".repeat(SIZE);
    let in_flight = format!("{USAGE}:processing:{SERVER_ID}");
    for (queue, session) in [(in_flight.as_str(), "left"), (USAGE, "new")] {
        for number in 0..EACH {
            redis.push(queue, &[large(session, number, &padding)]).await;
        }
    }
    let mut agent = Agent::new(&redis, &sandbox.url);
    agent.start();
    agent.ready().await;
    until("everything is in the outbox", async || {
        (agent.health().await?["outbox"]["depth"] == 2 * EACH).then_some(())
    })
    .await;
    let peak = memory_mib(agent.pid(), "VmHWM");
    println!("{peak:.1} MiB resident at the peak");
    assert!(peak < MEMORY_MIB, "{peak} MiB resident");
}
