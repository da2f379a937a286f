//! Goal: before a start, `check` reports each problem with advice. It changes nothing, and beside a running agent it reports
//! that agent's health.

use axum::http::StatusCode;
use axum::response::IntoResponse as _;
use serde_json::{Value, json};

use super::harness::{Agent, RedisServer, Said, Sandbox, Scripted, Stage, USAGE, free_port, load, until};

const CHECK: [&str; 2] = ["check", "--json"];

/// The finding about one thing.
#[track_caller]
fn of(said: &Said, what: &str) -> Value {
    let report: Value = serde_json::from_str(&said.out).unwrap_or_else(|error| panic!("{error}: {said:?}"));
    let checks = report["checks"].as_array().expect("a list");
    checks.iter().find(|check| check["what"] == what).unwrap_or_else(|| panic!("{what}: {said:?}")).clone()
}

/// The check failed with a finding and advice, and the exit code is 1.
#[track_caller]
fn assert_failed(said: &Said, what: &str, part: &str) {
    let check = of(said, what);
    assert_eq!((said.code, &check["state"]), (1, &json!("failed")), "{said:?}");
    assert!(check["says"].as_str().expect("words").contains(part), "{part:?}: {check}");
    assert!(!check["advice"].as_str().expect("what to do").is_empty());
}

/// The outbox's file system may be in memory in tests; another test checks that.
fn quiet(agent: &mut Agent) {
    agent.set("OUTBOX_DURABILITY", "process");
    agent.set("OUTBOX_MIN_FREE_BYTES", "1MiB");
    agent.set("OUTBOX_MAX_BYTES", "16MiB");
}

#[tokio::test]
async fn all_is_well_before_the_start_and_beside_a_running_agent() {
    let (redis, sandbox) = (RedisServer::start().await, Sandbox::start(&[]));
    let mut agent = Agent::new(&redis, &sandbox.url);
    quiet(&mut agent);
    let said = agent.command(&[], &CHECK).await;
    assert_eq!(said.code, 0, "{said:?}");
    assert!(of(&said, "outbox")["says"].as_str().expect("words").contains("no outbox here"));
    assert!(!agent.dir().join("outbox").exists(), "nothing is made");
    assert_eq!(of(&said, "agent")["state"], "ok", "nothing listens on its port");
    assert_eq!(of(&said, "credentials")["state"], "ok");
    assert_eq!(agent.command(&[("SOURCE_MODE", "stream")], &CHECK).await.code, 0, "streams, too");
    let keys: Vec<String> =
        redis::cmd("KEYS").arg("*").query_async(&mut redis.connection()).await.expect("keys");
    assert!(keys.is_empty(), "{keys:?}");

    agent.set("ADMIN_TOKEN", "a-token-of-the-operator");
    agent.start();
    agent.ready().await;
    let mut stage = Stage { redis, sandbox, agent };
    let lease = "queue:usage_records:lease:edge-test-1";
    let said = stage.agent.command(&[], &CHECK).await;
    assert_eq!(said.code, 0, "{said:?}");
    assert!(of(&said, "outbox")["says"].as_str().expect("words").contains("in use by a running agent"));
    assert!(of(&said, "server_id")["says"].as_str().expect("words").contains("in use by this agent"));
    assert!(of(&said, "agent")["says"].as_str().expect("words").ends_with("is healthy"), "{said:?}");
    let left: i64 =
        redis::cmd("PTTL").arg(lease).query_async(&mut stage.redis.connection()).await.expect("a time");
    assert!(left <= 10_000, "the lease is left as it was: {left}");
    // The running agent is not disturbed.
    let pushed = load::push_sessions(&stage.redis, "s", 5, 3).await;
    stage.drained().await;
    stage.assert_each_once(pushed).await;

    let text = stage.agent.command(&[], &["check"]).await;
    assert!(text.code == 0 && text.out.lines().any(|line| line.starts_with("ok       redis")), "{text:?}");
}

