//! Goal: only the ControlPlane commands this agent. Method: a real agent polls the sandbox; the test owns keys and tokens.

use std::time::Instant;

use serde_json::{Value, json};

use super::harness::{SERVER_ID, SigningKey, Stage, USAGE, load, until};

async fn stage(settings: &[(&str, &str)]) -> Stage {
    let quick = [("COMMAND_POLL_INTERVAL", "0.1"), ("HEARTBEAT_INTERVAL", "0.2"), ("REFUSAL_BRAKE", "0")];
    Stage::set_with(&[&quick, settings].concat()).await
}

/// The claims that a command's token must have.
fn claims(command: &Value) -> Value {
    json!({
        "exp": chrono::Utc::now().timestamp() + 600,
        "aud": SERVER_ID,
        "jti": command["command_id"],
        "command_type": command["command_type"],
        "parameters": command["parameters"],
    })
}

fn with(mut claims: Value, name: &str, value: Value) -> Value {
    claims[name] = value;
    claims
}

/// Waits for the newest result of a command, once this many have arrived.
async fn result_number(stage: &Stage, id: &str, number: usize) -> Value {
    until(&format!("result {number} of {id}"), async || {
        stage.sandbox.results(id).await.get(number - 1).cloned()
    })
    .await
}

/// Has a command signed and executed; returns its result.
async fn obeyed(stage: &Stage, kind: &str, parameters: Value) -> Value {
    let command = json!({
        "command_type": kind, "server_id": SERVER_ID, "parameters": parameters, "sign": true,
    });
    let command = stage.sandbox.command(command).await;
    result_number(stage, command["command_id"].as_str().expect("an id"), 1).await
}

async fn paused(stage: &Stage) -> bool {
    stage.agent.metrics().await.sum("dataplane_drain_paused", &[]) > 0.0
}

async fn counted(stage: &Stage, kind: &str, outcome: &str) -> u64 {
    let metrics = stage.agent.metrics().await;
    metrics.sum("dataplane_commands_total", &[("type", kind), ("outcome", outcome)]) as u64
}

/// Creates a command's token, or none.
type Forgery<'a> = Box<dyn Fn(&Value) -> Option<String> + 'a>;

#[tokio::test]
async fn a_command_with_a_bad_token_of_every_kind_is_refused() {
    let stage = stage(&[]).await;
    let (key, stranger) = (SigningKey::new("k1"), SigningKey::new("k1"));
    stage.sandbox.put_keys(&key.key_set()).await;
    let limit = |id: &str| {
        json!({
            "command_id": id, "command_type": "set_rate_limit", "server_id": SERVER_ID,
            "parameters": {"rate_limit": 7},
        })
    };
    let past = json!(chrono::Utc::now().timestamp() - 10);
    let unsigned = |claims: &Value| {
        let signed = key.sign(claims);
        let payload = signed.split('.').nth(1).expect("claims").to_owned();
        // {"alg":"none"} first, and no signature.
        format!("eyJhbGciOiJub25lIn0.{payload}.")
    };
    let forgeries: Vec<(&str, Forgery<'_>, &str)> = vec![
        ("none", Box::new(|_| None), "token is missing"),
        ("empty", Box::new(|_| Some(String::new())), "token is missing"),
        ("garbage", Box::new(|_| Some("a.b.c".into())), "not a signed JWT"),
        ("expired", Box::new(|c| Some(key.sign(&with(claims(c), "exp", past.clone())))), "expired"),
        (
            "audience",
            Box::new(|c| Some(key.sign(&with(claims(c), "aud", json!("edge-2"))))),
            "another server",
        ),
        ("wrong-key", Box::new(|c| Some(stranger.sign(&claims(c)))), "signature is wrong"),
        ("alg-none", Box::new(|c| Some(unsigned(&claims(c)))), "not a signed JWT"),
        ("hs256", Box::new(|c| Some(key.sign_with_public_bytes(&claims(c)))), "JWT_ALGORITHM"),
        ("other", Box::new(|c| Some(key.sign(&with(claims(c), "jti", json!("c-0"))))), "for another command"),
        (
            "type",
            Box::new(|c| Some(key.sign(&with(claims(c), "command_type", json!("pause_drain"))))),
            "another command type",
        ),
        (
            "parameters",
            Box::new(|c| Some(key.sign(&with(claims(c), "parameters", json!({"rate_limit": 500}))))),
            "other parameters",
        ),
    ];
    for (name, forge, why) in &forgeries {
        let mut command = limit(name);
        if let Some(token) = forge(&command) {
            command["token"] = token.into();
        }
        stage.sandbox.command(command).await;
        let result = result_number(&stage, name, 1).await;
        assert_eq!(
            (&result["success"], &result["result"]),
            (&json!(false), &Value::Null),
            "{name}: {result}"
        );
        let error = result["error_message"].as_str().expect("why");
        assert!(error.starts_with("refused: ") && error.contains(why), "{name}: {error}");
    }
    let metrics = stage.agent.metrics().await;
    assert_eq!(metrics.sum("dataplane_drain_rate_limit", &[]) as u64, 0, "none of them was obeyed");
    assert_eq!(counted(&stage, "set_rate_limit", "refused").await, forgeries.len() as u64);
    assert_eq!(counted(&stage, "set_rate_limit", "succeeded").await, 0);
    let log = stage.agent.log();
    assert_eq!(log.matches("security: a command was refused").count(), forgeries.len(), "{log}");
    assert!(!log.contains("eyJ"), "no token is in the log: {log}");

    // And a valid one: the refusals have no other reason.
    let mut command = limit("good");
    command["token"] = key.sign(&claims(&command)).into();
    stage.sandbox.command(command).await;
    let result = result_number(&stage, "good", 1).await;
    assert_eq!((&result["success"], &result["result"]["rate_limit"]), (&json!(true), &json!(7)), "{result}");
}

