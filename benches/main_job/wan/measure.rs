//! One row: everything started, everything drained, and what it took.

use std::time::{Duration, Instant};

use super::super::harness::{Agent, QUOTA, QUOTA_ANSWERS, RedisServer, Sandbox, load};
use super::super::latency::report_percentiles;
use super::super::process::{peak_mib, processor_seconds};
use super::super::report::{MICROS, PEAK, RATE, row};
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
pub(crate) struct Figures {
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
    retries: Option<f64>,
    quota: Option<(Vec<Duration>, Duration)>,
}

pub(super) async fn measure(setting: &Setting) -> Figures {
    let flags: Vec<&str> = setting.link.iter().flat_map(|link| ["--link", link]).collect();
    measure_against(setting, &Sandbox::start(&flags)).await
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
    let rate = records as f64 / seconds;
    records += quota.len() as u64;
    let mut figures = Figures::of(sandbox, records, rate, agent.pid()).await;
    figures.retries = Some(agent.metrics().await.sum("dataplane_retries_total", &[]));
    figures.quota = setting.quota.map(|asked| (quota, asked));
    figures
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
    /// Of a process that has sent so many records to this sandbox alone.
    pub(crate) async fn of(sandbox: &Sandbox, records: u64, rate: f64, pid: u32) -> Self {
        let (peak_mib, processor_micros) = (peak_mib(pid), processor_seconds(pid) / records as f64 * 1e6);
        let (accounts, link) = (sandbox.accounts().await, sandbox.link().await);
        let bytes = |way: &str| Some(link[way]["bytes"].as_f64()? / records as f64);
        Self {
            rate,
            records,
            lost: records.saturating_sub(accounts.processed()),
            order_violations: accounts.number("/order_violations/count")
                + accounts.number("/key_violations/count"),
            repeated: accounts.sum("duplicates"),
            repeated_differently: accounts.sum("duplicates_different"),
            bytes: bytes("up").zip(bytes("down")),
            peak_mib,
            processor_micros,
            retries: None,
            quota: None,
        }
    }

    pub(super) fn records(&self) -> u64 {
        self.records
    }

    /// Nothing is lost, out of order, or repeated under another key.
    pub(super) fn is_sound(&self) -> bool {
        self.lost + self.order_violations + self.repeated_differently == 0
    }

    /// What became of the records.
    pub(crate) fn account(&self) -> [(&'static str, f64); 3] {
        [("lost", self.lost), ("out of order", self.order_violations), ("repeated", self.repeated)]
            .map(|(column, records)| (column, records as f64))
    }

    /// Prints and records a row, with what limits its rate.
    pub(crate) fn report(&self, table: &str, name: &str, limit: Option<f64>) {
        let mut figures = vec![(RATE, self.rate)];
        figures.extend(
            limit.into_iter().flat_map(|limit| [("limit", limit), ("× the limit", self.rate / limit)]),
        );
        figures.extend([(MICROS, self.processor_micros), (PEAK, self.peak_mib)]);
        figures.extend(
            self.bytes.into_iter().flat_map(|(up, down)| [("bytes up a record", up), ("bytes down", down)]),
        );
        figures.extend(self.account());
        figures.extend(self.retries.map(|retries| ("retries", retries)));
        row(table, name, &figures);
        if self.repeated_differently > 0 {
            println!("  {} of them with another key or body", self.repeated_differently);
        }
        if let Some((took, asked)) = &self.quota {
            println!("  push to quota answer (asked: p99 < {} ms):", asked.as_millis());
            report_percentiles("wan-quota", name, took.clone());
        }
    }
}