#[tokio::test]
async fn the_health_of_the_running_agent_is_reported() {
    let (redis, sandbox) = (RedisServer::start().await, Sandbox::start(&[]));
    let mut agent = Agent::new(&redis, &sandbox.url);
    quiet(&mut agent);
    agent.set("ADMIN_TOKEN", "a-token-of-the-operator");
    agent.start();
    agent.ready().await;
    agent.order("/admin/drain/pause").await;
    let paused = agent.command(&[], &CHECK).await;
    assert_eq!((paused.code, &of(&paused, "agent")["state"]), (0, &json!("warning")), "{paused:?}");
    assert!(of(&paused, "agent")["says"].as_str().expect("words").contains("paused by an operator"));
    let another = agent.command(&[("SERVER_ID", "edge-test-2"), ("OUTBOX_DIR", "outbox-2")], &CHECK).await;
    assert_failed(&another, "agent", "another agent, edge-test-1");

    std::fs::rename(agent.dir().join("outbox"), agent.dir().join("moved")).expect("the folder can be moved");
    until("the agent has noticed", async || {
        let health = agent.health().await?;
        health["components"]["outbox"]["reason"].as_str()?.starts_with("folder_gone: ").then_some(())
    })
    .await;
    let moved = agent.command(&[], &CHECK).await;
    assert_failed(&moved, "agent", "folder_gone");
    assert_failed(&moved, "server_id", "OUTBOX_DIR has no outbox");

    let taken = agent.command(&[("SERVER_PORT", &redis.port.to_string())], &CHECK).await;
    assert_failed(&taken, "agent", "in use");
}

#[tokio::test]
async fn an_agent_whose_outbox_is_in_memory_says_so() {
    let (redis, sandbox) = (RedisServer::start().await, Sandbox::start(&[]));
    let memory = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
    let mut agent = Agent::new(&redis, &sandbox.url);
    agent.set("OUTBOX_DIR", memory.path().to_str().expect("a path"));
    agent.start();
    agent.ready().await;
    agent.says("OUTBOX_DIR is in memory").await;
    let health = agent.health().await.expect("it answers");
    assert_eq!(health["components"]["outbox"]["durability"], "survives the process, not a power cut");
    let (_, status) = agent.get("/status").await.expect("it answers");
    assert!(status.contains("OUTBOX_DIR is in memory"), "{status}");
}

#[tokio::test]
async fn each_fault_of_redis_is_told_apart() {
    let sandbox = Sandbox::start(&[]);
    let mut agent = Agent::new(&RedisServer::stopped(), &sandbox.url);
    quiet(&mut agent);
    let nobody = agent.command(&[], &CHECK).await;
    assert_failed(&nobody, "redis", "refused");
    assert_failed(&nobody, "redis", "127.0.0.1:");
    assert_eq!(of(&nobody, "credentials")["state"], "ok", "the rest is looked at all the same");

    let redis = RedisServer::start().await;
    agent.set("REDIS_PORT", &redis.port.to_string());
    redis.run(redis::cmd("SET").arg("queue:quota_refresh").arg("text")).await;
    redis.run(redis::cmd("LPUSH").arg("queue:usage_records").arg("{}")).await;
    let mixed = agent.command(&[], &CHECK).await;
    assert_failed(&mixed, "redis_queues", "queue:quota_refresh is a string, but must be a list");
    assert_eq!(redis.len(USAGE).await, 1, "what waits is left alone");
    redis.run(redis::cmd("DEL").arg("queue:quota_refresh")).await;

    // What is in flight is told apart from what waits, in lists and in streams.
    redis
        .run(redis::cmd("LPUSH").arg("queue:usage_records:processing:edge-test-1").arg("{}").arg("{}"))
        .await;
    let lists = agent.command(&[], &CHECK).await;
    let says = of(&lists, "redis_queues")["says"].as_str().expect("words").to_owned();
    assert!(
        says.contains("waiting to be taken: 1; taken by this agent and not acknowledged yet: 2"),
        "{says}"
    );
    redis.run(redis::cmd("DEL").arg("queue:usage_records:processing:edge-test-1")).await;
    let stream = "queue:of_entries";
    for _ in 0..5 {
        redis.run(redis::cmd("XADD").arg(stream).arg("*").arg("data").arg("{}")).await;
    }
    redis.run(redis::cmd("XGROUP").arg("CREATE").arg(stream).arg("dataplane-agent").arg("0")).await;
    let mut take = redis::cmd("XREADGROUP");
    take.arg("GROUP")
        .arg("dataplane-agent")
        .arg("edge-2")
        .arg("COUNT")
        .arg(3)
        .arg("STREAMS")
        .arg(stream)
        .arg(">");
    redis.run(&take).await;
    let settings = [("SOURCE_MODE", "stream"), ("USAGE_RECORDS_QUEUE", stream)];
    let streams = agent.command(&settings, &CHECK).await;
    let says = of(&streams, "redis_queues")["says"].as_str().expect("words").to_owned();
    assert!(
        says.contains("waiting to be taken: 2; taken by the agents and not acknowledged yet: 3"),
        "{says}"
    );
    redis.run(redis::cmd("DEL").arg(stream)).await;

    let mut user = redis::cmd("ACL");
    user.arg("SETUSER").arg("agent").arg("on").arg(">pass-word").arg("~queue:*");
    for rule in
        "-@all +@connection +@list +@stream +@string +@sortedset +@scripting +@keyspace -@dangerous +time"
            .split(' ')
    {
        user.arg(rule);
    }
    redis.run(&user).await;
    let url = |login: &str| format!("redis://{login}@127.0.0.1:{}/0", redis.port);
    let (right, wrong) = (url("agent:pass-word"), url("agent:other-word"));
    let documented = agent.command(&[("REDIS_URL", &right), ("REDIS_PORT", "")], &CHECK).await;
    assert_eq!(documented.code, 0, "the documented rights are enough: {documented:?}");
    let refused = agent.command(&[("REDIS_URL", &wrong), ("REDIS_PORT", "")], &CHECK).await;
    assert_failed(&refused, "redis", "");
    assert!(
        of(&refused, "redis")["advice"].as_str().expect("advice").contains("REDIS_PASSWORD"),
        "{refused:?}"
    );
    assert!(!refused.out.contains("other-word"), "{refused:?}");
    for (rules, missing) in [
        (&["-blmove", "-zadd"][..], "ZADD, BLMOVE"),
        (&["+blmove", "+zadd", "resetkeys", "~queue:*s"][..], "writing to queue:quota_response"),
    ] {
        let mut change = redis::cmd("ACL");
        change.arg("SETUSER").arg("agent").arg(rules);
        redis.run(&change).await;
        let said = agent.command(&[("REDIS_URL", &right), ("REDIS_PORT", "")], &CHECK).await;
        assert_failed(&said, "redis_rights", missing);
    }
    redis.run(redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg("1")).await;
    assert_failed(&agent.command(&[], &CHECK).await, "redis_rights", "OOM");
    redis.run(redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg("0")).await;

    redis.run(redis::cmd("SET").arg("queue:usage_records:lease:edge-test-1").arg("another/1")).await;
    let without_outbox = agent.command(&[], &CHECK).await;
    assert_failed(
        &without_outbox,
        "server_id",
        "an agent, with outbox another, uses SERVER_ID edge-test-1, and OUTBOX_DIR",
    );
    agent.start();
    until("an outbox exists", async || agent.dir().join("outbox/format.json").exists().then_some(())).await;
    agent.kill();
    assert_failed(&agent.command(&[], &CHECK).await, "server_id", "another agent, with outbox another");
}

