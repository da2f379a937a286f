//! Goal: the ControlPlane knows an agent's state, a fleet's heartbeats are spread, and an idle agent knows whether it is
//! connected.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Instant;

use axum::http::StatusCode;
use axum::response::IntoResponse as _;
use serde_json::json;

use super::harness::{Agent, RedisServer, Scripted, Stage, USAGE, load, taken, until};

#[tokio::test]
async fn a_heartbeat_contains_every_metric() {
    let settings = [("HEARTBEAT_INTERVAL", "0.2"), ("REFUSAL_BRAKE", "0")];
    let mut stage = Stage::set_with(&settings).await;
    stage.sandbox.weather(json!({"refuse_transactions": ["usage-bad"]})).await;
    let records = [load::usage("good", 0), load::usage("good", 1), load::usage("bad", 0), "{}".to_owned()];
    stage.redis.push(USAGE, &records).await;
    stage.drained().await;
    let metrics = until("a heartbeat that knows it", async || {
        let metrics = stage.sandbox.servers().await["edge-test-1"]["last_heartbeat"]["metrics"].clone();
        (metrics["usage_records_processed"] == 2 && metrics["dead_letters"] == 2).then_some(metrics)
    })
    .await;
    let mut names: Vec<_> = metrics.as_object().expect("an object").keys().map(String::as_str).collect();
    names.sort_unstable();
    let expected = [
        "control_plane_requests",
        "cpu_usage_percent",
        "dead_letters",
        "failed_deliveries",
        "memory_usage_mb",
        "outbox_depth",
        "outbox_oldest_age_seconds",
        "redis_queue_depth",
        "uptime_seconds",
        "usage_records_processed",
    ];
    assert_eq!(names, expected);
    assert!(metrics.as_object().expect("an object").values().all(serde_json::Value::is_number), "{metrics}");
    assert_eq!(metrics["failed_deliveries"], 1, "what never was a record is none: {metrics}");
    assert!(metrics["control_plane_requests"].as_u64() >= Some(2), "{metrics}");
    assert!(metrics["memory_usage_mb"].as_f64() > Some(1.0), "{metrics}");
    let busy = metrics["cpu_usage_percent"].as_f64().expect("a number");
    assert!((0.0..=6400.0).contains(&busy), "{metrics}");
}

#[tokio::test]
async fn a_fleet_that_starts_at_once_does_not_beat_at_once() {
    // The first of eight is, on average, a ninth of the interval away.
    const INTERVAL: f64 = 40.0;
    let redis = RedisServer::start().await;
    let plane = Scripted::start_all(|_| taken()).await;
    let mut fleet: Vec<Agent> = (0..8)
        .map(|n| {
            let mut agent = Agent::new(&redis, &plane.url);
            agent.set("SERVER_ID", &format!("edge-{n}"));
            agent.set("HEARTBEAT_INTERVAL", &INTERVAL.to_string());
            agent.set("COMMAND_POLL_INTERVAL", "3600");
            agent
        })
        .collect();
    fleet.iter_mut().for_each(Agent::start);
    // From each server's registration to its first heartbeat.
    let first = until("a heart has beaten", async || {
        let (mut registered, mut beat) =
            (HashMap::<String, Instant>::new(), HashMap::<String, Instant>::new());
        for request in plane.received() {
            let server = request.json()["server_id"].as_str().map(str::to_owned);
            let path: Vec<&str> = request.path.split('/').collect();
            if let Some(server) = server {
                registered.entry(server).or_insert(request.at);
            } else if let [.., server, "heartbeat"] = path.as_slice() {
                beat.entry((*server).to_owned()).or_insert(request.at);
            }
        }
        let phase = |(server, at): (&String, &Instant)| Some(at.duration_since(*registered.get(server)?));
        beat.iter().filter_map(phase).min()
    })
    .await;
    // Without a random phase, none would come before nine tenths of the interval, on any machine.
    assert!(first.as_secs_f64() < 0.9 * INTERVAL, "{first:?}");
}

