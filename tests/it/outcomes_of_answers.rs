//! Goal: each answer has the meaning given in the contract's table. Method: records with fixed fates in the sandbox.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use axum::response::IntoResponse as _;
use serde_json::{Value, json};

use super::harness::{
    Agent, DEAD_LETTERS, LIFECYCLE, QUOTA, QUOTA_ANSWERS, Received, RedisServer, Scripted, Stage, USAGE,
    drained, load, taken, until,
};

/// The dead letters in the mirror, once there are this many.
async fn letters(stage: &Stage, count: usize) -> Vec<Value> {
    until(&format!("{count} dead letters are mirrored"), async || {
        let letters = stage.redis.list(DEAD_LETTERS).await;
        (letters.len() == count)
            .then(|| letters.iter().map(|letter| serde_json::from_slice(letter).expect("JSON")).collect())
    })
    .await
}

#[tokio::test]
async fn a_refused_record_is_a_dead_letter_with_the_answer_and_its_session_goes_on() {
    let mut stage = Stage::set().await;
    stage.sandbox.weather(json!({"refuse_transactions": ["usage-s-1"]})).await;
    let records: Vec<String> = (0..3).map(|n| load::usage("s", n)).collect();
    stage.redis.push(USAGE, &records).await;
    stage.drained().await;
    let letters = letters(&stage, 1).await;
    assert_eq!(letters[0]["reason"], "refused");
    let why = letters[0]["error_info"].as_str().expect("a reason");
    assert!(why.contains("422") && why.contains("the record is refused"), "{why}");
    let original: Value = serde_json::from_str(&records[1]).unwrap();
    assert_eq!(letters[0]["original_message"], original);
    let accounts = stage.sandbox.accounts().await;
    assert_eq!(accounts.kind("usage", "processed"), 2);
    accounts.assert_in_order_and_recognisable();
}

#[tokio::test]
async fn a_record_that_breaks_the_server_while_others_pass_is_poison() {
    let mut stage = Stage::set_with(&[("POISON_ATTEMPTS", "3")]).await;
    stage.sandbox.weather(json!({"poison_transactions": ["usage-bad-"]})).await;
    stage.redis.push(USAGE, &[load::usage("bad", 0)]).await;
    let mut number = 0;
    until("the record is given up", async || {
        number += 1;
        stage.redis.push(USAGE, &[load::usage("good", number)]).await;
        (stage.redis.len(DEAD_LETTERS).await == 1).then_some(())
    })
    .await;
    stage.drained().await;
    assert_eq!(letters(&stage, 1).await[0]["reason"], "poison");
    assert_eq!(stage.sandbox.accounts().await.kind("usage", "processed"), u64::from(number));
}

#[tokio::test]
async fn a_session_that_stays_unknown_is_given_up_after_its_grace_and_no_other() {
    let mut stage = Stage::set_with(&[("SESSION_UNKNOWN_GRACE_SECONDS", "0.5")]).await;
    stage.sandbox.weather(json!({"unknown_sessions": ["nobody"]})).await;
    stage.redis.push(USAGE, &[load::usage("nobody", 0)]).await;
    let mut number = 0;
    until("the record is given up", async || {
        number += 1;
        stage.redis.push(USAGE, &[load::usage("known", number)]).await;
        (stage.redis.len(DEAD_LETTERS).await == 1).then_some(())
    })
    .await;
    assert_eq!(letters(&stage, 1).await[0]["reason"], "session_unknown");
    stage.drained().await;
}

#[tokio::test]
async fn an_answer_that_was_lost_is_asked_for_again_with_the_same_key_and_settles_as_a_duplicate() {
    let mut stage = Stage::set().await;
    stage.sandbox.weather(json!({"lost_answer": 0.3})).await;
    let pushed = load::push_sessions(&stage.redis, "lost", 30, 5).await;
    stage.drained().await;
    let accounts = stage.sandbox.accounts().await;
    assert_eq!(accounts.processed(), pushed);
    assert!(accounts.sum("duplicates") > 0, "some answers were lost");
    accounts.assert_in_order_and_recognisable();
    let metrics = stage.agent.metrics().await;
    assert!(metrics.sum("dataplane_duplicates_total", &[]) > 0.0);
    metrics.assert_conserved();
    let quota = accounts.kind("quota", "processed");
    assert_eq!(quota, 30);
    // A quota request that was processed before is settled without an answer to forward.
    assert!(stage.redis.len(QUOTA_ANSWERS).await <= quota);
}