#[tokio::test]
async fn each_fault_of_the_outboxs_place_is_told_apart() {
    let (redis, sandbox) = (RedisServer::start().await, Sandbox::start(&[]));
    let mut agent = Agent::new(&redis, &sandbox.url);
    quiet(&mut agent);
    std::fs::write(agent.dir().join("a-file"), "").expect("a file");
    let said = agent.command(&[("OUTBOX_DIR", "a-file/outbox")], &CHECK).await;
    assert_failed(&said, "outbox", "a-file");
    let full = agent.command(&[("OUTBOX_MIN_FREE_BYTES", "1000TiB")], &CHECK).await;
    assert_failed(&full, "space", "OUTBOX_MIN_FREE_BYTES");
    let memory = agent.command(&[("OUTBOX_DIR", "/dev/shm/outbox"), ("OUTBOX_DURABILITY", "fsync")], &CHECK);
    assert_failed(&memory.await, "file_system", "tmpfs");
    let meant = agent.command(&[("OUTBOX_DIR", "/dev/shm/outbox")], &CHECK).await;
    assert_eq!((meant.code, &of(&meant, "file_system")["state"]), (0, &json!("warning")), "{meant:?}");
    std::fs::create_dir(agent.dir().join("outbox")).expect("a folder");
    std::fs::write(agent.dir().join("outbox/format.json"), r#"{"format":99}"#).expect("a file");
    assert_failed(&agent.command(&[], &CHECK).await, "outbox", "99");
}

#[tokio::test]
async fn each_fault_of_the_control_plane_is_told_apart() {
    let (redis, sandbox) =
        (RedisServer::start().await, Sandbox::start(&["--api-key", super::harness::API_KEY]));
    let mut agent = Agent::new(&redis, &sandbox.url);
    quiet(&mut agent);
    assert_eq!(agent.command(&[], &CHECK).await.code, 0);
    let wrong = agent.command(&[("CONTROL_PLANE_API_KEY", "another-key")], &CHECK).await;
    assert_failed(&wrong, "credentials", "refused: 401");
    assert!(!wrong.out.contains("another-key"), "{wrong:?}");
    let nobody = free_port();
    for (url, part) in [
        (format!("http://127.0.0.1:{nobody}"), "no connection"),
        ("http://no-such-host.invalid".to_owned(), "cannot resolve the host name"),
        (sandbox.url.replace("http://", "https://"), "TLS"),
    ] {
        let said = agent.command(&[("CONTROL_PLANE_URL", &url)], &CHECK).await;
        assert_failed(&said, "control_plane", part);
    }
    let elsewhere = Scripted::start(|_| StatusCode::NOT_FOUND.into_response()).await;
    // It answers every request about servers: the second request is not found.
    let said = agent.command(&[("CONTROL_PLANE_URL", &elsewhere.url)], &CHECK).await;
    assert_failed(&said, "credentials", "unexpected answer");
    let moved =
        Scripted::start(|_| (StatusCode::FOUND, [("location", "http://127.0.0.1:1")]).into_response()).await;
    assert_failed(
        &agent.command(&[("CONTROL_PLANE_URL", &moved.url)], &CHECK).await,
        "control_plane",
        "redirect",
    );
    for (status, body, part) in [
        (StatusCode::OK, "<html>Sign in</html>", "not a ControlPlane's"),
        (StatusCode::OK, "", "not a ControlPlane's"),
        (StatusCode::OK, r#"{"data":{"transaction_id":"another"}}"#, "belongs to another request"),
        (StatusCode::METHOD_NOT_ALLOWED, "{}", "the URL or a hop on the way is wrong"),
    ] {
        let portal = Scripted::start_all(move |_| (status, body).into_response()).await;
        let said = agent.command(&[("CONTROL_PLANE_URL", &portal.url)], &CHECK).await;
        assert_failed(&said, "control_plane", part);
    }
    // An outage cannot be fixed here.
    sandbox.weather(json!({"status": {"503": 1.0}})).await;
    let ill = agent.command(&[], &CHECK).await;
    assert_eq!((ill.code, &of(&ill, "control_plane")["state"]), (0, &json!("warning")), "{ill:?}");
    sandbox.weather(json!({})).await;
    let accounts = sandbox.accounts().await;
    assert_eq!(accounts.all_requests("register") + accounts.processed(), 0, "nothing was changed there");
}

#[tokio::test]
async fn a_proxy_on_the_way_is_named_without_its_credentials() {
    let proxy = Scripted::start(|_| StatusCode::BAD_GATEWAY.into_response()).await;
    let mut agent = Agent::new(&RedisServer::stopped(), "http://cp.invalid:8080");
    quiet(&mut agent);
    agent.set("ENABLE_TLS", "false");
    agent.set("http_proxy", &proxy.url.replace("http://", "http://user:hunter2@"));
    let shown = proxy.url.replace("http://", "http://***@");
    let said = agent.command(&[], &CHECK).await;
    let plane = of(&said, "control_plane");
    let says = plane["says"].as_str().expect("words");
    assert!(says.contains(&format!("through the proxy {shown}")) && says.contains("502"), "{plane}");
    assert!(plane["advice"].as_str().expect("what to do").contains("NO_PROXY"), "{plane}");
    // If the proxy is unusable, the proxy is reported, not the ControlPlane.
    let closed = agent.command(&[("http_proxy", "http://127.0.0.1:1")], &CHECK).await;
    let plane = of(&closed, "control_plane");
    assert!(plane["advice"].as_str().expect("what to do").contains("the proxy's host"), "{plane}");
    // NO_PROXY is matched with its port.
    let straight = agent.command(&[("NO_PROXY", "cp.invalid:8080")], &CHECK).await;
    assert_failed(&straight, "control_plane", "cannot resolve the host name");
    assert!(!of(&straight, "control_plane")["says"].as_str().expect("words").contains("proxy"));

    let printed = agent.command(&[("NO_PROXY", "other:8080")], &["check", "--print"]).await;
    let used = format!("# Proxy to the ControlPlane: {shown} (http_proxy, environment)");
    assert!(printed.out.lines().any(|line| line == used), "{printed:?}");
    assert!(printed.out.contains("NO_PROXY=other:8080 "), "{printed:?}");
    assert!(!format!("{said:?}{printed:?}").contains("hunter2"));
    let wrong =
        agent.command(&[("HTTPS_PROXY", "ftp://user:hunter2@p"), ("REDIS_PORT", "0")], &["run"]).await;
    assert_eq!(wrong.code, 78, "{wrong:?}");
    assert!(wrong.err.contains("HTTPS_PROXY: ") && wrong.err.contains("REDIS_PORT: "), "{wrong:?}");
    assert!(!wrong.err.contains("hunter2"), "{wrong:?}");
}

#[tokio::test]
async fn every_line_about_a_link_that_is_down_names_the_proxy() {
    const LINES: [&str; 2] = ["cannot register this server", "the link to the ControlPlane is down"];
    let proxy = Scripted::start_all(|_| "<html>log in</html>".into_response()).await;
    let redis = RedisServer::start().await;
    let mut agent = Agent::new(&redis, "http://cp.invalid:8080");
    agent.set("ENABLE_TLS", "false");
    agent.set("http_proxy", &proxy.url.replace("http://", "http://user:hunter2@"));
    agent.start();
    agent.ready().await;
    // Once the link is down nothing registers: so the records are pushed later.
    let said = async |line| until(line, async || Some(agent.log()).filter(|log| log.contains(line))).await;
    said(LINES[0]).await;
    load::push_sessions(&redis, "s", 3, 1).await;
    let log = said(LINES[1]).await;
    for line in log.lines().filter(|text| LINES.iter().any(|line| text.contains(line))) {
        let shown = proxy.url.replace("http://", "http://***@");
        assert!(line.contains(&format!("\"proxy\":\"{shown}")), "{line}");
    }
    assert!(!log.contains("hunter2"), "{log}");
}

#[tokio::test]
async fn the_effective_configuration_is_shown_with_origins_and_without_secrets() {
    let mut agent = Agent::new(&RedisServer::stopped(), "https://user:hunter2@cp.example/base");
    agent.unset("SERVER_REGION");
    std::fs::write(agent.dir().join(".env"), "SERVER_REGION=from-dotenv\n").expect("a file");
    std::fs::write(agent.dir().join("token"), "a-token-in-a-file").expect("a file");
    agent.set("ADMIN_TOKEN_FILE", "token");
    let said = agent.command(&[], &["check", "--print", "--drain-rate-limit", "7"]).await;
    assert_eq!(said.code, 0, "it asks nobody: {said:?}");
    for line in [
        "SERVER_ID=edge-test-1 # environment",
        "SERVER_REGION=from-dotenv # .env",
        "DRAIN_RATE_LIMIT=7 # flag",
        "ADMIN_TOKEN=[hidden] # file token",
        "CONTROL_PLANE_API_KEY=[hidden] # environment",
        "CONTROL_PLANE_URL=https://***@cp.example/base # environment",
        "BATCH_MAX_RECORDS=2000 # default",
    ] {
        let has = |shown: &str| shown.split_whitespace().collect::<Vec<_>>().join(" ") == line;
        assert!(said.out.lines().any(has), "{line}\n{}", said.out);
    }
    let as_json = agent.command(&[], &["check", "--print", "--json"]).await.json();
    let settings = as_json["settings"].as_array().expect("a list").clone();
    let region = settings.iter().find(|setting| setting["name"] == "SERVER_REGION").expect("the region");
    assert_eq!((&region["value"], &region["origin"]), (&json!("from-dotenv"), &json!(".env")));
    for secret in ["hunter2", super::harness::API_KEY, "a-token-in-a-file"] {
        assert!(!format!("{said:?}{as_json}").contains(secret), "{secret}");
    }

    agent.unset("SERVER_ID");
    agent.set("REDIS_PORT", "many");
    let wrong = agent.command(&[], &["check"]).await;
    assert!(
        wrong.code == 78 && wrong.err.contains("SERVER_ID: ") && wrong.err.contains("REDIS_PORT: "),
        "{wrong:?}"
    );
    let wrong = agent.command(&[], &CHECK).await;
    let report: Value = serde_json::from_str(&wrong.out).expect("JSON");
    assert_eq!(
        (wrong.code, &report["ok"], report["checks"].as_array().map(Vec::len)),
        (78, &json!(false), Some(2))
    );
}

#[tokio::test]
async fn an_old_redis_is_named_with_its_version() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let sandbox = Sandbox::start(&[]);
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let mut agent = Agent::new(&RedisServer::stopped(), &sandbox.url);
    quiet(&mut agent);
    agent.set("REDIS_PORT", &listener.local_addr().expect("its address").port().to_string());
    let old = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = stream.read(&mut buffer).await {
            let asked = String::from_utf8_lossy(&buffer[..n]).into_owned();
            let info = "# Server\r\nredis_version:6.0.16\r\n";
            let bulk = format!("${}\r\n{info}\r\n", info.len());
            // One answer per received command.
            for command in asked.split('*').skip(1) {
                let answer = if command.contains("INFO") { bulk.as_str() } else { "+OK\r\n" };
                if stream.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
            }
        }
    });
    let said = until("it is answered", async || Some(agent.command(&[], &CHECK).await)).await;
    assert_failed(&said, "redis", "6.0.16");
    old.abort();
}
