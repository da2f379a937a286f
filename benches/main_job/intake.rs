//! From Redis into the durable outbox, the ControlPlane being away.

use std::time::{Duration, Instant};

use serde_json::json;

use super::harness::{Agent, Mode, RedisServer, SERVER_ID, Sandbox, USAGE, load, until};
use super::latency::report_percentiles;
use super::process::{peak_mib, processor_seconds};
use super::report::{MICROS, PEAK, RATE, row, scaled};
use super::throughput::{fill, fill_in};

const RECORDS: u32 = 500_000;
/// For the loop, whose rate does not depend on how many there are.
const LOOP_RECORDS: u32 = 10_000;
const SINGLES: u32 = 300;
const IDLE: Duration = Duration::from_secs(20);
const GOOD: u32 = 50_000;
/// A pair of runs takes a second, and says little by itself: the middle one of so many is taken.
const PAIRS: usize = 5;

pub(crate) async fn run() {
    println!(
        "intake, ControlPlane away (asked: ≥ 150000 records/s, < 0.5 of the records' JSON on the disk):"
    );
    let looped = one_by_one(&RedisServer::start().await).await;
    row("intake", "the simple loop: BRPOPLPUSH, LREM", &[(RATE, looped)]);
    for mode in [Mode::List, Mode::Stream] {
        taken(mode, looped).await;
    }
}

async fn taken(mode: Mode, looped: f64) {
    let (redis, sandbox) = (RedisServer::start().await, Sandbox::start(&[]));
    sandbox.weather(json!({"down": true})).await;
    let records = scaled(RECORDS);
    fill_in(mode, &redis, "session", records).await;
    let mut agent = Agent::new(&redis, &sandbox.url);
    agent.set("SOURCE_MODE", mode.name());
    let begun = Instant::now();
    let before = processor_seconds(redis.pid());
    agent.start();
    until("everything is in the outbox", async || {
        (agent.health().await?["outbox"]["depth"] == records).then_some(())
    })
    .await;
    let records = f64::from(records);
    let rate = records / begun.elapsed().as_secs_f64();
    let micros = |seconds: f64| seconds / records * 1e6;
    let health = agent.health().await.expect("it answers");
    let disk = health["outbox"]["disk_bytes"].as_f64().expect("bytes");
    let bytes = health["outbox"]["bytes"].as_f64().expect("bytes");
    let figures = [
        (RATE, rate),
        ("× the simple loop", rate / looped),
        (MICROS, micros(processor_seconds(agent.pid()))),
        ("µs of Redis'", micros(processor_seconds(redis.pid()) - before)),
        (PEAK, peak_mib(agent.pid())),
        ("of the JSON's bytes on the disk", disk / bytes),
    ];
    row("intake", &format!("{}s", mode.name()), &figures);
}

/// From the push to an idle agent until it has acknowledged, which it does after the commit; and what idling costs.
pub(crate) async fn single() {
    println!(
        "a single record to an idle agent, pushed until acknowledged after its commit (asked: within 2 ms; idle: < 0.5 % of a core):"
    );
    for mode in [Mode::List, Mode::Stream] {
        let (redis, sandbox) = (RedisServer::start().await, Sandbox::start(&[]));
        sandbox.weather(json!({"down": true})).await;
        let mut agent = Agent::new(&redis, &sandbox.url);
        agent.set("SOURCE_MODE", mode.name());
        agent.start();
        agent.ready().await;
        let (mut latencies, mut watch) = (Vec::new(), redis.connection());
        for n in 0..SINGLES {
            // Until it waits again.
            tokio::time::sleep(Duration::from_millis(20)).await;
            let begun = Instant::now();
            mode.push(&redis, USAGE, &[load::usage("single", n)]).await;
            loop {
                let is_acknowledged = match mode {
                    Mode::List => {
                        let mut get = redis::cmd("GET");
                        get.arg(format!("{USAGE}:acked:{SERVER_ID}"));
                        let acked: Option<u32> = get.query_async(&mut watch).await.expect("Redis answers");
                        acked == Some(n + 1)
                    }
                    Mode::Stream => mode.len(&redis, USAGE).await == 0,
                };
                if is_acknowledged {
                    break;
                }
            }
            latencies.push(begun.elapsed());
        }
        report_percentiles(
            "latency",
            &format!("one record to an idle agent, {}: push to acknowledged", mode.name()),
            latencies,
        );
        sandbox.weather(json!({})).await;
        until("it is all delivered", async || (agent.health().await?["outbox"]["depth"] == 0).then_some(()))
            .await;
        let before = processor_seconds(agent.pid());
        tokio::time::sleep(IDLE).await;
        let share = (processor_seconds(agent.pid()) - before) / IDLE.as_secs_f64() * 100.0;
        let name = format!("{} s idle, {}", IDLE.as_secs(), mode.name());
        row("quiet", &name, &[("% of a core", share)]);
    }
}

