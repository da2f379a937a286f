//! Goal: an agent whose outbox is moved or deleted takes no more records, reports that, and resumes when the folder is
//! back; records acknowledged to Redis are lost only with the folder. Method: a real agent, renames and `rm -rf`.

use serde_json::json;

use super::harness::{Stage, USAGE, load, until};

async fn notices(stage: &Stage) {
    until("health says that the folder is gone", async || {
        let (code, text) = stage.agent.get("/health").await?;
        let health: serde_json::Value = serde_json::from_str(&text).ok()?;
        let reason = health["components"]["outbox"]["reason"].as_str()?;
        reason.starts_with("folder_gone: OUTBOX_DIR is not there").then(|| assert_eq!(code, 503, "{text}"))
    })
    .await;
}

fn said(stage: &Stage) -> usize {
    stage.agent.log().matches("OUTBOX_DIR is not there any more").count()
}

/// In the queue and in flight: what Redis still has.
async fn in_redis(stage: &Stage) -> u64 {
    stage.redis.len(USAGE).await + stage.redis.len(&format!("{USAGE}:processing:edge-test-1")).await
}

#[tokio::test]
async fn an_outbox_that_is_moved_away_and_back_costs_no_record() {
    let mut stage = Stage::set().await;
    stage.sandbox.weather(json!({"down": true})).await;
    let mut pushed = load::push_sessions(&stage.redis, "before", 20, 5).await;
    until("they are in the outbox", async || {
        (stage.agent.health().await?["outbox"]["depth"] == pushed).then_some(())
    })
    .await;
    let (dir, away) = (stage.agent.dir().join("outbox"), stage.agent.dir().join("away"));
    std::fs::rename(&dir, &away).expect("it can be moved");
    // At once, before the agent has noticed by itself.
    let records: Vec<_> = (0..100).map(|n| load::usage("meanwhile", n)).collect();
    stage.redis.push(USAGE, &records).await;
    pushed += 100;
    notices(&stage).await;
    until("the metrics say so, too", async || {
        let metrics = stage.agent.metrics().await;
        assert_eq!(metrics.sum("dataplane_outbox_accepting", &[]), 0.0);
        (metrics.sum("dataplane_intake_paused", &[("reason", "folder_gone")]) == 1.0).then_some(())
    })
    .await;
    assert_eq!(in_redis(&stage).await, 100, "nothing was acknowledged");
    assert!(!dir.exists(), "and nothing is made in its place");
    assert_eq!(said(&stage), 1, "{}", stage.agent.log());

    std::fs::rename(&away, &dir).expect("it can be moved back");
    stage.sandbox.weather(json!({})).await;
    stage.drained().await;
    stage.assert_each_once(pushed).await;
    assert_eq!(stage.agent.health().await.expect("health")["components"]["outbox"]["status"], "healthy");
    assert_eq!(stage.agent.stop().await.code(), Some(0));
    assert_eq!(stage.agent.command(&[], &["outbox", "verify"]).await.code, 0);
}

#[tokio::test]
async fn after_the_outbox_is_deleted_readable_records_are_delivered_and_a_restart_starts_empty() {
    let mut stage = Stage::set().await;
    stage.sandbox.weather(json!({"down": true})).await;
    let before: Vec<_> = (0..50).map(|n| load::usage("before", n)).collect();
    stage.redis.push(USAGE, &before).await;
    until("they are in the outbox", async || {
        (stage.agent.health().await?["outbox"]["depth"] == 50).then_some(())
    })
    .await;
    std::fs::remove_dir_all(stage.agent.dir().join("outbox")).expect("it can be deleted");
    let meanwhile: Vec<_> = (0..100).map(|n| load::usage("meanwhile", n)).collect();
    stage.redis.push(USAGE, &meanwhile).await;
    notices(&stage).await;
    assert_eq!(in_redis(&stage).await, 100, "nothing was acknowledged");

    stage.sandbox.weather(json!({})).await;
    until("what it still has is delivered", async || {
        (stage.sandbox.accounts().await.processed() == 50).then_some(())
    })
    .await;
    assert_eq!(in_redis(&stage).await, 100);
    assert_eq!(said(&stage), 1, "{}", stage.agent.log());
    stage.agent.stop().await;
    stage.agent.start();
    stage.agent.ready().await;
    stage.drained().await;
    assert_eq!(stage.sandbox.accounts().await.processed(), 150);
}
