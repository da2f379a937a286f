//! Goal: `conformance` detects each rule that a ControlPlane breaks, and no other; the sandbox keeps all of them. Method:
//! the command as a process, against the sandbox, its weather, and a proxy in front of it that breaks one rule at a time.

mod breaks;
mod proxy;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use serde_json::{Value, json};

use crate::harness::{API_KEY, Agent, RedisServer, Said, Sandbox, free_port};
use breaks::By;
use proxy::{Answer, Asked, Proxy, Twist};

/// Flags of a sandbox with which every rule can be observed.
const HELPFUL: [&str; 6] = [
    "--api-key",
    API_KEY,
    "--unknown-sessions",
    "conformance-unknown",
    "--poison-transactions",
    "conformance-fail",
];

fn helpful() -> Value {
    json!({"unknown_sessions": "conformance-unknown", "poison_transactions": "conformance-fail"})
}

/// Runs the command with an agent's settings, which must have no effect.
async fn conformance(url: &str, flags: &[&str]) -> Said {
    let agent = Agent::new(&RedisServer::stopped(), url);
    let words: Vec<_> = ["conformance", url].into_iter().chain(flags.iter().copied()).collect();
    let said = agent.command(&[("CONTROL_PLANE_URL", "http://127.0.0.1:1")], &words).await;
    let made = std::fs::read_dir(agent.dir()).expect("its folder").count();
    assert_eq!(made, 0, "it writes nothing");
    assert!(!format!("{said:?}").contains(API_KEY), "{said:?}");
    assert!(!said.out.contains("eyJ"), "no token is shown: {said:?}");
    assert!(!said.out.contains("\\u001b"), "nothing steers a terminal: {said:?}");
    said
}

fn report(said: &Said) -> Value {
    serde_json::from_str(&said.out).unwrap_or_else(|error| panic!("{error}: {said:?}"))
}

/// The rules in a state.
fn rules(report: &Value, state: &str) -> BTreeSet<String> {
    let rows = report["rules"].as_array().expect("rows").iter();
    let rows = rows.filter(|row| row["state"] == state);
    rows.map(|row| row["rule"].as_str().expect("a name").to_owned()).collect()
}

fn row<'a>(report: &'a Value, rule: &str) -> &'a Value {
    let mut rows = report["rules"].as_array().expect("rows").iter();
    rows.find(|row| row["rule"] == rule).unwrap_or_else(|| panic!("no row {rule}: {report}"))
}

fn set<'a>(rules: impl IntoIterator<Item = &'a str>) -> BTreeSet<String> {
    rules.into_iter().map(str::to_owned).collect()
}

fn accounts(sandbox: &Sandbox) -> String {
    format!("{}/sandbox/accounts", sandbox.url)
}

