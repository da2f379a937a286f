//! Goal: the status page's stream sends an hour of history and then the current state, to a limited number of pages, until
//! the agent stops; and no page of the agent may fetch from elsewhere.

use std::time::Instant;

use futures_util::StreamExt as _;
use serde_json::{Value, json};

use super::harness::{Agent, RedisServer, Stage, USAGE, load, until};

/// The events of a stream.
struct Events {
    body: std::pin::Pin<Box<dyn futures_util::Stream<Item = reqwest::Result<axum::body::Bytes>>>>,
    read: String,
}

impl Events {
    async fn open(stage: &Stage) -> Result<Self, u16> {
        let http = reqwest::Client::builder().no_proxy().build().expect("a client");
        let answer = http.get(stage.agent.url("/events")).send().await.expect("it answers");
        if answer.status() != 200 {
            return Err(answer.status().as_u16());
        }
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        assert_eq!(answer.headers()["cache-control"], "no-store");
        let body = futures_util::stream::unfold(answer, |mut answer| async {
            let part = answer.chunk().await.transpose()?;
            Some((part, answer))
        });
        Ok(Self { body: Box::pin(body), read: String::new() })
    }

    /// The next event; `None` at the end.
    async fn next(&mut self) -> Option<(String, Value)> {
        loop {
            if let Some(end) = self.read.find("\n\n") {
                let event: String = self.read.drain(..end + 2).collect();
                let (name, data) = event.trim_end().split_once('\n').expect("two lines");
                let name = name.strip_prefix("event: ").expect("a name").to_owned();
                let data = serde_json::from_str(data.strip_prefix("data: ").expect("data")).expect("JSON");
                return Some((name, data));
            }
            let part = self.body.next().await?.ok()?;
            self.read += std::str::from_utf8(&part).expect("text");
        }
    }
}

#[tokio::test]
async fn the_stream_tells_history_and_present_until_the_agent_stops() {
    let mut stage = Stage::set().await;
    let pushed = load::push_sessions(&stage.redis, "s", 20, 5).await;
    stage.drained().await;
    until("the hour has a point", async || {
        let (_, history) = stage.agent.get("/history").await?;
        let history: Value = serde_json::from_str(&history).ok()?;
        let sum = |way: &str| -> f64 {
            let kinds = history[way].as_object().into_iter().flatten();
            kinds
                .flat_map(|(_, rates)| rates.as_array().into_iter().flatten())
                .filter_map(Value::as_f64)
                .sum()
        };
        (sum("in") > 0.0 && sum("out") > 0.0).then_some(())
    })
    .await;

    let mut events = Events::open(&stage).await.expect("a stream");
    let (name, history) = events.next().await.expect("an event");
    assert_eq!(name, "history");
    let points = history["at"].as_array().expect("times").len();
    assert!(points > 0, "a page that is opened now has what was before");
    for column in [&history["depth"], &history["in"]["usage"], &history["out"]["quota"]] {
        assert_eq!(column.as_array().expect("a column").len(), points);
    }
    let (name, now) = events.next().await.expect("an event");
    assert_eq!((name.as_str(), now["server_id"].as_str()), ("now", Some("edge-test-1")));
    assert_eq!((&now["status"], &now["link"]["state"]), (&json!("healthy"), &json!("up")), "{now}");
    assert_eq!((&now["admin"], &now["drained_in_seconds"]), (&json!(false), &json!(0.0)), "{now}");

    // The current state follows.
    stage.sandbox.weather(json!({"down": true})).await;
    stage.redis.push(USAGE, &[load::usage("later", 0)]).await;
    let down = loop {
        let (_, now) = events.next().await.expect("an event");
        if now["link"]["state"] == "down" && now["kinds"]["usage"]["depth"] == 1 {
            break now;
        }
    };
    assert!(down["link"]["reason"].is_string() && down["link"]["next_probe_seconds"].is_number(), "{down}");
    assert_eq!(down["status"], "degraded");
    stage.sandbox.weather(json!({})).await;

    stage.drained().await;
    let begun = Instant::now();
    let stopped = stage.agent.stop();
    let ended = async { while events.next().await.is_some() {} };
    let (status, ()) = tokio::join!(stopped, ended);
    assert_eq!(status.code(), Some(0));
    let log = stage.agent.log();
    assert!(!log.contains("did not stop in time"), "{:?}: {log}", begun.elapsed());
    assert!(pushed > 0);
}

