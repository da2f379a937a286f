//! Goal: destructive commands ask first, every order leaves a trace that survives a crash, and every new dead letter gets a
//! log line that says where to find it. Method: orders over HTTP, from the command line, and in a signed command.

use serde_json::{Value, json};

use super::harness::{SERVER_ID, Stage, USAGE, load, until};
use super::top::{Tmux, binary};

const TOKEN: &str = "a-token-of-the-operator";
const LINE: &str = "dead letter: a message will not be delivered";

async fn stage(settings: &[(&str, &str)]) -> Stage {
    Stage::set_with(&[&[("ADMIN_TOKEN", TOKEN)], settings].concat()).await
}

fn request(stage: &Stage, method: &str, path: &str) -> reqwest::RequestBuilder {
    let http = reqwest::Client::builder().no_proxy().build().expect("a client");
    let method = reqwest::Method::from_bytes(method.as_bytes()).expect("a method");
    http.request(method, stage.agent.url(path)).bearer_auth(TOKEN)
}

async fn ask(stage: &Stage, method: &str, path: &str, body: Option<Value>) -> Value {
    let request = request(stage, method, path);
    let request = if let Some(body) = &body { request.json(body) } else { request };
    let answer = request.send().await.expect("it answers");
    assert_eq!(answer.status(), 200, "{path}");
    answer.json().await.expect("JSON")
}

/// The orders, newest first: actor, action, count.
async fn orders(stage: &Stage) -> Vec<Value> {
    ask(stage, "GET", "/admin/audit", None).await["orders"].as_array().expect("a list").clone()
}

/// Starts an export and confirms its first page, if there is one; returns that page.
async fn export(stage: &Stage, ends: bool) -> String {
    let begun = ask(stage, "POST", "/admin/outbox/export", None).await;
    let path = format!("/admin/outbox/export/{}", begun["export"].as_str().expect("an id"));
    let page = until("a page is given", async || {
        let answer = request(stage, "GET", &format!("{path}/page")).send().await.expect("it answers");
        (answer.status() != 202).then_some(answer)
    })
    .await;
    let text = page.text().await.expect("a page");
    if !text.is_empty() {
        ask(stage, "POST", &format!("{path}/confirm"), Some(json!({"page": 1}))).await;
    }
    if ends {
        ask(stage, "DELETE", &path, None).await;
    }
    text
}

/// Imports these lines.
async fn import(stage: &Stage, query: &str, text: &str) {
    let path = format!("/admin/outbox/import?import={}&first=1&{query}", uuid::Uuid::new_v4());
    let answer = request(stage, "POST", &path).body(text.to_owned()).send().await.expect("it answers");
    assert_eq!(answer.status(), 200);
}

/// Salvages the quarantine; returns the lines of the answer.
async fn salvage(stage: &Stage) -> String {
    let answer = request(stage, "POST", "/admin/outbox/salvage").send().await.expect("it answers");
    assert_eq!(answer.status(), 200);
    answer.text().await.expect("lines")
}

/// Creates this many dead letters from malformed messages.
async fn dead_letters(stage: &Stage, count: u64) {
    let before = stage.agent.health().await.expect("health")["outbox"]["dead_letters"].as_u64();
    let all = before.expect("a number") + count;
    let messages: Vec<_> = (0..count).map(|n| format!("no record {n}, and nobody's business")).collect();
    stage.redis.push(USAGE, &messages).await;
    until("all are dead letters", async || {
        (stage.agent.health().await?["outbox"]["dead_letters"] == all).then_some(())
    })
    .await;
}

