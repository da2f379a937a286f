//! One row: everything started, everything drained, and what it took.

use std::time::{Duration, Instant};

use super::super::harness::{Agent, QUOTA, QUOTA_ANSWERS, RedisServer, Sandbox, load};
use super::super::latency::percentile;
use super::super::process::{peak_mib, processor_seconds};
use super::{Load, arrive};

const QUOTA_EVERY: Duration = Duration::from_millis(100);
const QUOTA_TIMEOUT_SECONDS: u32 = 60;

/// What is measured.
pub(super) struct Setting {
    pub(super) load: Load,
    pub(super) records: u32,
    /// Of the agent.
    pub(super) settings: &'static [(&'static str, &'static str)],
    /// Of the sandbox, which counts what it carries.
    pub(super) link: Option<&'static str>,
    /// Quota requests are sent meanwhile; this is what is asked of them.
    pub(super) quota: Option<Duration>,
}

impl Setting {
    pub(super) fn plain(load: Load, records: u32, settings: &'static [(&'static str, &'static str)]) -> Self {
        Self { load, records, settings, link: None, quota: None }
    }
}

/// What came of it.
pub(super) struct Figures {
    pub(super) rate: f64,
    records: u64,
    lost: u64,
    order_violations: u64,
    repeated: u64,
    repeated_differently: u64,
    /// On the wire a record, up and down.
    pub(super) bytes: Option<(f64, f64)>,
    peak_mib: f64,
    processor_micros: f64,
    retries: f64,
    quota: Option<(Vec<Duration>, Duration)>,
}

pub(super) async fn measure(setting: &Setting) -> Figures {
    let flags: Vec<&str> = setting.link.iter().flat_map(|link| ["--link", link]).collect();
    let sandbox = Sandbox::start(&flags);
    let mut figures = measure_against(setting, &sandbox).await;
    if setting.link.is_some() {
        let link = sandbox.link().await;
        let bytes = |way: &str| link[way]["bytes"].as_f64().expect("bytes") / figures.records as f64;
        figures.bytes = Some((bytes("up"), bytes("down")));
    }
    figures
}

/// Fills Redis, then starts the agent and waits until the sandbox has everything.
pub(super) async fn measure_against(setting: &Setting, sandbox: &Sandbox) -> Figures {
    let redis = RedisServer::start().await;
    let mut records = setting.load.push(&redis, setting.records).await;
    let mut agent = Agent::new(&redis, &sandbox.url);
    // As it is in production.
    for name in ["CONTROL_PLANE_INITIAL_ERROR_DELAY", "CONTROL_PLANE_MAX_BACKOFF", "CONTROL_PLANE_TIMEOUT"] {
        agent.unset(name);
    }
    for (name, value) in setting.settings {
        agent.set(name, value);
    }
    let begun = Instant::now();
    agent.start();
    let processed = async || {
        let accounts = sandbox.accounts().await;
        ["usage", "started", "completed"].iter().map(|kind| accounts.kind(kind, "processed")).sum()
    };
    let mut quota = Vec::new();
    if setting.quota.is_some() {
        // What is measured is a request amid a drain.
        arrive(1, processed).await;
        tokio::select! {
            () = arrive(records, processed) => {}
            () = ask_for_quota(&redis, &mut quota) => {}
        }
    }
    arrive(records, processed).await;
    let seconds = begun.elapsed().as_secs_f64();
    let (peak_mib, processor) = (peak_mib(agent.pid()), processor_seconds(agent.pid()));
    let retries = agent.metrics().await.sum("dataplane_retries_total", &[]);
    let accounts = sandbox.accounts().await.0;
    let rate = records as f64 / seconds;
    let number =
        |pointer: &str| accounts.pointer(pointer).and_then(serde_json::Value::as_u64).expect("a number");
    let sum = |field: &str| -> u64 {
        ["usage", "started", "completed", "quota"]
            .iter()
            .map(|kind| number(&format!("/kinds/{kind}/{field}")))
            .sum()
    };
    records += quota.len() as u64;
    Figures {
        rate,
        records,
        lost: records.saturating_sub(sum("processed")),
        order_violations: number("/order_violations/count") + number("/key_violations/count"),
        repeated: sum("duplicates"),
        repeated_differently: sum("duplicates_different"),
        bytes: None,
        peak_mib,
        processor_micros: processor / records as f64 * 1e6,
        retries,
        quota: setting.quota.map(|asked| (quota, asked)),
    }
}

/// One quota request after another, for as long as it is polled.
async fn ask_for_quota(redis: &RedisServer, took: &mut Vec<Duration>) {
    let mut connection = redis.connection();
    for number in 0.. {
        let asked = Instant::now();
        redis.push(QUOTA, &[load::quota("q", number)]).await;
        let mut wait = redis::cmd("BRPOP");
        wait.arg(QUOTA_ANSWERS).arg(QUOTA_TIMEOUT_SECONDS);
        let answer: Option<(String, String)> =
            wait.query_async(&mut connection).await.expect("Redis answers");
        assert!(answer.is_some(), "a quota request was not answered");
        took.push(asked.elapsed());
        tokio::time::sleep(QUOTA_EVERY).await;
    }
}

impl Figures {
    pub(super) fn records(&self) -> u64 {
        self.records
    }

    /// Nothing is lost, out of order, or repeated under another key.
    pub(super) fn is_sound(&self) -> bool {
        self.lost + self.order_violations + self.repeated_differently == 0
    }

    pub(super) fn print(&self, name: &str, judgement: &str) {
        println!("{name}: {:.0} records/s; {judgement}", self.rate);
        println!(
            "  {} records, lost {}, order violations {}, repeated {} ({} with another key or body), retries {}",
            self.records,
            self.lost,
            self.order_violations,
            self.repeated,
            self.repeated_differently,
            self.retries
        );
        let wire = self.bytes.map_or_else(String::new, |(up, down)| {
            format!("; on the wire {up:.1} B up and {down:.1} B down a record")
        });
        println!(
            "  {:.1} MiB at the peak, {:.1} µs of processor time a record{wire}",
            self.peak_mib, self.processor_micros
        );
        if let Some((took, asked)) = &self.quota {
            let mut took = took.clone();
            took.sort_unstable();
            let asked = asked.as_millis();
            let [p50, p99] = [0.5, 0.99].map(|share| percentile(&took, share));
            println!(
                "  quota push → answer: p50 {p50:.0} ms, p99 {p99:.0} ms of {} (asked: p99 < {asked} ms)",
                took.len()
            );
        }
    }
}
