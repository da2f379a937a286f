//! Goal: every verb of `outbox` and `dead-letters` does the same on a running agent as on a stopped one, with the same
//! output, and obstacles are reported with advice. Moving a backlog loses nothing, whoever disappears.

use std::path::PathBuf;

use reqwest::Method;
use serde_json::{Value, json};

use super::harness::{Agent, RedisServer, Sandbox, Scripted, Stage, USAGE, load, until};

const TOKEN: &str = "a-token-of-the-operator";

async fn stage() -> Stage {
    Stage::set_with(&[("ADMIN_TOKEN", TOKEN)]).await
}

async fn ask(agent: &Agent, method: Method, path: &str, body: Option<Value>) -> (u16, String) {
    let http = reqwest::Client::builder().no_proxy().build().expect("a client");
    let mut request = http.request(method, agent.url(path)).bearer_auth(TOKEN);
    if let Some(body) = &body {
        request = request.json(body);
    }
    let answer = request.send().await.expect("the agent answers");
    (answer.status().as_u16(), answer.text().await.expect("a body"))
}

async fn post(agent: &Agent, path: &str) -> Value {
    let (status, body) = ask(agent, Method::POST, path, None).await;
    assert_eq!(status, 200, "{path}: {body}");
    serde_json::from_str(&body).expect("JSON")
}

async fn depth_is(agent: &Agent, depth: u64) {
    until(&format!("{depth} records waiting"), async || {
        (agent.health().await?["outbox"]["depth"] == depth).then_some(())
    })
    .await;
}

