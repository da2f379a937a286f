//! Goal: whatever arrives instead of an answer, memory is bounded, no record is lost or given up, and no other host is
//! contacted. Method: a server that sends the bytes chosen by the test, then one that works.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::harness::{
    Agent, DEAD_LETTERS, QUOTA, QUOTA_ANSWERS, Received, RedisServer, Scripted, USAGE, load, memory_mib,
    until,
};

/// Limit of the agent's resident memory.
const MEMORY_MIB: f64 = 64.0;

/// The server's reaction to a request.
#[derive(Clone, Debug)]
enum Manner {
    /// Answers correctly, in this version of HTTP.
    Well(&'static str),
    /// Sends these bytes, and closes the connection.
    Bytes(String),
    /// Sends the first text, then the second repeatedly: this many times, or until the client disconnects.
    Again(String, String, usize),
}

/// A server that sends raw bytes, until it is dropped.
struct Raw {
    url: String,
    manner: Arc<Mutex<Manner>>,
    requests: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Raw {
    async fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("its address"));
        let manner = Arc::new(Mutex::new(Manner::Well("HTTP/1.1")));
        let requests = Arc::new(AtomicU64::new(0));
        let (of, count) = (Arc::clone(&manner), Arc::clone(&requests));
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.expect("a connection");
                tokio::spawn(converse(stream, Arc::clone(&of), Arc::clone(&count)));
            }
        });
        Self { url, manner, requests, task }
    }

    fn behave(&self, manner: Manner) {
        *self.manner.lock().expect("no test panics here") = manner;
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Serves one connection. Its end is up to the client.
async fn converse(
    stream: TcpStream,
    manner: Arc<Mutex<Manner>>,
    requests: Arc<AtomicU64>,
) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let (mut line, mut length, mut key) = (String::new(), 0, String::new());
        if stream.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
        while line != "\r\n" {
            line.clear();
            stream.read_line(&mut line).await?;
            if let Some((name, value)) = line.split_once(':') {
                match name.to_ascii_lowercase().as_str() {
                    "content-length" => length = value.trim().parse().unwrap_or(0),
                    "idempotency-key" => value.trim().clone_into(&mut key),
                    _ => {}
                }
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await?;
        let is_record = !path.contains("/servers/");
        requests.fetch_add(u64::from(is_record), Ordering::Relaxed);
        let manner = manner.lock().expect("no test panics here").clone();
        match manner {
            // The fleet's calls are not under test here.
            _ if !is_record => stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}").await?,
            Manner::Well(version) => {
                let answer = answer(&body, &key).to_string();
                let head = format!("{version} 200 OK\r\nContent-Length: {}\r\n\r\n", answer.len());
                stream.write_all((head + &answer).as_bytes()).await?;
                if version == "HTTP/1.0" {
                    return stream.shutdown().await;
                }
            }
            Manner::Bytes(bytes) => {
                stream.write_all(bytes.as_bytes()).await?;
                return stream.shutdown().await;
            }
            Manner::Again(first, then, times) => {
                stream.write_all(first.as_bytes()).await?;
                for _ in 0..times {
                    stream.write_all(then.as_bytes()).await?;
                }
                return stream.shutdown().await;
            }
        }
    }
}

/// The answer of a `ControlPlane` to a batch or a quota request.
fn answer(body: &[u8], key: &str) -> Value {
    let asked: Value = serde_json::from_slice(body).unwrap_or_default();
    let data = match asked["sessions"].as_array() {
        Some(sessions) => {
            let records = |session: &Value| session["records"].as_array().map_or(0, Vec::len);
            json!({"batch": key, "count": sessions.iter().map(records).sum::<usize>(), "exceptions": []})
        }
        None => json!({
            "api_session_id": asked["api_session_id"], "transaction_id": asked["transaction_id"],
            "new_quota_amount": 60, "final_quota": false, "timestamp": "2026-01-01T00:00:00Z",
        }),
    };
    json!({"success": true, "data": data})
}

fn ok(headers: &str, body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n{headers}\r\n{body}", body.len())
}

