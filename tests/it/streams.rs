//! Goal: streams work like lists: everything is delivered once and in order; malformed messages are kept; vanished groups
//! and streams are created again. `crash_points.rs` covers crashes, `several_agents.rs` several agents.

use std::time::{Duration, Instant};

use super::harness::{Agent, DEAD_LETTERS, LIFECYCLE, RedisServer, Sandbox, Stage, USAGE, load, until};

async fn stage() -> Stage {
    Stage::set_with(&[("SOURCE_MODE", "stream")]).await
}

async fn pending(redis: &RedisServer) -> u64 {
    let (pending, ..): (u64, Option<String>, Option<String>, redis::Value) = redis::cmd("XPENDING")
        .arg(USAGE)
        .arg("dataplane-agent")
        .query_async(&mut redis.connection())
        .await
        .expect("a group");
    pending
}

#[tokio::test]
async fn whole_sessions_are_delivered_once_and_in_order_and_leave_nothing_behind() {
    let mut stage = stage().await;
    let mut pushed = load::add_sessions(&stage.redis, "a", 100, 30).await;
    stage.streams_drained().await;
    // Also after an idle time.
    pushed += load::add_sessions(&stage.redis, "b", 10, 3).await;
    stage.streams_drained().await;
    let accounts = stage.sandbox.accounts().await;
    assert_eq!(accounts.processed(), pushed);
    accounts.assert_in_order_and_recognisable();
    let metrics = stage.agent.metrics().await;
    metrics.assert_conserved();
    assert_eq!(metrics.sum("dataplane_outbox_enqueued_total", &[]), pushed as f64);
    assert_eq!(pending(&stage.redis).await, 0);
}

#[tokio::test]
async fn an_entry_without_the_field_becomes_a_dead_letter_with_what_it_holds() {
    let mut stage = stage().await;
    stage.redis.run(redis::cmd("XADD").arg(USAGE).arg("*").arg("payload").arg("secret sauce")).await;
    stage.redis.add(USAGE, &[load::usage("s", 0), "no json".into()]).await;
    stage.streams_drained().await;
    until("two dead letters are mirrored", async || (stage.redis.len(DEAD_LETTERS).await == 2).then_some(()))
        .await;
    let letters = stage.redis.list(DEAD_LETTERS).await;
    let oldest: serde_json::Value = serde_json::from_slice(&letters[1]).unwrap();
    assert_eq!(oldest["original_message"]["payload"], "secret sauce", "{oldest}");
    assert!(oldest["error_info"].as_str().unwrap().contains("data"), "{oldest}");
    assert_eq!(oldest["processing_queue"], USAGE);
    assert_eq!(stage.sandbox.accounts().await.kind("usage", "processed"), 1);
    assert_eq!(pending(&stage.redis).await, 0);
}

#[tokio::test]
async fn a_vanished_group_or_stream_is_recreated_and_nothing_is_taken_twice() {
    let mut stage = stage().await;
    let mut pushed = load::add_sessions(&stage.redis, "a", 20, 20).await;
    for round in 0..5 {
        for queue in [USAGE, LIFECYCLE] {
            stage.redis.run(redis::cmd("XGROUP").arg("DESTROY").arg(queue).arg("dataplane-agent")).await;
        }
        pushed += load::add_sessions(&stage.redis, &format!("b-{round}"), 20, 20).await;
    }
    stage.streams_drained().await;
    stage.redis.run(redis::cmd("DEL").arg(USAGE)).await;
    pushed += load::add_sessions(&stage.redis, "c", 5, 5).await;
    stage.streams_drained().await;
    let accounts = stage.sandbox.accounts().await;
    assert_eq!(accounts.processed(), pushed);
    let enqueued = stage.agent.metrics().await.sum("dataplane_outbox_enqueued_total", &[]);
    assert_eq!(enqueued, pushed as f64, "each was taken over exactly once");
}

#[tokio::test]
async fn entries_of_a_vanished_consumer_are_claimed() {
    let (redis, sandbox) = (RedisServer::start().await, Sandbox::start(&[]));
    let mut gone = Agent::new(&redis, &sandbox.url);
    gone.set("SERVER_ID", "gone");
    gone.set("SOURCE_MODE", "stream");
    gone.set("FAILPOINT", "intake::taken=1=abort");
    redis.add(USAGE, &(0..300).map(|n| load::usage("s", n)).collect::<Vec<_>>()).await;
    gone.start();
    gone.ended().await;
    assert_eq!(pending(&redis).await, 300);
    let mut other = Agent::new(&redis, &sandbox.url);
    other.set("SOURCE_MODE", "stream");
    other.set("ORPHAN_RECLAIM_SECONDS", "1");
    other.start();
    other.ready().await;
    let mut stage = Stage { redis, sandbox, agent: other };
    stage.streams_drained().await;
    assert_eq!(stage.sandbox.accounts().await.kind("usage", "processed"), 300);
    assert_eq!(stage.agent.metrics().await.sum("dataplane_outbox_enqueued_total", &[]), 300.0);
    assert_eq!(pending(&stage.redis).await, 0);
}

