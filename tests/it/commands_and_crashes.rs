//! Goal: a command is executed once and its result arrives, whatever crashes or fails in between. Method: the points of
//! `src/telemetry/failpoint.rs`, and a ControlPlane that rejects results.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use axum::http::StatusCode;
use axum::response::IntoResponse as _;
use serde_json::{Value, json};

use super::harness::{Agent, RedisServer, SERVER_ID, Scripted, Stage, USAGE, load, taken, until};

#[tokio::test]
async fn a_kill_at_any_point_neither_repeats_nor_loses_a_command() {
    let settings = [("COMMAND_POLL_INTERVAL", "0.1"), ("HEARTBEAT_INTERVAL", "0.2"), ("REFUSAL_BRAKE", "0")];
    let mut stage = Stage::set_with(&settings).await;
    // A record that is always refused: each replay counts it as enqueued once more.
    stage.sandbox.weather(json!({"refuse_transactions": ["usage-bad"]})).await;
    stage.redis.push(USAGE, &[load::usage("bad", 0)]).await;
    let mut replays = 0;
    for (point, is_carried_out, is_known) in [
        ("commands::begun", false, false),
        ("commands::carried-out", true, false),
        ("commands::noted", true, true),
        ("commands::reported", true, true),
    ] {
        until("it is a dead letter", async || {
            (stage.agent.health().await?["outbox"]["dead_letters"] == 1).then_some(())
        })
        .await;
        stage.agent.kill();
        stage.agent.set("FAILPOINT", &format!("{point}=1=abort"));
        stage.agent.start();
        let replay = json!({
            "command_type": "replay_dead_letters", "server_id": SERVER_ID, "parameters": {"all": true}, "sign": true,
        });
        let command = stage.sandbox.command(replay).await;
        let id = command["command_id"].as_str().expect("an id").to_owned();
        assert!(!stage.agent.ended().await.success(), "{point}");
        replays += u64::from(is_carried_out);

        stage.agent.unset("FAILPOINT");
        stage.agent.start();
        stage.agent.ready().await;
        // The command is delivered until its result arrives; if the result had arrived, it is reported again, because
        // nobody knows.
        let results = until(&format!("{point}: a result"), async || {
            let results = stage.sandbox.results(&id).await;
            let expected = if point == "commands::reported" { 2 } else { 1 };
            (results.len() >= expected).then_some(results)
        })
        .await;
        let result = results.last().expect("one");
        assert_eq!(result["success"], is_known, "{point}: {result}");
        if is_known {
            assert_eq!(result["result"]["replayed"], 1, "{point}: {result}");
        } else {
            let error = result["error_message"].as_str().expect("why");
            assert!(error.starts_with("interrupted"), "{point}: {error}");
        }
        // Two more polls: the command is neither executed nor reported again.
        let polls = stage.sandbox.accounts().await.all_requests("commands");
        until("it looks for commands again", async || {
            (stage.sandbox.accounts().await.all_requests("commands") >= polls + 3).then_some(())
        })
        .await;
        assert_eq!(stage.sandbox.results(&id).await.len(), results.len(), "{point}");
        let metrics = stage.agent.metrics().await;
        assert_eq!(metrics.sum("dataplane_outbox_enqueued_total", &[]) as u64, 1 + replays, "{point}");
        metrics.assert_conserved();
    }
}

/// A ControlPlane that delivers these commands to anyone, and answers each result with the given status.
async fn commanding(
    ids: Vec<String>,
    status: impl Fn(&str) -> u16 + Clone + Send + Sync + 'static,
) -> Scripted {
    Scripted::start_all(move |request| {
        if request.path.ends_with("/commands") {
            let command = |id: &String| json!({"command_id": id, "command_type": "get_metrics"});
            return axum::Json(json!({"commands": ids.iter().map(command).collect::<Vec<_>>()}))
                .into_response();
        }
        if request.path.ends_with("/command-results") {
            let status = status(request.json()["command_id"].as_str().expect("an id"));
            return (StatusCode::from_u16(status).expect("a status"), taken()).into_response();
        }
        taken()
    })
    .await
}

/// A ControlPlane with one command, which answers its results with the given status.
async fn reluctant(status: &Arc<AtomicU16>) -> Scripted {
    let status = Arc::clone(status);
    commanding(vec!["m".into()], move |_| status.load(Ordering::Relaxed)).await
}

fn results(plane: &Scripted) -> Vec<Value> {
    let received = plane.received();
    let results = received.iter().filter(|request| request.path.ends_with("/command-results"));
    results.map(super::harness::Received::json).collect()
}

fn polls(plane: &Scripted) -> usize {
    plane.received().iter().filter(|request| request.path.ends_with("/commands")).count()
}