#[tokio::test]
async fn the_charts_survive_a_restart_and_start_empty_if_their_file_is_unusable() {
    let mut stage = Stage::set().await;
    let times = async |stage: &Stage| -> Vec<i64> {
        let (_, history) = stage.agent.get("/history").await.expect("it answers");
        let history: Value = serde_json::from_str(&history).expect("JSON");
        let usage = history["in"]["usage"].as_array().expect("a column");
        let at = history["at"].as_array().expect("times");
        assert_eq!(usage.len(), at.len(), "{history}");
        at.iter().map(|at| at.as_i64().expect("a number")).collect()
    };
    until("the hour has a point", async || (!times(&stage).await.is_empty()).then_some(())).await;
    assert_eq!(stage.agent.stop().await.code(), Some(0));
    let stopped = now_ms();
    stage.agent.start();
    stage.agent.ready().await;
    let before = times(&stage).await;
    assert!(before.first().is_some_and(|at| *at < stopped), "{before:?}, stopped at {stopped}");

    // An unusable history file costs only the charts, and so does one that cannot be written.
    assert_eq!(stage.agent.stop().await.code(), Some(0));
    let file = stage.agent.dir().join("outbox/history");
    std::fs::write(&file, "dataplane-agent history 1 0000000000000000\n[]").expect("it can be written");
    stage.agent.start();
    stage.agent.ready().await;
    stage.agent.says("their history file is invalid").await;
    let again = times(&stage).await;
    assert!(again.iter().all(|at| *at > stopped), "{again:?}");
    std::fs::remove_file(&file).expect("it can be removed");
    std::fs::create_dir(&file).expect("a folder in its place");
    assert_eq!(stage.agent.stop().await.code(), Some(0));
    stage.agent.start();
    stage.agent.ready().await;
    let pushed = load::push_sessions(&stage.redis, "s", 5, 3).await;
    stage.drained().await;
    assert_eq!(stage.sandbox.accounts().await.processed(), pushed);
}

fn now_ms() -> i64 {
    let since = std::time::UNIX_EPOCH.elapsed().expect("after 1970");
    i64::try_from(since.as_millis()).expect("this age")
}

#[tokio::test]
async fn every_concern_names_its_place_and_a_section_of_the_runbook() {
    let mut stage = Stage::set_with(&[("ADMIN_TOKEN", "a-token-of-the-operator")]).await;
    let (status, runbook) = stage.agent.get("/runbook").await.expect("it answers");
    assert_eq!(status, 200);
    stage.redis.push(USAGE, &[b"no record".to_vec()]).await;
    stage.sandbox.weather(json!({"status": {"401": 1.0}})).await;
    stage.redis.push(USAGE, &[load::usage("waits", 0)]).await;
    until("both are taken over", async || {
        let outbox = &stage.agent.health().await?["outbox"];
        (outbox["dead_letters"] == 1 && outbox["depth"] == 1).then_some(())
    })
    .await;
    stage.redis.kill();
    let concerns = until("all of it is told", async || {
        let (_, now) = stage.agent.get("/status").await?;
        let now: Value = serde_json::from_str(&now).ok()?;
        let concerns = now["concerns"].as_array()?.clone();
        // Reasons use the same words.
        for reason in now["reasons"].as_array()? {
            assert!(concerns.iter().any(|concern| concern["text"] == *reason), "{now}");
        }
        (concerns.len() >= 3).then_some(concerns)
    })
    .await;
    for (place, section) in [
        ("redis", "DataplaneRedisAway"),
        ("link", "DataplaneCredentialsRefused"),
        ("dead_letters", "DataplaneDeadLetters"),
    ] {
        let concern = concerns.iter().find(|concern| concern["place"] == place);
        assert_eq!(concern.expect(place)["runbook"], section, "{concerns:?}");
        assert!(runbook.contains(&format!("<h2 id=\"{}\">", section.to_lowercase())), "{section}");
    }
}