#[tokio::test]
async fn an_idle_agent_asks_whether_the_control_plane_is_well() {
    let settings = [
        ("HEARTBEAT_INTERVAL", "3600"),
        ("COMMAND_POLL_INTERVAL", "3600"),
        ("CONTROL_PLANE_HEALTH_CHECK_INTERVAL", "0.2"),
    ];
    let stage = Stage::set_with(&settings).await;
    let connected = async |wanted: bool| {
        until(&format!("connected: {wanted}"), async || {
            (stage.agent.health().await?["control_plane_connected"] == wanted).then_some(())
        })
        .await;
    };
    connected(true).await;
    stage.sandbox.weather(json!({"down": true})).await;
    connected(false).await;
    stage.sandbox.weather(json!({})).await;
    connected(true).await;
    assert!(stage.sandbox.accounts().await.requests("health", "200") > 0);
}

#[tokio::test]
async fn an_idle_agent_reports_a_control_plane_that_answers_nothing() {
    let stage = Stage::set_with(&[("HEARTBEAT_INTERVAL", "0.2")]).await;
    let health = async |status: &str| {
        until(&format!("it is {status}"), async || {
            let health = stage.agent.health().await?;
            (health["status"] == status).then_some(health)
        })
        .await
    };
    until("it is registered", async || {
        (stage.agent.health().await?["server_registered"] == true).then_some(())
    })
    .await;
    health("healthy").await;
    stage.sandbox.weather(json!({"down": true})).await;
    let told = health("degraded").await;
    let reason = told["reasons"][0].as_str().expect("a reason");
    assert!(reason.starts_with("requests to the ControlPlane fail: "), "{told}");
    let link = &told["components"]["control_plane"];
    assert_eq!(link["status"], "degraded", "{told}");
    assert!(link["link"].as_str().is_some_and(|link| link.starts_with("requests fail: ")), "{told}");
    let (_, status) = stage.agent.get("/status").await.expect("it answers");
    let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
    assert_eq!(status["link"]["state"], "requests fail", "{status}");
    assert!(link["cause"].is_string() && status["link"]["cause"].is_string(), "{told} {status}");
    stage.sandbox.weather(json!({})).await;
    health("healthy").await;
}

/// Every surface tells the same of an idle agent to which every answer is this one: the reason, in the metric that raises
/// the alert, and the runbook's section.
async fn idle_agent_tells(answer: fn() -> axum::response::Response, reason: &'static str, section: &str) {
    let redis = RedisServer::start().await;
    // A health check needs no credentials: its success says nothing about them.
    let plane = Scripted::start_all(move |request| match request.path.as_str() {
        "/api/v1/health" if reason == "credentials" => taken(),
        _ => answer(),
    })
    .await;
    let mut agent = Agent::new(&redis, &plane.url);
    agent.set("HEARTBEAT_INTERVAL", "0.3");
    agent.set("CONTROL_PLANE_HEALTH_CHECK_INTERVAL", "0.1");
    agent.start();
    agent.ready().await;
    let failing = async |reason: &str| {
        agent.metrics().await.sum("dataplane_control_plane_failing", &[("reason", reason)]) > 0.0
    };
    until(&format!("{reason}: the metric tells it"), async || failing(reason).await.then_some(())).await;
    let health = agent.health().await.expect("it answers");
    let link = &health["components"]["control_plane"]["link"];
    assert_eq!((&health["status"], link), (&json!("degraded"), &json!(format!("requests fail: {reason}"))));
    assert_eq!(health["control_plane_connected"], false, "{health}");
    let (_, status) = agent.get("/status").await.expect("it answers");
    let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
    let text = format!("requests to the ControlPlane fail: {reason}: ");
    let concerns = status["concerns"].as_array().expect("concerns");
    let concern =
        concerns.iter().find(|concern| concern["text"].as_str().is_some_and(|told| told.starts_with(&text)));
    assert_eq!(concern.expect("it is told")["runbook"], section, "{status}");
    assert_eq!(status["link"]["reason"], reason, "{status}");
    let once = agent.command(&[], &["top", "--once"]).await;
    assert!(once.out.contains(&format!("requests fail: {reason}")), "{once:?}");
    let metrics = agent.metrics().await;
    assert_eq!(metrics.sum("control_plane_connection_status", &[]), 0.0);
    assert_eq!(metrics.sum("dataplane_control_plane_failing", &[]), 1.0, "for one reason only");
    assert_eq!(metrics.sum("dataplane_link_state", &[]), 0.0, "no record has tried the link");
}

