//! Goal: an outage of any form is quiet and costs no record. Method: the sandbox's weather.

use serde_json::json;

use super::harness::{Stage, load, until};

/// Allowed growth of the agent's memory in bytes: the records in memory are bounded, whatever the backlog.
const GROWTH: f64 = 32.0 * 1024.0 * 1024.0;

#[tokio::test]
async fn a_control_plane_that_is_away_costs_nothing_but_time() {
    let mut stage = Stage::set().await;
    stage.sandbox.weather(json!({"down": true})).await;
    let before = stage.agent.metrics().await.sum("process_resident_memory_bytes", &[]);
    let mut pushed = 0;
    for part in 0..10 {
        pushed += load::push_sessions(&stage.redis, &format!("part-{part}"), 100, 47).await;
    }
    until("everything is in the outbox", async || {
        (stage.agent.health().await?["outbox"]["depth"] == pushed).then_some(())
    })
    .await;
    let health = stage.agent.health().await.expect("it answers");
    assert_eq!(health["status"], "degraded", "{health}");
    assert_eq!(health["control_plane_connected"], false);
    assert_eq!(stage.agent.get("/health/detailed").await.expect("it answers").0, 200);
    let metrics = stage.agent.metrics().await;
    metrics.assert_conserved();
    assert_eq!(metrics.sum("dataplane_dead_letters", &[]), 0.0);
    assert_eq!(metrics.sum("dataplane_link_state", &[]), 2.0);
    let memory = metrics.sum("process_resident_memory_bytes", &[]);
    assert!(memory - before < GROWTH, "{memory} bytes resident, {before} before");
    let said = stage.agent.log().lines().count();
    assert!(said < 12, "an outage is a few lines, not one a record:\n{}", stage.agent.log());

    stage.sandbox.weather(json!({})).await;
    stage.drained().await;
    let accounts = stage.sandbox.accounts().await;
    assert_eq!(accounts.processed(), pushed);
    accounts.assert_in_order_and_recognisable();
}

#[tokio::test]
async fn no_form_of_outage_turns_the_backlog_into_dead_letters() {
    let mut stage = Stage::set_with(&[("CONTROL_PLANE_TIMEOUT", "0.3"), ("REFUSAL_BRAKE", "20")]).await;
    let pushed = load::push_sessions(&stage.redis, "before", 20, 3).await;
    stage.drained().await;
    let mut pushed = pushed;
    for (n, (weather, reason)) in [
        (json!({"always": 401}), "credentials"),
        (json!({"always": 403}), "credentials"),
        (json!({"always": 302, "location": "http://127.0.0.1:1/"}), "misconfigured"),
        (json!({"always": 404}), "no_route"),
        (json!({"always": 429, "retry_after": "1"}), "overloaded"),
        (json!({"always": 503}), "overloaded"),
        (json!({"always": 500}), "failing"),
        (json!({"hang": 1.0}), "timeout"),
        (json!({"reset": 1.0}), "unreachable"),
        (json!({"down": true}), "unreachable"),
    ]
    .into_iter()
    .enumerate()
    {
        stage.sandbox.weather(weather.clone()).await;
        pushed += load::push_sessions(&stage.redis, &format!("outage-{n}"), 20, 3).await;
        until(&format!("{weather} is told as {reason}"), async || {
            let health = stage.agent.health().await?;
            let link = health["components"]["control_plane"]["link"].as_str()?.to_owned();
            link.ends_with(reason).then_some(())
        })
        .await;
        stage.sandbox.weather(json!({})).await;
        stage.drained().await;
    }
    let accounts = stage.sandbox.accounts().await;
    assert_eq!(accounts.processed(), pushed);
    accounts.assert_in_order_and_recognisable();
    let metrics = stage.agent.metrics().await;
    metrics.assert_conserved();
    assert_eq!(metrics.sum("dataplane_dead_letters", &[]), 0.0, "{}", stage.agent.log());
}

#[tokio::test]
async fn a_control_plane_that_refuses_everything_engages_the_brake() {
    let settings = [("REFUSAL_BRAKE", "10"), ("DRAIN_CONCURRENCY", "4")];
    let mut stage = Stage::set_with(&settings).await;
    let before = load::push_sessions(&stage.redis, "before", 1, 1).await;
    stage.drained().await;
    stage.sandbox.weather(json!({"always": 422})).await;
    let pushed = before + load::push_sessions(&stage.redis, "refused", 200, 5).await;
    until("the brake is set", async || {
        let health = stage.agent.health().await?;
        let link = health["components"]["control_plane"]["link"].as_str()?.to_owned();
        link.ends_with("refusing").then_some(())
    })
    .await;
    stage.sandbox.weather(json!({})).await;
    stage.drained().await;
    let dead = stage.agent.metrics().await.sum("dataplane_dead_letters", &[]);
    assert!(dead <= 14.0, "REFUSAL_BRAKE + DRAIN_CONCURRENCY at the most: {dead}");
    assert_eq!(stage.sandbox.accounts().await.processed(), pushed - dead as u64);
}
