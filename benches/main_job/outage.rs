//! A ControlPlane that refuses connections for a minute, with records coming in.

use std::time::{Duration, Instant};

use serde_json::json;

use super::harness::{DEAD_LETTERS, Stage};
use super::process::{processor_seconds, resident_mib};
use super::report::{number, row};
use super::throughput::fill;

const MINUTE: Duration = Duration::from_secs(60);
const RECORDS: u32 = 50_000;
const PARTS: u32 = 100;

pub(crate) async fn run() {
    // The delays as they are in production.
    let settings = [("CONTROL_PLANE_INITIAL_ERROR_DELAY", "5"), ("CONTROL_PLANE_MAX_BACKOFF", "30")];
    let mut stage = Stage::set_with(&settings).await;
    fill(&stage.redis, "before", 1000).await;
    stage.drained().await;
    stage.sandbox.weather(json!({"down": true})).await;
    let pid = stage.agent.pid();
    let (lines, used) = (stage.agent.log().lines().count(), processor_seconds(pid));
    let asked = requests(&stage).await;
    let begun = Instant::now();
    let mut clock = tokio::time::interval(MINUTE / PARTS);
    let mut resident = Vec::new();
    for part in 0..PARTS {
        clock.tick().await;
        fill(&stage.redis, &format!("part-{part}"), RECORDS / PARTS).await;
        resident.push(resident_mib(pid));
    }
    tokio::time::sleep_until((begun + MINUTE).into()).await;
    let requests = requests(&stage).await - asked;
    let share = (processor_seconds(pid) - used) / begun.elapsed().as_secs_f64() * 100.0;
    let said = stage.agent.log().lines().count() - lines;
    let dead = stage.redis.len(DEAD_LETTERS).await;
    println!(
        "an outage of a minute with {RECORDS} records coming in (asked: < 2 % of a core, a handful of lines, 0 dead):"
    );
    stage.sandbox.weather(json!({})).await;
    let back = Instant::now();
    stage.drained().await;
    let figures = [
        ("% of a core", share),
        ("requests", requests),
        ("log lines", said as f64),
        ("dead letters", dead as f64),
        ("MiB at its start", resident[0]),
        ("MiB at its end", resident[resident.len() - 1]),
        ("s until all is delivered after it", back.elapsed().as_secs_f64()),
    ];
    let name = format!("an outage of a minute, {} records coming in", number(RECORDS.into()));
    row("quiet", &name, &figures);
    let accounts = stage.sandbox.accounts().await;
    accounts.assert_in_order_and_recognisable();
    assert_eq!(accounts.processed(), u64::from(RECORDS + 1000));
}

/// Requests to the ControlPlane so far, whatever became of them.
async fn requests(stage: &Stage) -> f64 {
    stage.agent.metrics().await.sum("dataplane_control_plane_requests_total", &[])
}
