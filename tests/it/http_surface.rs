//! Goal: health, metrics and the log have the content that dashboards rely on.

use serde_json::{Value, json};

use super::harness::{Stage, load};

/// The metrics fixed by the contract.
const METRICS: &str = "usage_records_processed_total session_events_processed_total quota_requests_processed_total \
    redis_connection_status control_plane_connection_status redis_queue_depth dataplane_outbox_depth \
    dataplane_outbox_bytes dataplane_outbox_disk_bytes dataplane_outbox_oldest_age_seconds \
    dataplane_outbox_capacity_bytes dataplane_outbox_accepting dataplane_intake_records_total \
    dataplane_outbox_enqueued_total dataplane_delivered_total dataplane_duplicates_total \
    dataplane_dead_lettered_total dataplane_exported_total dataplane_dead_letters \
    dataplane_dead_letters_expired_total dataplane_retries_total dataplane_control_plane_requests_total \
    dataplane_control_plane_request_seconds dataplane_delivery_latency_seconds dataplane_outbox_commit_seconds \
    dataplane_link_state dataplane_drain_rate_limit dataplane_drain_concurrency dataplane_intake_paused \
    dataplane_build_info process_resident_memory_bytes process_cpu_seconds_total";

#[tokio::test]
async fn health_and_metrics_have_what_the_contract_names() {
    let mut stage = Stage::set().await;
    // A repeated request, so that every counter has a sample.
    stage.sandbox.weather(json!({"status": {"500": 0.5}})).await;
    load::push_sessions(&stage.redis, "s", 10, 3).await;
    stage.drained().await;
    let metrics = stage.agent.metrics().await;
    for name in METRICS.split_whitespace() {
        let declared = metrics.0.contains(&format!("# TYPE {name} "));
        assert!(declared, "{name} is missing:\n{}", metrics.0);
    }
    assert!(metrics.0.contains(r#"redis_connection_status{server_id="edge-test-1"} 1"#));
    assert!(metrics.0.contains(r#"queue_name="queue:usage_records""#));

    let (status, health) = stage.agent.get("/health/").await.expect("it answers");
    let health: Value = serde_json::from_str(&health).expect("JSON");
    assert_eq!((status, health["status"].as_str()), (200, Some("healthy")), "{health}");
    for field in ["timestamp", "version", "uptime_seconds", "redis_connected", "control_plane_connected"] {
        assert!(!health[field].is_null(), "{field}: {health}");
    }
    for field in ["depth", "bytes", "oldest_age_seconds", "disk_bytes", "dead_letters"] {
        assert!(health["outbox"][field].is_number(), "{field}: {health}");
    }
    assert!(health["components"].is_object() && health["server_registered"].is_boolean());
    let (_, detailed) = stage.agent.get("/health/detailed").await.expect("it answers");
    assert!(serde_json::from_str::<Value>(&detailed).expect("JSON")["metrics"].is_object());

    let (_, json) = stage.agent.get("/metrics/json").await.expect("it answers");
    let json: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json["server_id"], "edge-test-1");
    assert_eq!(json["queue_metrics"]["queue:usage_records"], 0);
    assert_eq!(json["connection_status"], json!({"redis": true, "control_plane": true}));
    assert_eq!(json["server_info"]["region"], "eu-test");
    assert!(
        json["outbox"].is_object() && json["timestamp"].is_string() && json["uptime_seconds"].is_number()
    );
}

#[tokio::test]
async fn counters_come_back_after_a_restart() {
    let mut stage = Stage::set().await;
    let pushed = load::push_sessions(&stage.redis, "s", 10, 3).await;
    stage.drained().await;
    assert_eq!(stage.agent.stop().await.code(), Some(0));
    stage.agent.start();
    stage.agent.ready().await;
    let metrics = stage.agent.metrics().await;
    assert_eq!(metrics.sum("dataplane_delivered_total", &[]), pushed as f64);
    metrics.assert_conserved();
}

#[tokio::test]
async fn a_correlation_id_is_returned_and_an_invalid_one_replaced() {
    let stage = Stage::set().await;
    let http = reqwest::Client::builder().no_proxy().build().expect("a client");
    let answer = http.get(stage.agent.url("/health")).header("X-Correlation-ID", "abc-1").send().await;
    assert_eq!(answer.expect("it answers").headers()["x-correlation-id"], "abc-1");
    let answer = http.get(stage.agent.url("/health")).send().await.expect("it answers");
    assert!(uuid::Uuid::parse_str(answer.headers()["x-correlation-id"].to_str().expect("text")).is_ok());
}

#[tokio::test]
async fn only_trusted_addresses_may_read() {
    let stage = Stage::set_with(&[("TRUSTED_IPS", "127.0.0.1")]).await;
    assert_eq!(stage.agent.get("/metrics").await.expect("it answers").0, 200);
    drop(stage);
    let redis = super::harness::RedisServer::start().await;
    let mut agent = super::harness::Agent::new(&redis, "http://127.0.0.1:1");
    agent.set("TRUSTED_IPS", "10.0.0.0/8");
    agent.start();
    let (status, error) =
        super::harness::until("the surface answers", async || agent.get("/metrics").await).await;
    assert_eq!((status, error.as_str()), (403, r#"{"error":"127.0.0.1 is not in TRUSTED_IPS"}"#));
    agent.says("not in TRUSTED_IPS").await;
}

/// The status of a raw request.
fn status_of(agent: &super::harness::Agent, request: &str) -> String {
    use std::io::{Read as _, Write as _};
    let address = agent.url("").trim_start_matches("http://").to_owned();
    let mut stream = std::net::TcpStream::connect(address).expect("a connection");
    stream.write_all(request.as_bytes()).expect("it takes the request");
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).expect("an answer");
    String::from_utf8_lossy(&answer[9..]).into_owned()
}

#[tokio::test]
async fn a_foreign_host_name_pointing_here_can_read_and_do_nothing() {
    let stage = Stage::set_with(&[
        ("ADMIN_TOKEN", "a-token-of-the-operator"),
        ("TRUSTED_HOSTS", "agent.example, 192.0.2.7:80"),
        ("SERVER_HOST", "0.0.0.0"),
    ])
    .await;
    let port = stage.agent.url("").rsplit(':').next().expect("a port").to_owned();
    let ask = |method: &str, path: &str, host: &str| {
        let token = "Authorization: Bearer a-token-of-the-operator";
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\n{token}\r\nX-Forwarded-Host: localhost\r\n\r\n"
        );
        status_of(&stage.agent, &head)
    };
    let private = ["/status", "/events", "/history", "/admin/drain"];
    for host in [
        "localhost",
        "LOCALHOST.:1",
        "127.0.0.1",
        &format!("127.0.0.1:{port}"),
        "agent.example",
        "192.0.2.7:80",
    ] {
        for path in private {
            assert_eq!(ask("GET", path, host), "200", "{path} of {host}");
        }
    }
    for host in
        ["evil.example", "evil.localhost", "0.0.0.0", "192.0.2.7", "[::1]", "", "localhost@evil.example"]
    {
        for path in private {
            assert_eq!(ask("GET", path, host), "403", "{path} of {host}");
        }
        assert_eq!(ask("POST", "/admin/drain/pause", host), "403", "{host}");
    }
    assert_eq!(ask("GET", "http://evil.example/status", "localhost"), "403");
    assert_eq!(status_of(&stage.agent, "GET /status HTTP/1.0\r\n\r\n"), "403");
    assert_eq!(stage.agent.metrics().await.sum("dataplane_drain_paused", &[]), 0.0);
    // Orchestrators and scrapers may use any name.
    for path in ["/health", "/healthz", "/readyz", "/metrics", "/", "/runbook", "/docs"] {
        assert_eq!(ask("GET", path, "anything.example"), "200", "{path}");
    }
    stage.agent.says("add it to TRUSTED_HOSTS").await;
    stage.agent.says_times("add it to TRUSTED_HOSTS", 1).await;
}

#[tokio::test]
async fn a_slash_at_the_end_changes_nothing() {
    let stage = Stage::set().await;
    for path in ["/health", "/runbook", "/docs", "/redoc", "/openapi.json"] {
        let (plain, slash) = (stage.agent.get(path).await, stage.agent.get(&format!("{path}/")).await);
        let ((plain_status, plain), (slash_status, slash)) =
            (plain.expect("it answers"), slash.expect("it answers"));
        assert_eq!((plain_status, slash_status), (200, 200), "{path}");
        if path != "/health" {
            // Links are relative, and lead to the same files.
            assert_eq!(slash.replace("\"../", "\""), plain, "{path}");
        }
        let files = slash.split('"').filter(|part| part.starts_with("../"));
        for file in files {
            assert_eq!(stage.agent.get(&file.replace("..", "")).await.expect("it answers").0, 200, "{file}");
        }
    }
}

#[tokio::test]
async fn orchestrators_learn_liveness_and_readiness() {
    let mut redis = super::harness::RedisServer::start().await;
    let mut agent = super::harness::Agent::new(&redis, "http://127.0.0.1:1");
    agent.start();
    let told = async |path: &str, status: u16, text: &str| {
        super::harness::until(&format!("{path} answers {status}"), async || {
            (agent.get(path).await? == (status, format!("{text}\n"))).then_some(())
        })
        .await;
    };
    told("/readyz", 200, "ready").await;
    redis.kill();
    told("/readyz", 503, "not ready").await;
    told("/healthz", 200, "ok").await;
    assert_eq!(agent.get("/health/detailed").await.expect("it answers").0, 503);
}

#[tokio::test]
async fn the_log_has_its_format_and_contains_no_secret_and_no_record() {
    for format in ["log4j", "json"] {
        let settings = [("LOG_LEVEL", "DEBUG"), ("LOG_FORMAT", format), ("POISON_ATTEMPTS", "1")];
        let mut stage = Stage::set_with(&settings).await;
        let weather = json!({"refuse_transactions": ["usage-hush-1"], "status": {"500": 0.2}});
        stage.sandbox.weather(weather).await;
        let mut record: Value = serde_json::from_str(&load::usage("hush", 1)).unwrap();
        record["private"] = "customers-own-data".into();
        stage
            .redis
            .push(super::harness::USAGE, &[record.to_string(), "{\"a\":customers-own-data".into()])
            .await;
        stage.drained().await;
        assert_eq!(stage.agent.stop().await.code(), Some(0));
        let log = stage.agent.log();
        assert!(log.contains("dead letter: a message will not be delivered"), "{log}");
        assert!(!log.contains("customers-own-data") && !log.contains(super::harness::API_KEY), "{log}");
        for line in log.lines() {
            let fields: Value = if format == "json" {
                serde_json::from_str(line).expect("a line is an object")
            } else {
                let (time, rest) = line.split_once(" [").expect("a time and a level");
                assert!(time.len() == 27 && time.ends_with('Z'), "{line}");
                let (level, _) = rest.split_once("]: ").expect("a level and a message");
                assert!(["debug", "info", "warning", "error", "critical"].contains(&level), "{line}");
                serde_json::from_str(&line[line.find(" {").expect("fields")..]).expect("fields are an object")
            };
            for key in ["correlation_id", "hostname", "operationName", "pid", "serviceName"] {
                assert!(!fields[key].is_null(), "{key}: {line}");
            }
        }
    }
}
