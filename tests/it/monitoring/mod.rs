//! Goal: the Prometheus and Grafana files in data/ match this agent. Method: every query is compared with a scrape of a
//! running agent; every alert has a runbook section, a test that fires, and one that must not (`make check-alerts` runs
//! those).

mod prometheus;
mod promql;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use axum::http::header::DATE;
use axum::response::IntoResponse as _;
use jsonwebtoken::{EncodingKey, Header};
use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use serde_json::{Value, json};

use super::harness::{Agent, Metrics, RedisServer, Sandbox, Scripted, Stage, USAGE, load, taken, until};
use promql::asked;

const EXPIRY: &str = "dataplane_credential_expiry_timestamp_seconds";

fn project(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

struct Alert {
    name: String,
    query: String,
    /// The queries in its annotations.
    told: Vec<String>,
    runbook: String,
}

/// The alerts, parsed line by line: the file uses few forms of YAML.
fn alerts() -> Vec<Alert> {
    let file = project("data/prometheus/alerts.yml");
    let blocks: Vec<_> = file.split("\n      - alert: ").skip(1).collect();
    let alerts = blocks.iter().map(|block| {
        let (name, rest) = block.split_once('\n').expect("more than a name");
        let (query, _) = rest
            .trim_start()
            .strip_prefix("expr:")
            .expect("an expr")
            .split_once("\n        ")
            .expect("an end");
        let query = if query.trim() == ">-" {
            let lines = rest.lines().skip(1).take_while(|line| line.starts_with("          "));
            lines.collect::<Vec<_>>().join("\n")
        } else {
            query.trim().to_owned()
        };
        let told = rest.split("printf \"").skip(1).filter(|text| !text.starts_with('%')).map(|text| {
            let text = text.replace("\\\"", "\u{1}");
            let text = text.split_once('"').expect("the end of a format").0;
            text.replace('\u{1}', "\"").replace("%q", "\"x\"")
        });
        let runbook = rest.split_once("runbook_url: docs/runbook.md#").expect("a runbook").1;
        let runbook = runbook.lines().next().unwrap_or_default().to_owned();
        Alert { name: name.to_owned(), query, told: told.collect(), runbook }
    });
    let alerts: Vec<_> = alerts.collect();
    assert_eq!(alerts.len(), file.matches("expr:").count(), "every alert was read");
    alerts
}

/// The dashboard's queries, each with the labels that its legend uses.
fn dashboard() -> Vec<(String, Vec<String>)> {
    fn walk(value: &Value, found: &mut Vec<(String, Vec<String>)>) {
        if let Some(query) = value["expr"].as_str() {
            let legend = value["legendFormat"].as_str().unwrap_or_default();
            let labels =
                legend.split("{{").skip(1).filter_map(|label| Some(label.split_once("}}")?.0.to_owned()));
            found.push((query.to_owned(), labels.collect()));
        }
        if let Some(query) = value["query"]["query"].as_str() {
            let values = query.strip_prefix("label_values(").and_then(|query| query.strip_suffix(')'));
            let (query, label) = values.and_then(|values| values.rsplit_once(", ")).expect("label_values");
            found.push((query.to_owned(), vec![label.to_owned()]));
        }
        match value {
            Value::Array(values) => values.iter().for_each(|value| walk(value, found)),
            Value::Object(values) => values.values().for_each(|value| walk(value, found)),
            _ => {}
        }
    }
    let dashboard: Value = serde_json::from_str(&project("data/grafana/dashboard.json")).expect("JSON");
    let mut found = Vec::new();
    walk(&dashboard, &mut found);
    assert!(found.len() > 50, "{} queries were found", found.len());
    found
}

/// The series of a scrape: by name, each with its labels.
fn series(scrape: &Metrics) -> BTreeMap<String, Vec<BTreeMap<String, String>>> {
    let mut series = BTreeMap::<_, Vec<_>>::new();
    for line in scrape.0.lines().filter(|line| !line.starts_with('#')) {
        let sample = asked(line).selectors.swap_remove(0);
        let labels = sample.matchers.into_iter().map(|(label, _, value)| (label, value)).collect();
        series.entry(sample.metric).or_default().push(labels);
    }
    // A series that Prometheus itself provides.
    series.insert("up".to_owned(), vec![BTreeMap::new()]);
    for labels in series.values_mut().flatten() {
        for by_prometheus in ["instance", "job"] {
            labels.insert(by_prometheus.to_owned(), String::new());
        }
    }
    series
}

/// What a query needs and the agent does not export.
fn missing(
    series: &BTreeMap<String, Vec<BTreeMap<String, String>>>,
    query: &str,
    labels: &[String],
) -> Vec<String> {
    let asked = asked(query);
    let mut missing = Vec::new();
    let mut known = BTreeSet::new();
    for selector in &asked.selectors {
        let samples = series.get(&selector.metric).map(Vec::as_slice).unwrap_or_default();
        let fits = |labels: &BTreeMap<String, String>| {
            selector.matchers.iter().all(|(label, operator, value)| {
                let given = labels.get(label);
                let is_of_target = label == "instance" || label == "job";
                given.is_some_and(|given| operator != "=" || is_of_target || given == value)
            })
        };
        if !samples.iter().any(fits) {
            missing.push(format!("{selector:?}"));
        }
        known.extend(samples.iter().flat_map(BTreeMap::keys));
    }
    let wanted = asked.labels.iter().chain(labels).filter(|label| !known.contains(label));
    missing.extend(wanted.map(|label| format!("the label {label}")));
    if asked.selectors.is_empty() {
        missing.push("it asks for nothing".to_owned());
    }
    missing
}

/// A JWT that expires then.
pub(crate) fn token(exp: i64) -> String {
    jsonwebtoken::encode(&Header::default(), &json!({"exp": exp}), &EncodingKey::from_secret(b"x"))
        .expect("a token")
}

#[tokio::test]
async fn every_query_of_the_alerts_and_of_the_dashboard_is_about_what_an_agent_exports() {
    let stage = Stage::set_with(&[("CONTROL_PLANE_API_KEY", &token(2_000_000_000))]).await;
    let scrape = until("it has registered", async || {
        let scrape = stage.agent.metrics().await;
        (scrape.sum("dataplane_control_plane_requests_total", &[]) > 0.0).then_some(scrape)
    })
    .await;
    let series = series(&scrape);
    let mut queries = dashboard();
    for alert in alerts() {
        queries.push((alert.query, Vec::new()));
        queries.extend(alert.told.into_iter().map(|query| (query, Vec::new())));
    }
    let wrong = queries.iter().filter_map(|(query, labels)| {
        let missing = missing(&series, query, labels);
        (!missing.is_empty()).then(|| format!("{query}\n    lacks {}", missing.join(", ")))
    });
    let wrong: Vec<_> = wrong.collect();
    assert!(wrong.is_empty(), "{}\n{}", wrong.join("\n"), scrape.0);
    // The check can fail.
    for query in [
        "no_such_metric",
        "dataplane_link_trouble{reason=\"no_such\"}",
        "sum by (colour) (up)",
        "up{kind=\"\"}",
    ] {
        assert!(!missing(&series, query, &[]).is_empty(), "{query}");
    }
    assert!(!missing(&series, "up", &["colour".to_owned()]).is_empty());

    let free = scrape.sum("dataplane_outbox_disk_free_bytes", &[]);
    assert!(free > 0.0 && free < 1e18, "{free}");
    assert_eq!(scrape.sum("dataplane_outbox_min_free_bytes", &[]), f64::from(256 << 20));
}

#[test]
fn every_alert_has_a_section_in_the_runbook_and_a_test_of_each_outcome() {
    let (runbook, tests) = (project("docs/runbook.md"), project("tests/prometheus/alerts_test.yml"));
    let alerts = alerts();
    for Alert { name, runbook: anchor, .. } in &alerts {
        assert_eq!(*anchor, name.to_lowercase(), "{name}");
        let section =
            runbook.split_once(&format!("\n## {name}\n")).unwrap_or_else(|| panic!("no section {name}")).1;
        let section = section.split("\n## ").next().unwrap_or_default();
        for part in ["**Means**", "**At risk**", "**Look**", "**Do**"] {
            assert!(section.contains(part), "{name}: {part}");
        }
        let outcomes: Vec<_> = tests.split(&format!("alertname: {name}\n")).skip(1).collect();
        let fires =
            |outcome: &&&str| outcome.split("- alertname:").next().unwrap_or_default().contains("exp_labels");
        let firing = outcomes.iter().filter(fires).count();
        assert!(firing > 0 && firing < outcomes.len(), "{name}: {firing} of {} tests fire", outcomes.len());
    }
    for heading in runbook.lines().filter_map(|line| line.strip_prefix("## ")) {
        let is_alert = alerts.iter().any(|alert| alert.name == heading);
        assert!(is_alert || !heading.starts_with("Dataplane"), "{heading} is no alert any more");
    }
}

/// A certificate that expires in this year, and its key.
fn certificate(dir: &Path, name: &str, year: i32) -> (PathBuf, PathBuf) {
    let mut params = CertificateParams::new(["edge.example".to_owned()]).expect("a name");
    params.not_after = date_time_ymd(year, 1, 1);
    let key = KeyPair::generate().expect("a key");
    let files = (dir.join(format!("{name}.pem")), dir.join(format!("{name}.key")));
    std::fs::write(&files.0, params.self_signed(&key).expect("a certificate").pem()).expect("a file");
    std::fs::write(&files.1, key.serialize_pem()).expect("a file");
    files
}

#[tokio::test]
async fn expiries_of_credentials_are_exported_and_follow_the_files() {
    let (sandbox, redis) = (Sandbox::start(&[]), RedisServer::start().await);
    let mut agent = Agent::new(&redis, &sandbox.url);
    let dir = agent.dir().to_owned();
    let (ca, _) = certificate(&dir, "ca", 2040);
    let (own, own_key) = certificate(&dir, "own", 2030);
    let key = dir.join("api-key");
    std::fs::write(&key, token(2_000_000_000)).expect("a file");
    agent.unset("CONTROL_PLANE_API_KEY");
    for (name, file) in [
        ("CONTROL_PLANE_API_KEY_FILE", &key),
        ("CONTROL_PLANE_CA_FILE", &ca),
        ("CONTROL_PLANE_CLIENT_CERT_FILE", &own),
        ("CONTROL_PLANE_CLIENT_KEY_FILE", &own_key),
    ] {
        agent.set(name, file.to_str().expect("a path"));
    }
    agent.start();
    agent.ready().await;
    let ends = async || {
        let scrape = agent.metrics().await;
        ["control_plane_api_key", "control_plane_ca", "control_plane_client"]
            .map(|credential| scrape.sum(EXPIRY, &[("credential", credential)]))
    };
    assert_eq!(ends().await, [2_000_000_000.0, 2_208_988_800.0, 1_893_456_000.0]);
    certificate(&dir, "own", 2031);
    // An opaque key has no known expiry.
    std::fs::write(&key, "s3cret").expect("a file");
    until("what is new is told", async || {
        (ends().await == [0.0, 2_208_988_800.0, 1_924_992_000.0]).then_some(())
    })
    .await;
    assert!(!agent.metrics().await.0.contains("control_plane_api_key"), "a key that is gone has no sample");
}

#[tokio::test]
async fn the_clock_skew_is_exported() {
    let ahead = Scripted::start(|_| {
        let date = std::time::SystemTime::now() + std::time::Duration::from_secs(100);
        ([(DATE, httpdate::fmt_http_date(date))], taken()).into_response()
    })
    .await;
    let redis = RedisServer::start().await;
    let mut agent = Agent::new(&redis, &ahead.url);
    agent.set("DELIVERY_MODE", "single");
    agent.start();
    agent.ready().await;
    // That answer bears the right time; the next heartbeat is a minute away.
    until("it has registered", async || (agent.health().await?["server_registered"] == true).then_some(()))
        .await;
    assert_eq!(agent.metrics().await.sum("dataplane_clock_skew_seconds", &[]), 0.0);
    redis.push(USAGE, &[load::usage("s", 0)]).await;
    let skew = until("a difference is told", async || {
        let skew = agent.metrics().await.sum("dataplane_clock_skew_seconds", &[]);
        (skew != 0.0).then_some(skew)
    })
    .await;
    assert!((90.0..=101.0).contains(&skew), "{skew}");
}
