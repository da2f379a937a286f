//! Goal: at its limit the agent stops taking records, Redis keeps them, and it resumes by itself (invariant 6).

use serde_json::json;

use super::harness::{Stage, USAGE, load, until};

#[tokio::test]
async fn a_full_outbox_leaves_records_in_redis_and_the_same_process_goes_on_when_there_is_room() {
    let settings =
        [("OUTBOX_MAX_BYTES", "16MiB"), ("OUTBOX_SEGMENT_BYTES", "1MiB"), ("RECORD_MAX_BYTES", "64KiB")];
    let mut stage = Stage::set_with(&settings).await;
    let pid = stage.agent.pid();
    stage.sandbox.weather(json!({"down": true})).await;
    // Incompressible, so that a few thousand fill it, and pushed while it takes records, so that batches are in flight
    // then.
    let filler = |n: u32| -> String {
        let noise: String = (0..150).map(|_| uuid::Uuid::new_v4().simple().to_string()).collect();
        load::usage(&format!("s{}", n % 50), n).replacen('{', &format!("{{\"noise\":\"{noise}\","), 1)
    };
    let mut pushed = 0;
    until("the outbox is full", async || {
        let records: Vec<String> = (pushed..pushed + 200).map(filler).collect();
        pushed += 200;
        stage.redis.push(USAGE, &records).await;
        (stage.agent.metrics().await.sum("dataplane_outbox_accepting", &[]) == 0.0).then_some(())
    })
    .await;
    let more: Vec<String> = (pushed..pushed + 1000).map(filler).collect();
    pushed += 1000;
    stage.redis.push(USAGE, &more).await;
    let (code, health) = stage.agent.get("/health").await.expect("it answers");
    assert_eq!(code, 503, "{health}");
    assert_eq!(stage.agent.metrics().await.sum("dataplane_intake_paused", &[("reason", "full")]), 1.0);
    assert!(stage.redis.len(USAGE).await > 0, "Redis keeps what does not fit");

    stage.sandbox.weather(json!({})).await;
    stage.drained().await;
    assert_eq!(stage.agent.pid(), pid);
    let accounts = stage.sandbox.accounts().await;
    assert_eq!(accounts.processed(), u64::from(pushed));
    accounts.assert_in_order_and_recognisable();
    let metrics = stage.agent.metrics().await;
    metrics.assert_conserved();
    assert_eq!(metrics.sum("dataplane_outbox_enqueued_total", &[]), f64::from(pushed), "each taken once");
}
