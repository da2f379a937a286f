//! Goal: any refusal of a Redis in production is waited out, reported once in the log and in health, and costs no record.
//! Method: a real redis-server brought into each state; a version that is too old is simulated.

use std::io::{Read as _, Write as _};
use std::time::Instant;

use redis::Value;
use rustix::process::Signal;

use super::harness::{Agent, LIFECYCLE, RedisServer, Sandbox, Stage, USAGE, load, until};

async fn reason(agent: &Agent, part: &str) {
    until(&format!("health's reason says {part:?}"), async || {
        let health = agent.health().await?;
        health["components"]["redis"]["reason"].as_str()?.contains(part).then_some(())
    })
    .await;
    assert_eq!(agent.get("/health").await.expect("it answers").0, 200, "this is no reason to be restarted");
}

async fn well_again(agent: &Agent) {
    until("health is well again", async || {
        (agent.health().await?["components"]["redis"]["status"] == "healthy").then_some(())
    })
    .await;
}

async fn set(redis: &RedisServer, name: &str, value: &str) {
    redis.run(redis::cmd("CONFIG").arg("SET").arg(name).arg(value)).await;
}

/// More than once: an alert notices only what continues.
async fn counted(agent: &Agent, reason: &str) {
    until(&format!("{reason} is counted again and again"), async || {
        let metrics = agent.metrics().await;
        (metrics.sum("dataplane_redis_failures_total", &[("reason", reason)]) > 2.0).then_some(())
    })
    .await;
}

fn failures(log: &str) -> usize {
    log.matches("cannot use Redis").count()
}

#[tokio::test]
async fn a_wrong_password_is_named_once_and_a_right_one_ends_it() {
    let (redis, sandbox) = (RedisServer::start().await, Sandbox::start(&[]));
    set(&redis, "requirepass", "right").await;
    let mut agent = Agent::new(&redis, &sandbox.url);
    agent.set("REDIS_PASSWORD", "wr0ng");
    agent.start();
    reason(&agent, "authentication failed").await;
    until("it has been tried again", async || {
        let failures = agent.metrics().await;
        (failures.sum("dataplane_redis_failures_total", &[("reason", "authentication")]) > 2.0).then_some(())
    })
    .await;
    assert_eq!(failures(&agent.log()), 1, "{}", agent.log());
    assert!(!agent.log().contains("wr0ng"), "{}", agent.log());
    // The agent's password becomes the right one.
    set(&redis, "requirepass", "wr0ng").await;
    well_again(&agent).await;
}

#[tokio::test]
async fn an_acl_user_needs_no_more_than_is_documented() {
    let (redis, sandbox) = (RedisServer::start().await, Sandbox::start(&[]));
    let mut user = redis::cmd("ACL");
    user.arg("SETUSER").arg("agent").arg("on").arg(">pass-word").arg("~queue:*");
    for rule in
        "-@all +@connection +@list +@stream +@string +@sortedset +@scripting +@keyspace -@dangerous +time"
            .split(' ')
    {
        user.arg(rule);
    }
    redis.run(&user).await;
    let mut agent = Agent::new(&redis, &sandbox.url);
    agent.unset("REDIS_PORT");
    agent.set("REDIS_URL", &format!("redis://agent:pass-word@127.0.0.1:{}/0", redis.port));
    agent.start();
    agent.ready().await;
    let pushed = load::push_sessions(&redis, "acl", 5, 3).await;
    redis.push(USAGE, &["no record"]).await;
    let mut stage = Stage { redis, sandbox, agent };
    stage.drained().await;
    assert_eq!(stage.sandbox.accounts().await.processed(), pushed);
    well_again(&stage.agent).await;
    until("the dead letter is mirrored", async || {
        (stage.redis.len("queue:dead_letter").await == 1).then_some(())
    })
    .await;
    assert!(!stage.agent.log().contains("NOPERM"), "{}", stage.agent.log());
}