#[tokio::test]
async fn an_idle_agent_with_a_wrong_key_says_so() {
    idle_agent_tells(
        || StatusCode::UNAUTHORIZED.into_response(),
        "credentials",
        "DataplaneCredentialsRefused",
    )
    .await;
}

#[tokio::test]
async fn an_idle_agent_behind_a_portal_says_so() {
    idle_agent_tells(|| "<html>Sign in</html>".into_response(), "foreign_answer", "DataplaneForeignAnswers")
        .await;
}

#[tokio::test]
async fn an_idle_agent_of_a_control_plane_that_fails_says_so() {
    idle_agent_tells(|| StatusCode::BAD_GATEWAY.into_response(), "failing", "DataplaneControlPlaneSilent")
        .await;
}

#[tokio::test]
async fn refused_heartbeats_are_logged_once() {
    let redis = RedisServer::start().await;
    let plane = Scripted::start_all(|request| {
        let is_beat = request.path.ends_with("/heartbeat");
        if is_beat { StatusCode::FORBIDDEN.into_response() } else { taken() }
    })
    .await;
    let mut agent = Agent::new(&redis, &plane.url);
    agent.set("HEARTBEAT_INTERVAL", "0.1");
    agent.start();
    until("many heartbeats", async || {
        let received = plane.received();
        let beats = received.iter().filter(|request| request.path.ends_with("/heartbeat")).count();
        (beats >= 10).then_some(())
    })
    .await;
    agent.says_times("heartbeats fail", 1).await;
}

#[tokio::test]
async fn no_health_checks_are_sent_if_they_are_disabled() {
    let settings = [
        ("HEARTBEAT_INTERVAL", "0.3"),
        ("CONTROL_PLANE_HEALTH_CHECK_ENABLED", "false"),
        ("CONTROL_PLANE_HEALTH_CHECK_INTERVAL", "0.05"),
    ];
    let stage = Stage::set_with(&settings).await;
    until("the heart beats", async || {
        (stage.sandbox.accounts().await.all_requests("heartbeat") >= 6).then_some(())
    })
    .await;
    assert_eq!(stage.sandbox.accounts().await.all_requests("health"), 0);
}

#[tokio::test]
async fn no_health_checks_are_sent_while_other_requests_are() {
    let redis = RedisServer::start().await;
    let plane = Scripted::start_all(|_| taken()).await;
    let mut agent = Agent::new(&redis, &plane.url);
    for (name, value) in [("HEARTBEAT_INTERVAL", "0.1"), ("CONTROL_PLANE_HEALTH_CHECK_INTERVAL", "1")] {
        agent.set(name, value);
    }
    let begun = Instant::now();
    agent.start();
    let received = until("the heart beats", async || {
        let received = plane.received();
        let beats = received.iter().filter(|request| request.path.ends_with("/heartbeat")).count();
        (beats >= 60).then_some(received)
    })
    .await;
    // If it asked regardless, it would ask once per second, six times. It asks after a second, or nearly, without other
    // answers, so one of the pauses around it is half as long. On a machine without stalls there is no such pause.
    let (health, others): (Vec<_>, Vec<_>) =
        received.into_iter().partition(|request| request.path.ends_with("/health"));
    let times: Vec<Instant> = std::iter::once(begun).chain(others.iter().map(|request| request.at)).collect();
    let pauses = times.windows(2).map(|pair| pair[1].duration_since(pair[0]).as_secs_f64());
    let most: usize = pauses.map(|pause| (pause / 0.45) as usize).sum();
    assert!(health.len() <= most, "asked {} times, where {most} can be explained", health.len());
}

