//! Goal: stopping is quick, complete and polite; a second agent on the same outbox is refused.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::Request;
use rustix::process::Signal;
use serde_json::json;

use super::harness::{
    Agent, LIFECYCLE, Mode, QUOTA, QUOTA_ANSWERS, RedisServer, SERVER_ID, Sandbox, Stage, USAGE, load, taken,
    until,
};

#[tokio::test]
async fn sigterm_finishes_what_is_in_flight_says_goodbye_and_exits_with_0() {
    let mut stage = Stage::set().await;
    until("the agent is registered", async || {
        (stage.agent.health().await?["server_registered"] == true).then_some(())
    })
    .await;
    stage.sandbox.weather(json!({"latency_ms": 150})).await;
    let pushed = load::push_sessions(&stage.redis, "s", 40, 5).await;
    until("requests are in flight", async || {
        (stage.sandbox.accounts().await.0["in_flight"].as_u64()? > 0).then_some(())
    })
    .await;
    assert_eq!(stage.agent.stop().await.code(), Some(0), "{}", stage.agent.log());
    let accounts = stage.sandbox.accounts().await;
    assert_eq!(accounts.requests("shutdown", "200"), 1);
    let abandoned: u64 = ["usage", "started", "completed", "refresh"]
        .iter()
        .map(|endpoint| accounts.requests(endpoint, "abandoned"))
        .sum();
    assert_eq!(abandoned, 0, "requests in flight were waited for");

    stage.sandbox.weather(json!({})).await;
    stage.agent.start();
    stage.agent.ready().await;
    stage.drained().await;
    let accounts = stage.sandbox.accounts().await;
    assert_eq!(accounts.processed(), pushed);
    assert_eq!(accounts.sum("duplicates"), 0, "what was answered before the stop was settled");
    accounts.assert_in_order_and_recognisable();
}

#[tokio::test]
async fn an_answer_that_redis_does_not_take_holds_up_neither_an_export_nor_the_stop() {
    let mut stage = Stage::set_with(&[("ADMIN_TOKEN", "operator"), ("SHUTDOWN_TIMEOUT_SECONDS", "60")]).await;
    let mut connection = stage.redis.connection();
    let wrong = redis::cmd("SET").arg(QUOTA_ANSWERS).arg("no list").query_async(&mut connection).await;
    let () = wrong.expect("it is set");
    stage.redis.push(QUOTA, &[load::quota("s", 0)]).await;
    until("it was asked for", async || {
        (stage.sandbox.accounts().await.kind("quota", "processed") == 1).then_some(())
    })
    .await;
    let exported = stage.agent.command(&[], &["outbox", "export", "backlog", "--json"]).await;
    assert_eq!(exported.json()["exported"], 1, "{exported:?}");

    stage.redis.push(QUOTA, &[load::quota("s", 1)]).await;
    until("the next one, too", async || {
        (stage.sandbox.accounts().await.kind("quota", "processed") == 2).then_some(())
    })
    .await;
    assert_eq!(stage.agent.stop().await.code(), Some(0), "{}", stage.agent.log());
    assert!(!stage.agent.log().contains("did not stop in time"), "{}", stage.agent.log());
}

#[tokio::test]
async fn sigint_stops_it_too_even_without_redis_and_control_plane() {
    let mut stage = Stage::set().await;
    stage.redis.kill();
    stage.sandbox.weather(json!({"down": true})).await;
    stage.agent.signal(Signal::INT);
    assert_eq!(stage.agent.ended().await.code(), Some(0), "{}", stage.agent.log());
}

#[tokio::test]
async fn a_second_agent_on_the_same_outbox_ends_with_a_clear_error_and_the_first_goes_on() {
    let mut stage = Stage::set().await;
    let mut second = Agent::new(&stage.redis, &stage.sandbox.url);
    let outbox = stage.agent.dir().join("outbox");
    second.set("OUTBOX_DIR", outbox.to_str().expect("a path"));
    second.start();
    assert_eq!(second.ended().await.code(), Some(1));
    assert!(second.log().contains("another process has this outbox open"), "{}", second.log());
    second.says_times("waiting up to 10 s for the outbox", 1).await;
    let pushed = load::push_sessions(&stage.redis, "s", 5, 5).await;
    stage.drained().await;
    assert_eq!(stage.sandbox.accounts().await.processed(), pushed);
}

#[tokio::test]
async fn an_outbox_that_a_command_has_for_a_moment_is_waited_for() {
    let mut stage = Stage::set().await;
    assert!(stage.agent.stop().await.success());
    // As `outbox verify` does for a stopped agent.
    let lock = std::fs::File::open(stage.agent.dir().join("outbox/lock")).expect("the lock");
    lock.lock().expect("it is free");
    stage.agent.start();
    until("it waits", async || stage.agent.log().contains("waiting up to ").then_some(())).await;
    drop(lock);
    stage.agent.ready().await;
}

