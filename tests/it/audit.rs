//! Goal: whoever destroys something is asked first, every order leaves a trace that survives a crash, and every new dead letter
//! a line in the log that says where to find it. Method: orders over HTTP, by the command line and by a signed command.

use serde_json::{Value, json};

use super::harness::{SERVER_ID, Stage, USAGE, load, until};
use super::top::{Tmux, binary};

const TOKEN: &str = "a-token-of-the-operator";
const LINE: &str = "dead letter: a message will not be delivered";

async fn stage(settings: &[(&str, &str)]) -> Stage {
    Stage::set_with(&[&[("ADMIN_TOKEN", TOKEN)], settings].concat()).await
}

async fn ask(stage: &Stage, method: &str, path: &str, body: Option<Value>) -> Value {
    let http = reqwest::Client::builder().no_proxy().build().expect("a client");
    let method = reqwest::Method::from_bytes(method.as_bytes()).expect("a method");
    let request = http.request(method, stage.agent.url(path)).bearer_auth(TOKEN);
    let request = if let Some(body) = &body { request.json(body) } else { request };
    let answer = request.send().await.expect("it answers");
    assert_eq!(answer.status(), 200, "{path}");
    answer.json().await.expect("JSON")
}

/// The orders, newest first: who, what, how many.
async fn orders(stage: &Stage) -> Vec<Value> {
    ask(stage, "GET", "/admin/audit", None).await["orders"].as_array().expect("a list").clone()
}

/// So many more dead letters, of messages that are no records.
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
            (Some(&*by), Some("resume the drain"), None),
            (here, Some("drop dead letters"), Some(23)),
            (here, Some("drop dead letters"), Some(2)),
            (here, Some("set the rate limit"), None),
            (here, Some("pause the drain"), None),
        ],
        "{all:?}"
    );
    assert_eq!((&all[2]["ids"], &all[2]["detail"]), (&json!([3, 4, 999]), &json!("3 numbers")));
    assert_eq!(all[1]["ids"].as_array().map(Vec::len), Some(20), "no more of them");
    assert!(all.iter().all(|order| order["outcome"] == "done"), "{all:?}");
    let log = stage.agent.log();
    assert_eq!(log.matches("audit: an order was given").count(), 5, "{log}");

    // The command line tells the same, of a running agent and of a stopped one.
    let running = stage.agent.command(&[], &["audit"]).await;
    assert!(running.out.contains("127.0.0.1  set the rate limit: 7 requests/s"), "{running:?}");
    stage.agent.stop().await;
    let stopped = stage.agent.command(&[], &["audit"]).await;
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

#[tokio::test]
async fn dropping_asks_on_a_terminal_and_wants_yes_without_one() {
    let stage = stage(&[]).await;
    dead_letters(&stage, 3).await;
    let drop = ["dead-letters", "drop", "--all"];
    stage.agent.command(&[], &drop).await.assert_failed("scripts use --yes");
    assert_eq!(stage.agent.health().await.expect("health")["outbox"]["dead_letters"], 3);

    let tmux = Tmux::start();
    let words = format!("ADMIN_TOKEN={TOKEN} {} {} --url {}", binary(), drop.join(" "), stage.agent.url(""));
    tmux.press(&[&words, "Enter"]);
    tmux.shows(&["Drop 3 dead letters for good? [y/N]"]).await;
    tmux.press(&["n", "Enter"]);
    tmux.shows(&["nothing was done"]).await;
    assert_eq!(stage.agent.health().await.expect("health")["outbox"]["dead_letters"], 3);
    tmux.press(&["clear", "Enter"]);
    tmux.press(&[&words, "Enter"]);
    tmux.shows(&["Drop 3 dead letters for good? [y/N]"]).await;
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
        "status 422",
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