#[tokio::test]
async fn a_command_that_is_played_back_does_nothing_not_even_after_a_restart() {
    let mut stage = stage(&[]).await;
    let pause = json!({"command_type": "pause_drain", "server_id": SERVER_ID, "sign": true});
    let pause = stage.sandbox.command(pause).await;
    let id = pause["command_id"].as_str().expect("an id").to_owned();
    let first = result_number(&stage, &id, 1).await;
    assert!(first["success"] == true && paused(&stage).await, "{first}");
    assert_eq!(obeyed(&stage, "resume_drain", json!(null)).await["result"]["paused"], false);

    // The same id and token again.
    stage.sandbox.command(pause.clone()).await;
    let again = result_number(&stage, &id, 2).await;
    assert_eq!(again, first, "what became of it the first time");
    assert!(!paused(&stage).await);
    assert_eq!(counted(&stage, "pause_drain", "repeated").await, 1);
    // The same token under another id.
    let mut other = pause.clone();
    other["command_id"] = "another".into();
    stage.sandbox.command(other).await;
    let refused = result_number(&stage, "another", 1).await;
    assert!(refused["error_message"].as_str().expect("why").contains("for another command"), "{refused}");

    stage.agent.kill();
    stage.agent.start();
    stage.agent.ready().await;
    stage.sandbox.command(pause).await;
    let again = result_number(&stage, &id, 3).await;
    assert!(!paused(&stage).await);
    assert_eq!(
        (&again["success"], &again["result"]["ended_by_restart"]),
        (&json!(true), &json!(true)),
        "{again}"
    );
    assert_eq!(again["execution_timestamp"], first["execution_timestamp"]);
    assert_eq!(counted(&stage, "pause_drain", "succeeded").await, 0, "not by this process");
}