#[tokio::test]
async fn every_order_leaves_a_trace_that_survives_a_crash() {
    let mut stage = stage(&[("COMMAND_POLL_INTERVAL", "0.1"), ("HEARTBEAT_INTERVAL", "0.2")]).await;
    dead_letters(&stage, 25).await;
    ask(&stage, "POST", "/admin/drain/pause", None).await;
    ask(&stage, "PUT", "/admin/drain/rate-limit", Some(json!({"rate_limit": 7}))).await;
    ask(&stage, "POST", "/admin/dead-letters/drop", Some(json!({"ids": [3, 4, 999]}))).await;
    ask(&stage, "POST", "/admin/dead-letters/drop", Some(json!({"all": true}))).await;
    let command = json!({
        "command_type": "resume_drain", "server_id": SERVER_ID, "parameters": {}, "sign": true,
    });
    let id = stage.sandbox.command(command).await["command_id"].as_str().expect("an id").to_owned();
    until("the command was carried out", async || {
        (!stage.sandbox.results(&id).await.is_empty()).then_some(())
    })
    .await;
    stage.agent.kill();
    stage.agent.start();
    stage.agent.ready().await;

    let all = orders(&stage).await;
    let said: Vec<_> =
        all.iter().map(|o| (o["who"].as_str(), o["order"].as_str(), o["count"].as_u64())).collect();
    let by = format!("command {id}");
    let here = Some("127.0.0.1");
    assert_eq!(
        said,
        [
            (Some(&*by), Some("resume the sender"), None),
            (here, Some("drop dead letters"), Some(23)),
            (here, Some("drop dead letters"), Some(2)),
            (here, Some("set the rate limit"), None),
            (here, Some("pause the sender"), None),
        ],
        "{all:?}"
    );
    assert_eq!((&all[2]["ids"], &all[2]["detail"]), (&json!([3, 4, 999]), &json!("3 numbers")));
    assert_eq!(all[1]["ids"].as_array().map(Vec::len), Some(20), "no more of them");
    assert!(all.iter().all(|order| order["outcome"] == "done"), "{all:?}");
    let log = stage.agent.log();
    assert_eq!(log.matches("audit: operator action").count(), 5, "{log}");

    // The command line lists the same, for a running agent and for a stopped one.
    let running = stage.agent.command(&[], &["audit"]).await;
    assert!(running.out.contains("127.0.0.1  set the rate limit: 7 requests/s"), "{running:?}");
    stage.agent.stop().await;
    let stopped = stage.agent.command(&[], &["audit"]).await;
    assert!(!stopped.err.contains("there are more"), "{stopped:?}");
    let newest = stage.agent.command(&[], &["audit", "--limit", "2"]).await;
    assert_eq!((newest.out.lines().count(), newest.err.contains("there are more")), (2, true), "{newest:?}");
    assert_eq!((stopped.code, &stopped.out), (0, &running.out));
}

#[tokio::test]
async fn an_order_that_takes_several_requests_is_one() {
    let stage = stage(&[]).await;
    dead_letters(&stage, 1200).await;
    let dropped = stage.agent.command(&[], &["dead-letters", "drop", "--all", "--yes", "--json"]).await;
    assert_eq!(dropped.json()["dropped"], 1200);
    let all = orders(&stage).await;
    assert_eq!((all.len(), &all[0]["count"], &all[0]["detail"]), (1, &json!(1200), &json!("all")), "{all:?}");
}

/// The actor of requests over HTTP, and the name of each order there.
#[tokio::test]
async fn there_is_a_note_of_every_kind_of_order() {
    let stage = stage(&[]).await;
    dead_letters(&stage, 2).await;
    let give = async |method: &str, path: &str, body: Option<Value>| ask(&stage, method, path, body).await;
    let simple: [(&str, &str, Option<Value>, &str, &str); 8] = [
        ("POST", "drain/pause", None, "pause the sender", ""),
        ("POST", "drain/resume", None, "resume the sender", ""),
        ("POST", "drain/probe", None, "probe the link", ""),
        ("POST", "drain/release-brake", None, "release the brake", ""),
        (
            "PUT",
            "drain/rate-limit",
            Some(json!({"rate_limit": 7, "burst": 3})),
            "set the rate limit",
            "7 requests/s, burst 3 (before: 0 requests/s, burst 0)",
        ),
        (
            "PUT",
            "drain/bandwidth",
            Some(json!({"bandwidth": 9000})),
            "set the bandwidth",
            "9000 bytes/s (before: 0)",
        ),
        (
            "PUT",
            "log-level",
            Some(json!({"level": "WARNING"})),
            "set the log level",
            "Warning (before: Info)",
        ),
        ("POST", "reload", None, "reload the settings", ""),
    ];
    let mut expected = Vec::new();
    for (method, path, body, order, detail) in simple {
        give(method, &format!("/admin/{path}"), body).await;
        expected.push((order, detail, None));
    }
    give("POST", "/admin/dead-letters/replay", Some(json!({"ids": [1]}))).await;
    expected.push(("replay dead letters", "number 1", Some(0)));
    give("POST", "/admin/dead-letters/drop", Some(json!({"reason": "invalid"}))).await;
    expected.push(("drop dead letters", "reason invalid", Some(2)));
    let text = export(&stage, true).await;
    expected.push(("export", "exported 0 records and 0 dead letters to a file", Some(0)));
    assert_eq!(text, "", "nothing waits");
    import(&stage, "last=true", "").await;
    expected.push(("import", "", Some(0)));
    salvage(&stage).await;
    expected.push(("salvage", "", Some(0)));

    let all = orders(&stage).await;
    let noted = all.iter().rev().map(|order| {
        let text = |name: &str| order[name].as_str().expect("text");
        (text("order"), text("detail"), order["count"].as_u64())
    });
    let noted: Vec<_> = noted.collect();
    assert_eq!(noted, expected);
    assert!(all.iter().all(|order| order["outcome"] == "done" && order["who"] == "127.0.0.1"), "{all:?}");
}