/// Lines of JSON.
fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[tokio::test]
async fn every_verb_says_the_same_about_a_running_and_a_stopped_agent() {
    let mut stage = stage().await;
    stage.sandbox.weather(json!({"refuse_transactions": ["usage-bad"]})).await;
    let refused: Vec<String> = (0..3).map(|n| load::usage("bad", n)).collect();
    stage.redis.push(USAGE, &refused).await;
    until("they are refused", async || {
        (stage.agent.health().await?["outbox"]["dead_letters"] == 3).then_some(())
    })
    .await;
    stage.redis.push(USAGE, &[b"\xff no record".to_vec()]).await;
    stage.drained().await;
    post(&stage.agent, "/admin/drain/pause").await;
    let pushed = load::push_sessions(&stage.redis, "s", 4, 3).await;
    depth_is(&stage.agent, pushed).await;

    let looks: [&[&str]; 9] = [
        &["outbox", "stats", "--json"],
        &["outbox", "list", "--json"],
        &["outbox", "list"],
        &["outbox", "show", "9", "--json"],
        &["outbox", "verify", "--json"],
        &["dead-letters", "list", "--json"],
        &["dead-letters", "list", "--reason", "refused"],
        &["dead-letters", "show", "4", "--json"],
        &["dead-letters", "list", "--json", "--kind", "usage_record", "--text", "usage-bad REFUSED"],
    ];
    for (words, ends) in [
        (["dead-letters", "list", "--limit", "3"], true),
        (["dead-letters", "list", "--limit", "4"], false),
        (["outbox", "list", "--limit", "3"], true),
    ] {
        let said = stage.agent.command(&[], &words).await;
        assert_eq!(said.err.contains("there are more"), ends, "{words:?}: {said:?}");
    }
    let url = stage.agent.url("");
    let mut while_running = Vec::new();
    for words in looks {
        // The folder is locked: the command contacts the agent by itself. And also if the agent is named.
        // The outbox's files grow in steps of their own: no step may fall between the two looks.
        let same = format!("both say the same: {words:?}");
        let said = until(&same, async || {
            let by_itself = stage.agent.command(&[], words).await;
            let named = stage.agent.command(&[], &[words, &["--url", &url]].concat()).await;
            assert_eq!(by_itself.code, 0, "{words:?}: {by_itself:?}");
            (by_itself.out == named.out).then_some(by_itself.out)
        });
        while_running.push(said.await);
    }
    assert_eq!(lines(&while_running[1]).len() as u64, pushed);
    let verified: Value = serde_json::from_str(&while_running[4]).expect("JSON");
    assert_eq!((&verified["waiting"], &verified["dead_letters"]), (&json!(pushed), &json!(4)), "{verified}");
    assert_eq!(verified["problems"], json!([]));
    assert_eq!(lines(&while_running[5]).len(), 4);
    assert_eq!(lines(&while_running[8]).len(), 3);
    assert_eq!(stage.agent.stop().await.code(), Some(0));
    for (words, running) in looks.into_iter().zip(while_running) {
        let stopped = stage.agent.command(&[], words).await;
        assert_eq!(stopped.code, 0, "{words:?}: {stopped:?}");
        match words {
            // The stop has settled the segments' own files; everything read from them is the same.
            ["outbox", "stats", ..] => {
                let (mut then, mut now): (Value, Value) =
                    (serde_json::from_str(&running).expect("JSON"), stopped.json());
                for bytes in ["disk_bytes", "counted_bytes"] {
                    (then[bytes], now[bytes]) = (Value::Null, Value::Null);
                }
                assert_eq!(then, now);
            }
            _ => assert_eq!(stopped.out, running, "{words:?}"),
        }
    }

    // The same for changes to dead letters.
    stage.agent.start();
    stage.agent.ready().await;
    stage.sandbox.weather(json!({})).await;
    let replayed = stage.agent.command(&[], &["dead-letters", "replay", "1", "4", "99", "--json"]).await;
    assert_eq!(replayed.code, 1, "not all of them: {replayed:?}");
    let outcome: Value = serde_json::from_str(&replayed.out).expect("JSON");
    assert_eq!(outcome, json!({"replayed": [1], "not_records": [4], "unknown": [99], "next": null}));
    let replayed =
        stage.agent.command(&[], &["dead-letters", "replay", "--reason", "refused", "--json"]).await;
    assert_eq!(replayed.json()["replayed"], json!([2, 3]));
    let dropped = stage.agent.command(&[], &["dead-letters", "drop", "--all", "--yes", "--json"]).await;
    assert_eq!(dropped.json()["dropped"], 1);
    stage.agent.command(&[], &["dead-letters", "show", "4"]).await.assert_failed("no dead letter 4");
    stage
        .agent
        .command(&[], &["outbox", "show", "99999"])
        .await
        .assert_failed("no waiting record with number 99999");
    stage.drained().await;
    assert_eq!(stage.sandbox.accounts().await.processed(), pushed + 3);
    stage.agent.metrics().await.assert_conserved();
}

#[tokio::test]
async fn obstacles_are_reported_with_advice() {
    let stage = stage().await;
    let stats = ["outbox", "stats"];
    let agent = &stage.agent;
    let no_token = agent.command(&[("ADMIN_TOKEN", "")], &stats).await;
    no_token.assert_failed("in use by a running agent");
    no_token.assert_failed("set ADMIN_TOKEN here");
    let wrong = agent.command(&[("ADMIN_TOKEN", "not-that-token-at-all")], &stats).await;
    wrong.assert_failed("wrong admin token");
    assert!(!wrong.err.contains("not-that-token-at-all"), "{wrong:?}");
    // From a file, configured or named on the command line.
    let file = agent.dir().join("token");
    std::fs::write(&file, format!("{TOKEN}\n")).expect("a file");
    let none = ("ADMIN_TOKEN", "");
    assert_eq!(agent.command(&[none, ("ADMIN_TOKEN_FILE", "token")], &stats).await.code, 0);
    let named = agent.command(&[none], &["outbox", "stats", "--admin-token-file", "token"]).await;
    assert_eq!(named.code, 0, "{named:?}");

    let free = super::harness::free_port();
    let nobody = agent.command(&[("SERVER_PORT", &free.to_string())], &stats).await;
    nobody.assert_failed("no agent answers at");
    agent
        .command(&[], &["outbox", "stats", "--url", &format!("http://127.0.0.1:{free}")])
        .await
        .assert_failed("no agent answers at");
    agent
        .command(&[], &["outbox", "stats", "--url", "no address"])
        .await
        .assert_failed("is not an agent's address");
    let other = Scripted::start(|_| axum::response::IntoResponse::into_response("{\"hello\":1}")).await;
    agent
        .command(&[], &["outbox", "stats", "--url", &other.url])
        .await
        .assert_failed("is not a dataplane-agent");
    // Not even its /admin was requested: a token is sent only to an agent.
    assert!(other.received().iter().all(|request| !request.headers.contains_key("authorization")));

    let off = Stage::set().await;
    off.agent.command(&[("ADMIN_TOKEN", TOKEN)], &stats).await.assert_failed("is off: set ADMIN_TOKEN");
    off.agent.command(&[], &stats).await.assert_failed("is off: set ADMIN_TOKEN");

    // The agent at that port uses another outbox than the locked folder.
    let port = stage.agent.url("");
    let port = port.rsplit(':').next().expect("a port");
    let strange = off.agent.command(&[("ADMIN_TOKEN", TOKEN), ("SERVER_PORT", port)], &stats).await;
    strange.assert_failed("uses another outbox");
    assert_eq!(agent.command(&[], &["outbox", "stats", "--url", "x", "--outbox-dir", "y"]).await.code, 2);
}

