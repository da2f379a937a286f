//! Goal: a crash at any moment loses nothing, keeps the order, and every repetition is recognisable. Method: SIGKILL at
//! random moments under load and bad weather, then the accounts.

use std::time::Duration;

use serde_json::json;

use super::harness::{Stage, load};

const ROUNDS: u32 = 20;

#[tokio::test]
async fn nothing_is_lost_or_reordered_by_twenty_kills_under_load() {
    let mut stage = Stage::set().await;
    let weather = json!({"lost_answer": 0.02, "status": {"500": 0.02, "429": 0.01}, "latency_ms": 1});
    stage.sandbox.weather(weather).await;
    let (mut pushed, mut settled) = (0, 0.0);
    for round in 0..ROUNDS {
        pushed += load::push_sessions(&stage.redis, &format!("round-{round}"), 50, 8).await;
        // Not a wait for anything: the time of the crash is drawn.
        tokio::time::sleep(Duration::from_millis(rand::random_range(0..250))).await;
        let metrics = stage.agent.metrics().await;
        metrics.assert_conserved();
        let now =
            metrics.sum("dataplane_delivered_total", &[]) + metrics.sum("dataplane_duplicates_total", &[]);
        assert!(now >= settled, "a counter went back: {settled} to {now}");
        settled = now;
        stage.agent.kill();
        stage.agent.start();
    }
    stage.agent.ready().await;
    stage.sandbox.weather(json!({})).await;
    stage.drained().await;

    let accounts = stage.sandbox.accounts().await;
    assert_eq!(accounts.processed(), pushed, "lost");
    accounts.assert_in_order_and_recognisable();
    let metrics = stage.agent.metrics().await;
    metrics.assert_conserved();
    assert_eq!(
        metrics.sum("dataplane_outbox_enqueued_total", &[]),
        pushed as f64,
        "each was taken over exactly once"
    );
    assert_eq!(metrics.sum("dataplane_dead_letters", &[]), 0.0);
}