#[tokio::test]
async fn the_sandbox_keeps_every_rule() {
    let sandbox = Sandbox::start(&HELPFUL);
    let said =
        conformance(&sandbox.url, &["--json", "--accounts", &accounts(&sandbox), "--customer", "c-1"]).await;
    assert_eq!(said.code, 0, "{said:?}");
    let report = report(&said);
    assert_eq!((rules(&report, "fail"), rules(&report, "not_seen")), (set([]), set(["retry_after"])));
    let names: Vec<_> = dataplane_agent::conformance::rules().map(|(name, ..)| name).collect();
    assert_eq!(report["rules"].as_array().map(Vec::len), Some(names.len()));
    assert_eq!(set(names.iter().copied()).len(), names.len(), "a name twice");

    // It created exactly what it announced, and nothing else.
    let run = report["run"].as_str().expect("an id");
    let id = format!("conformance-{run}");
    assert!(report["server_id"] == id && report["customer_id"] == "c-1" && report["ok"] == true, "{report}");
    assert_eq!(sandbox.servers().await.as_object().expect("servers").keys().collect::<Vec<_>>(), [&id]);
    assert!(said.err.contains(&id) && said.err.contains("at most 200 requests"), "{said:?}");
    let accounts = sandbox.accounts().await;
    let sessions = accounts.0["sessions"].as_u64().expect("a number") as usize;
    assert!(sessions <= dataplane_agent::conformance::SESSIONS_MOST, "{sessions}");
    let counted = report["counted_once"].as_array().expect("a list");
    assert_eq!(accounts.processed(), counted.len() as u64);
    assert!(counted.len() <= dataplane_agent::conformance::RECORDS_MOST, "{counted:?}");
    assert!(counted.iter().all(|sent| sent["transaction_id"].as_str().expect("an id").contains(run)));
    for record in sandbox.records().await {
        let body = record["body"].as_str().expect("a body");
        assert!(body.contains(r#""customer_id":"c-1""#), "{record}");
    }
    let missing = &accounts.0["missing"];
    assert!(missing["idempotency_key"] == 0 && missing["credentials"] == 1, "{missing}");

    // For people: what cannot be observed comes with advice, and what must be checked by hand is listed.
    let text = conformance(&sandbox.url, &[]).await;
    assert_eq!(text.code, 0, "{text:?}");
    let has = |start: &str| text.out.lines().any(|line| line.starts_with(start));
    assert!(has("pass      repeated ") && has("not seen  session_order "), "{text:?}");
    assert!(text.out.contains("-> look up the records that are listed at the end"), "{text:?}");
    assert!(
        text.out.contains("-repeated: session_started ") && text.out.contains(" rules passed, 0 failed, "),
        "{text:?}"
    );
}

#[tokio::test]
async fn each_broken_rule_is_found_and_no_other() {
    let sandbox = Sandbox::start(&HELPFUL);
    let (mut faults, mut found) = (Vec::new(), BTreeSet::new());
    for broken in breaks::all() {
        let (weather, twist) = match broken.by {
            By::Weather(weather) => (weather, Twist::before(|_| None)),
            By::Proxy(twist) => (json!({}), twist),
        };
        let mut all = helpful();
        all.as_object_mut().expect("fields").extend(weather.as_object().expect("fields").clone());
        sandbox.weather(all).await;
        // If the weather breaks the rule, no proxy is needed.
        let proxy = Proxy::start(&sandbox.url, twist).await;
        let is_weather = weather.as_object().is_some_and(|fields| !fields.is_empty());
        let url = if is_weather { &sandbox.url } else { &proxy.url };
        let said = conformance(url, &["--json", "--accounts", &accounts(&sandbox), "--burst", "3"]).await;
        let report = report(&said);
        let fails = rules(&report, "fail");
        found.extend(fails.clone());
        if fails != set(broken.found.iter().copied()) || said.code != 1 {
            faults.push(format!("{}: {fails:?}, code {}", broken.what, said.code));
        }
        for rule in fails {
            let row = row(&report, &rule);
            let says = |field: &str| row[field].as_str().is_some_and(|text| !text.is_empty());
            assert!(["sent", "received", "expected", "sentence"].iter().all(|field| says(field)), "{row}");
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    let all = set(dataplane_agent::conformance::rules().map(|(name, ..)| name));
    assert_eq!(found, all, "a rule that nothing breaks here");
}

#[tokio::test]
async fn a_control_plane_may_do_without_what_the_contract_leaves_open() {
    let sandbox = Sandbox::start(&["--api-key", API_KEY, "--no-batch", "--duplicates", "200"]);
    let said = conformance(&sandbox.url, &["--json", "--accounts", &accounts(&sandbox)]).await;
    let of_batches = [
        "batch",
        "batch_answer",
        "batch_repeated",
        "batch_and_single",
        "batch_positions",
        "batch_isolation",
        "batch_order",
        "gzip",
        "zstd",
        "retry_after",
    ];
    let singles = report(&said);
    assert_eq!((said.code, rules(&singles, "not_seen")), (0, set(of_batches)), "{singles}");

    // No encodings, and records of any session are accepted.
    sandbox_without_encodings().await;
    // Sessions must start before their records are taken, and too many requests are told to wait.
    let sandbox = Sandbox::start(&HELPFUL);
    let (started, registered) = (Mutex::new(BTreeSet::new()), AtomicUsize::new(0));
    let strict = Twist::before(move |asked| {
        if asked.path.ends_with("/register") && registered.fetch_add(1, SeqCst) < 2 {
            let mut answer = Answer::failure(429);
            answer.retry_after("0");
            return Some(answer);
        }
        let (_, rest) = asked.path.split_once("/sessions/")?;
        let (session, what) = rest.split_once('/')?;
        let mut started = started.lock().expect("no test panics here");
        if what == "started" {
            started.insert(session.to_owned());
        }
        (!started.contains(session)).then(|| Answer::failure(404))
    });
    let proxy = Proxy::start(&sandbox.url, strict).await;
    let said = conformance(&proxy.url, &["--json", "--accounts", &accounts(&sandbox)]).await;
    let report = report(&said);
    assert_eq!((said.code, rules(&report, "not_seen")), (0, set([])), "{report}");
    let says = |rule: &str| row(&report, rule)["says"].as_str().expect("words").to_owned();
    assert!(says("session_becomes_known").contains("404 before its start"), "{report}");
    assert!(says("retry_after").contains("429 with Retry-After: 0"), "{report}");
}

async fn sandbox_without_encodings() {
    let sandbox = Sandbox::start(&["--api-key", API_KEY, "--refuse-encodings", "gzip,zstd"]);
    let said = conformance(&sandbox.url, &["--json"]).await;
    let report = report(&said);
    assert_eq!(said.code, 0, "{report}");
    assert!(row(&report, "gzip")["says"].as_str().expect("words").contains("415"), "{report}");
    let not_seen = rules(&report, "not_seen");
    assert!(
        ["zstd", "batch_order", "counted_once", "command_token"].iter().all(|rule| not_seen.contains(*rule))
    );
}

#[tokio::test]
async fn tokens_are_credentials_as_well() {
    const KEY: &str = "a-secret-that-is-long-enough-for-hmac";
    let sandbox = Sandbox::start(&HELPFUL);
    let is_good = |asked: &Asked| {
        let mut validation = jsonwebtoken::Validation::new(jsonwebtoken::Algorithm::HS256);
        validation.validate_aud = false;
        let key = jsonwebtoken::DecodingKey::from_secret(KEY.as_bytes());
        let token = asked.header("authorization").strip_prefix("Bearer ");
        token.is_some_and(|token| jsonwebtoken::decode::<Value>(token, &key, &validation).is_ok())
    };
    let gate = Twist::before(move |asked| {
        if !is_good(asked) {
            return Some(Answer::failure(403));
        }
        asked.set("x-api-key", API_KEY);
        None
    });
    let proxy = Proxy::start(&sandbox.url, gate).await;
    let agent = Agent::new(&RedisServer::stopped(), &proxy.url);
    let settings =
        [("CONTROL_PLANE_API_KEY", ""), ("CONTROL_PLANE_AUTH", "jwt"), ("CONTROL_PLANE_JWT_KEY", KEY)];
    let said = agent.command(&settings, &["conformance", &proxy.url, "--json"]).await;
    let report = report(&said);
    assert_eq!((said.code, rules(&report, "fail")), (0, set([])), "{report}");
    assert_eq!(row(&report, "wrong_credentials")["state"], "pass");
}

#[tokio::test]
async fn a_command_that_somebody_queued_is_waited_for_and_only_a_harmless_one_is_answered() {
    let sandbox = Sandbox::start(&HELPFUL);
    let command =
        |kind: &str, id: &str| json!({"command_type": kind, "server_id": "edge-for-tests", "command_id": id});
    let flags = ["--json", "--server-id", "edge-for-tests", "--wait", "60"];
    sandbox.command(command("pause_drain", "c-1")).await;
    let said = conformance(&sandbox.url, &flags).await;
    let before = report(&said);
    assert_eq!((said.code, &before["server_id"]), (0, &json!("edge-for-tests")), "{before}");
    assert_eq!(row(&before, "command_result")["state"], "not_seen");
    assert!(sandbox.results("c-1").await.is_empty(), "it is left to its agent");

    sandbox.command(command("health_check", "c-2")).await;
    let said = conformance(&sandbox.url, &flags).await;
    let after = report(&said);
    assert_eq!((said.code, &row(&after, "command_result")["state"]), (0, &json!("pass")), "{after}");
    let results = sandbox.results("c-2").await;
    assert!(results.len() == 2 && results[0]["success"] == false, "{results:?}");
}

#[tokio::test]
async fn a_server_that_hangs_or_is_none_ends_the_run_soon() {
    let sandbox = Sandbox::start(&HELPFUL);
    sandbox.weather(json!({"hang": 1.0})).await;
    let free = free_port();
    let nobody = format!("http://127.0.0.1:{free}");
    for (url, received) in [(&sandbox.url, "timed out"), (&nobody, "no connection")] {
        let said = conformance(url, &["--json", "--control-plane-timeout", "2"]).await;
        let report = report(&said);
        assert_eq!((said.code, rules(&report, "fail")), (1, set(["health"])), "{report}");
        assert_eq!((&report["requests"], rules(&report, "pass").len()), (&json!(1), 0), "{report}");
        assert!(row(&report, "health")["received"].as_str().expect("words").contains(received), "{report}");
    }
    // It disappears in the middle: nothing is sent after three requests without an answer.
    sandbox.weather(helpful()).await;
    let requests = AtomicUsize::new(0);
    let hang = Twist::before(move |_| (requests.fetch_add(1, SeqCst) >= 5).then(Answer::never));
    let proxy = Proxy::start(&sandbox.url, hang).await;
    let said = conformance(&proxy.url, &["--json", "--control-plane-timeout", "2"]).await;
    let report = report(&said);
    assert_eq!((said.code, &report["requests"]), (1, &json!(8)), "{report}");
    assert!(rules(&report, "pass").contains("session_started"), "{report}");
    let says = row(&report, "shutdown")["says"].as_str().expect("words");
    assert!(says.starts_with("not tried: 3 requests in a row got no answer"), "{report}");
}

#[tokio::test]
async fn what_cannot_be_begun_says_what_to_do() {
    let sandbox = Sandbox::start(&HELPFUL);
    for words in [
        &["conformance"][..],
        &["conformance", "not a url"],
        &["conformance", "http://h", "--customer", ""],
        &["conformance", "http://h", "--burst", "many"],
        &["conformance", "http://h", "--accounts", "here"],
    ] {
        let said = Agent::new(&RedisServer::stopped(), &sandbox.url).command(&[], words).await;
        assert_eq!(said.code, 2, "{words:?}: {said:?}");
    }
    let agent = Agent::new(&RedisServer::stopped(), &sandbox.url);
    let keyless = agent.command(&[("CONTROL_PLANE_API_KEY", "")], &["conformance", &sandbox.url]).await;
    assert!(keyless.code == 78 && keyless.err.contains("CONTROL_PLANE_API_KEY: "), "{keyless:?}");
    let elsewhere = format!("{}/nothing", sandbox.url);
    let said = conformance(&sandbox.url, &["--accounts", &elsewhere]).await;
    said.assert_failed("cannot read the accounts at");
    assert_eq!(sandbox.accounts().await.all_requests("health"), 0, "nothing was sent");
}

/// A text without line breaks.
fn flowing(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn every_sentence_stands_in_the_contract_and_every_rule_in_the_book() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/contract");
    let read = |page: &str| {
        std::fs::read_to_string(docs.join(page)).unwrap_or_else(|error| panic!("{page}: {error}"))
    };
    let book = read("conformance.md");
    let (_, section) = book.split_once("\n## The rules\n").expect("a list of the rules");
    let section = section.split("\n## ").next().expect("its text");
    let listed: Vec<_> = section.lines().filter_map(|line| line.strip_prefix("| `")).collect();
    let listed: Vec<_> = listed.iter().filter_map(|line| line.split('`').next()).collect();
    let rules: Vec<_> = dataplane_agent::conformance::rules().collect();
    assert_eq!(listed, rules.iter().map(|(name, ..)| *name).collect::<Vec<_>>());
    for (name, page, sentence) in rules {
        assert!(flowing(&read(page)).contains(sentence), "{name}: {page} does not say {sentence:?}");
    }
}