#[tokio::test]
async fn a_backlog_moves_from_one_running_agent_to_another() {
    let mut old = stage().await;
    old.sandbox.weather(json!({"status": {"503": 1.0}})).await;
    let pushed = load::push_sessions(&old.redis, "s", 200, 30).await;
    depth_is(&old.agent, pushed).await;
    let exported = old.agent.command(&[], &["outbox", "export", "backlog", "--json"]).await;
    assert_eq!(exported.json()["exported"], pushed);
    assert_eq!(old.agent.command(&[], &["outbox", "export", "backlog"]).await.code, 1, "never overwritten");
    assert_eq!(old.agent.health().await.expect("health")["outbox"]["depth"], 0);
    assert_eq!(old.agent.metrics().await.sum("dataplane_exported_total", &[]) as u64, pushed);

    let mut new = stage().await;
    let file = old.agent.dir().join("backlog");
    let file = file.to_str().expect("a path");
    let imported = new.agent.command(&[], &["outbox", "import", file, "--json"]).await;
    assert_eq!(imported.json()["imported"], pushed);
    // Completed events too, although none came through Redis.
    new.drained().await;
    new.assert_each_once(pushed).await;
    // A second import is refused, with advice.
    new.agent.command(&[], &["outbox", "import", file]).await.assert_failed("--again");
    assert_eq!(new.agent.health().await.expect("health")["outbox"]["depth"], 0);
    // Forced anyway: each record is recognised by its key.
    assert_eq!(
        new.agent.command(&[], &["outbox", "import", file, "--again", "--json"]).await.json()["imported"],
        pushed
    );
    new.drained().await;
    let accounts = new.sandbox.accounts().await;
    assert_eq!(accounts.processed(), pushed);
    accounts.assert_in_order_and_recognisable();
    new.agent.metrics().await.assert_conserved();

    // An incomplete file is refused before anything is imported.
    let text = std::fs::read_to_string(file).expect("the file");
    std::fs::write(file, text.replacen("usage-s-199-29", "usage-s-199-28", 1)).expect("the file");
    let enqueued = new.agent.metrics().await.sum("dataplane_outbox_enqueued_total", &[]);
    new.agent.command(&[], &["outbox", "import", file]).await.assert_failed("line ");
    // So is a file without its last line, unless the user says that it is known.
    let cut = text.len() - text.trim_end().rsplit('\n').next().expect("a line").len() - 1;
    std::fs::write(file, &text[..cut]).expect("the file");
    new.agent.command(&[], &["outbox", "import", file]).await.assert_failed("it is not whole");
    assert_eq!(new.agent.metrics().await.sum("dataplane_outbox_enqueued_total", &[]), enqueued);
    let known =
        new.agent.command(&[], &["outbox", "import", file, "--incomplete", "--again", "--json"]).await;
    assert_eq!((&known.json()["imported"], &known.json()["complete"]), (&pushed.into(), &false.into()));

    // The old agent continues with later records.
    old.sandbox.weather(json!({})).await;
    let later = load::push_sessions(&old.redis, "later", 5, 3).await;
    old.drained().await;
    assert_eq!(old.sandbox.accounts().await.processed(), later);
    old.agent.metrics().await.assert_conserved();
}

