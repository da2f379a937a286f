//! Goal: a quota request is sent at once, however slowly everything else is answered. Method: a ControlPlane that, once the
//! agent uses it fully, does not finish answers about usage before the quota request has arrived.

use axum::body::{Body, Bytes};
use axum::response::{IntoResponse as _, Response};
use serde_json::json;
use tokio::sync::watch;

use super::harness::{Agent, QUOTA, QUOTA_ANSWERS, RedisServer, Scripted, USAGE, load, until};

const QUOTA_REQUESTS: u32 = 40;
/// More sessions than requests may be in flight.
const SESSIONS: u32 = 100;

#[tokio::test]
async fn quota_requests_find_a_place_beside_usage_that_is_not_answered() {
    let (hangs, state) = watch::channel(false);
    let plane = Scripted::start(move |request| {
        let asked = request.json();
        if !request.path.ends_with("/refresh") {
            return if *state.borrow() { unfinished(state.clone()) } else { "{}".into_response() };
        }
        axum::Json(json!({"success": true, "data": {
            "api_session_id": asked["api_session_id"], "transaction_id": asked["transaction_id"],
            "new_quota_amount": 60, "final_quota": false, "timestamp": "2026-01-01T00:00:00Z",
        }}))
        .into_response()
    })
    .await;
    let redis = RedisServer::start().await;
    let mut agent = Agent::new(&redis, &plane.url);
    for (name, value) in
        [("DELIVERY_MODE", "single"), ("DRAIN_CONCURRENCY", "16"), ("CONTROL_PLANE_TIMEOUT", "300")]
    {
        agent.set(name, value);
    }
    agent.start();
    agent.ready().await;
    let usage = |round| (0..SESSIONS).map(|n| load::usage(&format!("s{n}"), round)).collect::<Vec<_>>();
    let asked = |about: &str| plane.received().iter().filter(|request| request.path.ends_with(about)).count();
    let mut round = 0;
    until("all places may be used", async || {
        redis.push(USAGE, &usage(round)).await;
        round += 1;
        agent.outbox_emptied().await;
        (agent.metrics().await.sum("dataplane_drain_concurrency", &[]) == 16.0).then_some(())
    })
    .await;
    let (before, fills) = (asked("/usage-records"), 15);
    hangs.send_replace(true);
    redis.push(USAGE, &usage(round)).await;
    let hanging = || asked("/usage-records") - before;
    until("usage fills its places", async || (hanging() == fills).then_some(())).await;
    // More than are sent before another kind gets a turn.
    let quota: Vec<_> = (0..QUOTA_REQUESTS).map(|n| load::quota("s0", n)).collect();
    redis.push(QUOTA, &quota).await;
    until("the quota requests have come", async || (asked("/refresh") == quota.len()).then_some(())).await;
    until("and their answers are in Redis", async || {
        (redis.len(QUOTA_ANSWERS).await == u64::from(QUOTA_REQUESTS)).then_some(())
    })
    .await;
    assert_eq!(hanging(), fills, "and no usage took its place");
    hangs.send_replace(false);
    agent.outbox_emptied().await;
    agent.metrics().await.assert_conserved();
}

/// An answer whose body is sent once `hangs` is over.
fn unfinished(mut hangs: watch::Receiver<bool>) -> Response {
    let body = async move {
        // It also ends with the test.
        let _ = hangs.wait_for(|hangs| !hangs).await;
        Ok::<_, std::io::Error>(Bytes::from_static(b"{}"))
    };
    Body::from_stream(futures_util::stream::once(body)).into_response()
}
