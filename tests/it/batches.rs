//! Goal: batches are as safe as single records. Method: the sandbox's weather, and servers that refuse whole batches.

use std::collections::HashSet;

use axum::http::StatusCode;
use axum::response::IntoResponse as _;
use serde_json::{Value, json};

use super::harness::{
    Agent, DEAD_LETTERS, Received, RedisServer, SERVER_ID, Sandbox, Scripted, Stage, USAGE, load, until,
};

/// An agent between a Redis that holds `records` and a scripted ControlPlane.
async fn around(server: &Scripted, records: &[String], settings: &[(&str, &str)]) -> (RedisServer, Agent) {
    let redis = RedisServer::start().await;
    redis.push(USAGE, records).await;
    let mut agent = Agent::new(&redis, &server.url);
    for (name, value) in settings {
        agent.set(name, value);
    }
    agent.start();
    agent.ready().await;
    (redis, agent)
}

/// Waits until Redis and the outbox are empty.
async fn settled(redis: &RedisServer, agent: &Agent) {
    until("everything is settled", async || {
        let left = redis.len(USAGE).await + redis.len(&format!("{USAGE}:processing:{SERVER_ID}")).await;
        (left == 0 && agent.health().await?["outbox"]["depth"] == 0).then_some(())
    })
    .await;
}

fn one_each(sessions: u32) -> Vec<String> {
    (0..sessions).map(|n| load::usage(&format!("s{n}"), 0)).collect()
}

#[tokio::test]
async fn usage_goes_in_compressed_batches_where_the_control_plane_has_them() {
    let mut stage = Stage::set().await;
    stage.sandbox.weather(json!({"down": true})).await;
    let records: Vec<String> = (0..20_000).map(|n| load::usage(&format!("b{}", n % 200), n / 200)).collect();
    stage.redis.push(USAGE, &records).await;
    let pushed = 20_000;
    until("everything is in the outbox", async || {
        (stage.agent.health().await?["outbox"]["depth"] == pushed).then_some(())
    })
    .await;
    stage.sandbox.weather(json!({})).await;
    stage.drained().await;
    let accounts = stage.sandbox.accounts().await;
    assert_eq!(accounts.processed(), pushed);
    accounts.assert_in_order_and_recognisable();
    assert_eq!(accounts.all_requests("usage"), 0);
    assert!(accounts.0["largest_batch"].as_u64() > Some(50), "{}", accounts.0);
    assert!(accounts.all_requests("batch") < 100, "{}", accounts.0);
    // The answer to the probe lists zstd; bodies below 1 KiB are sent uncompressed.
    assert!(accounts.0["zstd_bodies"].as_u64() > Some(5), "{}", accounts.0);
}

#[tokio::test]
async fn a_record_that_failed_in_a_batch_is_never_overtaken_by_its_session() {
    let mut stage = Stage::set().await;
    stage.sandbox.weather(json!({"partial_batch": 0.3, "status": {"500": 0.02, "429": 0.02}})).await;
    let pushed = load::push_sessions(&stage.redis, "p", 40, 25).await;
    until("half of it is through", async || {
        (stage.sandbox.accounts().await.kind("usage", "processed") >= 500).then_some(())
    })
    .await;
    stage.sandbox.weather(json!({})).await;
    stage.drained().await;
    let accounts = stage.sandbox.accounts().await;
    assert_eq!(accounts.processed(), pushed);
    assert!(accounts.kind("usage", "turned_away") > 0);
    accounts.assert_in_order_and_recognisable();
    stage.agent.metrics().await.assert_conserved();
}

#[tokio::test]
async fn part_of_a_batch_is_refused_and_the_rest_is_delivered() {
    let mut stage = Stage::set().await;
    stage.sandbox.weather(json!({"refuse_transactions": ["usage-r-1-"]})).await;
    let pushed = load::push_sessions(&stage.redis, "r", 20, 4).await;
    stage.drained().await;
    let accounts = stage.sandbox.accounts().await;
    assert_eq!(accounts.processed(), pushed - 4);
    accounts.assert_in_order_and_recognisable();
    let metrics = stage.agent.metrics().await;
    assert_eq!(metrics.sum("dataplane_dead_lettered_total", &[("reason", "refused")]), 4.0);
    metrics.assert_conserved();
}

#[tokio::test]
async fn if_the_control_plane_has_no_batches_records_go_one_by_one() {
    let sandbox = Sandbox::start(&["--no-batch"]);
    let mut stage = Stage::set_around(sandbox, &[]).await;
    let pushed = load::push_sessions(&stage.redis, "n", 30, 5).await;
    stage.drained().await;
    let accounts = stage.sandbox.accounts().await;
    assert_eq!(accounts.processed(), pushed);
    assert_eq!(accounts.requests("usage", "200"), 150);
    assert!(accounts.all_requests("batch") <= 3, "asked once, and not for every record: {accounts:?}");
    accounts.assert_in_order_and_recognisable();
}