#[tokio::test]
async fn a_crash_within_any_page_leaves_the_order_begun() {
    let mut stage = stage(&[]).await;
    dead_letters(&stage, 1200).await;
    stage.agent.kill();
    stage.agent.set("FAILPOINT", "audit::begun=2=abort");
    stage.agent.start();
    stage.agent.ready().await;
    let dropped = stage.agent.command(&[], &["dead-letters", "drop", "--all", "--yes"]).await;
    assert_eq!(dropped.code, 1, "{dropped:?}");
    assert!(!stage.agent.ended().await.success());
    stage.agent.unset("FAILPOINT");
    stage.agent.start();
    stage.agent.ready().await;
    let all = orders(&stage).await;
    assert_eq!(
        (all.len(), &all[0]["outcome"], &all[0]["count"]),
        (1, &json!("begun"), &json!(500)),
        "{all:?}"
    );
}

#[tokio::test]
async fn moving_records_is_noted_even_if_it_never_completes() {
    let mut stage = stage(&[]).await;
    ask(&stage, "POST", "/admin/drain/pause", None).await;
    let pushed = load::push_sessions(&stage.redis, "s", 2, 3).await;
    until("all wait", async || (stage.agent.health().await?["outbox"]["depth"] == pushed).then_some(()))
        .await;
    let latest = async |stage: &Stage| {
        let all = orders(stage).await;
        let of = |order: &Value| {
            let text = |name: &str| order[name].as_str().unwrap_or_default().to_owned();
            (text("order"), text("outcome"), order["count"].as_u64(), text("error"))
        };
        all.iter().take(2).map(of).collect::<Vec<_>>()
    };
    let noted = |order: &str, outcome: &str, count, error: &str| {
        (order.to_owned(), outcome.to_owned(), count, error.to_owned())
    };
    // A page of each has been exported or imported, and then the agent stops.
    let text = export(&stage, false).await;
    let first = text.lines().count() as u64;
    assert!(first > 0 && first < pushed, "{text}");
    assert_eq!(latest(&stage).await[0], noted("export", "begun", None, ""));
    import(&stage, "", &text).await;
    assert_eq!(latest(&stage).await[0], noted("import", "begun", None, ""));
    assert_eq!(stage.agent.stop().await.code(), Some(0));
    stage.agent.start();
    stage.agent.ready().await;
    let rest = "the agent stopped; the rest of the file was not imported";
    assert_eq!(
        latest(&stage).await,
        [
            noted("import", "failed", Some(first), rest),
            noted("export", "failed", Some(first), "the agent stopped")
        ]
    );
    // After a crash they are listed as begun.
    ask(&stage, "POST", "/admin/drain/pause", None).await;
    let text = export(&stage, false).await;
    import(&stage, "", &text).await;
    stage.agent.kill();
    stage.agent.start();
    stage.agent.ready().await;
    assert_eq!(
        latest(&stage).await,
        [noted("import", "begun", None, ""), noted("export", "begun", None, "")]
    );
    // For a stopped agent, the command line records the same.
    stage.agent.stop().await;
    for (words, order) in [
        (&["outbox", "export", "file"][..], "export: to file"),
        (&["outbox", "import", "agent.log"], "import: of agent.log"),
        (&["outbox", "salvage"], "salvage"),
    ] {
        let crashed = stage.agent.command(&[("FAILPOINT", "audit::begun=1=panic")], words).await;
        assert_ne!(crashed.code, 0, "{crashed:?}");
        let audit = stage.agent.command(&[], &["audit", "--limit", "1"]).await.out;
        assert!(audit.contains(&format!("{order}; started, outcome unknown")), "{audit}");
    }
}