#[tokio::test]
async fn no_bad_answer_costs_memory_a_record_or_our_credentials() {
    let server = Raw::start().await;
    let elsewhere = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    elsewhere.set_nonblocking(true).expect("it can be asked without waiting");
    let location = elsewhere.local_addr().expect("its address");
    let mebibyte = "x".repeat(1 << 20);
    let chunk = format!("100000\r\n{mebibyte}\r\n");
    let redirect = |status: u16| {
        let headers = format!("Location: http://{location}/api/v1/\r\nContent-Length: 0\r\n\r\n");
        Manner::Bytes(format!("HTTP/1.1 {status} Elsewhere\r\n{headers}"))
    };
    let head = "HTTP/1.1 200 OK\r\n";
    // Each with the resulting trouble of the link.
    let manners = [
        ("empty", Manner::Bytes(ok("", "")), "foreign_answer"),
        ("not JSON", Manner::Bytes(ok("", "<html>It works!</html>")), "foreign_answer"),
        ("the wrong JSON", Manner::Bytes(ok("", r#"{"success":true,"data":[]}"#)), "failing"),
        ("deeply nested", Manner::Bytes(ok("", &"[".repeat(200_000))), "foreign_answer"),
        (
            "100 MB",
            Manner::Again(format!("{head}Content-Length: 104857600\r\n\r\n"), mebibyte.clone(), 100),
            "foreign_answer",
        ),
        (
            "never-ending",
            Manner::Again(format!("{head}Transfer-Encoding: chunked\r\n\r\n"), chunk, usize::MAX),
            "foreign_answer",
        ),
        ("a redirect", redirect(302), "misconfigured"),
        ("a redirect that keeps the method", redirect(307), "misconfigured"),
        ("a permanent redirect", redirect(308), "misconfigured"),
        ("an early close", Manner::Bytes(format!("{head}Content-Length: 1000\r\n\r\n{{")), "unreachable"),
        ("no answer at all", Manner::Bytes(String::new()), "unreachable"),
        ("not HTTP", Manner::Bytes("SSH-2.0-OpenSSH_9.2\r\n".into()), "unreachable"),
        (
            "headers without end",
            Manner::Again(head.into(), "X-Bomb: 1\r\n".repeat(1000), usize::MAX),
            "unreachable",
        ),
        ("a header of 100 MB", Manner::Again(format!("{head}X-Bomb: "), mebibyte, 100), "unreachable"),
        (
            "go on without end",
            Manner::Again(String::new(), "HTTP/1.1 100 Continue\r\n\r\n".repeat(1000), usize::MAX),
            "timeout",
        ),
    ];
    let redis = RedisServer::start().await;
    let mut agent = Agent::new(&redis, &server.url);
    agent.set("DELIVERY_MODE", "batch");
    agent.set("BATCH_COMPRESSION", "none");
    agent.set("CONTROL_PLANE_TIMEOUT", "2");
    agent.start();
    agent.ready().await;
    let mut sent = 0;
    for (name, manner, reason) in manners {
        server.behave(manner);
        let before = server.requests.load(Ordering::Relaxed);
        redis.push(USAGE, &[load::usage("s", sent), load::usage("t", sent)]).await;
        redis.push(QUOTA, &[load::quota("s", sent)]).await;
        sent += 1;
        until(&format!("{name}: the link is down: {reason}"), async || {
            let health = agent.health().await?;
            let link = health["components"]["control_plane"]["link"].as_str()?.to_owned();
            let tried = server.requests.load(Ordering::Relaxed) - before;
            (link.ends_with(reason) && tried >= 4 && health["outbox"]["depth"] == 3).then_some(())
        })
        .await;
        assert_eq!(redis.len(QUOTA_ANSWERS).await, u64::from(sent - 1), "{name}: nothing of it is passed on");
        // Sometimes it is an HTTP/1.0 server.
        server.behave(Manner::Well(if sent % 2 == 0 { "HTTP/1.0" } else { "HTTP/1.1" }));
        until(&format!("{name}: all is delivered"), async || {
            let health = agent.health().await?;
            (health["outbox"]["depth"] == 0 && redis.len(QUOTA_ANSWERS).await == u64::from(sent))
                .then_some(())
        })
        .await;
        let peak = memory_mib(agent.pid(), "VmHWM");
        assert!(peak < MEMORY_MIB, "{name}: {peak} MiB resident");
    }
    let metrics = agent.metrics().await;
    metrics.assert_conserved();
    assert_eq!(metrics.sum("dataplane_delivered_total", &[]), f64::from(3 * sent));
    assert_eq!(redis.len(DEAD_LETTERS).await, 0);
    let visit = elsewhere.accept().map_err(|error| error.kind());
    assert_eq!(visit.err(), Some(std::io::ErrorKind::WouldBlock), "the other host was asked");
}

#[tokio::test]
async fn a_command_of_megabytes_is_refused_and_those_around_it_are_carried_out() {
    use axum::response::IntoResponse as _;
    let health_check = |id: &str| json!({"command_id": id, "command_type": "health_check"});
    let mut huge = health_check("huge");
    huge["parameters"] = json!({"filler": "x".repeat(5 << 20)});
    let commands = json!({"commands": [health_check("before"), huge, health_check("after")]});
    let answer = move |request: &Received| {
        let asks = request.path.ends_with("/commands");
        axum::Json(if asks { commands.clone() } else { json!({"success": true}) }).into_response()
    };
    let plane = Scripted::start_all(answer).await;
    let redis = RedisServer::start().await;
    let mut agent = Agent::new(&redis, &plane.url);
    agent.set("COMMAND_POLL_INTERVAL", "0.2");
    agent.start();
    let result = async |id: &str| {
        until(&format!("the result of {id}"), async || {
            let results =
                plane.received().into_iter().filter(|request| request.path.ends_with("/command-results"));
            results.map(|request| request.json()).find(|result| result["command_id"] == id)
        })
        .await
    };
    for id in ["before", "after"] {
        assert_eq!(result(id).await["success"], true, "{id}");
    }
    let refused = result("huge").await;
    assert_eq!(refused["success"], false);
    assert!(refused["error_message"].as_str().expect("why").contains("too large"), "{refused}");
    let peak = memory_mib(agent.pid(), "VmHWM");
    assert!(peak < MEMORY_MIB, "{peak} MiB");
}