#[tokio::test]
async fn dead_letters_move_with_the_backlog_of_a_running_agent_and_are_there_once() {
    let mut old = stage().await;
    old.sandbox.weather(json!({"refuse_transactions": ["usage-bad"]})).await;
    let refused: Vec<String> = (0..2).map(|n| load::usage("bad", n)).collect();
    old.redis.push(USAGE, &refused).await;
    old.redis.push(USAGE, &[b"\xff no record".to_vec()]).await;
    until("they are dead letters", async || {
        (old.agent.health().await?["outbox"]["dead_letters"] == 3).then_some(())
    })
    .await;
    old.drained().await;
    post(&old.agent, "/admin/drain/pause").await;
    let pushed = load::push_sessions(&old.redis, "s", 4, 3).await;
    depth_is(&old.agent, pushed).await;

    // Pages served but not confirmed leave no trace, whatever they contain.
    let (path, records) = begin_export(&old.agent, 60).await;
    let mut confirmed = json!({"exported": 0, "dead_letters": 0});
    let mut number = 0;
    let letters = loop {
        let (status, page) = ask(&old.agent, Method::GET, &format!("{path}/page"), None).await;
        assert_eq!(status, 200, "{page}");
        if page.contains("dead_letter") {
            break page;
        }
        number += 1;
        let (_, said) =
            ask(&old.agent, Method::POST, &format!("{path}/confirm"), Some(json!({"page": number}))).await;
        confirmed = serde_json::from_str(&said).expect("JSON");
    };
    assert!(records > 0);
    assert_eq!(letters.lines().count(), 3);
    assert_eq!(confirmed, json!({"exported": pushed, "dead_letters": 0}));
    ask(&old.agent, Method::DELETE, &path, None).await;
    assert_eq!(old.agent.health().await.expect("health")["outbox"]["dead_letters"], 3, "they are here yet");

    let later = load::push_sessions(&old.redis, "later", 2, 3).await;
    depth_is(&old.agent, later).await;
    let exported = old.agent.command(&[], &["outbox", "export", "backlog", "--json"]).await;
    let exported = exported.json();
    assert_eq!((&exported["exported"], &exported["dead_letters"]), (&json!(later), &json!(3)));
    assert_eq!(old.agent.health().await.expect("health")["outbox"]["dead_letters"], 0);
    old.agent.metrics().await.assert_conserved();

    let mut new = stage().await;
    let file = old.agent.dir().join("backlog");
    let import = ["outbox", "import", file.to_str().expect("a path"), "--again", "--json"];
    for (letters, known) in [(3, 0), (0, 3)] {
        let imported = new.agent.command(&[], &import).await;
        let expected = json!({"imported": later, "dead_letters": letters, "known_dead_letters": known, "complete": true});
        assert_eq!(imported.json(), expected);
        assert_eq!(new.agent.health().await.expect("health")["outbox"]["dead_letters"], 3);
    }
    new.drained().await;
    assert_eq!(new.sandbox.accounts().await.processed(), later);
    new.agent.metrics().await.assert_conserved();
}