#[tokio::test]
async fn a_redis_that_is_out_of_memory_is_still_emptied() {
    let (redis, sandbox) = (RedisServer::start().await, Sandbox::start(&[]));
    let pushed = load::push_sessions(&redis, "oom", 40, 20).await;
    set(&redis, "maxmemory", "1").await;
    let mut agent = Agent::new(&redis, &sandbox.url);
    agent.start();
    agent.ready().await;
    // Quota answers cannot be pushed, so the requests stay; everything else is delivered.
    until("everything but quota is delivered", async || {
        let accounts = sandbox.accounts().await;
        (accounts.processed() - accounts.kind("quota", "processed") == pushed - 40).then_some(())
    })
    .await;
    reason(&agent, "OOM").await;
    counted(&agent, "out_of_memory").await;
    set(&redis, "maxmemory", "0").await;
    well_again(&agent).await;
    let mut stage = Stage { redis, sandbox, agent };
    stage.drained().await;
    let accounts = stage.sandbox.accounts().await;
    assert_eq!(accounts.processed(), pushed);
    accounts.assert_in_order_and_recognisable();
    let enqueued = stage.agent.metrics().await.sum("dataplane_outbox_enqueued_total", &[]);
    assert_eq!(enqueued, pushed as f64);
    assert_eq!(failures(&stage.agent.log()), 0, "{}", stage.agent.log());
}

