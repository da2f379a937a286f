//! Goal: a ControlPlane that refuses everything for a while costs at most a brake's worth of dead letters, whatever its
//! status and however records are sent. Method: 20,000 waiting records, the sandbox's weather.

use serde_json::json;

use super::harness::{Stage, USAGE, load, until};

/// Records, and their sessions.
const MANY: (u32, u32) = (20_000, 500);
/// The defaults of `REFUSAL_BRAKE` and `DRAIN_CONCURRENCY`.
const MOST_DEAD: f64 = 100.0 + 32.0;

/// For each status: the ControlPlane refuses everything, and then recovers.
async fn refuses(mode: &str, (records, sessions): (u32, u32), statuses: &[(u16, &str)]) {
    let mut stage = Stage::set_with(&[("DELIVERY_MODE", mode)]).await;
    let (mut pushed, mut dead) = (0, 0.0);
    for (status, reason) in statuses.iter().copied() {
        stage.sandbox.weather(json!({"always": status})).await;
        let usage = |n: u32| load::usage(&format!("{status}-{}", n % sessions), n / sessions);
        stage.redis.push(USAGE, &(0..records).map(usage).collect::<Vec<_>>()).await;
        pushed += u64::from(records);
        until(&format!("{mode}, {status}: the link is down: {reason}"), async || {
            let health = stage.agent.health().await?;
            let is_in = health["outbox"]["depth"].as_f64()? >= f64::from(records) - MOST_DEAD;
            let link = health["components"]["control_plane"]["link"].as_str()?.to_owned();
            (is_in && link.ends_with(reason)).then_some(())
        })
        .await;
        // It keeps refusing: probes are answered like everything else.
        let endpoint = async || {
            let accounts = stage.sandbox.accounts().await;
            accounts.all_requests("usage") + accounts.all_requests("batch")
        };
        let before = endpoint().await;
        until("some more probes are refused", async || (endpoint().await >= before + 5).then_some(())).await;
        stage.sandbox.weather(json!({})).await;
        stage.drained().await;
        let metrics = stage.agent.metrics().await;
        metrics.assert_conserved();
        let now = metrics.sum("dataplane_dead_lettered_total", &[]);
        let most = if status == 404 { 0.0 } else { MOST_DEAD };
        assert!(now - dead <= most, "{mode}, {status}: {} dead letters", now - dead);
        dead = now;
        let accounts = stage.sandbox.accounts().await;
        assert_eq!(accounts.processed(), pushed - dead as u64, "everything else is delivered");
        accounts.assert_in_order_and_recognisable();
    }
    assert!(dead > 0.0, "it was refused, and that was seen");
}

#[tokio::test]
async fn twenty_thousand_records_survive_refusals_of_everything_one_by_one() {
    refuses("single", MANY, &[(404, "no_route"), (422, "refusing")]).await;
}

#[tokio::test]
async fn twenty_thousand_records_survive_refusals_of_everything_in_batches() {
    refuses("batch", MANY, &[(400, "refusing"), (404, "no_route")]).await;
}

#[tokio::test]
async fn with_few_sessions_each_continues_in_order_after_recovery() {
    for mode in ["single", "batch"] {
        for sessions in [1, 20] {
            refuses(mode, (2_000, sessions), &[(422, "refusing")]).await;
        }
    }
}
