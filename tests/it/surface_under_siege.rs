//! Goal: whatever happens to the HTTP surface, records flow and a scraper gets its answer.
//!
//! Method: connections that send nothing, hardly anything, or far too much, or that read nothing, while records are pushed
//! and `/health` is polled.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::harness::{Agent, RedisServer, Sandbox, Stage, load};

const PATIENCE: Duration = Duration::from_secs(60);

fn connect(agent: &Agent) -> std::io::Result<TcpStream> {
    let address = agent.url("").trim_start_matches("http://").parse().expect("an address");
    let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// A scraper with a new connection is answered, and records are delivered as usual.
async fn assert_at_work(stage: &mut Stage, prefix: &str) {
    let http = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().expect("a client");
    for path in ["/health", "/metrics"] {
        let answer = http.get(stage.agent.url(path)).send().await.expect("it answers");
        assert_eq!(answer.status(), 200, "{path}");
    }
    let before = stage.sandbox.accounts().await.processed();
    let pushed = load::push_sessions(&stage.redis, prefix, 20, 5).await;
    stage.drained().await;
    let accounts = stage.sandbox.accounts().await;
    assert_eq!(accounts.processed() - before, pushed);
    accounts.assert_in_order_and_recognisable();
}

fn open_files(agent: &Agent) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", agent.pid())).expect("its files").count()
}

#[tokio::test]
async fn ten_thousand_idle_connections_keep_nobody_out() {
    // The test's side holds ten thousand as well.
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).expect("the limit can be raised");
    let mut stage = Stage::set().await;
    let (mut held, begun) = (Vec::new(), Instant::now());
    for n in 0..10_000 {
        held.push(connect(&stage.agent).unwrap_or_else(|error| panic!("connection {n}: {error}")));
        if n % 2_500 == 2_499 {
            assert_at_work(&mut stage, &format!("s{n}")).await;
        }
    }
    // Waiting for each to time out would take six minutes.
    assert!(begun.elapsed() < Duration::from_secs(300), "{:?}", begun.elapsed());
    assert!(open_files(&stage.agent) < 400, "{} files", open_files(&stage.agent));
    drop(held);
}

#[tokio::test]
async fn heads_that_come_a_byte_at_a_time_keep_nobody_out() {
    let mut stage = Stage::set().await;
    let mut slow = Vec::new();
    for _ in 0..1_000 {
        let mut stream = connect(&stage.agent).expect("a connection");
        stream.write_all(b"GET /health HTTP/1.1\r\nHost: a\r\nX-").expect("the beginning of a head");
        slow.push(stream);
    }
    for round in 0..3 {
        // Writes to connections that were closed for others fail.
        let alive = slow.iter_mut().filter(|stream| (&**stream).write_all(b"x").is_ok()).count();
        assert!(alive > 0);
        assert_at_work(&mut stage, &format!("s{round}")).await;
    }
}

#[tokio::test]
async fn a_head_of_ten_megabytes_is_refused_early() {
    let mut stage = Stage::set().await;
    let field = format!("X-Large: {}\r\n", "x".repeat(1 << 20));
    for _ in 0..5 {
        let mut stream = connect(&stage.agent).expect("a connection");
        let sent = (|| {
            stream.write_all(b"GET /health HTTP/1.1\r\nHost: a\r\n")?;
            for _ in 0..10 {
                stream.write_all(field.as_bytes())?;
            }
            stream.write_all(b"\r\n")
        })();
        let mut answer = [0; 64];
        let read = stream.read(&mut answer);
        let told = read.as_ref().is_ok_and(|n| answer[..*n].starts_with(b"HTTP/1.1 431"));
        // A client that is disconnected while sending may not see the answer.
        assert!(
            told || sent.is_err() || matches!(read, Ok(0) | Err(_)),
            "{:?}",
            String::from_utf8_lossy(&answer)
        );
        assert!(!answer.starts_with(b"HTTP/1.1 2"));
    }
    assert_at_work(&mut stage, "s").await;
}

#[tokio::test]
async fn bodies_that_never_come_keep_nobody_out() {
    let token = "a-token-of-the-operator";
    let mut stage = Stage::set_with(&[("ADMIN_TOKEN", token)]).await;
    let http = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().expect("a client");
    let mut slow = Vec::new();
    for round in 0..3 {
        for _ in 0..400 {
            let mut stream = connect(&stage.agent).expect("a connection");
            let head = format!(
                "POST /admin/dead-letters/replay HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\
                 Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{{"
            );
            stream.write_all(head.as_bytes()).expect("the beginning of a request");
            slow.push(stream);
        }
        let begun = Instant::now();
        let answer = http.get(stage.agent.url("/health")).send().await.expect("it answers");
        assert_eq!(answer.status(), 200);
        // Waiting for them to time out would take half a minute.
        assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
        // An occasional byte makes no difference.
        let alive = slow.iter_mut().filter(|stream| (&**stream).write_all(b" ").is_ok()).count();
        assert!(alive > 0);
        assert_at_work(&mut stage, &format!("s{round}")).await;
    }
}

#[tokio::test]
async fn an_agent_without_descriptors_still_reports_its_health() {
    let redis = RedisServer::start().await;
    let sandbox = Sandbox::start(&[]);
    let mut agent = Agent::new(&redis, &sandbox.url);
    agent.limit("-n 40");
    agent.start();
    agent.ready().await;
    // Streams last as long as the agent.
    let mut held = Vec::new();
    loop {
        let mut stream = connect(&agent).expect("a connection");
        stream.write_all(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("a request");
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).expect("an answer");
        held.push(stream);
        if &answer != b"HTTP/1.1 200" {
            break;
        }
        assert!(held.len() < 40, "it has no more than 40 descriptors");
    }
    let http = reqwest::Client::builder().no_proxy().timeout(PATIENCE).pool_max_idle_per_host(0).build();
    let http = http.expect("a client");
    for round in 0..20 {
        // Silent connections take no descriptor from clients that send requests.
        held.push(connect(&agent).expect("a connection"));
        let answer = http.get(agent.url("/health")).send().await;
        let answer = answer.unwrap_or_else(|error| panic!("round {round}: {error:?}"));
        assert!(answer.status() == 200 || answer.status() == 503, "{round}: {}", answer.status());
    }
    drop(held);
    let mut stage = Stage { redis, sandbox, agent };
    assert_at_work(&mut stage, "after").await;
}

#[tokio::test]
async fn clients_that_read_nothing_keep_nobody_out() {
    let mut stage = Stage::set().await;
    let mut deaf = Vec::new();
    for _ in 0..300 {
        let mut stream = connect(&stage.agent).expect("a connection");
        let ask =
            "GET /assets/redoc.standalone.js HTTP/1.1\r\nHost: a\r\nAccept-Encoding: gzip\r\n\r\n".repeat(8);
        // The agent may have closed it already.
        let _ = stream.write_all(ask.as_bytes());
        deaf.push(stream);
    }
    assert_at_work(&mut stage, "s").await;
}