#[tokio::test]
async fn a_batch_that_is_refused_whole_is_halved_until_the_record_at_fault_stands_alone() {
    for status in [400, 413, 422] {
        let at_fault = "usage-s17-0";
        let server = Scripted::start(move |request: &Received| {
            if request.transactions().iter().any(|id| id == at_fault) {
                let no = axum::Json(json!({"error": "no"}));
                return (StatusCode::from_u16(status).expect("a status"), no).into_response();
            }
            request.results(|_| 200)
        })
        .await;
        let settings = [("DELIVERY_MODE", "batch"), ("BATCH_COMPRESSION", "none")];
        let (redis, agent) = around(&server, &one_each(60), &settings).await;
        settled(&redis, &agent).await;
        let letters = until("the dead letter is mirrored", async || {
            let letters = redis.list(DEAD_LETTERS).await;
            (!letters.is_empty()).then_some(letters)
        })
        .await;
        assert_eq!(letters.len(), 1);
        let letter: Value = serde_json::from_slice(&letters[0]).expect("JSON");
        assert_eq!(letter["original_message"]["transaction_id"], at_fault);
        assert!(letter["error_info"].as_str().expect("text").contains(&status.to_string()), "{letter}");
        let metrics = agent.metrics().await;
        assert_eq!(metrics.sum("dataplane_delivered_total", &[("kind", "usage")]), 59.0);
    }
}

#[tokio::test]
async fn a_record_that_breaks_every_batch_it_is_in_is_found_and_given_up() {
    let poison = "usage-s5-0";
    for status in [StatusCode::INTERNAL_SERVER_ERROR, StatusCode::SERVICE_UNAVAILABLE] {
        let server = Scripted::start(move |request: &Received| {
            if request.transactions().iter().any(|id| id == poison) {
                return status.into_response();
            }
            request.results(|_| 200)
        })
        .await;
        let settings = [("DELIVERY_MODE", "batch"), ("BATCH_COMPRESSION", "none"), ("POISON_ATTEMPTS", "2")];
        let (redis, agent) = around(&server, &one_each(30), &settings).await;
        let mut number = 0;
        until(&format!("{status}: the record is given up"), async || {
            number += 1;
            redis.push(USAGE, &[load::usage("other", number)]).await;
            (redis.len(DEAD_LETTERS).await == 1).then_some(())
        })
        .await;
        settled(&redis, &agent).await;
        let metrics = agent.metrics().await;
        assert_eq!(metrics.sum("dataplane_dead_lettered_total", &[("reason", "poison")]), 1.0);
        assert_eq!(metrics.sum("dataplane_delivered_total", &[("kind", "usage")]), 29.0 + f64::from(number));
    }
}

#[tokio::test]
async fn gzip_is_given_up_where_it_is_not_understood() {
    let server = Scripted::start(|request: &Received| {
        if request.headers.contains_key("content-encoding") {
            return StatusCode::UNSUPPORTED_MEDIA_TYPE.into_response();
        }
        request.results(|_| 200)
    })
    .await;
    let (redis, agent) = around(&server, &one_each(20), &[]).await;
    settled(&redis, &agent).await;
    assert_eq!(agent.metrics().await.sum("dataplane_delivered_total", &[("kind", "usage")]), 20.0);
    assert!(server.received().iter().all(Received::is_batch));
}

#[tokio::test]
async fn the_same_records_have_the_same_keys_and_bytes_in_whichever_batch_they_travel() {
    let server = Scripted::start(|request: &Received| {
        // Every first answer is lost, from the agent's point of view.
        let repeated = request.transactions().iter().all(|id| id.ends_with("-1"));
        if repeated {
            request.results(|_| 200)
        } else {
            request.results(|id| u16::from(id.len() % 2 == 0) * 300 + 200)
        }
    })
    .await;
    let settings = [("BATCH_COMPRESSION", "none"), ("BATCH_MAX_RECORDS", "7")];
    let (redis, agent) = around(&server, &one_each(30), &settings).await;
    // Some get status 500 and are sent again in other batches.
    until("most are settled", async || {
        (agent.health().await?["outbox"]["depth"].as_u64()? <= 20).then_some(())
    })
    .await;
    let received = server.received();
    let mut seen: std::collections::HashMap<String, HashSet<String>> = std::collections::HashMap::new();
    for request in &received {
        assert!(request.transactions().len() <= 7);
        assert!(request.headers.contains_key("idempotency-key"));
        for record in request.sessions().into_iter().flat_map(|(_, records)| records) {
            let id = record["transaction_id"].as_str().expect("an id").to_owned();
            seen.entry(id).or_default().insert(record.to_string());
        }
    }
    assert!(seen.values().all(|bodies| bodies.len() == 1), "{seen:?}");
    drop((redis, agent));
}