#[tokio::test]
async fn an_invalid_quota_answer_is_retried_and_then_a_dead_letter() {
    let server = Scripted::start(
        |request: &Received| {
            if request.is_batch() { request.results(|_| 200) } else { taken() }
        },
    )
    .await;
    let redis = RedisServer::start().await;
    let agent = agent_of(&redis, &server, &[("POISON_ATTEMPTS", "3")]).await;
    redis.push(QUOTA, &[load::quota("s", 0)]).await;
    let mut number = 0_u32;
    until("the request is given up", async || {
        number += 1;
        // A record whose answer needs no data.
        redis.push(LIFECYCLE, &[load::started(&format!("good-{number}"))]).await;
        (redis.len(DEAD_LETTERS).await == 1).then_some(())
    })
    .await;
    let letter: Value = serde_json::from_slice(&redis.list(DEAD_LETTERS).await[0]).expect("JSON");
    assert_eq!((&letter["processing_queue"], &letter["reason"]), (&QUOTA.into(), &"poison".into()));
    assert_eq!(redis.len(QUOTA_ANSWERS).await, 0);
    drained(&redis, &agent).await;
}

#[tokio::test]
async fn a_quota_request_that_waited_too_long_expires() {
    let mut stage = Stage::set_with(&[("QUOTA_REFRESH_TTL_SECONDS", "0.3")]).await;
    stage.sandbox.weather(json!({"down": true})).await;
    stage.redis.push(QUOTA, &[load::quota("s", 0)]).await;
    assert_eq!(letters(&stage, 1).await[0]["reason"], "expired");
    stage.sandbox.weather(json!({})).await;
    stage.drained().await;
    assert_eq!(stage.sandbox.accounts().await.kind("quota", "received"), 0);
}

#[tokio::test]
async fn a_quota_request_from_a_producer_with_a_wrong_clock_is_still_sent() {
    let mut stage = Stage::set().await;
    let asked = |number: u32, seconds_ago: i64| {
        let mut request: Value = serde_json::from_str(&load::quota("s", number)).expect("JSON");
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock");
        request["timestamp"] = (now.as_secs() as i64 - seconds_ago).into();
        request.to_string()
    };
    stage.redis.push(QUOTA, &[asked(0, 3600), asked(1, 0), asked(2, -3600)]).await;
    stage.drained().await;
    assert_eq!(stage.sandbox.accounts().await.kind("quota", "processed"), 3);
}

#[tokio::test]
async fn a_quota_answer_for_another_request_is_invalid_and_never_forwarded() {
    let server = Scripted::start(|request: &Received| {
        if request.is_batch() {
            return request.results(|_| 200);
        }
        let asked = request.json();
        let (mut session, mut transaction) =
            (asked["api_session_id"].clone(), asked["transaction_id"].clone());
        if session == "mixed-up" {
            // Another request's answer: once of another session, once of another request of the same session.
            let again = request.headers["x-correlation-id"].to_str().is_ok_and(|id| id == "second");
            (if again { &mut transaction } else { &mut session }).clone_from(&json!("another"));
        }
        let data = json!({
            "api_session_id": session, "transaction_id": transaction,
            "new_quota_amount": 60, "final_quota": false, "timestamp": "2026-01-01T00:00:00Z",
        });
        axum::Json(json!({"success": true, "data": data})).into_response()
    })
    .await;
    let redis = RedisServer::start().await;
    let mut agent = Agent::new(&redis, &server.url);
    agent.set("POISON_ATTEMPTS", "2");
    agent.set("QUOTA_REFRESH_TTL_SECONDS", "3");
    agent.start();
    agent.ready().await;
    let mut second: Value = serde_json::from_str(&load::quota("mixed-up", 1)).expect("JSON");
    second["correlation_id"] = "second".into();
    redis.push(QUOTA, &[load::quota("mixed-up", 0), second.to_string()]).await;
    let mut number = 0;
    // An answer to another request proves nothing, like one that was cut off.
    until("both expire, while others pass", async || {
        number += 1;
        redis.push(QUOTA, &[load::quota("well", number)]).await;
        (redis.len(DEAD_LETTERS).await == 2).then_some(())
    })
    .await;
    until("the others are answered", async || {
        (redis.len(QUOTA_ANSWERS).await == u64::from(number)).then_some(())
    })
    .await;
    for letter in redis.list(DEAD_LETTERS).await {
        let letter: Value = serde_json::from_slice(&letter).expect("JSON");
        assert_eq!(
            (&letter["reason"], &letter["original_message"]["api_session_id"]),
            (&"expired".into(), &"mixed-up".into())
        );
    }
    for answer in redis.list(QUOTA_ANSWERS).await {
        let answer: Value = serde_json::from_slice(&answer).expect("JSON");
        assert_eq!(answer["api_session_id"], "well", "{answer}");
    }
}

