//! How long a record takes from the push, and a quota answer amid a backlog.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use serde_json::json;

use super::harness::{
    Agent, QUOTA, QUOTA_ANSWERS, Received, RedisServer, Sandbox, Scripted, Stage, USAGE, load, taken, until,
};
use super::report::{number, row, scaled};
use super::throughput::fill;

/// Records a second, one rate after the other, and for how many seconds each.
const RATES: [u32; 3] = [20, 100, 300];
const SECONDS: u32 = 10;
/// Records pushed after the measured ones, so that the bench's own search through the received requests does not delay the
/// last measured arrivals.
const TRAILING: u32 = 10;

const BACKLOG: u32 = 1_000_000;
const QUOTA_EVERY: Duration = Duration::from_millis(20);

/// At this share of the sorted values, in milliseconds.
pub(crate) fn percentile(sorted: &[Duration], share: f64) -> f64 {
    let at = ((sorted.len() - 1) as f64 * share).round() as usize;
    sorted[at].as_secs_f64() * 1e3
}

pub(crate) fn report_percentiles(table: &str, name: &str, mut values: Vec<Duration>) {
    values.sort_unstable();
    let columns = [("ms at p50", 0.5), ("ms at p99", 0.99), ("ms at most", 1.0)];
    let figures = columns.map(|(column, share)| (column, percentile(&values, share)));
    row(table, name, &[&figures[..], &[("measured", values.len() as f64)]].concat());
}

pub(crate) async fn push_to_control_plane() {
    let server = Scripted::start(
        |request: &Received| {
            if request.is_batch() { request.results(|_| 200) } else { taken() }
        },
    )
    .await;
    let redis = RedisServer::start().await;
    let mut agent = Agent::new(&redis, &server.url);
    agent.set("BATCH_COMPRESSION", "none");
    agent.start();
    agent.ready().await;
    redis.push(USAGE, &[load::usage("first", 0)]).await;
    until("the first record has come", async || (!server.received().is_empty()).then_some(())).await;
    println!("push to ControlPlane, fdatasync included (asked: p50 < 1.5 ms, p99 ≤ 3 × p50 and < 5 ms):");
    for rate in RATES {
        let latencies = latencies_at(rate, &server, &redis).await;
        report_percentiles("latency", &format!("push to ControlPlane, {rate} records/s"), latencies);
    }
}

/// How long each record takes from the push to the request that carries it, at so many records a second.
async fn latencies_at(rate: u32, server: &Scripted, redis: &RedisServer) -> Vec<Duration> {
    let records = rate * SECONDS;
    let mut pushed = HashMap::new();
    let mut clock = tokio::time::interval(Duration::from_secs(1) / rate);
    for n in 0..records + TRAILING {
        clock.tick().await;
        let session = format!("l{rate}-{}", n % 50);
        if n < records {
            pushed.insert(format!("usage-{session}-{n}"), Instant::now());
        }
        redis.push(USAGE, &[load::usage(&session, n)]).await;
    }
    until("every record has come", async || {
        let mut latencies = Vec::new();
        for request in server.received() {
            for id in request.transactions() {
                latencies.extend(pushed.get(&id).map(|at| request.at - *at));
            }
        }
        (latencies.len() as u32 >= records).then_some(latencies)
    })
    .await
}

pub(crate) async fn quota_amid_a_backlog() {
    let sandbox = Sandbox::start(&[]);
    sandbox.weather(json!({"down": true})).await;
    let mut stage = Stage::set_around(sandbox, &[]).await;
    let backlog = scaled(BACKLOG);
    let name = format!("quota refresh answered while {} usage records drain", number(backlog.into()));
    fill(&stage.redis, "backlog", backlog).await;
    until("the backlog is in the outbox", async || {
        (stage.agent.health().await?["outbox"]["depth"] == backlog).then_some(())
    })
    .await;
    stage.sandbox.weather(json!({})).await;
    until("the backlog is draining", async || {
        (stage.agent.health().await?["outbox"]["depth"].as_u64()? < u64::from(backlog)).then_some(())
    })
    .await;
    let begun = Instant::now();
    let mut connection = stage.redis.connection();
    let (mut latencies, mut number) = (Vec::new(), 0);
    while stage.agent.health().await.expect("it answers")["outbox"]["depth"].as_u64()
        > Some(u64::from(backlog) / 100)
    {
        number += 1;
        let asked = Instant::now();
        stage.redis.push(QUOTA, &[load::quota("q", number)]).await;
        let mut wait = redis::cmd("BRPOP");
        wait.arg(QUOTA_ANSWERS).arg(10);
        let answer: Option<(String, String)> =
            wait.query_async(&mut connection).await.expect("Redis answers");
        assert!(answer.is_some(), "a quota request was not answered");
        latencies.push(asked.elapsed());
        tokio::time::sleep(QUOTA_EVERY).await;
    }
    let rate = f64::from(backlog) / begun.elapsed().as_secs_f64();
    println!("quota refresh amid a backlog that drains at about {rate:.0} records/s (asked: p99 < 250 ms):");
    report_percentiles("latency", &name, latencies);
    stage.drained().await;
}
