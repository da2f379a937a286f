//! From Redis through the durable outbox to the answered request, against the loop that everybody writes first, and
//! against the best that somebody would write in an afternoon.

use std::time::{Duration, Instant};

use super::afternoon;
use super::harness::{Agent, Mode, RedisServer, Sandbox, USAGE, load, until};
use super::process::{peak_mib, processor_seconds};
use super::report::{MICROS, PEAK, RATE, number, row, scaled};

/// Enough that starting, which the loops' figures leave out, hardly counts.
const RECORDS: u32 = 500_000;
const SINGLE_RECORDS: u32 = 100_000;
/// Pushed together.
const PUSHED: u32 = 100_000;
const SESSIONS: u32 = 500;
/// The simple loop is slow; its rate does not depend on how long it runs.
const LOOP_RECORDS: u32 = 5_000;
const OF_LOOP: &str = "× the simple loop";

pub(crate) async fn run() {
    println!("Redis to delivered (asked: single ≥ 15000 records/s, ≤ 45 µs;");
    println!("  batches within 20 % of each other, ≥ 1.2 of the afternoon's loop; < 64 MiB):");
    let looped = simple_loop().await;
    row("throughput", "the simple loop: BRPOPLPUSH, POST, LREM", &[(RATE, looped)]);
    let best = afternoon::run().await;
    let name = "the afternoon's loop: 1,000 at a time, fdatasync, one compressed POST";
    row("throughput", name, &[(RATE, best), (OF_LOOP, best / looped)]);
    drain("single", SESSIONS, scaled(SINGLE_RECORDS)).await.report("one request a record", looped, best);
    for sessions in [5, 20, 200, SESSIONS, 2_000] {
        let name = format!("batches, {} sessions", number(sessions.into()));
        drain("batch", sessions, scaled(RECORDS)).await.report(&name, looped, best);
    }
}

/// What a run cost the agent.
struct Cost {
    records: u32,
    seconds: f64,
    processor_seconds: f64,
    peak_mib: f64,
}

impl Cost {
    fn report(&self, name: &str, looped: f64, best: f64) {
        let records = f64::from(self.records);
        let rate = records / self.seconds;
        let figures = [
            (RATE, rate),
            (OF_LOOP, rate / looped),
            ("× the afternoon's loop", rate / best),
            (MICROS, self.processor_seconds / records * 1e6),
            (PEAK, self.peak_mib),
        ];
        row("throughput", name, &figures);
    }
}

/// Pushes so many usage records of [`SESSIONS`] sessions.
pub(crate) async fn fill(redis: &RedisServer, prefix: &str, records: u32) {
    fill_in(Mode::List, redis, prefix, records).await;
}

pub(crate) async fn fill_in(mode: Mode, redis: &RedisServer, prefix: &str, records: u32) {
    fill_sessions(mode, redis, prefix, records, SESSIONS).await;
}

/// Pushes so many usage records of so many sessions in turn.
pub(crate) async fn fill_sessions(
    mode: Mode,
    redis: &RedisServer,
    prefix: &str,
    records: u32,
    sessions: u32,
) {
    for part in 0..records.div_ceil(PUSHED) {
        let range = part * PUSHED..((part + 1) * PUSHED).min(records);
        let messages: Vec<String> =
            range.map(|n| load::usage(&format!("{prefix}-{}", n % sessions), n / sessions)).collect();
        mode.push(redis, USAGE, &messages).await;
    }
}

/// Fills Redis, then starts the agent and waits until the sandbox has everything.
async fn drain(mode: &str, sessions: u32, records: u32) -> Cost {
    let (redis, sandbox) = (RedisServer::start().await, Sandbox::start(&[]));
    fill_sessions(Mode::List, &redis, "session", records, sessions).await;
    let mut agent = Agent::new(&redis, &sandbox.url);
    agent.set("DELIVERY_MODE", mode);
    let begun = Instant::now();
    agent.start();
    until("everything is delivered", async || {
        (sandbox.accounts().await.kind("usage", "processed") >= u64::from(records)).then_some(())
    })
    .await;
    let seconds = begun.elapsed().as_secs_f64();
    let pid = agent.pid();
    sandbox.accounts().await.assert_in_order_and_recognisable();
    Cost { records, seconds, processor_seconds: processor_seconds(pid), peak_mib: peak_mib(pid) }
}

/// Records a second.
pub(crate) async fn simple_loop() -> f64 {
    let (redis, sandbox) = (RedisServer::start().await, Sandbox::start(&[]));
    let records = scaled(LOOP_RECORDS);
    fill(&redis, "session", records).await;
    let http =
        reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(5)).build().expect("a client");
    let in_flight = format!("{USAGE}:processing");
    let mut connection = redis.connection();
    let begun = Instant::now();
    for _ in 0..records {
        let mut take = redis::cmd("BRPOPLPUSH");
        take.arg(USAGE).arg(&in_flight).arg(1);
        let record: String = take.query_async(&mut connection).await.expect("a record");
        let parsed: serde_json::Value = serde_json::from_str(&record).expect("JSON");
        let session = parsed["api_session_id"].as_str().expect("a session");
        let url = format!("{}/api/v1/sessions/{session}/usage-records", sandbox.url);
        let answer = http.post(url).header("X-API-Key", "k").body(record.clone()).send().await;
        assert!(answer.expect("an answer").status().is_success());
        let mut acknowledge = redis::cmd("LREM");
        acknowledge.arg(&in_flight).arg(1).arg(&record);
        let () = acknowledge.query_async(&mut connection).await.expect("it is removed");
    }
    f64::from(records) / begun.elapsed().as_secs_f64()
}