/// Good records alone, and with as many malformed ones between them.
pub(crate) async fn malformed() {
    println!(
        "{GOOD} good records with {GOOD} malformed ones between them (asked: more than half of the rate without):"
    );
    for (mode, away) in [(Mode::List, true), (Mode::Stream, true), (Mode::List, false), (Mode::Stream, false)]
    {
        let mut pairs = Vec::new();
        for _ in 0..PAIRS {
            let (alone, _) = good(mode, away, false).await;
            let (mixed, dead_lettered) = good(mode, away, true).await;
            pairs.push((alone, mixed, dead_lettered));
        }
        pairs.sort_unstable_by(|(alone, mixed, _), (others_alone, others_mixed, _)| {
            (mixed / alone).total_cmp(&(others_mixed / others_alone))
        });
        let (alone, mixed, dead_lettered) = pairs[PAIRS / 2];
        println!(
            "  {}, to the {}: {alone:.0} good records/s alone, {mixed:.0} mixed: {:.2} of that; the malformed ones dead letters {dead_lettered:.2} s later",
            mode.name(),
            if away { "outbox" } else { "ControlPlane" },
            mixed / alone
        );
    }
}

/// Good records a second, into the outbox with the ControlPlane away, or else to it. And how many seconds later nothing
/// is left of the malformed ones but dead letters.
async fn good(mode: Mode, away: bool, mixed: bool) -> (f64, f64) {
    let (redis, sandbox) = (RedisServer::start().await, Sandbox::start(&[]));
    sandbox.weather(json!({"down": away})).await;
    let messages: Vec<String> = (0..GOOD)
        .flat_map(|n| {
            let session = format!("s-{}", n % 500);
            let record = load::usage(&session, n / 500);
            // Cut in its middle, a wrong type, no object: as they come.
            let bad = match n % 3 {
                0 => record[..record.len() / 2].to_owned(),
                1 => record.replace("48000", "\"many\""),
                _ => format!("[{record}]"),
            };
            std::iter::once(record).chain(mixed.then_some(bad))
        })
        .collect();
    mode.push(&redis, USAGE, &messages).await;
    let mut agent = Agent::new(&redis, &sandbox.url);
    agent.set("SOURCE_MODE", mode.name());
    agent.set("DELIVERY_MODE", "batch");
    let begun = Instant::now();
    agent.start();
    // What is acknowledged is in the outbox, durable.
    let in_flight = format!("{USAGE}:processing:{SERVER_ID}");
    until("all is taken", async || {
        (mode.len(&redis, USAGE).await + redis.len(&in_flight).await == 0).then_some(())
    })
    .await;
    if !away {
        until("the good ones are delivered", async || {
            (sandbox.accounts().await.kind("usage", "processed") >= u64::from(GOOD)).then_some(())
        })
        .await;
    }
    let took = begun.elapsed();
    let (waiting, bad) = (if away { GOOD } else { 0 }, if mixed { GOOD } else { 0 });
    until("nothing else waits, and every malformed one is kept", async || {
        let outbox = &agent.health().await?["outbox"];
        (outbox["depth"] == waiting && outbox["dead_letters"] == bad).then_some(())
    })
    .await;
    (f64::from(GOOD) / took.as_secs_f64(), begun.elapsed().saturating_sub(took).as_secs_f64())
}

async fn one_by_one(redis: &RedisServer) -> f64 {
    let records = scaled(LOOP_RECORDS);
    fill(redis, "loop", records).await;
    let mut connection = redis.connection();
    let in_flight = format!("{USAGE}:processing");
    let begun = Instant::now();
    for _ in 0..records {
        let mut take = redis::cmd("BRPOPLPUSH");
        take.arg(USAGE).arg(&in_flight).arg(1);
        let record: Vec<u8> = take.query_async(&mut connection).await.expect("a record");
        let mut acknowledge = redis::cmd("LREM");
        acknowledge.arg(&in_flight).arg(1).arg(&record);
        let () = acknowledge.query_async(&mut connection).await.expect("it is removed");
    }
    f64::from(records) / begun.elapsed().as_secs_f64()
}
