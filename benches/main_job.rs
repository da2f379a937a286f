//! What the main job costs: records a second, processor time a record, peak memory, and the same for the obvious
//! simple loop in the same run. `make bench`.

#![allow(clippy::expect_used, reason = "what fails here fails the run")]

#[path = "../tests/it/harness/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the tests use more of it")]
mod harness;

use std::time::{Duration, Instant};

use harness::{Agent, RedisServer, Sandbox, USAGE, load, until};

const RECORDS: u32 = 100_000;
const SESSIONS: u32 = 500;
/// The simple loop is slow; its rate does not depend on how long it runs.
const LOOP_RECORDS: u32 = 5_000;
/// Kernel clock ticks a second: the same on every Linux this runs on.
const TICKS: f64 = 100.0;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    // `cargo bench` passes flags of the standard harness; a word without a dash picks a part.
    let wanted: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let want = |name: &str| wanted.is_empty() || wanted.iter().any(|part| name.contains(part.as_str()));
    let looped = simple_loop().await;
    println!("simple loop (one BRPOPLPUSH, one POST, one LREM a record): {looped:.0} records/s");
    if want("single") {
        let cost = drain("single").await;
        println!("single mode, {RECORDS} records from Redis to settled:");
        cost.print(looped);
        println!("  asked: ≥ 8000 records/s, ≤ 80 µs, < 64 MiB; then ≥ 15000 records/s, ≤ 45 µs");
    }
    if want("batch") {
        let cost = drain("batch").await;
        println!("batch mode, {RECORDS} records from Redis to settled:");
        cost.print(looped);
        println!("  asked: ≥ 100000 records/s, ≤ 10 µs");
    }
}

/// What a run cost the agent.
struct Cost {
    seconds: f64,
    processor_seconds: f64,
    peak_bytes: f64,
}

impl Cost {
    fn print(&self, looped: f64) {
        let records = f64::from(RECORDS);
        let rate = records / self.seconds;
        println!("  {rate:.0} records/s, {:.1} times the simple loop", rate / looped);
        println!(
            "  {:.1} µs of the agent's processor time a record ({:.2} s in all)",
            self.processor_seconds / records * 1e6,
            self.processor_seconds
        );
        println!("  {:.1} MiB resident at the peak", self.peak_bytes / f64::from(1 << 20));
    }
}

async fn fill(redis: &RedisServer, records: u32) {
    let messages: Vec<String> =
        (0..records).map(|n| load::usage(&format!("session-{}", n % SESSIONS), n / SESSIONS)).collect();
    redis.push(USAGE, &messages).await;
}

/// Fills Redis, then starts the agent and waits until the sandbox has everything.
async fn drain(mode: &str) -> Cost {
    let (redis, sandbox) = (RedisServer::start().await, Sandbox::start(&[]));
    fill(&redis, RECORDS).await;
    let mut agent = Agent::new(&redis, &sandbox.url);
    agent.set("DELIVERY_MODE", mode);
    let begun = Instant::now();
    agent.start();
    until("everything is delivered", async || {
        (sandbox.accounts().await.kind("usage", "processed") >= u64::from(RECORDS)).then_some(())
    })
    .await;
    let seconds = begun.elapsed().as_secs_f64();
    let (processor_seconds, peak_bytes) = (processor_seconds(agent.pid()), peak_bytes(agent.pid()));
    sandbox.accounts().await.assert_in_order_and_recognisable();
    Cost { seconds, processor_seconds, peak_bytes }
}

/// What everybody writes first: records a second.
async fn simple_loop() -> f64 {
    let (redis, sandbox) = (RedisServer::start().await, Sandbox::start(&[]));
    fill(&redis, LOOP_RECORDS).await;
    let http =
        reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(5)).build().expect("a client");
    let in_flight = format!("{USAGE}:processing");
    let mut connection = redis.connection();
    let begun = Instant::now();
    for _ in 0..LOOP_RECORDS {
        let record: String = redis::cmd("BRPOPLPUSH")
            .arg(USAGE)
            .arg(&in_flight)
            .arg(1)
            .query_async(&mut connection)
            .await
            .expect("a record");
        let session = serde_json::from_str::<serde_json::Value>(&record).expect("JSON")["api_session_id"]
            .as_str()
            .expect("a session")
            .to_owned();
        let url = format!("{}/api/v1/sessions/{session}/usage-records", sandbox.url);
        let answer =
            http.post(url).header("X-API-Key", "k").body(record.clone()).send().await.expect("an answer");
        assert!(answer.status().is_success());
        let () = redis::cmd("LREM")
            .arg(&in_flight)
            .arg(1)
            .arg(&record)
            .query_async(&mut connection)
            .await
            .expect("it is removed");
    }
    f64::from(LOOP_RECORDS) / begun.elapsed().as_secs_f64()
}

/// User and system time of a process so far (proc(5), `stat` fields 14 and 15).
fn processor_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("its stat");
    let (_, fields) = stat.rsplit_once(") ").expect("a name in parentheses");
    let ticks = fields.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<f64>().expect("ticks"));
    ticks.sum::<f64>() / TICKS
}

/// The most memory that a process had resident so far (proc(5), `status`).
fn peak_bytes(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    let kib = line.trim().trim_end_matches(" kB").parse::<f64>().expect("KiB");
    kib * 1024.0
}
