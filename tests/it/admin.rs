//! Goal: only holders of the token can inspect a running agent and give it orders.

use std::time::Instant;

use reqwest::Method;
use rustix::process::Signal;
use serde_json::{Value, json};

use super::harness::{DEAD_LETTERS, QUOTA, Sandbox, Stage, USAGE, load, until};

const TOKEN: &str = "a-token-of-the-operator";

async fn stage(settings: &[(&str, &str)]) -> Stage {
    Stage::set_with(&[&[("ADMIN_TOKEN", TOKEN), ("HEARTBEAT_INTERVAL", "0.1")], settings].concat()).await
}

/// The status and body of a request with this `Authorization`.
async fn ask_as(
    stage: &Stage,
    authorization: Option<&str>,
    method: Method,
    path: &str,
    body: Option<Value>,
) -> (u16, Value) {
    let http = reqwest::Client::builder().no_proxy().build().expect("a client");
    let mut request = http.request(method, stage.agent.url(path));
    if let Some(authorization) = authorization {
        request = request.header("Authorization", authorization);
    }
    if let Some(body) = &body {
        request = request.json(body);
    }
    let answer = request.send().await.expect("the agent answers");
    let status = answer.status().as_u16();
    let text = answer.text().await.expect("a body");
    (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

async fn ask(stage: &Stage, method: Method, path: &str, body: Option<Value>) -> (u16, Value) {
    ask_as(stage, Some(&format!("Bearer {TOKEN}")), method, path, body).await
}

async fn get(stage: &Stage, path: &str) -> Value {
    let (status, body) = ask(stage, Method::GET, path, None).await;
    assert_eq!(status, 200, "{path}: {body}");
    body
}

async fn post(stage: &Stage, path: &str, body: Option<Value>) -> Value {
    let (status, body) = ask(stage, Method::POST, path, body).await;
    assert_eq!(status, 200, "{path}: {body}");
    body
}

async fn put(stage: &Stage, path: &str, body: Value) -> Value {
    let (status, body) = ask(stage, Method::PUT, path, Some(body)).await;
    assert_eq!(status, 200, "{path}: {body}");
    body
}

#[tokio::test]
async fn without_the_token_nothing_is_told_and_nothing_done() {
    let set = stage(&[]).await;
    let wrong = [
        None,
        Some("Bearer"),
        Some("Bearer "),
        Some("Bearer a-token-of-the-operatoR"),
        Some("Basic a-token-of-the-operator"),
        Some("Bearer a-token-of-the-operator2"),
        Some("a-token-of-the-operator"),
    ];
    let paths = [
        (Method::GET, "/admin/outbox"),
        (Method::GET, "/admin/dead-letters"),
        (Method::POST, "/admin/drain/pause"),
        (Method::PUT, "/admin/drain/rate-limit"),
        (Method::POST, "/admin/reload"),
    ];
    for (n, (method, path)) in paths.into_iter().enumerate() {
        for authorization in wrong {
            let body = Some(json!({"rate_limit": 7}));
            let (status, body) = ask_as(&set, authorization, method.clone(), path, body).await;
            assert_eq!(status, 401, "{path} {authorization:?}: {body}");
        }
        let refused = set.agent.metrics().await.sum("dataplane_admin_refused_total", &[]);
        assert_eq!(refused as usize, wrong.len() * (n + 1));
    }
    assert_eq!(get(&set, "/admin/drain").await["paused"], false);
    assert_eq!(get(&set, "/admin/drain").await["rate_limit"], 0);
    let log = set.agent.log();
    assert!(
        log.contains("security: refused requests to /admin without a valid token") && !log.contains(TOKEN),
        "{log}"
    );

    assert!(log.contains(r#""ip":"127.0.0.1""#) && log.contains(r#""path":"/admin/"#), "{log}");
    assert_eq!(log.matches("security: ").count(), 1, "one line a minute: {log}");
    // An unknown path is not refused, but not found.
    let refused = set.agent.metrics().await.sum("dataplane_admin_refused_total", &[]);
    assert_eq!(ask_as(&set, None, Method::GET, "/nothing", None).await.0, 404);
    assert_eq!(ask_as(&set, None, Method::GET, "/admin/nothing", None).await.0, 404);
    let now = set.agent.metrics().await.sum("dataplane_admin_refused_total", &[]);
    assert!((now - refused).abs() < 0.5, "{now} refusals");

    let off = Stage::set().await;
    assert_eq!(ask(&off, Method::GET, "/admin/outbox", None).await.0, 404, "there is no admin surface");
}

#[tokio::test]
async fn dead_letters_are_listed_shown_replayed_and_dropped() {
    let mut stage = stage(&[]).await;
    stage.sandbox.weather(json!({"refuse_transactions": ["usage-bad"]})).await;
    let refused: Vec<String> = (0..5).map(|n| load::usage("bad", n)).collect();
    stage.redis.push(USAGE, &refused).await;
    stage.redis.push(USAGE, &[b"\xff no record".to_vec()]).await;
    stage.redis.push(QUOTA, &["{}".to_owned()]).await;
    stage.drained().await;
    until("all are dead letters", async || {
        (get(&stage, "/admin/outbox").await["dead_letters"] == 7).then_some(())
    })
    .await;

    // A page at a time, each letter once.
    let (mut seen, mut next) = (Vec::new(), json!(0));
    while !next.is_null() {
        let page = get(&stage, &format!("/admin/dead-letters?limit=2&from={next}")).await;
        let letters = page["dead_letters"].as_array().expect("a list").clone();
        assert!(letters.len() <= 2, "{page}");
        seen.extend(letters.into_iter().map(|letter| letter["id"].as_u64().expect("a number")));
        next = page["next"].clone();
    }
    assert!(seen.len() == 7 && seen.is_sorted(), "{seen:?}");
    let filtered = get(&stage, "/admin/dead-letters?reason=invalid&kind=quota_refresh").await;
    assert_eq!(filtered["dead_letters"].as_array().expect("a list").len(), 1, "{filtered}");
    let invalid = get(&stage, "/admin/dead-letters?reason=invalid&kind=usage_record").await;
    let raw = &invalid["dead_letters"][0]["id"];
    let shown = get(&stage, &format!("/admin/dead-letters/{raw}")).await;
    assert_eq!(shown["original_message"], json!(b"\xff no record".to_vec()), "the exact bytes");
    let refused_id = &get(&stage, "/admin/dead-letters?reason=refused").await["dead_letters"][0]["id"];
    let shown = get(&stage, &format!("/admin/dead-letters/{refused_id}")).await;
    let original: Value =
        serde_json::from_str(shown["original_message"].as_str().expect("text")).expect("JSON");
    assert!(shown["detail"].as_str().expect("why").contains("422"), "{shown}");
    assert!(original["transaction_id"].as_str().expect("its id").starts_with("usage-bad"), "{shown}");

    // By any words of the listed fields.
    let found = async |text: &str| {
        let page = get(&stage, &format!("/admin/dead-letters?text={text}")).await;
        page["dead_letters"].as_array().expect("a list").clone()
    };
    let record: Value = serde_json::from_str(&refused[3]).expect("JSON");
    let [session, transaction] =
        ["api_session_id", "transaction_id"].map(|id| record[id].as_str().expect("text"));
    let one = found(&format!("{transaction}+REFUSED+422")).await;
    assert_eq!(one.len(), 1, "{one:?}");
    assert_eq!(
        (&one[0]["api_session_id"], &one[0]["transaction_id"]),
        (&json!(session), &json!(transaction))
    );
    assert!(one[0]["correlation_id"].is_string());
    assert_eq!(found(session).await.len(), 5);
    assert_eq!(found("quota_refresh").await.len(), 1);
    assert_eq!(found("refused+quota").await.len(), 0);
    let long = format!("/admin/dead-letters?text={}", "x".repeat(401));

    for (path, status) in [
        (&*long, 400),
        ("/admin/dead-letters/999999", 404),
        ("/admin/dead-letters/one", 400),
        ("/admin/dead-letters?reason=whim", 400),
        ("/admin/dead-letters?limit=-1", 400),
        ("/admin/nothing", 404),
    ] {
        let (answered, body) = ask(&stage, Method::GET, path, None).await;
        assert_eq!(answered, status, "{path}: {body}");
    }
    for body in [
        json!({}),
        json!({"all": true, "ids": [1]}),
        json!({"ids": (0..501).collect::<Vec<_>>()}),
        json!({"al": true}),
        json!([1]),
    ] {
        let (answered, said) =
            ask(&stage, Method::POST, "/admin/dead-letters/drop", Some(body.clone())).await;
        assert!(answered == 422 && said["error"].is_string(), "{body}: {answered} {said}");
    }
    assert_eq!(get(&stage, "/admin/outbox").await["dead_letters"], 7, "nothing was dropped by that");

    // The ControlPlane now accepts them: each is replayed once, however often it is named.
    stage.sandbox.weather(json!({})).await;
    let outcome = post(
        &stage,
        "/admin/dead-letters/replay",
        Some(json!({"ids": [refused_id, refused_id, raw, 999_999]})),
    )
    .await;
    assert_eq!(
        outcome,
        json!({"replayed": [refused_id], "not_records": [raw], "unknown": [999_999], "next": null})
    );
    let outcome = post(&stage, "/admin/dead-letters/replay", Some(json!({"reason": "refused"}))).await;
    assert_eq!(outcome["replayed"].as_array().expect("a list").len(), 4, "{outcome}");
    stage.drained().await;
    let accounts = stage.sandbox.accounts().await;
    assert_eq!(accounts.kind("usage", "processed"), 5);
    accounts.assert_in_order_and_recognisable();
    let dropped = post(&stage, "/admin/dead-letters/drop", Some(json!({"all": true}))).await;
    assert_eq!(dropped, json!({"dropped": 2, "next": null}));
    assert_eq!(get(&stage, "/admin/dead-letters").await["dead_letters"], json!([]));
    stage.agent.metrics().await.assert_conserved();
    assert_eq!(stage.redis.len(DEAD_LETTERS).await, 7, "the mirror is not touched");
}

#[tokio::test]
async fn what_waits_can_be_looked_at() {
    let mut stage = stage(&[]).await;
    post(&stage, "/admin/drain/pause", None).await;
    let pushed = load::push_sessions(&stage.redis, "s", 10, 3).await;
    until("all of it is in the outbox", async || {
        let depth = &stage.agent.health().await?["outbox"]["depth"];
        (depth.as_u64()? == pushed).then_some(())
    })
    .await;
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = get(&stage, &format!("/admin/outbox/records?limit=7&{cursor}")).await;
        let records = page["records"].as_array().expect("a list").clone();
        assert!(records.len() <= 7, "{page}");
        seen.extend(records);
        let Some(next) = page["next"].as_str() else { break };
        cursor = format!("cursor={next}");
    }
    let mut keys: Vec<_> = seen.iter().map(|record| record["key"].to_string()).collect();
    keys.sort_unstable();
    keys.dedup();
    assert_eq!((seen.len(), keys.len()), (pushed as usize, pushed as usize), "each once");
    let one = seen.iter().find(|record| record["kind"] == "usage_record").expect("usage");
    let shown = get(&stage, &format!("/admin/outbox/records/{}", one["id"])).await;
    let body: Value = serde_json::from_str(shown["body"].as_str().expect("text")).expect("JSON");
    assert_eq!(body["transaction_id"], one["transaction"]);
    assert_eq!(ask(&stage, Method::GET, "/admin/outbox/records/99999", None).await.0, 404);
    let (status, said) = ask(&stage, Method::GET, "/admin/outbox/records?cursor=whim", None).await;
    assert!(status == 400 && said["error"].is_string(), "{status} {said}");
    post(&stage, "/admin/drain/resume", None).await;
    stage.drained().await;
    stage.assert_each_once(pushed).await;
}

#[tokio::test]
async fn a_paused_drain_sends_no_record_until_it_is_resumed_and_the_server_stays_known() {
    let mut stage = stage(&[]).await;
    load::push_sessions(&stage.redis, "before", 5, 3).await;
    stage.drained().await;
    let answer = post(&stage, "/admin/drain/pause", None).await;
    assert_eq!(answer["paused"], true);
    assert_eq!(stage.agent.metrics().await.sum("dataplane_drain_paused", &[]) as u64, 1);
    let before = stage.sandbox.accounts().await;
    let pushed = load::push_sessions(&stage.redis, "during", 5, 3).await;
    let beats = before.all_requests("heartbeat");
    until("records wait, and the heart beats", async || {
        let depth = stage.agent.health().await?["outbox"]["depth"].as_u64()?;
        let now = stage.sandbox.accounts().await.all_requests("heartbeat");
        (depth == pushed && now >= beats + 3).then_some(())
    })
    .await;
    assert_eq!(stage.sandbox.accounts().await.processed(), before.processed(), "nothing was sent");
    let health = stage.agent.health().await.expect("it answers");
    assert_eq!(
        (&health["status"], &health["components"]["drain"]["status"]),
        (&json!("degraded"), &json!("degraded"))
    );
    let reason = "paused by an operator, until it is resumed or restarted";
    assert_eq!(health["components"]["drain"]["reason"], reason);
    let heartbeat = async |status: &str| {
        until(&format!("a heartbeat says {status}"), async || {
            (stage.sandbox.servers().await["edge-test-1"]["last_heartbeat"]["status"] == status).then_some(())
        })
        .await;
    };
    heartbeat("degraded").await;
    post(&stage, "/admin/drain/resume", None).await;
    heartbeat("online").await;
    stage.drained().await;
    stage.assert_each_once(before.processed() + pushed).await;
}

#[tokio::test]
async fn what_a_path_does_not_know_is_refused_and_nothing_is_done() {
    let stage = stage(&[]).await;
    let described = get(&stage, "/openapi.json").await;
    let (mut with_query, mut without) = (0, 0);
    for (path, operations) in described["paths"].as_object().expect("paths") {
        let operations = operations.as_object().expect("operations");
        for (method, operation) in operations.iter().filter(|_| path.starts_with("/admin")) {
            let export = "/export/";
            let id = if path.contains(export) { "5a1c3e0e-8f5b-4f6c-9a37-0d2f3c4b5a69" } else { "1" };
            let url = path.replace("{id}", id);
            let method: Method = method.to_uppercase().parse().expect("a method");
            let known: Vec<&str> = operation["parameters"]
                .as_array()
                .into_iter()
                .flatten()
                .filter(|parameter| parameter["in"] == "query")
                .filter_map(|parameter| parameter["name"].as_str())
                .collect();
            let (status, said) = ask(&stage, method.clone(), &format!("{url}?for=3"), None).await;
            let text = said["error"].as_str().unwrap_or_default();
            assert_eq!(status, 400, "{method} {path}: {said}");
            if known.is_empty() {
                without += 1;
                assert!(text.contains("takes no query parameters"), "{method} {path}: {said}");
            } else {
                with_query += 1;
                assert!(
                    known.iter().all(|name| text.contains(&format!("`{name}`"))),
                    "{method} {path}: {said}"
                );
            }
            // An unknown field of a body, too; import takes lines.
            if path.ends_with("/import") || method == Method::GET {
                continue;
            }
            let (status, said) = ask(&stage, method.clone(), &url, Some(json!({"for": 3}))).await;
            let text = said["error"].as_str().unwrap_or_default();
            let has_body = operation["requestBody"].is_object();
            let expected =
                if has_body { (422, "unknown field `for`, expected") } else { (400, "takes no body") };
            assert_eq!(status, expected.0, "{method} {path}: {said}");
            assert!(text.contains(expected.1), "{method} {path}: {said}");
        }
    }
    assert!(with_query >= 6 && without >= 15, "{with_query} and {without}");
    assert_eq!(get(&stage, "/admin/drain").await["paused"], false);
    assert_eq!(get(&stage, "/admin/audit").await["orders"], json!([]), "nothing was done");
    // Who says nothing asks for nothing more.
    for nothing in [None, Some(json!({})), Some(json!(null))] {
        assert_eq!(post(&stage, "/admin/drain/pause?", nothing).await["paused"], true);
    }
}

#[tokio::test]
async fn the_rate_limit_changes_while_it_runs() {
    let mut stage = stage(&[("DELIVERY_MODE", "single")]).await;
    put(&stage, "/admin/drain/rate-limit", json!({"rate_limit": 20, "burst": 1})).await;
    until("the drain obeys", async || {
        let limit = stage.agent.metrics().await.sum("dataplane_drain_rate_limit", &[]);
        (limit as u64 == 20).then_some(())
    })
    .await;
    let begun = Instant::now();
    let before: u64 = requests(&stage).await;
    let records: Vec<String> = (0..2_000).map(|n| load::usage(&format!("s{n}"), 0)).collect();
    stage.redis.push(USAGE, &records).await;
    // However slow the machine: never above the limit, heartbeats included.
    for target in [10, 20, 30] {
        let sent = until("some were sent", async || {
            let sent = requests(&stage).await - before;
            (sent >= target).then_some(sent)
        })
        .await;
        let most = 20.0 * begun.elapsed().as_secs_f64() + 2.0;
        assert!(sent as f64 <= most, "{sent} requests, where {most} are allowed");
    }
    for body in [json!({"rate_limit": -1}), json!({"rate_limit": 1_000_001}), json!({"rate": 1}), json!([1])]
    {
        let (status, said) = ask(&stage, Method::PUT, "/admin/drain/rate-limit", Some(body)).await;
        assert!(status == 422 && said["error"].is_string(), "{said}");
    }
    put(&stage, "/admin/drain/rate-limit", json!({"rate_limit": 0})).await;
    stage.drained().await;
    stage.assert_each_once(2_000).await;
}

/// All requests that the sandbox received.
async fn requests(stage: &Stage) -> u64 {
    let accounts = stage.sandbox.accounts().await;
    let endpoints = accounts.0["requests"].as_object().expect("endpoints").clone();
    endpoints.keys().map(|endpoint| accounts.all_requests(endpoint)).sum()
}

#[tokio::test]
async fn while_the_link_is_down_only_probes_are_sent() {
    let settings = [
        ("CONTROL_PLANE_INITIAL_ERROR_DELAY", "0.2"),
        ("CONTROL_PLANE_MAX_BACKOFF", "0.5"),
        ("COMMAND_POLL_INTERVAL", "0.1"),
        ("CONTROL_PLANE_HEALTH_CHECK_INTERVAL", "0.1"),
    ];
    let mut stage = stage(&settings).await;
    until("the server is known", async || {
        stage.agent.health().await?["server_registered"].as_bool()?.then_some(())
    })
    .await;
    stage.sandbox.weather(json!({"status": {"503": 1.0}})).await;
    let pushed = load::push_sessions(&stage.redis, "s", 5, 3).await;
    until("the link is down", async || (get(&stage, "/admin/drain").await["link"] != "up").then_some(()))
        .await;
    // A request in flight may still complete.
    let accounts = stage.sandbox.accounts().await;
    let asked = ["heartbeat", "commands", "health"].map(|endpoint| accounts.all_requests(endpoint));
    let others = requests(&stage).await;
    until("probes are made", async || (requests(&stage).await >= others + 5).then_some(())).await;
    let accounts = stage.sandbox.accounts().await;
    let now = ["heartbeat", "commands", "health"].map(|endpoint| accounts.all_requests(endpoint));
    for (now, before) in now.into_iter().zip(asked) {
        assert!(now <= before + 1, "{} requests about the server while the link was down", now - before);
    }
    stage.sandbox.weather(json!({})).await;
    stage.drained().await;
    until("the heart beats again", async || {
        (stage.sandbox.accounts().await.all_requests("heartbeat") > now[0] + 1).then_some(())
    })
    .await;
    stage.assert_each_once(pushed).await;
}

#[tokio::test]
async fn the_brake_is_released_by_hand() {
    let settings = [
        ("REFUSAL_BRAKE", "3"),
        ("DRAIN_CONCURRENCY", "1"),
        ("DELIVERY_MODE", "single"),
        ("CONTROL_PLANE_INITIAL_ERROR_DELAY", "3600"),
        ("CONTROL_PLANE_MAX_BACKOFF", "3600"),
    ];
    let mut stage = stage(&settings).await;
    stage.sandbox.weather(json!({"status": {"422": 1.0}})).await;
    let records: Vec<String> = (0..20).map(|n| load::usage(&format!("s{n}"), 0)).collect();
    stage.redis.push(USAGE, &records).await;
    until("the brake holds", async || get(&stage, "/admin/drain").await["braked"].as_bool()?.then_some(()))
        .await;
    // The next probe is an hour away: only the operator knows that the ControlPlane has recovered.
    stage.sandbox.weather(json!({})).await;
    let answer = post(&stage, "/admin/drain/release-brake", None).await;
    assert_eq!(
        (&answer["braked"], &answer["link"], &answer["reason"]),
        (&json!(false), &json!("up"), &Value::Null)
    );
    stage.drained().await;
    let dead = get(&stage, "/admin/outbox").await["dead_letters"].as_u64().expect("a number");
    assert!(dead <= 3, "{dead} dead letters");
    assert_eq!(stage.sandbox.accounts().await.processed(), 20 - dead);
}

#[tokio::test]
async fn an_operator_can_cut_short_a_requested_wait() {
    for order in ["/admin/drain/resume", "/admin/drain/release-brake", "/admin/drain/probe"] {
        let mut stage = stage(&[]).await;
        stage.sandbox.weather(json!({"always": 503, "retry_after": "86400"})).await;
        stage.redis.push(USAGE, &[load::usage("s", 0)]).await;
        until("the link waits for an hour", async || {
            let link = stage.agent.health().await?["components"]["control_plane"].clone();
            (link["next_probe_seconds"].as_f64()? > 3500.0).then_some(())
        })
        .await;
        // Only the operator knows that the ControlPlane has recovered.
        stage.sandbox.weather(json!({})).await;
        post(&stage, order, None).await;
        stage.drained().await;
    }
}

#[tokio::test]
async fn the_log_level_changes_while_it_runs() {
    let stage = stage(&[("LOG_LEVEL", "ERROR")]).await;
    assert_eq!(get(&stage, "/admin/log-level").await, json!({"level": "ERROR"}));
    post(&stage, "/admin/drain/pause", None).await;
    assert!(!stage.agent.log().contains("the sender was paused"), "{}", stage.agent.log());
    put(&stage, "/admin/log-level", json!({"level": "INFO"})).await;
    post(&stage, "/admin/drain/resume", None).await;
    until("it is logged", async || {
        stage.agent.log().contains("the sender was resumed by an operator").then_some(())
    })
    .await;
    assert_eq!(ask(&stage, Method::PUT, "/admin/log-level", Some(json!({"level": "LOUD"}))).await.0, 422);
    // The log also records that it is about to be silenced.
    put(&stage, "/admin/drain/rate-limit", json!({"rate_limit": 77})).await;
    put(&stage, "/admin/log-level", json!({"level": "ERROR"})).await;
    until("both are logged", async || {
        let log = stage.agent.log();
        (log.contains("\"set the rate limit\"") && log.contains("log level raised")).then_some(())
    })
    .await;
}

#[tokio::test]
async fn settings_are_reloaded_and_invalid_ones_change_nothing() {
    let redis = super::harness::RedisServer::start().await;
    let sandbox = Sandbox::start(&[]);
    let mut agent = super::harness::Agent::new(&redis, &sandbox.url);
    agent.set("ADMIN_TOKEN", TOKEN);
    let dotenv = agent.dir().join("settings");
    agent.set("DATAPLANE_ENV_FILE", "settings");
    let write = |text: &str| std::fs::write(&dotenv, text).expect("a file");
    write("DRAIN_RATE_LIMIT=5\nLOG_LEVEL=WARNING\n");
    agent.start();
    agent.ready().await;
    let stage = Stage { redis, sandbox, agent };
    assert_eq!(get(&stage, "/admin/drain").await["rate_limit"], 5);

    write("DRAIN_RATE_LIMIT=many\nLOG_LEVEL=DEBUG\n");
    let (status, said) = ask(&stage, Method::POST, "/admin/reload", None).await;
    assert!(status == 422 && said["error"].as_str().expect("why").contains("DRAIN_RATE_LIMIT"), "{said}");
    assert_eq!(get(&stage, "/admin/log-level").await["level"], "WARNING", "all of it or nothing");

    write("DRAIN_RATE_LIMIT=6\nDRAIN_BANDWIDTH=70000\nLOG_LEVEL=INFO\nDRAIN_CONCURRENCY=4\n");
    let done = post(&stage, "/admin/reload", None).await;
    assert_eq!(done, json!({"need_restart": ["DRAIN_CONCURRENCY"]}));
    let drain = get(&stage, "/admin/drain").await;
    assert_eq!((&drain["rate_limit"], &drain["bandwidth"]), (&json!(6), &json!(70_000)));
    assert_eq!(get(&stage, "/admin/log-level").await["level"], "INFO");

    // This remains so until a restart; hidden secrets are compared too.
    write("DRAIN_RATE_LIMIT=6\nDRAIN_CONCURRENCY=4\nREDIS_PASSWORD=an0ther\n");
    let done = post(&stage, "/admin/reload", None).await;
    assert_eq!(done, json!({"need_restart": ["REDIS_PASSWORD", "DRAIN_CONCURRENCY"]}));

    // A signal has the same effect, and ends an order given meanwhile.
    put(&stage, "/admin/drain/rate-limit", json!({"rate_limit": 9})).await;
    write("DRAIN_RATE_LIMIT=7\n");
    stage.agent.signal(Signal::HUP);
    until("it is read", async || (get(&stage, "/admin/drain").await["rate_limit"] == 7).then_some(())).await;
}

#[tokio::test]
async fn a_record_that_cannot_be_sent_does_not_leave_the_link_in_doubt() {
    let redis = super::harness::RedisServer::start().await;
    let sandbox = Sandbox::start(&[]);
    let mut agent = super::harness::Agent::new(&redis, &sandbox.url);
    agent.set("HEARTBEAT_INTERVAL", "0.1");
    agent.set("DELIVERY_MODE", "single");
    // No path can name this session. It is tried first, and alone.
    redis.push(USAGE, &[load::usage(".", 0)]).await;
    agent.start();
    until("it is a dead letter", async || (redis.len(DEAD_LETTERS).await == 1).then_some(())).await;
    let beats = sandbox.accounts().await.all_requests("heartbeat");
    until("the heart goes on beating", async || {
        (sandbox.accounts().await.all_requests("heartbeat") >= beats + 3).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_paused_drain_learns_from_heartbeats_that_the_link_is_back() {
    let mut stage = stage(&[]).await;
    until("the server is known", async || {
        stage.agent.health().await?["server_registered"].as_bool()?.then_some(())
    })
    .await;
    stage.sandbox.weather(json!({"down": true})).await;
    let pushed = load::push_sessions(&stage.redis, "s", 5, 3).await;
    until("the link is down", async || get(&stage, "/admin/drain").await["reason"].as_str().map(|_| ()))
        .await;
    post(&stage, "/admin/drain/pause", None).await;
    let told = until("both reasons are told", async || {
        let told = stage.agent.health().await?;
        let reasons: Vec<&str> = told["reasons"].as_array()?.iter().filter_map(Value::as_str).collect();
        let tells = |begin: &str| reasons.iter().any(|reason| reason.starts_with(begin));
        (tells("not sending: paused") && tells("the link was down when last tried: ")).then_some(told)
    })
    .await;
    assert_eq!(told["components"]["control_plane"]["next_probe_seconds"], Value::Null, "{told}");
    stage.sandbox.weather(json!({})).await;
    until("the link is up", async || {
        let health = stage.agent.health().await?;
        let is_up = health["components"]["control_plane"]["status"] == "healthy";
        (is_up && health["control_plane_connected"] == true).then_some(())
    })
    .await;
    assert_eq!(stage.sandbox.accounts().await.processed(), 0, "no record was sent for it");
    post(&stage, "/admin/drain/resume", None).await;
    stage.drained().await;
    stage.assert_each_once(pushed).await;
}
