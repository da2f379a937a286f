//! Goal: a real Prometheus with our alerts sees an outage come and go. Method: the alerts' waiting times are shortened to
//! seconds; nothing else in the file is changed.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use super::super::harness::{Port, Stage, free_port, load, until};
use super::{alerts, dashboard, project};

struct Prometheus {
    dir: tempfile::TempDir,
    url: String,
    _port: Port,
    process: Child,
    http: reqwest::Client,
}

impl Prometheus {
    /// Scrapes this address twice a second.
    fn start(target: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let rules = project("data/prometheus/alerts.yml");
        let rules = rules.lines().map(|line| match line.split_once("for: ") {
            Some((indent, _)) if indent.trim().is_empty() => format!("{indent}for: 2s\n"),
            _ => format!("{line}\n"),
        });
        std::fs::write(dir.path().join("alerts.yml"), rules.collect::<String>()).expect("a file");
        let config = json!({
            "global": {"scrape_interval": "500ms", "evaluation_interval": "500ms"},
            "rule_files": ["alerts.yml"],
            "scrape_configs": [{"job_name": "dataplane-agent", "static_configs": [{"targets": [target]}]}],
        });
        std::fs::write(dir.path().join("prometheus.yml"), config.to_string()).expect("a file");
        let port = free_port();
        let address = format!("127.0.0.1:{port}");
        let log = std::fs::File::create(dir.path().join("log")).expect("a file");
        // Where the Makefile has unpacked it, or the system's.
        let unpacked =
            PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/target/prometheus/usr/bin/prometheus"));
        let program = if unpacked.exists() { unpacked } else { PathBuf::from("prometheus") };
        let process = Command::new(program)
            .current_dir(dir.path())
            .args(["--config.file=prometheus.yml", "--storage.tsdb.path=data", "--log.level=warn"])
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file"))
            .stderr(log)
            .spawn()
            .expect("prometheus can be started: `make prometheus` fetches it");
        let http = reqwest::Client::builder().no_proxy().build().expect("a client");
        Self { dir, url: format!("http://{address}"), _port: port, process, http }
    }

    /// The data of an answer; `None` while there is none.
    async fn get(&self, path: &str, query: &[(&str, &str)]) -> Option<Value> {
        let url = url::Url::parse_with_params(&format!("{}/api/v1/{path}", self.url), query).expect("a URL");
        let answer = self.http.get(url).send().await.ok()?;
        let mut answer: Value = answer.json().await.ok()?;
        (answer["status"] == "success").then(|| answer["data"].take())
    }

    /// The pending or firing alerts, except the one that extrapolates the disk from a few seconds, which always applies
    /// here.
    async fn alerts(&self) -> Option<Vec<Value>> {
        let alerts = self.get("alerts", &[]).await?["alerts"].as_array().cloned()?;
        let is_ours = |alert: &Value| alert["labels"]["alertname"] != "DataplaneDiskFillsUp";
        Some(alerts.into_iter().filter(is_ours).collect())
    }

    async fn alert(&self, name: &str) -> Option<Value> {
        self.alerts().await?.into_iter().find(|alert| alert["labels"]["alertname"] == name)
    }

    /// The times at which an alert was in a state, within the last ten minutes.
    async fn times(&self, name: &str, state: &str) -> Vec<f64> {
        let query = format!("ALERTS{{alertname=\"{name}\",alertstate=\"{state}\"}}[10m]");
        let data = self.get("query", &[("query", &query)]).await.expect("an answer");
        let values = data["result"][0]["values"].as_array().cloned().unwrap_or_default();
        values.iter().filter_map(|sample| sample[0].as_f64()).collect()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            eprintln!("--- prometheus' log ---\n{log}");
        }
    }
}

#[tokio::test]
async fn a_real_prometheus_sees_an_outage_come_and_go() {
    let mut stage = Stage::set().await;
    let target = stage.agent.url("").replace("http://", "");
    let prometheus = Prometheus::start(&target);
    load::push_sessions(&stage.redis, "before", 20, 5).await;
    stage.drained().await;
    until("every rule can be evaluated", async || {
        let groups = prometheus.get("rules", &[]).await?;
        let rules = groups["groups"][0]["rules"].as_array()?;
        assert_eq!(rules.len(), alerts().len());
        assert!(rules.iter().all(|rule| rule["health"] != "err"), "{groups:#}");
        rules.iter().all(|rule| rule["health"] == "ok").then_some(())
    })
    .await;
    // Before the first scrape there is no target.
    until("all is quiet", async || prometheus.alerts().await?.is_empty().then_some(())).await;

    stage.sandbox.weather(json!({"down": true})).await;
    load::push_sessions(&stage.redis, "meanwhile", 20, 5).await;
    let alert = until("the alert fires", async || {
        let alert = prometheus.alert("DataplaneLinkDown").await?;
        // Its text follows the scrapes.
        let says_all = alert["annotations"]["description"].as_str()?.contains("160 records");
        (alert["state"] == "firing" && says_all).then_some(alert)
    })
    .await;
    assert_eq!(alert["labels"]["instance"], target.as_str(), "{alert:#}");
    let description = alert["annotations"]["description"].as_str().expect("a description");
    assert!(description.contains("reason unreachable"), "{alert:#}");
    let others = prometheus.alerts().await.expect("an answer");
    assert!(others.iter().all(|other| other["labels"]["alertname"] == "DataplaneLinkDown"), "{others:#?}");

    stage.sandbox.weather(json!({})).await;
    stage.drained().await;
    until("the alert is over", async || prometheus.alerts().await?.is_empty().then_some(())).await;
    let (pending, firing) = (
        prometheus.times("DataplaneLinkDown", "pending").await,
        prometheus.times("DataplaneLinkDown", "firing").await,
    );
    assert!(pending.first() < firing.first() && !pending.is_empty(), "{pending:?} {firing:?}");

    for (query, _) in dashboard() {
        let query = query.replace("$__rate_interval", "1m").replace("$job", ".+").replace("$instance", ".+");
        let query = query.replace("$server", ".+");
        let data = prometheus.get("query", &[("query", &query)]).await;
        let data = data.unwrap_or_else(|| panic!("Prometheus has no answer to {query}"));
        let result = data["result"].as_array().expect("a result");
        // These queries need what is not always there: a shrinking backlog, a restart, an expiring credential.
        let may_be_empty = query.contains("> 0") || query.contains("_expiry_");
        assert!(may_be_empty || !result.is_empty(), "nothing comes of {query}");
    }
}