/// Starts an export and waits for its first page. Returns its path.
async fn begin_export(agent: &Agent, patience: u64) -> (String, usize) {
    let begun = post(agent, &format!("/admin/outbox/export?patience_seconds={patience}")).await;
    let path = format!("/admin/outbox/export/{}", begun["export"].as_str().expect("an id"));
    let page = until("a page is given", async || {
        let (status, page) = ask(agent, Method::GET, &format!("{path}/page"), None).await;
        assert!(matches!(status, 200 | 202), "{status}: {page}");
        (status == 200).then_some(page)
    })
    .await;
    (path, page.lines().count())
}

#[tokio::test]
async fn an_export_that_is_abandoned_loses_nothing_and_the_drain_goes_on() {
    let mut stage = stage().await;
    stage.sandbox.weather(json!({"status": {"503": 1.0}})).await;
    let pushed = load::push_sessions(&stage.redis, "s", 20, 3).await;
    depth_is(&stage.agent, pushed).await;
    let (path, lines) = begin_export(&stage.agent, 1).await;
    assert!(lines > 0);
    stage.sandbox.weather(json!({})).await;
    // Nobody confirms or asks: everything is delivered from here.
    stage.drained().await;
    stage.assert_each_once(pushed).await;
    let (status, _) =
        ask(&stage.agent, Method::POST, &format!("{path}/confirm"), Some(json!({"page": 1}))).await;
    assert_eq!(status, 410);
    assert_eq!(stage.agent.metrics().await.sum("dataplane_exported_total", &[]), 0.0);
    stage.agent.metrics().await.assert_conserved();
}

#[tokio::test]
async fn a_page_is_given_until_it_is_confirmed_and_counts_once() {
    let mut stage = stage().await;
    stage.sandbox.weather(json!({"status": {"503": 1.0}})).await;
    let pushed = load::push_sessions(&stage.redis, "s", 20, 3).await;
    depth_is(&stage.agent, pushed).await;
    let (path, first) = begin_export(&stage.agent, 60).await;
    let (status, said) = ask(&stage.agent, Method::POST, "/admin/outbox/export", None).await;
    assert_eq!(status, 409, "{said}");
    // While it is open nothing is sent, whatever else is ordered.
    stage.sandbox.weather(json!({})).await;
    post(&stage.agent, "/admin/drain/pause").await;
    post(&stage.agent, "/admin/drain/resume").await;
    let health = stage.agent.health().await.expect("health");
    let reason = "an export is in progress; the agent sends again when it ends";
    assert_eq!(health["components"]["drain"]["reason"], reason);
    let (status, again) = ask(&stage.agent, Method::GET, &format!("{path}/page"), None).await;
    assert_eq!((status, again.lines().count()), (200, first), "the same page");
    assert_eq!(
        stage.agent.health().await.expect("health")["outbox"]["depth"],
        pushed,
        "and all are here yet"
    );
    let confirm = format!("{path}/confirm");
    for _ in 0..2 {
        let (status, said) = ask(&stage.agent, Method::POST, &confirm, Some(json!({"page": 1}))).await;
        let said: Value = serde_json::from_str(&said).expect("JSON");
        assert_eq!((status, said), (200, json!({"exported": first, "dead_letters": 0})));
    }
    let (status, _) = ask(&stage.agent, Method::POST, &confirm, Some(json!({"page": 3}))).await;
    assert_eq!(status, 422, "this page was never served");
    assert_eq!(stage.agent.metrics().await.sum("dataplane_exported_total", &[]) as usize, first);
    // The next page was read and is dropped: its records are delivered as usual.
    ask(&stage.agent, Method::GET, &format!("{path}/page"), None).await;
    let (status, _) = ask(&stage.agent, Method::DELETE, &path, None).await;
    assert_eq!(status, 200);
    stage.drained().await;
    assert_eq!(stage.sandbox.accounts().await.processed(), pushed - first as u64);
    stage.agent.metrics().await.assert_conserved();
}

