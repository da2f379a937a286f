//! Goal: unknown sessions delay no others, however many there are. Method: more of them than records are kept in memory,
//! ahead of known sessions.

use serde_json::json;

use super::harness::{Stage, USAGE, load, until};

/// More than the 14,336 records of a kind kept in memory.
const UNKNOWN: u32 = 22_000;
const LATE: u32 = 200;

#[tokio::test]
async fn more_unknown_sessions_than_fit_into_memory_hold_up_nobody() {
    // With long waits, all of them wait at once.
    let settings = [("CONTROL_PLANE_INITIAL_ERROR_DELAY", "10"), ("CONTROL_PLANE_MAX_BACKOFF", "20")];
    let mut stage = Stage::set_with(&settings).await;
    stage.sandbox.weather(json!({"unknown_sessions": ["lost-"]})).await;
    // Every other one is known: if all were unknown, the route would be at fault.
    let usage = |n: u32| ["lost", "known"].map(|of| load::usage(&format!("{of}-{n}"), 0));
    stage.redis.push(USAGE, &(0..UNKNOWN).flat_map(usage).collect::<Vec<_>>()).await;
    until("the known ones are delivered past them", async || {
        let accounts = stage.sandbox.accounts().await;
        (accounts.processed() == u64::from(UNKNOWN)).then_some(())
    })
    .await;
    let late = load::push_sessions(&stage.redis, "late", LATE, 3).await;
    until("those that came last as well", async || {
        let accounts = stage.sandbox.accounts().await;
        (accounts.processed() == u64::from(UNKNOWN) + late).then_some(())
    })
    .await;
    // A scrape shows what is durable: a moment later.
    until("the unknown ones wait, and no other", async || {
        let metrics = stage.agent.metrics().await;
        (metrics.sum("dataplane_outbox_depth", &[]) as u32 == UNKNOWN).then_some(())
    })
    .await;
    stage.sandbox.weather(json!({})).await;
    stage.drained().await;
    let accounts = stage.sandbox.accounts().await;
    assert_eq!(accounts.processed(), u64::from(2 * UNKNOWN) + late);
    accounts.assert_in_order_and_recognisable();
    stage.agent.metrics().await.assert_conserved();
    assert_eq!(accounts.sum("duplicates"), 0);
}