#[tokio::test]
async fn retry_after_is_obeyed() {
    let stage = Stage::set().await;
    stage.sandbox.weather(json!({"always": 429, "retry_after": "3600"})).await;
    stage.redis.push(LIFECYCLE, &[load::started("s")]).await;
    until("the link is down", async || {
        (stage.agent.metrics().await.sum("dataplane_link_state", &[]) == 2.0).then_some(())
    })
    .await;
    stage.sandbox.weather(json!({})).await;
    stage.redis.push(USAGE, &[load::usage("s", 0)]).await;
    until("the usage record is in the outbox", async || {
        (stage.agent.health().await?["outbox"]["depth"] == 2).then_some(())
    })
    .await;
    let uptime = async || stage.agent.health().await?["uptime_seconds"].as_f64();
    let begun = until("the agent says how long it runs", uptime).await;
    // Three times the longest backoff: a probe that ignored the wait would have been sent.
    until("time has passed", async || (uptime().await? > begun + 1.5).then_some(())).await;
    let accounts = stage.sandbox.accounts().await;
    let requests = ["batch", "started", "usage"].map(|endpoint| accounts.all_requests(endpoint));
    assert_eq!(requests.iter().sum::<u64>(), 1, "{accounts:?}");
}

#[tokio::test]
async fn a_session_that_no_url_can_name_is_a_dead_letter_and_no_refusal() {
    let mut stage = Stage::set_with(&[("REFUSAL_BRAKE", "3"), ("DELIVERY_MODE", "single")]).await;
    let events: Vec<String> = (0..10)
        .map(|n| load::started("..").replace("session_started-..", &format!("t{n}")))
        .chain([load::started("well")])
        .collect();
    stage.redis.push(LIFECYCLE, &events).await;
    stage.drained().await;
    assert_eq!(letters(&stage, 10).await[0]["reason"], "invalid");
    let accounts = stage.sandbox.accounts().await;
    assert_eq!((accounts.kind("started", "processed"), accounts.all_requests("started")), (1, 1));
}

/// An agent of a server that answers like this.
async fn agent_of(redis: &RedisServer, server: &Scripted, settings: &[(&str, &str)]) -> Agent {
    let mut agent = Agent::new(redis, &server.url);
    for (name, value) in [("BATCH_COMPRESSION", "none")].iter().chain(settings) {
        agent.set(name, value);
    }
    agent.start();
    agent.ready().await;
    agent
}

#[tokio::test]
async fn a_record_that_is_answered_503_while_others_pass_is_poison_too() {
    for (mode, retry_after) in [("single", None), ("single", Some("1")), ("batch", None)] {
        let server = Scripted::start(move |request: &Received| {
            let status = |id: &str| if id.starts_with("usage-bad-") { 503 } else { 200 };
            if request.is_batch() {
                return request.results(status);
            }
            let id = request.json()["transaction_id"].as_str().unwrap_or_default().to_owned();
            let status = axum::http::StatusCode::from_u16(status(&id)).expect("a status");
            match retry_after {
                Some(wait) if status != 200 => (status, [("retry-after", wait)]).into_response(),
                _ if status == 200 => taken(),
                _ => status.into_response(),
            }
        })
        .await;
        let redis = RedisServer::start().await;
        let agent = agent_of(&redis, &server, &[("DELIVERY_MODE", mode), ("POISON_ATTEMPTS", "3")]).await;
        redis.push(USAGE, &[load::usage("bad", 0)]).await;
        let mut number = 0;
        until(&format!("{mode}, {retry_after:?}: the record is given up"), async || {
            number += 1;
            redis.push(USAGE, &[load::usage("good", number)]).await;
            (redis.len(DEAD_LETTERS).await == 1).then_some(())
        })
        .await;
        drained(&redis, &agent).await;
        let metrics = agent.metrics().await;
        assert_eq!(metrics.sum("dataplane_dead_lettered_total", &[("reason", "poison")]), 1.0);
        assert_eq!(metrics.sum("dataplane_delivered_total", &[]), f64::from(number));
    }
}

