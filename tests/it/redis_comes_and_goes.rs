//! Goal: a Redis that is away, restarts or misbehaves is waited out and reported, and costs no record.

use super::harness::{Agent, RedisServer, Sandbox, Stage, USAGE, load, until};

#[tokio::test]
async fn redis_away_at_the_start_is_waited_for_and_reported_once() {
    let (mut redis, sandbox) = (RedisServer::stopped(), Sandbox::start(&[]));
    let mut agent = Agent::new(&redis, &sandbox.url);
    agent.start();
    let health = until("health says that Redis is away", async || {
        let health = agent.health().await?;
        health["components"]["redis"]["reason"].as_str()?.contains("refused").then_some(health)
    })
    .await;
    assert_eq!(health["status"], "degraded");
    assert_eq!(health["redis_connected"], false);
    assert_eq!(agent.get("/health").await.expect("it answers").0, 200);
    assert_eq!(agent.get("/health/detailed").await.expect("it answers").0, 503);
    redis.restart().await;
    agent.ready().await;
    agent.says_times("cannot use Redis", 1).await;
    assert!(agent.log().contains(&format!("127.0.0.1:{}", redis.port)), "the log says which Redis");
    redis.push(USAGE, &[load::usage("s", 0)]).await;
    Stage { redis, sandbox, agent }.drained().await;
}

#[tokio::test]
async fn the_depth_of_a_queue_is_unknown_while_redis_is_away_or_its_key_has_another_type() {
    let mut stage = Stage::set().await;
    let known = async |samples: usize| {
        until(&format!("{samples} queues have a known depth"), async || {
            let metrics = stage.agent.metrics().await.0;
            let said = metrics.lines().filter(|line| line.starts_with("redis_queue_depth{")).count();
            let (_, json) = stage.agent.get("/metrics/json").await?;
            let json: serde_json::Value = serde_json::from_str(&json).ok()?;
            let depths = json["queue_metrics"].as_object()?.values();
            (said == samples && depths.filter(|depth| depth.is_u64()).count() == samples).then_some(())
        })
        .await;
    };
    known(3).await;
    stage.redis.run(redis::cmd("SET").arg("queue:quota_refresh").arg("oops")).await;
    known(2).await;
    stage.redis.kill();
    known(0).await;
    stage.redis.restart().await;
    // Redis has kept the key.
    known(2).await;
}

#[tokio::test]
async fn redis_killed_under_load_loses_and_doubles_nothing() {
    let mut stage = Stage::set().await;
    let mut pushed = 0;
    for round in 0..5 {
        pushed += load::push_sessions(&stage.redis, &format!("round-{round}"), 50, 10).await;
        // At any point of taking, committing and acknowledging.
        stage.redis.kill();
        stage.redis.restart().await;
        stage.agent.ready().await;
    }
    stage.drained().await;
    stage.assert_each_once(pushed).await;
}

#[tokio::test]
async fn a_key_of_another_type_in_a_queues_place_is_named_and_harms_no_other_queue() {
    let mut stage = Stage::set().await;
    stage.redis.run(redis::cmd("SET").arg("queue:quota_refresh").arg("oops")).await;
    stage.redis.push(USAGE, &[load::usage("s", 0)]).await;
    until("health names the key", async || {
        let health = stage.agent.health().await?;
        health["components"]["redis"]["reason"].as_str()?.contains("queue:quota_refresh").then_some(())
    })
    .await;
    until("the usage record is delivered", async || {
        (stage.sandbox.accounts().await.kind("usage", "processed") == 1).then_some(())
    })
    .await;
    stage.redis.run(redis::cmd("DEL").arg("queue:quota_refresh")).await;
    stage.redis.push("queue:quota_refresh", &[load::quota("s", 0)]).await;
    stage.drained().await;
    until("health is well again", async || {
        (stage.agent.health().await?["status"] == "healthy").then_some(())
    })
    .await;
}
