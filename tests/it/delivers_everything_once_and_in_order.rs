//! Goal: the main job under good conditions. Method: whole sessions through a real agent, then the sandbox's accounts.

use serde_json::{Value, json};

use super::harness::{DEAD_LETTERS, LIFECYCLE, QUOTA, QUOTA_ANSWERS, Stage, USAGE, load, until};

#[tokio::test]
async fn whole_sessions_arrive_once_in_order_and_quota_answers_come_back() {
    let mut stage = Stage::set().await;
    let pushed = load::push_sessions(&stage.redis, "fair", 100, 20).await;
    stage.drained().await;

    let accounts = stage.sandbox.accounts().await;
    assert_eq!(accounts.processed(), pushed, "{accounts:?}");
    assert_eq!(accounts.sum("duplicates"), 0, "nothing went wrong, so nothing was sent twice");
    accounts.assert_in_order_and_recognisable();
    assert_eq!(stage.redis.len(QUOTA_ANSWERS).await, 100);
    assert_eq!(stage.redis.len(DEAD_LETTERS).await, 0);
    let answers = stage.redis.list(QUOTA_ANSWERS).await;
    let answer: Value = serde_json::from_slice(&answers[0]).expect("an answer is JSON");
    for field in ["api_session_id", "new_quota_amount", "final_quota", "transaction_id", "timestamp"] {
        assert!(answer.get(field).is_some(), "{field}: {answer}");
    }
    let metrics = stage.agent.metrics().await;
    metrics.assert_conserved();
    assert_eq!(metrics.sum("dataplane_delivered_total", &[("kind", "usage")]), 2000.0);
    assert_eq!(metrics.sum("usage_records_processed_total", &[("status", "delivered")]), 2000.0);
    assert_eq!(metrics.sum("session_events_processed_total", &[("event_type", "session_completed")]), 100.0);
    assert_eq!(metrics.sum("quota_requests_processed_total", &[("status", "delivered")]), 100.0);
    assert_eq!(metrics.sum("dataplane_intake_records_total", &[]), pushed as f64);
}

#[tokio::test]
async fn bodies_are_what_the_contract_says() {
    let mut stage = Stage::set().await;
    let mut started: Value = serde_json::from_str(&load::started("b/ä?")).unwrap();
    started["metadata"] = json!({"client_info": {"agent": "x"}, "more": 1});
    stage.redis.push(LIFECYCLE, &[started.to_string()]).await;
    stage.redis.push(USAGE, &[load::usage("b/ä?", 0)]).await;
    stage.redis.push(QUOTA, &[load::quota("b/ä?", 0)]).await;
    stage.redis.push(LIFECYCLE, &[load::completed("b/ä?")]).await;
    stage.drained().await;

    let records = stage.sandbox.records().await;
    assert_eq!(records.len(), 4);
    let body = |kind: &str| -> Value {
        let record = records.iter().find(|record| record["kind"] == kind).expect(kind);
        assert_eq!(record["session"], "b/ä?", "the path names the session");
        serde_json::from_str(record["body"].as_str().expect("a body")).expect("JSON")
    };
    let usage = body("usage");
    assert_eq!(usage["server_instance_id"], "edge-test-1");
    assert_eq!(usage["api_server_region"], "eu-test");
    assert_eq!(usage["agent_version"], env!("CARGO_PKG_VERSION"));
    assert!(usage["processing_timestamp"].as_str().is_some_and(|time| time.ends_with('Z')));
    assert_eq!(usage["sequence"], 0, "fields that the contract does not name are carried through");
    let started = body("started");
    assert_eq!(started["client_info"], json!({"agent": "x"}));
    assert_eq!(started["started_at"], "2026-01-01T00:00:00Z");
    assert!(started.get("metadata").is_none() && started.get("api_session_id").is_none(), "{started}");
    let completed = body("completed");
    assert_eq!(completed["disconnect_reason"], Value::Null);
    assert_eq!(completed["completed_at"], "2026-01-01T00:00:00Z");
    assert_eq!(body("quota")["product_code"], "speech_transcription");
}

#[tokio::test]
async fn completed_waits_for_usage_of_its_session_that_is_still_in_redis() {
    let (redis, sandbox) = (super::harness::RedisServer::start().await, super::harness::Sandbox::start(&[]));
    let mut agent = super::harness::Agent::new(&redis, &sandbox.url);
    // The event is at the head of its queue, but the session's last usage is behind thousands of others.
    let others: Vec<String> = (0..5000).map(|n| load::usage(&format!("other-{}", n % 7), n / 7)).collect();
    redis.push(LIFECYCLE, &[load::started("late")]).await;
    redis.push(USAGE, &others).await;
    redis.push(USAGE, &[load::usage("late", 0), load::usage("late", 1)]).await;
    redis.push(LIFECYCLE, &[load::completed("late")]).await;
    agent.start();
    agent.ready().await;
    let mut stage = Stage { redis, sandbox, agent };
    stage.drained().await;
    let accounts = stage.sandbox.accounts().await;
    assert_eq!(accounts.processed(), 5004);
    accounts.assert_in_order_and_recognisable();
}

#[tokio::test]
async fn bad_messages_become_dead_letters_with_their_bytes_and_delay_no_other() {
    let mut stage = Stage::set().await;
    let bad: [&[u8]; 4] = [b"\xff\xfe not text", b"{\"transaction_id\":1}", b"", b"[1,2"];
    for (n, bad) in (0..).zip(bad) {
        stage.redis.push(USAGE, &[bad]).await;
        stage.redis.push(USAGE, &[load::usage("good", n)]).await;
    }
    stage.drained().await;
    let letters = until("the mirror holds every dead letter", async || {
        let letters = stage.redis.list(DEAD_LETTERS).await;
        (letters.len() == 4).then_some(letters)
    })
    .await;
    assert_eq!(stage.sandbox.accounts().await.kind("usage", "processed"), 4);
    let letters: Vec<Value> =
        letters.iter().map(|letter| serde_json::from_slice(letter).expect("a letter is JSON")).collect();
    // Newest first.
    assert_eq!(letters[0]["original_message"], "[1,2");
    assert_eq!(letters[2]["original_message"], json!({"transaction_id": 1}));
    for letter in &letters {
        assert_eq!(letter["reason"], "invalid");
        assert_eq!(letter["processing_queue"], USAGE);
        assert!(letter["error_info"].as_str().is_some_and(|why| !why.is_empty()), "{letter}");
        assert!(letter["failed_at"].is_string() && letter["dead_letter_id"].is_string(), "{letter}");
    }
    stage.agent.metrics().await.assert_conserved();
}