#[tokio::test]
async fn a_result_is_reported_until_it_is_accepted_also_after_a_restart() {
    let status = Arc::new(AtomicU16::new(503));
    let (redis, plane) = (RedisServer::start().await, reluctant(&status).await);
    let mut agent = Agent::new(&redis, &plane.url);
    agent.set("COMMAND_POLL_INTERVAL", "0.1");
    agent.start();
    until("it is reported again and again", async || (results(&plane).len() >= 3).then_some(())).await;
    agent.kill();
    let before = results(&plane);
    agent.start();
    until("also by the next process", async || (results(&plane).len() >= before.len() + 3).then_some(()))
        .await;
    let all = results(&plane);
    assert!(all.iter().all(|result| *result == all[0]), "the same each time: {all:?}");
    let keys = plane.received().into_iter().filter(|request| request.path.ends_with("/command-results"));
    let mut keys: Vec<_> = keys.map(|request| request.headers["idempotency-key"].clone()).collect();
    keys.dedup();
    assert_eq!(keys.len(), 1, "one key");
    agent.kill();
    status.store(200, Ordering::Relaxed);
    agent.start();
    let failed = results(&plane).len();
    until("it is accepted", async || (results(&plane).len() > failed).then_some(())).await;
    let metrics = agent.metrics().await;
    let by = [("type", "get_metrics"), ("outcome", "succeeded")];
    assert_eq!(
        metrics.sum("dataplane_commands_total", &by) as u64,
        0,
        "carried out once, by the first process"
    );
}

#[tokio::test]
async fn a_rejected_result_is_given_up_and_logged() {
    let status = Arc::new(AtomicU16::new(422));
    let (redis, plane) = (RedisServer::start().await, reluctant(&status).await);
    let mut agent = Agent::new(&redis, &plane.url);
    agent.set("COMMAND_POLL_INTERVAL", "0.1");
    agent.start();
    until("it says so", async || {
        agent
            .log()
            .contains("the ControlPlane rejects the result of a command; it is not reported again")
            .then_some(())
    })
    .await;
    // This ControlPlane delivers the command forever, and gets no more answers.
    let looks = polls(&plane);
    until("it goes on", async || (polls(&plane) >= looks + 5).then_some(())).await;
    assert_eq!(results(&plane).len(), 1);
    let metrics = agent.metrics().await;
    let by = [("type", "get_metrics"), ("outcome", "succeeded")];
    assert_eq!(metrics.sum("dataplane_commands_total", &by) as u64, 1);
}

#[tokio::test]
async fn a_failing_result_holds_up_no_other() {
    // More results than are tried in a round.
    let bad: Vec<String> = (0..12).map(|n| format!("bad-{n}")).collect();
    let ids = [&bad[..], &["good".to_owned()]].concat();
    let redis = RedisServer::start().await;
    let plane = commanding(ids, |id| if id == "good" { 200 } else { 500 }).await;
    let mut agent = Agent::new(&redis, &plane.url);
    agent.set("COMMAND_POLL_INTERVAL", "0.1");
    agent.start();
    let told = |plane: &Scripted, id: &str| {
        results(plane).iter().filter(|result| result["command_id"] == id).count()
    };
    until("the one behind them is heard", async || (told(&plane, "good") > 0).then_some(())).await;
    until("the others are told again", async || (told(&plane, "bad-11") > 2).then_some(())).await;
}

#[tokio::test]
async fn finished_commands_delivered_forever_keep_no_new_one_waiting() {
    let mut ids: Vec<String> = (0..120).map(|n| format!("old-{n}")).collect();
    ids.push("new".into());
    let redis = RedisServer::start().await;
    // Each result is rejected, so none is reported twice.
    let plane = commanding(ids, |_| 422).await;
    let mut agent = Agent::new(&redis, &plane.url);
    agent.set("COMMAND_POLL_INTERVAL", "0.1");
    agent.start();
    until("the last one is carried out", async || {
        results(&plane).iter().any(|result| result["command_id"] == "new").then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_unreadable_note_blocks_changes_and_is_reported_once() {
    let settings = [("COMMAND_POLL_INTERVAL", "0.1"), ("HEARTBEAT_INTERVAL", "0.2")];
    let mut stage = Stage::set_with(&settings).await;
    assert!(stage.agent.stop().await.success());
    let ledger = sled::open(stage.agent.dir().join("outbox/ledger")).expect("the ledger");
    // Written by another release.
    ledger.insert([&b"m"[..], &7_u64.to_be_bytes()].concat(), vec![200]).expect("a note");
    drop(ledger);
    stage.agent.start();
    let pause = json!({"command_type": "pause_drain", "server_id": SERVER_ID, "sign": true});
    let pause = stage.sandbox.command(pause).await;
    let said = |stage: &Stage| stage.agent.log().matches("commands wait: they cannot be recorded").count();
    until("it is said", async || (said(&stage) > 0).then_some(())).await;
    let polls = stage.sandbox.accounts().await.all_requests("commands");
    // Commands that change nothing are still answered.
    stage.sandbox.command(json!({"command_type": "get_metrics", "command_id": "m"})).await;
    until("it looks on, and answers", async || {
        let polls_now = stage.sandbox.accounts().await.all_requests("commands");
        (polls_now >= polls + 5 && !stage.sandbox.results("m").await.is_empty()).then_some(())
    })
    .await;
    assert_eq!(said(&stage), 1, "{}", stage.agent.log());
    assert!(stage.sandbox.results(pause["command_id"].as_str().expect("an id")).await.is_empty());
    assert_eq!(stage.agent.metrics().await.sum("dataplane_drain_paused", &[]) as u64, 0);
}
