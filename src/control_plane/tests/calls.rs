//! Calls about the server itself, and reloading.

use serde_json::{Value, json};

use super::*;
use crate::secret::Secret;

async fn client_of(answer: String) -> (Client, tokio::sync::mpsc::UnboundedReceiver<Received>) {
    let (url, received) = answering(answer).await;
    (Client::new(settings(&url)).unwrap(), received)
}

fn registration() -> Registration {
    Registration {
        region: "eu".into(),
        ip_address: "10.0.0.1".into(),
        port: 8000,
        capabilities: Capabilities {
            max_concurrent_sessions: 10,
            supported_products: "speech_transcription".into(),
            supported_languages: "en,de".into(),
        },
    }
}

#[tokio::test]
async fn each_call_goes_where_the_contract_says() {
    let answer = r#"{"commands":[{"command_id":"1","command_type":"ping"}],"keys":[]}"#;
    let (client, mut received) = client_of(http("200 OK", "", answer)).await;
    let result = CommandResult {
        command_id: "1".into(),
        success: true,
        result: json!({"pong": 1}),
        error_message: None,
        execution_timestamp: "2026-11-24T00:00:00Z".into(),
    };
    client.register(&registration()).await.unwrap();
    assert_eq!(client.heartbeat(ServerStatus::Degraded, json!({"depth": 3})).await, Ok(Heartbeat::Heard));
    client.shutdown_notice().await.unwrap();
    client.command_result(&result).await.unwrap();
    client.command_result(&result).await.unwrap();
    assert_eq!(client.commands().await.unwrap().commands[0].command_type, "ping");
    assert!(client.public_keys().await.unwrap().keys.is_empty());
    client.health().await.unwrap();

    let mut next = async || received.recv().await.unwrap();
    let body = |request: &Received| serde_json::from_slice::<Value>(&request.body).unwrap();
    let register = next().await;
    assert_eq!(register.line(), "POST /api/v1/servers/register HTTP/1.1");
    assert_eq!(
        body(&register),
        json!({"server_id": "edge-1", "version": "1.2.3", "region": "eu", "ip_address": "10.0.0.1", "port": 8000,
            "capabilities": {"max_concurrent_sessions": 10, "supported_products": "speech_transcription",
                "supported_languages": "en,de"}})
    );
    let heartbeat = next().await;
    assert_eq!(heartbeat.line(), "PUT /api/v1/servers/edge-1/heartbeat HTTP/1.1");
    assert_eq!(body(&heartbeat), json!({"status": "degraded", "metrics": {"depth": 3}}));
    let shutdown = next().await;
    assert_eq!(shutdown.line(), "POST /api/v1/servers/edge-1/shutdown HTTP/1.1");
    assert!(shutdown.body.is_empty());
    let (first, second) = (next().await, next().await);
    assert_eq!(first.line(), "POST /api/v1/servers/edge-1/command-results HTTP/1.1");
    assert_eq!(body(&first)["error_message"], Value::Null);
    assert_eq!(first.header("idempotency-key"), second.header("idempotency-key"));
    assert_eq!(next().await.line(), "GET /api/v1/servers/edge-1/commands HTTP/1.1");
    assert_eq!(next().await.line(), "GET /api/v1/auth/public-keys HTTP/1.1");
    let health = next().await;
    assert_eq!(health.line(), "GET /api/v1/health HTTP/1.1");
    assert!(health.header("x-correlation-id").is_some() && health.header("idempotency-key").is_none());
    for request in [&register, &heartbeat, &shutdown, &first] {
        assert_eq!(request.header("x-api-key"), Some("hunter2"));
        assert!(request.header("idempotency-key").is_some() && request.header("x-correlation-id").is_some());
    }
}

#[tokio::test]
async fn a_server_that_was_forgotten_is_told_from_a_failed_call() {
    let (client, _received) = client_of(http("404 Not Found", "", "")).await;
    assert_eq!(client.heartbeat(ServerStatus::Online, Value::Null).await, Ok(Heartbeat::Forgotten));
    assert_eq!(client.register(&registration()).await, answered(404, Meaning::NotFound));
    let (client, _received) = client_of(http("503 Busy", "", "")).await;
    assert!(matches!(
        client.heartbeat(ServerStatus::Online, Value::Null).await,
        Err(CallError::Status { status: 503, .. })
    ));
}

#[tokio::test]
async fn a_change_made_before_is_as_good_as_one_made_now() {
    let (client, _received) = client_of(http("409 Conflict", "", "")).await;
    client.register(&registration()).await.unwrap();
    assert!(matches!(client.commands().await, Err(CallError::Status { status: 409, .. })));
}

fn answered<T>(status: u16, meaning: Meaning) -> Result<T, CallError> {
    Err(CallError::Status { status, meaning, retry_after: None })
}