#[tokio::test]
async fn a_server_that_was_forgotten_registers_again() {
    let stage = Stage::set_with(&[("HEARTBEAT_INTERVAL", "0.2")]).await;
    let heartbeat = async || {
        let servers = stage.sandbox.servers().await;
        let heartbeat = servers["edge-test-1"]["last_heartbeat"].clone();
        (!heartbeat.is_null()).then_some(heartbeat)
    };
    let beat = until("a heartbeat comes", heartbeat).await;
    assert_eq!(beat["status"], "online");
    assert!(beat["metrics"]["outbox_depth"].is_number(), "{beat}");
    let server = stage.sandbox.servers().await["edge-test-1"]["registration"].take();
    for field in ["server_id", "region", "version", "ip_address", "port", "capabilities"] {
        assert!(server.get(field).is_some(), "{field}: {server}");
    }
    stage.sandbox.forget_servers().await;
    until("a heartbeat comes from a server that is registered anew", heartbeat).await;
}

#[tokio::test]
async fn a_client_that_sent_half_a_request_does_not_keep_it_from_stopping() {
    use tokio::io::AsyncWriteExt as _;

    let mut stage = Stage::set().await;
    let address = stage.agent.url("").trim_start_matches("http://").to_owned();
    let mut half = tokio::net::TcpStream::connect(&address).await.expect("a connection");
    half.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\nX").await.expect("half a request");
    let _idle = tokio::net::TcpStream::connect(&address).await.expect("a connection");
    assert_eq!(stage.agent.stop().await.code(), Some(0), "{}", stage.agent.log());
}

#[tokio::test]
async fn an_unanswered_heartbeat_or_registration_does_not_delay_the_stop() {
    for silent in ["/heartbeat", "/register"] {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&asked);
        let app = Router::new().fallback(async move |request: Request| {
            let path = request.uri().path().to_owned();
            let is_silent = path.ends_with(silent);
            log.lock().expect("no test panics here").push(path);
            if is_silent {
                std::future::pending::<()>().await;
            }
            taken()
        });
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("its address"));
        let plane = tokio::spawn(async move { axum::serve(listener, app).await.expect("it serves") });
        let has_asked = |what: &str| {
            asked.lock().expect("no test panics here").iter().any(|path: &String| path.ends_with(what))
        };
        let redis = RedisServer::start().await;
        let mut agent = Agent::new(&redis, &url);
        for (name, value) in [("HEARTBEAT_INTERVAL", "0.2"), ("CONTROL_PLANE_TIMEOUT", "600")] {
            agent.set(name, value);
        }
        agent.start();
        until(&format!("{silent} is asked"), async || has_asked(silent).then_some(())).await;
        assert_eq!(agent.stop().await.code(), Some(0), "{}", agent.log());
        assert!(!agent.log().contains("did not stop in time"), "{silent}: {}", agent.log());
        assert!(has_asked("/shutdown"), "{silent}: it says goodbye, for it may be known");
        plane.abort();
    }
}

#[tokio::test]
async fn messages_arriving_during_the_stop_stay_in_their_queue() {
    for mode in [Mode::List, Mode::Stream] {
        let (redis, sandbox) = (RedisServer::start().await, Sandbox::start(&[]));
        let mut agent = Agent::new(&redis, &sandbox.url);
        let held = agent.dir().join("held");
        agent.set("SOURCE_MODE", mode.name());
        agent.set("FAILPOINT", &format!("intake::releasing=1=hold:{}", held.display()));
        agent.start();
        agent.ready().await;
        // It is idle, and waits.
        mode.push(&redis, USAGE, &[load::usage("s", 0)]).await;
        until("it is delivered", async || (sandbox.accounts().await.processed() == 1).then_some(())).await;
        agent.signal(Signal::TERM);
        until("it is held before it gives up its name", async || held.exists().then_some(())).await;
        for queue in [USAGE, LIFECYCLE, QUOTA] {
            mode.push(&redis, queue, &["late".to_owned()]).await;
        }
        std::fs::remove_file(&held).expect("it is held by it");
        assert!(agent.ended().await.success());
        for queue in [USAGE, LIFECYCLE, QUOTA] {
            assert_eq!(mode.len(&redis, queue).await, 1, "{queue}");
            assert_eq!(redis.len(&format!("{queue}:processing:{SERVER_ID}")).await, 0, "{queue}");
        }
        let mut agents = redis::cmd("ZCARD");
        let agents: u64 = agents
            .arg(format!("{USAGE}:agents"))
            .query_async(&mut redis.connection())
            .await
            .expect("a count");
        assert_eq!(agents, 0, "it is struck off");
    }
}