#[tokio::test]
async fn entries_trimmed_while_pending_are_reported_and_counted() {
    // By the agent they were delivered to, and by another that claims them.
    for heir in ["gone", "other"] {
        let (redis, sandbox) = (RedisServer::start().await, Sandbox::start(&[]));
        let mut gone = Agent::new(&redis, &sandbox.url);
        gone.set("SERVER_ID", "gone");
        gone.set("SOURCE_MODE", "stream");
        gone.set("FAILPOINT", "intake::taken=1=abort");
        redis.add(USAGE, &(0..300).map(|n| load::usage("s", n)).collect::<Vec<_>>()).await;
        gone.start();
        gone.ended().await;
        redis.run(redis::cmd("XTRIM").arg(USAGE).arg("MAXLEN").arg("=").arg(100)).await;
        let mut agent = Agent::new(&redis, &sandbox.url);
        if heir == "gone" {
            agent = gone;
            agent.unset("FAILPOINT");
        }
        agent.set("SOURCE_MODE", "stream");
        agent.set("ORPHAN_RECLAIM_SECONDS", "1");
        agent.start();
        agent.ready().await;
        let mut stage = Stage { redis, sandbox, agent };
        stage.streams_drained().await;
        until("nothing is pending", async || (pending(&stage.redis).await == 0).then_some(())).await;
        assert_eq!(stage.sandbox.accounts().await.kind("usage", "processed"), 100);
        let trimmed =
            stage.agent.metrics().await.sum("dataplane_stream_trimmed_total", &[("queue", "usage")]);
        assert_eq!(trimmed, 200.0, "{heir}");
        assert!(stage.agent.log().contains("were trimmed"), "{}", stage.agent.log());
    }
}

#[tokio::test]
async fn nothing_is_lost_or_doubled_by_kills_of_the_agent_and_of_redis_under_load() {
    let mut stage = stage().await;
    let mut pushed = 0;
    for round in 0..10 {
        pushed += load::add_sessions(&stage.redis, &format!("round-{round}"), 40, 8).await;
        // Not a wait for anything: the time of the crash is drawn.
        tokio::time::sleep(Duration::from_millis(rand::random_range(0..200))).await;
        if round % 2 == 0 {
            stage.agent.kill();
            stage.agent.start();
        } else {
            stage.redis.kill();
            stage.redis.restart().await;
        }
        stage.agent.ready().await;
    }
    stage.streams_drained().await;
    stage.assert_each_once(pushed).await;
}

#[tokio::test]
async fn a_list_in_a_streams_place_is_named_and_harms_no_other_stream() {
    let mut stage = stage().await;
    stage.redis.run(redis::cmd("DEL").arg(LIFECYCLE)).await;
    stage.redis.push(LIFECYCLE, &[load::started("s")]).await;
    stage.redis.add(USAGE, &[load::usage("s", 0)]).await;
    until("health names the key", async || {
        let health = stage.agent.health().await?;
        health["components"]["redis"]["reason"].as_str()?.contains(LIFECYCLE).then_some(())
    })
    .await;
    until("the usage record is delivered", async || {
        (stage.sandbox.accounts().await.kind("usage", "processed") == 1).then_some(())
    })
    .await;
    until("it is counted again and again", async || {
        let metrics = stage.agent.metrics().await;
        (metrics.sum("dataplane_redis_failures_total", &[("reason", "wrong_type")]) > 2.0).then_some(())
    })
    .await;
    stage.redis.run(redis::cmd("DEL").arg(LIFECYCLE)).await;
    stage.redis.add(LIFECYCLE, &[load::started("s")]).await;
    stage.streams_drained().await;
    assert_eq!(stage.sandbox.accounts().await.processed(), 2);
}

#[tokio::test]
async fn a_list_in_a_streams_place_from_the_start_is_not_polled_without_a_pause() {
    let (redis, sandbox) = (RedisServer::start().await, Sandbox::start(&[]));
    redis.push(LIFECYCLE, &[load::started("s")]).await;
    let mut agent = Agent::new(&redis, &sandbox.url);
    agent.set("SOURCE_MODE", "stream");
    agent.start();
    agent.ready().await;
    redis.add(USAGE, &[load::usage("s", 0)]).await;
    until("the usage record is delivered", async || {
        (sandbox.accounts().await.kind("usage", "processed") == 1).then_some(())
    })
    .await;
    // Without a pause it would quickly send as many commands as this; the rate counts, however slow the machine is.
    let (before, begun) = (redis.commands().await, Instant::now());
    until("it has asked for a while", async || (begun.elapsed() > Duration::from_secs(3)).then_some(()))
        .await;
    let (commands, seconds) = (redis.commands().await - before, begun.elapsed().as_secs_f64());
    assert!((commands as f64) < 100.0 * seconds, "{commands} commands in {seconds} s");
}