#[tokio::test]
async fn each_type_of_command_has_its_effect() {
    let redis = super::harness::RedisServer::start().await;
    let sandbox = super::harness::Sandbox::start(&[]);
    let mut agent = super::harness::Agent::new(&redis, &sandbox.url);
    for (name, value) in [("COMMAND_POLL_INTERVAL", "0.1"), ("REFUSAL_BRAKE", "0")] {
        agent.set(name, value);
    }
    let dotenv = agent.dir().join(".env");
    std::fs::write(&dotenv, "DRAIN_RATE_LIMIT=3000\n").expect("a file");
    agent.start();
    agent.ready().await;
    let mut stage = Stage { redis, sandbox, agent };

    // Read-only commands need no token.
    for kind in ["refresh_public_keys", "health_check", "get_metrics"] {
        stage.sandbox.command(json!({"command_type": kind, "command_id": kind})).await;
        assert_eq!(result_number(&stage, kind, 1).await["success"], true, "{kind}");
    }
    assert_eq!(stage.sandbox.accounts().await.requests("public_keys", "200"), 1);
    let health = result_number(&stage, "health_check", 1).await["result"].take();
    assert_eq!(
        (&health["status"], &health["redis_connected"], &health["drain"]["link"]),
        (&json!("online"), &json!(true), &json!("up")),
        "{health}"
    );
    let figures = result_number(&stage, "get_metrics", 1).await["result"].take();
    assert!(figures["outbox_depth"] == 0 && figures["memory_usage_mb"].as_f64() > Some(1.0), "{figures}");

    // The drain.
    assert_eq!(obeyed(&stage, "pause_drain", json!(null)).await["result"]["paused"], true);
    assert!(paused(&stage).await);
    assert_eq!(obeyed(&stage, "resume_drain", json!({"why": "whatever"})).await["result"]["paused"], false);
    let done = obeyed(&stage, "set_rate_limit", json!({"rate_limit": 500, "burst": 50})).await;
    assert_eq!(
        (&done["result"]["rate_limit"], &done["result"]["burst"]),
        (&json!(500), &json!(50)),
        "{done}"
    );
    assert_eq!(stage.agent.metrics().await.sum("dataplane_drain_rate_limit", &[]) as u64, 500);
    // The log.
    let said = |stage: &Stage| stage.agent.log().matches(r#""command_type":"set_log_level""#).count();
    assert_eq!(obeyed(&stage, "set_log_level", json!({"level": "ERROR"})).await["result"]["level"], "ERROR");
    assert_eq!(said(&stage), 0, "what is no error is not logged, this command among it");
    assert_eq!(obeyed(&stage, "set_log_level", json!({"level": "INFO"})).await["result"]["level"], "INFO");
    until("it is logged", async || (said(&stage) == 1).then_some(())).await;
    // Dead letters.
    stage.sandbox.weather(json!({"refuse_transactions": ["usage-bad"]})).await;
    let refused: Vec<String> = (0..3).map(|n| load::usage("bad", n)).collect();
    stage.redis.push(USAGE, &refused).await;
    until("all are dead letters", async || {
        (stage.agent.health().await?["outbox"]["dead_letters"] == 3).then_some(())
    })
    .await;
    stage.sandbox.weather(json!({})).await;
    let done = obeyed(&stage, "replay_dead_letters", json!({"reason": "refused"})).await;
    assert_eq!(done["result"], json!({"replayed": 3, "not_records": 0, "unknown": 0, "next": null}));
    stage.drained().await;
    assert_eq!(stage.sandbox.accounts().await.kind("usage", "processed"), 3);
    // The settings.
    std::fs::write(&dotenv, "DRAIN_RATE_LIMIT=4000\nDRAIN_CONCURRENCY=4\n").expect("a file");
    let done = obeyed(&stage, "reload_configuration", json!(null)).await;
    assert_eq!(done["result"], json!({"need_restart": ["DRAIN_CONCURRENCY"]}));
    assert_eq!(stage.agent.metrics().await.sum("dataplane_drain_rate_limit", &[]) as u64, 4000);

    // Impossible commands are reported.
    std::fs::write(&dotenv, "DRAIN_RATE_LIMIT=many\n").expect("a file");
    for (kind, parameters, why) in [
        ("reload_configuration", json!(null), "DRAIN_RATE_LIMIT"),
        ("set_rate_limit", json!({"rate_limit": 1_000_001}), "at most 1000000"),
        ("set_log_level", json!({"level": "LOUD"}), "LOUD"),
        ("replay_dead_letters", json!({}), "give one of ids, reason or all"),
    ] {
        let result = obeyed(&stage, kind, parameters).await;
        let error = result["error_message"].as_str().expect("why");
        assert!(result["success"] == false && error.contains(why), "{kind}: {result}");
        assert_eq!(counted(&stage, kind, "failed").await, 1, "{kind}");
    }
    stage.sandbox.command(json!({"command_type": "self_destruct", "command_id": "x"})).await;
    let result = result_number(&stage, "x", 1).await;
    assert!(result["error_message"].as_str().expect("why").contains("unknown command type"), "{result}");
    assert_eq!(counted(&stage, "unknown", "failed").await, 1);
    stage.agent.metrics().await.assert_conserved();
}

#[tokio::test]
async fn keys_are_fetched_again_for_an_unknown_one_and_not_for_each() {
    let stage = stage(&[]).await;
    let fetches = async || stage.sandbox.accounts().await.all_requests("public_keys");
    obeyed(&stage, "pause_drain", json!(null)).await;
    obeyed(&stage, "pause_drain", json!(null)).await;
    assert_eq!(fetches().await, 1, "kept");
    stage.sandbox.rotate_keys().await;
    let done = obeyed(&stage, "resume_drain", json!(null)).await;
    assert_eq!(done["success"], true, "signed with the new key: {done}");
    assert_eq!(fetches().await, 2);

    // Somebody sends commands signed with unknown keys, a new one each time.
    let (begun, mut ids) = (Instant::now(), Vec::new());
    let stranger = SigningKey::new("stranger");
    for n in 0..20 {
        let id = format!("unknown-{n}");
        let mut command = json!({"command_id": id, "command_type": "pause_drain", "server_id": SERVER_ID});
        command["token"] = stranger.sign(&claims(&command)).into();
        stage.sandbox.command(command).await;
        ids.push(id);
    }
    for id in &ids {
        let result = result_number(&stage, id, 1).await;
        assert!(result["error_message"].as_str().expect("why").contains("key is not one of"), "{result}");
    }
    let most = 2 + 1 + begun.elapsed().as_secs() / 10;
    assert!(fetches().await <= most, "{} fetches, where {most} are allowed", fetches().await);
    assert!(!paused(&stage).await);
}

#[tokio::test]
async fn withdrawn_keys_are_valid_no_longer_than_the_cache() {
    let stage = stage(&[("JWT_PUBLIC_KEYS_CACHE_TTL", "0.2")]).await;
    let (old, new) = (SigningKey::new("old"), SigningKey::new("new"));
    stage.sandbox.put_keys(&old.key_set()).await;
    let pause = |id: &str| {
        let mut command = json!({"command_id": id, "command_type": "pause_drain", "server_id": SERVER_ID});
        command["token"] = old.sign(&claims(&command)).into();
        command
    };
    stage.sandbox.command(pause("before")).await;
    assert_eq!(result_number(&stage, "before", 1).await["success"], true);
    stage.sandbox.put_keys(&new.key_set()).await;
    let withdrawn = Instant::now();
    until("they are too old", async || (withdrawn.elapsed().as_secs_f64() > 0.2).then_some(())).await;
    stage.sandbox.command(pause("after")).await;
    assert_eq!(result_number(&stage, "after", 1).await["success"], false);
}

#[tokio::test]
async fn an_id_is_remembered_for_its_time_and_then_no_longer() {
    let stage = stage(&[("COMMAND_CACHE_TTL", "0.3")]).await;
    let ask = json!({"command_type": "get_metrics", "command_id": "m"});
    stage.sandbox.command(ask.clone()).await;
    result_number(&stage, "m", 1).await;
    let done = Instant::now();
    until("its time is over", async || (done.elapsed().as_secs_f64() > 0.3).then_some(())).await;
    // Expired entries are forgotten when the next command arrives.
    stage.sandbox.command(json!({"command_type": "get_metrics", "command_id": "n"})).await;
    result_number(&stage, "n", 1).await;
    stage.sandbox.command(ask).await;
    result_number(&stage, "m", 2).await;
    assert_eq!(counted(&stage, "get_metrics", "succeeded").await, 3);
    assert_eq!(counted(&stage, "get_metrics", "repeated").await, 0);
}

#[tokio::test]
async fn a_key_that_was_replaced_under_its_name_is_fetched() {
    let stage = stage(&[]).await;
    let (old, new) = (SigningKey::new("k"), SigningKey::new("k"));
    for (id, key) in [("before", &old), ("after", &new)] {
        stage.sandbox.put_keys(&key.key_set()).await;
        let mut command = json!({"command_id": id, "command_type": "pause_drain", "server_id": SERVER_ID});
        command["token"] = key.sign(&claims(&command)).into();
        stage.sandbox.command(command).await;
        let result = result_number(&stage, id, 1).await;
        assert_eq!(result["success"], true, "{result}");
    }
}
