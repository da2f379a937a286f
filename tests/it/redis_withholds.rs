//! Goal: the agent works with a Redis that cuts off large answers or has renamed commands; `check` and the reason name the
//! cause. Method: a real redis-server, configured accordingly.

use super::harness::{Agent, DEAD_LETTERS, LIFECYCLE, Mode, RedisServer, Sandbox, Stage, USAGE, load, until};

const CHECK: [&str; 2] = ["check", "--json"];

fn finding(report: &serde_json::Value, what: &str) -> Option<serde_json::Value> {
    report["checks"].as_array()?.iter().find(|check| check["what"] == what).cloned()
}

async fn cutting(limit: &str) -> RedisServer {
    let mut redis = RedisServer::with(&["--client-output-buffer-limit", "normal", limit, "0", "0"]);
    redis.restart().await;
    redis
}

/// Usage records of this many bytes each.
fn records(session: &str, number: u32, bytes: usize) -> Vec<String> {
    let record = |n| {
        let mut record: serde_json::Value = serde_json::from_str(&load::usage(session, n)).expect("JSON");
        record["padding"] = "x".repeat(bytes).into();
        record.to_string()
    };
    (0..number).map(record).collect()
}

#[tokio::test]
async fn after_answers_that_were_cut_off_rounds_are_smaller_and_all_is_taken() {
    for mode in [Mode::List, Mode::Stream] {
        let (redis, sandbox) = (cutting("512kb").await, Sandbox::start(&[]));
        mode.push(&redis, USAGE, &records("small", 1000, 4 << 10)).await;
        for record in records("large", 20, 240 << 10) {
            mode.push(&redis, USAGE, &[record]).await;
        }
        let pushed = 1020 + mode.push_sessions(&redis, "s", 10, 10).await;
        let mut agent = Agent::new(&redis, &sandbox.url);
        agent.set("SOURCE_MODE", mode.name());
        agent.start();
        agent.ready().await;
        let mut stage = Stage { redis, sandbox, agent };
        mode.drained(&mut stage).await;
        stage.assert_each_once(pushed).await;
        let cut = stage.agent.metrics().await;
        assert!(cut.sum("dataplane_redis_failures_total", &[("reason", "answer_cut")]) > 0.0);
        let log = stage.agent.log();
        assert!(log.contains("client-output-buffer-limit"), "{log}");

        let report = stage.agent.command(&[], &CHECK).await.json();
        let found = finding(&report, "redis_answers").expect("a finding");
        assert_eq!(found["state"], "warning");
        assert!(found["advice"].as_str().expect("advice").contains("client-output-buffer-limit"), "{found}");
    }
}

#[tokio::test]
async fn a_single_message_that_is_cut_off_is_moved_if_it_can_be_no_record_and_named_if_it_can() {
    for mode in [Mode::List, Mode::Stream] {
        let (redis, sandbox) = (cutting("300kb").await, Sandbox::start(&[]));
        for record in records("one", 3, 240 << 10) {
            mode.push(&redis, USAGE, &[record]).await;
        }
        mode.push(&redis, USAGE, &["x".repeat(700 << 10)]).await;
        mode.push(&redis, LIFECYCLE, &[load::started("one")]).await;
        let mut agent = Agent::new(&redis, &sandbox.url);
        agent.set("SOURCE_MODE", mode.name());
        agent.start();
        agent.ready().await;
        let mut stage = Stage { redis, sandbox, agent };
        mode.drained(&mut stage).await;
        assert_eq!(stage.sandbox.accounts().await.processed(), 4);
        assert_eq!(stage.redis.len(&format!("{USAGE}:oversize")).await, 1);
        until("its dead letter is mirrored", async || {
            (stage.redis.len(DEAD_LETTERS).await == 1).then_some(())
        })
        .await;

        stage
            .redis
            .run(redis::cmd("CONFIG").arg("SET").arg("client-output-buffer-limit").arg("normal 100kb 0 0"))
            .await;
        mode.push(&stage.redis, USAGE, &records("two", 1, 240 << 10)).await;
        until("health says what it is", async || {
            let health = stage.agent.health().await?;
            let reason = health["components"]["redis"]["reason"].as_str()?;
            (reason.contains("client-output-buffer-limit") && reason.contains("one message")).then_some(())
        })
        .await;
        stage
            .redis
            .run(redis::cmd("CONFIG").arg("SET").arg("client-output-buffer-limit").arg("normal 0 0 0"))
            .await;
        mode.drained(&mut stage).await;
        assert_eq!(stage.sandbox.accounts().await.processed(), 5);
    }
}

#[tokio::test]
async fn renamed_optional_commands_are_not_needed() {
    for mode in [Mode::List, Mode::Stream] {
        let mut flags = Vec::new();
        let hidden =
            ["INFO", "HELLO", "SCRIPT", "EVALSHA", "CLIENT"].map(|name| (name, format!("hidden-{name}")));
        for (name, hidden) in &hidden {
            flags.extend(["--rename-command", name, hidden]);
        }
        let mut redis = RedisServer::with(&flags);
        redis.restart().await;
        let sandbox = Sandbox::start(&[]);
        let mut agent = Agent::new(&redis, &sandbox.url);
        agent.set("SOURCE_MODE", mode.name());
        let before = agent.command(&[], &CHECK).await.json();
        agent.start();
        agent.ready().await;
        let mut stage = Stage { redis, sandbox, agent };
        let mut pushed = mode.push_sessions(&stage.redis, "a", 10, 10).await;
        mode.drained(&mut stage).await;
        // Also after an idle time.
        pushed += mode.push_sessions(&stage.redis, "b", 10, 10).await;
        mode.drained(&mut stage).await;
        stage.assert_each_once(pushed).await;
        assert!(!stage.agent.log().contains("cannot use Redis"), "{}", stage.agent.log());

        assert_eq!(before["ok"], true, "{before}");
        let says = |what: &str| {
            finding(&before, what).map(|found| found["says"].as_str().expect("words").to_owned())
        };
        assert!(says("redis").expect("a finding").contains("HELLO"), "{before}");
        assert!(says("redis_rights").expect("a finding").contains("EVALSHA"), "{before}");
        assert_eq!(says("redis_waiting").is_some(), mode == Mode::Stream, "{before}");
    }
}

#[tokio::test]
async fn a_renamed_required_command_is_named_by_check() {
    let mut redis = RedisServer::with(&["--rename-command", "LMOVE", "hidden-LMOVE"]);
    redis.restart().await;
    let sandbox = Sandbox::start(&[]);
    let agent = Agent::new(&redis, &sandbox.url);
    let said = agent.command(&[], &CHECK).await;
    assert_eq!(said.code, 1, "{said:?}");
    let report: serde_json::Value = serde_json::from_str(&said.out).expect("JSON");
    let found = finding(&report, "redis_rights").expect("a finding");
    assert!(found["says"].as_str().expect("words").contains("renamed: LMOVE"), "{found}");
}