#[tokio::test]
async fn a_key_of_another_type_in_a_queues_place_is_named_and_counted_and_the_other_queues_go_on() {
    let mut stage = Stage::set().await;
    stage.redis.run(redis::cmd("SET").arg(USAGE).arg("x")).await;
    reason(&stage.agent, USAGE).await;
    counted(&stage.agent, "wrong_type").await;
    stage.redis.push(LIFECYCLE, &[load::started("s")]).await;
    until("the event is delivered", async || (stage.sandbox.accounts().await.processed() == 1).then_some(()))
        .await;
    stage.redis.run(redis::cmd("DEL").arg(USAGE)).await;
    well_again(&stage.agent).await;
    stage.redis.push(USAGE, &[load::usage("s", 0)]).await;
    stage.drained().await;
    assert_eq!(stage.sandbox.accounts().await.processed(), 2);

    // Pushes: quota answers and mirrored dead letters. The health of the queues does not show them.
    let before =
        stage.agent.metrics().await.sum("dataplane_redis_failures_total", &[("reason", "wrong_type")]);
    stage.redis.run(redis::cmd("SET").arg("queue:dead_letter").arg("x")).await;
    stage.redis.push(USAGE, &["no record"]).await;
    until("it is counted", async || {
        let metrics = stage.agent.metrics().await;
        (metrics.sum("dataplane_redis_failures_total", &[("reason", "wrong_type")]) > before + 1.0)
            .then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_replica_after_a_fail_over_is_waited_out_and_reported_once() {
    let mut stage = Stage::set().await;
    stage.redis.push(USAGE, &[load::usage("s", 0)]).await;
    stage.drained().await;
    // A replica of a missing primary: it keeps its data and refuses writes.
    stage.redis.run(redis::cmd("REPLICAOF").arg("127.0.0.1").arg(1)).await;
    reason(&stage.agent, "read only").await;
    let tried = async || {
        let metrics = stage.agent.metrics().await;
        metrics.sum("dataplane_redis_failures_total", &[("reason", "read_only")])
    };
    let before = tried().await;
    until("it has been tried again", async || (tried().await > before + 1.0).then_some(())).await;
    assert!(failures(&stage.agent.log()) <= 2, "{}", stage.agent.log());
    stage.redis.run(redis::cmd("REPLICAOF").arg("NO").arg("ONE")).await;
    well_again(&stage.agent).await;
    stage.redis.push(USAGE, &[load::usage("s", 1)]).await;
    stage.drained().await;
    assert_eq!(stage.sandbox.accounts().await.kind("usage", "processed"), 2);
}

#[tokio::test]
async fn a_redis_that_loads_its_data_is_waited_for() {
    let (mut redis, sandbox) = (RedisServer::start().await, Sandbox::start(&[]));
    let records: Vec<_> = (0..2000).map(|n| load::usage("s", n)).collect();
    redis.push(USAGE, &records).await;
    // Loading takes a millisecond per key, and Redis serves its connections now and then meanwhile.
    for n in 0..3000 {
        redis.run(redis::cmd("SET").arg(format!("filler:{n}")).arg("x")).await;
    }
    redis.run(redis::cmd("BGREWRITEAOF").arg(&[] as &[&str])).await;
    until("the file is written anew", async || {
        let info: String = redis::cmd("INFO")
            .arg("persistence")
            .query_async(&mut redis.connection())
            .await
            .expect("it answers");
        info.contains("aof_rewrite_in_progress:0").then_some(())
    })
    .await;
    redis.kill();
    let mut agent = Agent::new(&redis, &sandbox.url);
    agent.start();
    reason(&agent, "refused").await;
    redis.add_flags(&["--key-load-delay", "1000", "--loading-process-events-interval-bytes", "1024"]);
    redis.restart_without_waiting();
    reason(&agent, "loading").await;
    redis.answering().await;
    well_again(&agent).await;
    assert_eq!(failures(&agent.log()), 2, "away, then loading: {}", agent.log());
    let mut stage = Stage { redis, sandbox, agent };
    stage.drained().await;
    assert_eq!(stage.sandbox.accounts().await.kind("usage", "processed"), 2000);
}

#[tokio::test]
async fn a_redis_that_hangs_is_given_up_and_found_again_and_late_answers_do_no_harm() {
    let mut stage = Stage::set_with(&[("REDIS_SOCKET_TIMEOUT", "1")]).await;
    let mut pushed = 0;
    for round in 0..3 {
        pushed += load::push_sessions(&stage.redis, &format!("hang-{round}"), 40, 10).await;
        stage.redis.signal(Signal::STOP);
        until("health says that Redis does not answer", async || {
            (stage.agent.health().await?["redis_connected"] == false).then_some(())
        })
        .await;
        // Commands sent meanwhile arrive now, over connections that were given up.
        stage.redis.signal(Signal::CONT);
        stage.agent.ready().await;
    }
    stage.drained().await;
    stage.assert_each_once(pushed).await;
}

#[tokio::test]
async fn an_in_flight_list_that_somebody_deleted_costs_no_later_record() {
    let mut stage = Stage::set().await;
    for round in 0..20 {
        stage
            .redis
            .push(USAGE, &(0..200).map(|n| load::usage("s", round * 200 + n)).collect::<Vec<_>>())
            .await;
        stage.redis.run(redis::cmd("DEL").arg(format!("{USAGE}:processing:edge-test-1"))).await;
    }
    stage.redis.push(USAGE, &[load::usage("last", 0)]).await;
    // Messages deleted before they were durable are lost; nothing else is.
    until("the last record is delivered", async || {
        // Not looked up among the sandbox's latest records: it may have overtaken the other session's.
        (stage.sandbox.accounts().await.0["sessions"] == 2).then_some(())
    })
    .await;
    stage.drained().await;
}

#[tokio::test]
async fn a_redis_that_is_too_old_is_an_error_at_the_start_that_names_its_version() {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    // Answers INFO as Redis 6.0 does, and everything else with OK.
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let Ok(mut socket) = socket else { return };
            std::thread::spawn(move || {
                let mut bytes = [0; 4096];
                while let Ok(n @ 1..) = socket.read(&mut bytes) {
                    let text = String::from_utf8_lossy(&bytes[..n]).into_owned();
                    for _ in 0..text.matches('*').count() {
                        let info = "redis_version:6.0.16\r\n";
                        let answer = if text.contains("INFO\r\n$6") {
                            format!("${}\r\n{info}\r\n", info.len())
                        } else {
                            "+OK\r\n".to_owned()
                        };
                        let _ = socket.write_all(answer.as_bytes());
                    }
                }
            });
        }
    });
    let (redis, sandbox) = (RedisServer::stopped(), Sandbox::start(&[]));
    let mut agent = Agent::new(&redis, &sandbox.url);
    agent.set("REDIS_PORT", &port.to_string());
    agent.start();
    let status = agent.ended().await;
    assert_eq!(status.code(), Some(1), "{}", agent.log());
    assert!(agent.log().contains("Redis 6.0.16 is too old"), "{}", agent.log());
}

#[tokio::test]
async fn an_idle_agent_uses_hardly_any_cpu() {
    let stage = Stage::set().await;
    stage.redis.push(USAGE, &[load::usage("s", 0)]).await;
    let ticks = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", stage.agent.pid())).unwrap();
        let fields: Vec<_> = stat.rsplit(") ").next().unwrap().split(' ').map(str::to_owned).collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    let (ticks_before, calls_before, begun) = (ticks(), stage.redis.commands().await, Instant::now());
    // The measurement takes time.
    tokio::time::sleep(std::time::Duration::from_secs(6)).await;
    let (ticks, calls, took) =
        (ticks() - ticks_before, stage.redis.commands().await - calls_before, begun.elapsed());
    // A tick is 10 ms; a debug build beside other tests may use ten times what a release build is promised to use.
    assert!(ticks as f64 * 0.01 < took.as_secs_f64() * 0.05, "{ticks} ticks in {took:?}");
    assert!(calls < 300, "{calls} commands in {took:?}");
    assert_eq!(
        stage.redis.run(redis::cmd("PING").arg(&[] as &[&str])).await,
        Value::SimpleString("PONG".into())
    );
}
