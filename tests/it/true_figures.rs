//! Goal: the agent's figures about its backlog are correct in every state, and unknown ones are not shown: the age of the
//! oldest record, forecasts, and the depth of a Redis that is away.

use std::time::Instant;

use serde_json::{Value, json};

use super::harness::{Agent, RedisServer, Sandbox, Stage, USAGE, load, until};

const TOKEN: (&str, &str) = ("ADMIN_TOKEN", "a-token-of-the-operator");

/// Waits until this many records are in the outbox. Each of them is at least as old as the returned time.
async fn waiting(agent: &Agent, depth: u64) -> Instant {
    until("they wait in the outbox", async || {
        let health = agent.health().await?;
        (health["outbox"]["depth"] == depth).then_some(())
    })
    .await;
    Instant::now()
}

/// Asserts that the age is at least this, in metrics (rendered at most 50 times a second) and in health.
async fn assert_age(agent: &Agent, since: Instant) {
    let least = since.elapsed().as_secs_f64() - 0.1;
    let metric = agent.metrics().await.sum("dataplane_outbox_oldest_age_seconds", &[("kind", "usage")]);
    let health = agent.health().await.expect("it answers")["outbox"]["oldest_age_seconds"].clone();
    assert!(metric > 0.0 && metric >= least, "{metric} < {least}");
    assert!(health.as_f64().is_some_and(|age| age >= least), "{health} < {least}");
}

async fn push(redis: &RedisServer, count: u32) {
    let records: Vec<_> = (0..count).map(|n| load::usage(&format!("s-{n}"), 0)).collect();
    redis.push(USAGE, &records).await;
}

async fn status(agent: &Agent) -> Value {
    let (_, text) = until("it answers", async || agent.get("/status").await).await;
    serde_json::from_str(&text).expect("JSON")
}

async fn order(agent: &Agent, path: &str) {
    let http = reqwest::Client::builder().no_proxy().build().expect("a client");
    let answer = http.post(agent.url(path)).bearer_auth(TOKEN.1).send().await.expect("it answers");
    assert_eq!(answer.status(), 200);
}

#[tokio::test]
async fn a_paused_drain_shows_the_age_of_its_backlog_and_no_forecast() {
    let mut stage = Stage::set_with(&[TOKEN]).await;
    order(&stage.agent, "/admin/drain/pause").await;
    push(&stage.redis, 50).await;
    let since = waiting(&stage.agent, 50).await;
    assert_age(&stage.agent, since).await;
    let now = status(&stage.agent).await;
    assert_eq!(now["drained_in_seconds"], Value::Null, "{now}");
    let why = "not sending: paused by an operator, until it is resumed or restarted";
    assert_eq!((&now["no_forecast"], &now["reasons"]), (&json!(why), &json!([why])), "{now}");
    let once = stage.agent.command(&[], &["top", "--once"]).await;
    assert!(once.out.contains(why), "{once:?}");
    order(&stage.agent, "/admin/drain/resume").await;
    stage.drained().await;
    until("nothing waits, and that is said", async || {
        let now = status(&stage.agent).await;
        (now["drained_in_seconds"] == 0.0 && now["no_forecast"].is_null()).then_some(())
    })
    .await;
    let age = stage.agent.metrics().await.sum("dataplane_outbox_oldest_age_seconds", &[]);
    assert_eq!(age, 0.0, "nothing waits");
}

#[tokio::test]
async fn a_link_that_was_never_up_and_a_restart_do_not_hide_the_age() {
    let redis = RedisServer::start().await;
    let mut agent = Agent::new(&redis, "http://127.0.0.1:1");
    agent.start();
    agent.ready().await;
    push(&redis, 300).await;
    let since = waiting(&agent, 300).await;
    assert_age(&agent, since).await;
    until("the link is told to be down, and that there is no forecast for it", async || {
        let now = status(&agent).await;
        let why = now["no_forecast"].as_str()?.to_owned();
        (now["drained_in_seconds"].is_null() && why.starts_with("the link is down: ")).then_some(())
    })
    .await;
    agent.kill();
    agent.start();
    // The first scrape that is answered.
    assert_age(&agent, since).await;
}

#[tokio::test]
async fn records_behind_a_held_kind_have_their_age() {
    let sandbox = Sandbox::start(&[]);
    sandbox.weather(json!({"always": 422})).await;
    let stage = Stage::set_around(sandbox, &[("REFUSAL_BRAKE", "3")]).await;
    push(&stage.redis, 500).await;
    until("the brake holds", async || {
        let link = stage.agent.health().await?["components"]["control_plane"]["link"].clone();
        link.as_str()?.ends_with("refusing").then_some(())
    })
    .await;
    // All of them have been accepted by now.
    until("none is left in Redis", async || (stage.redis.len(USAGE).await == 0).then_some(())).await;
    assert_age(&stage.agent, Instant::now()).await;
    let now = status(&stage.agent).await;
    let why = now["no_forecast"].as_str().expect("a reason");
    assert!(
        why.starts_with("usage_record records are held: refusing: the ControlPlane refuses every"),
        "{now}"
    );
}

#[tokio::test]
async fn the_depth_of_a_redis_that_is_away_is_unknown_and_not_zero() {
    let mut stage = Stage::set().await;
    until("the depth is known", async || {
        (status(&stage.agent).await["kinds"]["usage"]["in_redis"] == 0).then_some(())
    })
    .await;
    stage.redis.kill();
    let now = until("Redis is said to be away", async || {
        let now = status(&stage.agent).await;
        (now["redis"]["connected"] == false).then_some(now)
    })
    .await;
    assert_eq!(now["kinds"]["usage"]["in_redis"], Value::Null, "{now}");
    assert_eq!((&now["status"], &now["drained_in_seconds"]), (&json!("degraded"), &Value::Null), "{now}");
    assert!(now["reasons"][0].as_str().is_some_and(|why| why.starts_with("Redis: ")), "{now}");
    assert!(now["no_forecast"].as_str().is_some_and(|why| why == "the backlog in Redis is unknown"), "{now}");
    let (_, metrics) = stage.agent.get("/metrics/json").await.expect("it answers");
    let metrics: Value = serde_json::from_str(&metrics).expect("JSON");
    assert_eq!(metrics["queue_metrics"][USAGE], Value::Null, "{metrics}");
    let once = stage.agent.command(&[], &["top", "--once", "--interval", "0.1"]).await;
    assert!(once.out.contains(", – waiting there"), "{once:?}");
}