/// Checks what every call makes of this answer; the health probe comes last.
async fn assert_answers(answer: String, status: u16, meaning: Meaning) {
    let (client, _received) = client_of(answer).await;
    let result = CommandResult {
        command_id: "1".into(),
        success: true,
        result: Value::Null,
        error_message: None,
        execution_timestamp: String::new(),
    };
    assert_eq!(client.register(&registration()).await, answered(status, meaning));
    assert_eq!(client.heartbeat(ServerStatus::Online, Value::Null).await, answered(status, meaning));
    assert_eq!(client.shutdown_notice().await, answered(status, meaning));
    assert_eq!(client.command_result(&result).await, answered(status, meaning));
    assert_eq!(client.commands().await, answered(status, meaning));
    assert_eq!(client.public_keys().await, answered(status, meaning));
    assert_eq!(client.health().await, answered(status, meaning));
    assert!(!client.is_reachable(), "{status} {meaning:?}");
}

#[tokio::test]
async fn a_portal_registers_nobody_and_is_not_the_control_plane() {
    for (status, body) in [
        ("200 OK", "<html>Sign in</html>"),
        ("200 OK", ""),
        ("200 OK", "{\"success\":true"),
        ("202 Accepted", "[]"),
        ("203 Mirrored", "{\"success\":true}"),
    ] {
        assert_answers(http(status, "", body), status[..3].parse().unwrap(), Meaning::Foreign).await;
    }
    let page = "<html>";
    assert_answers(http("400 Bad Request", "", page), 400, Meaning::Failing).await;
    assert_answers(http("409 Conflict", "", page), 409, Meaning::Failing).await;
    assert_answers(http("405 Not Allowed", "", "{}"), 405, Meaning::Misconfigured).await;
    assert_answers(http("200 OK", "", "{\"success\":false}"), 200, Meaning::Failing).await;
    let anothers = "X-Correlation-ID: another\r\n";
    assert_answers(http("200 OK", anothers, "{\"success\":true}"), 200, Meaning::Mismatched).await;
}

#[tokio::test]
async fn commands_that_do_not_parse_or_do_not_end_are_an_error() {
    let odd = b"HTTP/1.1 200 OK\r\nContent-Length: 51\r\n\r\n{\"commands\":[{\"command_id\":\"\xff\",\"command_type\":\"\"}]}";
    let (url, _received) = answering(odd).await;
    assert_eq!(Client::new(settings(&url)).unwrap().commands().await.unwrap().commands.len(), 1);
    let (client, _received) = client_of(http("200 OK", "", "{}")).await;
    assert!(matches!(client.commands().await, Err(CallError::BadAnswer(BadAnswer::Json { .. }))));
    let long = format!(r#"{{"commands":[]}}{}"#, " ".repeat(16 << 20));
    let (client, _received) = client_of(http("200 OK", "", &long)).await;
    assert!(matches!(client.commands().await, Err(CallError::BadAnswer(BadAnswer::TooLong))));
}

#[tokio::test]
async fn a_reload_takes_in_a_new_secret_and_keeps_the_old_one_if_the_new_one_is_bad() {
    let (url, mut received) = answering(http("200 OK", "", "")).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "first\n").unwrap();
    let source = Secret::read(file.path()).unwrap();
    let client = Client::new(Settings { api_key: Some(source), ..settings(&url) }).unwrap();
    let mut key_sent = async || {
        client.deliver(delivery("s")).await.result.unwrap();
        received.recv().await.unwrap().header("x-api-key").map(str::to_owned)
    };
    assert_eq!(key_sent().await.as_deref(), Some("first"));
    std::fs::write(file.path(), "second").unwrap();
    assert_eq!(key_sent().await.as_deref(), Some("first"));
    client.reload().unwrap();
    assert_eq!(key_sent().await.as_deref(), Some("second"));
    std::fs::write(file.path(), "bad\u{1}key").unwrap();
    assert!(matches!(client.reload(), Err(ClientError::ApiKey(_))));
    std::fs::remove_file(file.path()).unwrap();
    assert!(matches!(client.reload(), Err(ClientError::File(_))));
    assert_eq!(key_sent().await.as_deref(), Some("second"));
}

#[test]
fn settings_that_cannot_work_are_refused_at_once() {
    let refused = |settings| Client::new(settings).unwrap_err();
    let good = || settings("http://h");
    assert!(matches!(refused(settings("h")), ClientError::Url(_)));
    assert!(matches!(refused(Settings { server_id: "..".into(), ..good() }), ClientError::ServerId(_)));
    assert!(matches!(refused(Settings { version: "1\n".into(), ..good() }), ClientError::Version));
    assert!(matches!(refused(Settings { api_key_header: "a b".into(), ..good() }), ClientError::ApiKey(_)));
    assert!(matches!(refused(Settings { auth: Auth::Jwt, ..good() }), ClientError::JwtKey(_)));
    assert!(matches!(
        refused(Settings { client_cert_file: Some("c".into()), ..good() }),
        ClientError::HalfAnIdentity
    ));
    let empty = tempfile::NamedTempFile::new().unwrap();
    let ca_file = |path: &std::path::Path| Settings { ca_file: Some(path.to_owned()), ..good() };
    assert!(matches!(refused(ca_file(empty.path())), ClientError::Tls(_)));
    assert!(matches!(refused(ca_file("/dev/zero".as_ref())), ClientError::File(_)));
}