#[tokio::test]
async fn the_number_of_open_pages_is_limited() {
    let stage = Stage::set().await;
    let mut open = Vec::new();
    let refused = loop {
        match Events::open(&stage).await {
            Ok(mut events) => {
                assert_eq!(events.next().await.expect("an event").0, "history");
                open.push(events);
            }
            Err(status) => break status,
        }
    };
    assert_eq!((open.len(), refused), (32, 503));
    open.pop();
    let mut again = until("a place is free", async || Events::open(&stage).await.ok()).await;
    assert!(again.next().await.is_some());
}

#[tokio::test]
async fn no_page_may_fetch_from_elsewhere_and_its_files_come_compressed() {
    let stage = Stage::set().await;
    let http = reqwest::Client::builder().no_proxy().build().expect("a client");
    for path in ["/", "/runbook", "/docs", "/redoc"] {
        let answer = http.get(stage.agent.url(path)).send().await.expect("it answers");
        let policy = answer.headers()["content-security-policy"].to_str().expect("text").to_owned();
        assert!(policy.starts_with("default-src 'none'; script-src 'self'; style-src 'self'"), "{policy}");
        assert!(
            !policy.contains("http") && !policy.contains('*') && !policy.contains("unsafe-eval"),
            "{policy}"
        );
        let is_own = ["/", "/runbook"].contains(&path);
        assert_eq!(policy.contains("unsafe-inline"), !is_own, "{path}: {policy}");
        let text = answer.text().await.expect("a page");
        let files: Vec<&str> =
            text.split("=\"assets/").skip(1).filter_map(|rest| rest.split('"').next()).collect();
        assert!(!files.is_empty(), "{text}");
        for file in files {
            let url = stage.agent.url(&format!("/assets/{file}"));
            let plain = http.get(&url).send().await.expect("it answers");
            assert_eq!(
                (plain.status().as_u16(), plain.headers().get("content-encoding")),
                (200, None),
                "{file}"
            );
            let tag = plain.headers()["etag"].clone();
            let plain = plain.bytes().await.expect("a file");
            let packed = http.get(&url).header("Accept-Encoding", "gzip").send().await.expect("it answers");
            if plain.len() > 64 << 10 {
                assert_eq!(packed.headers()["content-encoding"], "gzip", "{file}");
                let packed = packed.bytes().await.expect("a file");
                let mut unpacked = Vec::new();
                std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&packed[..]), &mut unpacked)
                    .unwrap();
                assert_eq!(unpacked, plain, "{file}");
            }
            let known = http.get(&url).header("If-None-Match", tag).send().await.expect("it answers");
            assert_eq!(known.status(), 304, "{file}");
        }
    }
}

#[tokio::test]
async fn pages_too_are_for_trusted_addresses_only() {
    let redis = RedisServer::start().await;
    let mut agent = Agent::new(&redis, "http://127.0.0.1:1");
    agent.set("TRUSTED_IPS", "10.0.0.0/8");
    agent.start();
    until("the surface answers", async || agent.get("/metrics").await).await;
    let paths = [
        "/",
        "/runbook",
        "/assets/page.js",
        "/events",
        "/history",
        "/status",
        "/openapi.json",
        "/docs",
        "/redoc",
    ];
    for path in paths {
        assert_eq!(agent.get(path).await.expect("it answers").0, 403, "{path}");
    }
}