#[tokio::test]
async fn a_refused_registration_is_logged_once_and_degrades_health() {
    static ANSWER: AtomicU16 = AtomicU16::new(401);
    let plane = Scripted::start_all(|request| {
        let is_register = request.path.ends_with("/register");
        let status = if is_register { ANSWER.load(Ordering::Relaxed) } else { 200 };
        (StatusCode::from_u16(status).expect("a status"), taken()).into_response()
    })
    .await;
    let redis = RedisServer::start().await;
    let mut agent = Agent::new(&redis, &plane.url);
    agent.set("HEARTBEAT_INTERVAL", "0.1");
    agent.start();
    for status in [401_u16, 500] {
        ANSWER.store(status, Ordering::Relaxed);
        let health = until("health has the reason", async || {
            let health = agent.health().await?;
            let reason = health["components"]["registration"]["reason"].as_str()?;
            reason.contains(&format!("answered {status}")).then_some(health)
        })
        .await;
        assert_eq!(health["status"], "degraded");
        assert_eq!(agent.metrics().await.sum("dataplane_server_registered", &[]), 0.0);
    }
    let tries = || plane.received().iter().filter(|request| request.path.ends_with("/register")).count();
    let before = tries();
    until("it goes on trying", async || (tries() > before + 10).then_some(())).await;
    agent.says_times("cannot register this server", 2).await;

    ANSWER.store(200, Ordering::Relaxed);
    until("all is well", async || (agent.health().await?["status"] == "healthy").then_some(())).await;
    assert_eq!(agent.metrics().await.sum("dataplane_server_registered", &[]), 1.0);
}

#[tokio::test]
async fn it_registers_also_while_redis_is_away() {
    let redis = RedisServer::start().await;
    let plane = Scripted::start_all(|_| taken()).await;
    let mut agent = Agent::new(&redis, &plane.url);
    agent.set("REDIS_URL", "redis://127.0.0.1:1/");
    agent.start();
    until("it is registered", async || (agent.health().await?["server_registered"] == true).then_some(()))
        .await;
    assert_eq!(agent.health().await.expect("health")["redis_connected"], false);
    assert!(agent.stop().await.success());
    assert!(plane.received().iter().any(|request| request.path.ends_with("/shutdown")));
}

#[tokio::test]
async fn invalid_answers_to_polls_are_logged_once_per_change() {
    static ANSWER: Mutex<&str> = Mutex::new("null");
    let plane = Scripted::start_all(|request| {
        let is_commands = request.path.ends_with("/commands");
        if is_commands { ANSWER.lock().expect("no panic").into_response() } else { taken() }
    })
    .await;
    let redis = RedisServer::start().await;
    let mut agent = Agent::new(&redis, &plane.url);
    agent.set("COMMAND_POLL_INTERVAL", "0.05");
    agent.start();
    let polls = || plane.received().iter().filter(|request| request.path.ends_with("/commands")).count();
    let said = |agent: &Agent| agent.log().matches("answer to a poll for commands is invalid").count();
    // A non-object is not the ControlPlane's answer; an object without commands is another problem.
    for (answer, told) in [("null", 1), ("[1, 2]", 1), ("<html>", 1), (r#"{"commands":[{},7]}"#, 2)] {
        *ANSWER.lock().expect("no panic") = answer;
        let before = polls();
        until("it asks again and again", async || (polls() > before + 5).then_some(())).await;
        assert_eq!(said(&agent), told, "{answer}: {}", agent.log());
    }
    *ANSWER.lock().expect("no panic") = r#"{"commands":[]}"#;
    until("it says that all is well", async || {
        agent.log().contains("polling for commands works again").then_some(())
    })
    .await;
}