#[tokio::test]
async fn salvaging_is_noted_with_its_result_and_not_at_all_if_refused() {
    let mut stage = stage(&[]).await;
    stage.agent.kill();
    let held = stage.agent.dir().join("held");
    stage.agent.set("FAILPOINT", &format!("audit::begun=1=hold:{}", held.display()));
    stage.agent.start();
    stage.agent.ready().await;
    let outcomes = async || {
        let all = orders(&stage).await;
        all.iter().map(|order| order["outcome"].as_str().expect("text").to_owned()).collect::<Vec<_>>()
    };
    let first = async {
        assert!(salvage(&stage).await.contains("\"done\":[]"));
    };
    let second = async {
        until("the first one is under way", async || held.exists().then_some(())).await;
        assert_eq!(outcomes().await, ["begun"]);
        let refused = request(&stage, "POST", "/admin/outbox/salvage").send().await.expect("it answers");
        assert_eq!(refused.status(), 409);
        std::fs::remove_file(&held).expect("the file");
    };
    tokio::join!(first, second);
    assert_eq!(outcomes().await, ["done"]);

    // The quarantine cannot be read.
    std::fs::write(stage.agent.dir().join("outbox/quarantine"), "no folder").expect("a file");
    assert!(salvage(&stage).await.contains("\"failed\""));
    let all = orders(&stage).await;
    assert_eq!(
        (all.len(), &all[0]["outcome"], &all[0]["count"]),
        (2, &json!("failed"), &json!(0)),
        "{all:?}"
    );
    assert!(all[0]["error"].as_str().is_some_and(|error| error.contains("Not a directory")), "{all:?}");
}

#[tokio::test]
async fn dropping_asks_on_a_terminal_and_wants_yes_without_one() {
    let stage = stage(&[]).await;
    dead_letters(&stage, 3).await;
    let drop = ["dead-letters", "drop", "--all"];
    stage.agent.command(&[], &drop).await.assert_failed("use --yes in scripts");
    assert_eq!(stage.agent.health().await.expect("health")["outbox"]["dead_letters"], 3);

    let tmux = Tmux::start();
    let words = format!("ADMIN_TOKEN={TOKEN} {} {} --url {}", binary(), drop.join(" "), stage.agent.url(""));
    tmux.press(&[&words, "Enter"]);
    tmux.shows(&["Delete 3 dead letters permanently? [y/N]"]).await;
    tmux.press(&["n", "Enter"]);
    tmux.shows(&["nothing was done"]).await;
    assert_eq!(stage.agent.health().await.expect("health")["outbox"]["dead_letters"], 3);
    tmux.press(&["clear", "Enter"]);
    tmux.press(&[&words, "Enter"]);
    tmux.shows(&["Delete 3 dead letters permanently? [y/N]"]).await;
    tmux.press(&["y", "Enter"]);
    tmux.shows(&["3 dropped"]).await;
    assert_eq!(stage.agent.health().await.expect("health")["outbox"]["dead_letters"], 0);
}

#[tokio::test]
async fn a_new_dead_letter_is_a_line_in_the_log_and_a_flood_is_some_lines_and_a_count() {
    let mut stage = stage(&[]).await;
    stage.sandbox.weather(json!({"refuse_transactions": ["usage-bad"]})).await;
    stage.redis.push(USAGE, &[load::usage("bad", 0)]).await;
    stage.drained().await;
    let letter = until("it is a dead letter", async || {
        let page = ask(&stage, "GET", "/admin/dead-letters", None).await;
        page["dead_letters"].get(0).cloned()
    })
    .await;
    stage.agent.says(LINE).await;
    let log = stage.agent.log();
    let line = log.lines().find(|line| line.contains(LINE)).expect("the line").to_owned();
    for part in [
        "\"reason\":\"refused\"",
        "\"detail\":\"status 422\"",
        &format!("\"dead_letter_id\":{}", letter["id"]),
        "\"queue\":\"usage\"",
        "\"idempotency_key\":\"",
    ] {
        assert!(line.contains(part), "{part}: {line}");
    }
    dead_letters(&stage, 300).await;
    let log = stage.agent.log();
    assert!(log.matches(LINE).count() <= 20, "{}", log.matches(LINE).count());
    assert!(!log.contains("nobody's business") && !log.contains("customer"), "no body: {log}");
}