#[tokio::test]
async fn an_export_that_stops_half_way_says_what_has_left_the_agent() {
    let mut stage = stage().await;
    post(&stage.agent, "/admin/drain/pause").await;
    let pushed = load::push_sessions(&stage.redis, "s", 20, 60).await;
    depth_is(&stage.agent, pushed).await;
    // A file may have this many blocks of 512 bytes: writing fails there, as on a full disk.
    let export = async |blocks: u32, file: &str| {
        let program = env!("CARGO_BIN_EXE_dataplane-agent");
        let script = format!(
            "trap '' XFSZ; ulimit -f {blocks}; exec {program} outbox export {file} --json --url {}",
            stage.agent.url("")
        );
        let mut command = tokio::process::Command::new("/bin/sh");
        command.args(["-c", &script]).current_dir(stage.agent.dir()).env("ADMIN_TOKEN", TOKEN);
        let output = command.output().await.expect("a shell");
        assert_eq!(output.status.code(), Some(1));
        let facts: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        (facts, String::from_utf8(output.stderr).expect("UTF-8"))
    };
    let (facts, err) = export(1, "nothing").await;
    assert_eq!(facts["exported"], 0);
    assert!(err.contains("nothing was exported"), "{err}");
    assert!(!stage.agent.dir().join("nothing").exists(), "it is in nobody's way");
    // The quota requests and the started events; the usage does not fit.
    let (facts, err) = export(400, "first").await;
    assert_eq!(facts["exported"], 40);
    assert!(err.contains("40 records and 0 dead letters are in first and no longer in the outbox"), "{err}");
    depth_is(&stage.agent, pushed - 40).await;
    let first = std::fs::read_to_string(stage.agent.dir().join("first")).expect("the file");
    assert_eq!(lines(&first).len(), 40, "whole lines, of what has left");
    let rest = stage.agent.command(&[], &["outbox", "export", "rest", "--json"]).await.json();
    assert_eq!(rest["exported"], pushed - 40);
    assert_eq!(stage.agent.command(&[], &["outbox", "import", "first"]).await.code, 1, "it is not whole");
    for words in [&["outbox", "import", "first", "--incomplete"][..], &["outbox", "import", "rest"]] {
        assert_eq!(stage.agent.command(&[], words).await.code, 0);
    }
    post(&stage.agent, "/admin/drain/resume").await;
    stage.drained().await;
    assert_eq!(stage.sandbox.accounts().await.processed(), pushed);
    stage.agent.metrics().await.assert_conserved();
}

#[tokio::test]
async fn requests_in_flight_are_not_exported_as_well() {
    let mut stage = Stage::set_with(&[("ADMIN_TOKEN", TOKEN), ("DELIVERY_MODE", "single")]).await;
    stage.sandbox.weather(json!({"latency_ms": 700})).await;
    let pushed = load::push_sessions(&stage.redis, "s", 30, 10).await;
    until("some are on their way", async || {
        (stage.sandbox.accounts().await.all_requests("started") > 0).then_some(())
    })
    .await;
    let exported = stage.agent.command(&[], &["outbox", "export", "file", "--json"]).await.json();
    let exported = exported["exported"].as_u64().expect("a number");
    assert!(exported > 0 && exported < pushed, "{exported} of {pushed}");
    stage.sandbox.weather(json!({})).await;
    stage.drained().await;
    until("what was on its way has come", async || {
        (stage.sandbox.accounts().await.0["in_flight"] == 0).then_some(())
    })
    .await;
    let text = std::fs::read_to_string(stage.agent.dir().join("file")).expect("the file");
    // The last line contains the count.
    assert_eq!(text.lines().count() as u64, exported + 1);
    assert_eq!(stage.sandbox.accounts().await.processed() + exported, pushed, "each in one place");
    stage.agent.metrics().await.assert_conserved();
}