#[tokio::test]
async fn a_part_of_the_control_plane_that_is_out_makes_no_poison() {
    // Of the records of a batch, or of the requests, one in three meets the working part, at random.
    for (mode, apart) in [("batch", true), ("batch", false), ("single", false)] {
        let (well, turn) = (Arc::<AtomicBool>::default(), Arc::<AtomicU32>::default());
        let is_well = Arc::clone(&well);
        let server = Scripted::start(move |request: &Received| {
            let passes = |_: &str| {
                let turn = turn.fetch_add(1, Ordering::Relaxed);
                if is_well.load(Ordering::Relaxed) || turn.is_multiple_of(3) { 200 } else { 500 }
            };
            if request.is_batch() && apart {
                return request.results(passes);
            }
            match passes("") {
                200 if request.is_batch() => request.results(|_| 200),
                200 => taken(),
                status => axum::http::StatusCode::from_u16(status).expect("a status").into_response(),
            }
        })
        .await;
        let redis = RedisServer::start().await;
        let agent = agent_of(&redis, &server, &[("DELIVERY_MODE", mode), ("POISON_ATTEMPTS", "5")]).await;
        let mut number = 0;
        until(&format!("{mode}, {apart}: many have failed again and again"), async || {
            let records: Vec<String> = (0..20).map(|n| load::usage(&format!("s{n}"), number + n)).collect();
            let events: Vec<String> = (0..5).map(|n| load::started(&format!("e{}", number + n))).collect();
            number += 20;
            redis.push(USAGE, &records).await;
            redis.push(LIFECYCLE, &events).await;
            let retries = agent.metrics().await.sum("dataplane_retries_total", &[("reason", "failing")]);
            (retries > 500.0).then_some(())
        })
        .await;
        well.store(true, Ordering::Relaxed);
        drained(&redis, &agent).await;
        let metrics = agent.metrics().await;
        assert_eq!(metrics.sum("dataplane_dead_lettered_total", &[]), 0.0, "{mode}, {apart}");
        assert_eq!(metrics.sum("dataplane_delivered_total", &[]), f64::from(number / 20 * 25));
    }
}

#[tokio::test]
async fn the_cause_of_a_down_link_is_reported_even_if_the_answer_was_200() {
    type Script = fn(&Received) -> axum::response::Response;
    let scripts: [(&str, Script); 3] = [
        ("status 401 for a record of a batch", |request| request.results(|_| 401)),
        ("status 500 for a record of a batch", |request| request.results(|_| 500)),
        ("a batch answer that does not say which records were accepted", |_| {
            axum::Json(json!({"success": true})).into_response()
        }),
    ];
    for (cause, script) in scripts {
        let server = Scripted::start(script).await;
        let redis = RedisServer::start().await;
        let agent = agent_of(&redis, &server, &[("DELIVERY_MODE", "batch")]).await;
        redis.push(USAGE, &[load::usage("s", 0), load::usage("t", 0)]).await;
        until(&format!("{cause} is told"), async || {
            let link = agent.health().await?["components"]["control_plane"].clone();
            (link["cause"] == cause).then_some(())
        })
        .await;
        agent.says(&format!("\"cause\":\"{cause}\"")).await;
    }
    let server = Scripted::start(|_| axum::Json(json!({"success": true})).into_response()).await;
    let redis = RedisServer::start().await;
    let agent = agent_of(&redis, &server, &[]).await;
    redis.push(QUOTA, &[load::quota("s", 0)]).await;
    until("that of a quota request is told", async || {
        let cause = &agent.health().await?["components"]["control_plane"]["cause"];
        (cause == "an unusable answer to a quota request").then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_already_answered_quota_request_is_settled_and_the_lost_answer_reported() {
    let server = Scripted::start(|_| axum::http::StatusCode::CONFLICT.into_response()).await;
    let redis = RedisServer::start().await;
    let agent = agent_of(&redis, &server, &[]).await;
    redis.push(QUOTA, &[load::quota("s", 0)]).await;
    until("it is settled", async || {
        (agent.metrics().await.sum("dataplane_duplicates_total", &[]) == 1.0).then_some(())
    })
    .await;
    assert_eq!(redis.len(QUOTA_ANSWERS).await, 0);
    let log = agent.log();
    let told: Vec<_> =
        log.lines().filter(|line| line.contains("as a duplicate without its answer")).collect();
    assert!(told.len() == 1 && told[0].contains("[warning]"), "{log}");
}