#[tokio::test]
async fn a_drain_that_was_paused_stays_paused_after_an_export() {
    let mut stage = stage().await;
    post(&stage.agent, "/admin/drain/pause").await;
    let pushed = load::push_sessions(&stage.redis, "s", 5, 3).await;
    depth_is(&stage.agent, pushed).await;
    assert_eq!(
        stage.agent.command(&[], &["outbox", "export", "file", "--json"]).await.json()["exported"],
        pushed
    );
    let later = load::push_sessions(&stage.redis, "later", 5, 3).await;
    depth_is(&stage.agent, later).await;
    assert_eq!(
        stage.agent.health().await.expect("health")["components"]["drain"]["reason"],
        "paused by an operator, until it is resumed or restarted"
    );
    post(&stage.agent, "/admin/drain/resume").await;
    stage.drained().await;
    assert_eq!(stage.sandbox.accounts().await.processed(), later);
}

#[tokio::test]
async fn everything_can_be_verified_while_it_works() {
    let mut stage = stage().await;
    let mut pushed = 0;
    for round in 0..5 {
        pushed += load::push_sessions(&stage.redis, &format!("r{round}"), 100, 20).await;
        let verified = stage.agent.command(&[], &["outbox", "verify", "--json"]).await.json();
        assert_eq!(verified["problems"], json!([]), "{verified}");
    }
    stage.drained().await;
    stage.assert_each_once(pushed).await;
    let (status, text) = ask(&stage.agent, Method::POST, "/admin/outbox/verify", None).await;
    assert_eq!(status, 200);
    assert!(lines(&text).last().expect("a line")["done"]["segments"].as_u64() >= Some(1), "{text}");
}

/// The folder of the only segment in the quarantine.
fn set_aside(agent: &Agent) -> Option<PathBuf> {
    let mut found = std::fs::read_dir(agent.dir().join("outbox/quarantine")).ok()?;
    Some(found.next()?.expect("a folder").path())
}

#[tokio::test]
async fn what_was_set_aside_is_salvaged_by_the_running_agent() {
    let (redis, sandbox) = (RedisServer::start().await, Sandbox::start(&[]));
    let mut agent = Agent::new(&redis, &sandbox.url);
    agent.set("ADMIN_TOKEN", TOKEN);
    agent.start();
    agent.ready().await;
    let mut stage = Stage { redis, sandbox, agent };
    stage.sandbox.weather(json!({"status": {"503": 1.0}})).await;
    let pushed = load::push_sessions(&stage.redis, "s", 20, 3).await;
    depth_is(&stage.agent, pushed).await;
    // A dead letter, so that the ledger learns of everything now, not within the next second.
    stage.redis.push(USAGE, &["{}"]).await;
    until("there is a dead letter", async || {
        (stage.agent.health().await?["outbox"]["dead_letters"] == 1).then_some(())
    })
    .await;
    stage.agent.stop().await;
    let damage = |conf: PathBuf| {
        let mut bytes = std::fs::read(&conf).expect("sled's conf");
        bytes[20] ^= 1;
        std::fs::write(&conf, bytes).expect("sled's conf");
    };
    damage(stage.agent.dir().join("outbox/segments/000000000001/conf"));
    stage.sandbox.weather(json!({})).await;
    stage.agent.start();
    stage.agent.ready().await;
    assert_eq!(stage.agent.metrics().await.sum("dataplane_quarantined_records", &[]) as u64, pushed);
    let verify = stage.agent.command(&[], &["outbox", "verify"]).await;
    verify.assert_failed("1 problems");
    assert!(verify.out.contains("records in quarantine"), "{verify:?}");
    // Somebody repairs it.
    damage(set_aside(&stage.agent).expect("it was set aside").join("segment/conf"));
    let salvaged = stage.agent.command(&[], &["outbox", "salvage", "--json"]).await.json();
    assert_eq!(
        (&salvaged[0]["records"], &salvaged[0]["known"]),
        (&json!(pushed), &json!(pushed)),
        "{salvaged}"
    );
    assert_eq!(stage.agent.command(&[], &["outbox", "salvage", "--json"]).await.json(), json!([]), "once");
    stage.drained().await;
    assert_eq!(stage.sandbox.accounts().await.processed(), pushed);
    stage.agent.metrics().await.assert_conserved();
    assert_eq!(stage.agent.command(&[], &["outbox", "verify", "--json"]).await.json()["problems"], json!([]));
}
