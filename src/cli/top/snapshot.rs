//! An agent's state at one moment, from its `/health`, `/metrics` and `/status`.

use serde::Deserialize;
use serde_json::Value;

use super::samples::{Sample, parse};
use crate::http::requests::{RouteBody, RouteCounts};

/// The kinds, as named in the metrics.
pub(super) const KINDS: [&str; 3] = ["usage", "lifecycle", "quota"];

/// An agent's state at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Snapshot {
    pub server_id: String,
    pub version: String,
    pub status: String,
    pub uptime: f64,
    /// By kind, in the order of [`KINDS`].
    pub depth: [f64; 3],
    pub age: [f64; 3],
    /// What the agent has measured, if it says so.
    pub told: Option<Told>,
    /// Records accepted and delivered since the outbox was created.
    pub enqueued: f64,
    pub settled: f64,
    pub link: String,
    pub link_cause: Option<String>,
    pub next_probe: Option<f64>,
    pub link_down: bool,
    /// Some kinds are held; the others may still be sent.
    pub holds_kinds: bool,
    pub disk: f64,
    pub capacity: f64,
    /// Why records are not accepted, if so.
    pub refusing: Option<String>,
    pub dead_letters: f64,
    /// Dead letters since the outbox was created, by reason, without zero counts.
    pub dead_by_reason: Vec<(String, f64)>,
    pub drain_holds: Option<String>,
    pub rate_limit: f64,
    pub bandwidth: f64,
    pub redis: String,
    pub redis_ok: bool,
    /// Messages waiting in Redis, if it says.
    pub in_redis: Option<f64>,
    pub quarantined: f64,
    /// Requests so far, by route.
    pub routes: RouteCounts,
}

/// What the agent itself has measured: the figures of its status page.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Told {
    /// Records per second over the last five seconds, in and out; `None` before it has measured any.
    pub rates: Option<(f64, f64)>,
    /// Seconds until the backlog is gone, or why there is no forecast.
    pub drained: Option<f64>,
    pub no_forecast: Option<String>,
    /// Requests over the last half minute, by route.
    pub routes: Vec<RouteBody>,
}

/// The part of `/status` that is used.
#[derive(Deserialize)]
struct StatusFigures {
    kinds: std::collections::BTreeMap<String, KindRates>,
    routes: Vec<RouteBody>,
    drained_in_seconds: Option<f64>,
    no_forecast: Option<String>,
}

#[derive(Deserialize)]
struct KindRates {
    in_per_second: Option<f64>,
    out_per_second: Option<f64>,
}

impl Told {
    /// From `/status`.
    pub(super) fn of(status: &str) -> Option<Self> {
        let status: StatusFigures = serde_json::from_str(status).ok()?;
        let sum = |of: fn(&KindRates) -> Option<f64>| status.kinds.values().map(of).sum::<Option<f64>>();
        Some(Self {
            rates: sum(|kind| kind.in_per_second).zip(sum(|kind| kind.out_per_second)),
            drained: status.drained_in_seconds,
            no_forecast: status.no_forecast,
            routes: status.routes,
        })
    }
}

impl Snapshot {
    /// Combines health and metrics. `None` if the first is not an agent's.
    pub(super) fn of(health: &str, metrics: &str) -> Option<Self> {
        let health: Value = serde_json::from_str(health).ok()?;
        let text = |pointer: &str| health.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        let samples = parse(metrics);
        let all = |name: &'static str| samples.iter().filter(move |sample| sample.name == name);
        let sum = |name: &'static str| all(name).map(|sample| sample.value).sum::<f64>();
        let by_kind = |name: &'static str| {
            KINDS.map(|kind| {
                let of_kind = all(name).filter(|sample| sample.label("kind") == Some(kind));
                of_kind.map(|sample| sample.value).sum::<f64>()
            })
        };
        let ok = |pointer: &str| text(pointer).as_deref() == Some("healthy");
        let redis_ok = ok("/components/redis/status");
        let unless_ok = |part: &str| {
            let reason = text(&format!("/components/{part}/reason"));
            (!ok(&format!("/components/{part}/status"))).then(|| reason.unwrap_or_else(|| "degraded".into()))
        };
        Some(Self {
            server_id: all("redis_connection_status")
                .find_map(|sample| sample.label("server_id"))?
                .to_owned(),
            version: text("/version")?,
            status: text("/status")?,
            uptime: health.pointer("/uptime_seconds").and_then(Value::as_f64).unwrap_or_default(),
            depth: by_kind("dataplane_outbox_depth"),
            age: by_kind("dataplane_outbox_oldest_age_seconds"),
            told: None,
            enqueued: sum("dataplane_outbox_enqueued_total"),
            settled: sum("dataplane_delivered_total") + sum("dataplane_duplicates_total"),
            link: text("/components/control_plane/link").unwrap_or_default(),
            link_cause: text("/components/control_plane/cause"),
            next_probe: health
                .pointer("/components/control_plane/next_probe_seconds")
                .and_then(Value::as_f64),
            link_down: !ok("/components/control_plane/status"),
            holds_kinds: health
                .pointer("/components/control_plane/held")
                .and_then(Value::as_array)
                .is_some_and(|held| !held.is_empty()),
            disk: sum("dataplane_outbox_counted_bytes"),
            capacity: sum("dataplane_outbox_capacity_bytes"),
            refusing: (sum("dataplane_outbox_accepting") < 1.0)
                .then(|| unless_ok("outbox").unwrap_or_else(|| "stopping".into())),
            dead_letters: sum("dataplane_dead_letters"),
            dead_by_reason: by_reason(all("dataplane_dead_lettered_total")),
            drain_holds: unless_ok("drain"),
            rate_limit: sum("dataplane_drain_rate_limit"),
            bandwidth: sum("dataplane_drain_bandwidth_limit"),
            redis: if redis_ok { "connected".into() } else { unless_ok("redis").unwrap_or_default() },
            redis_ok,
            in_redis: all("redis_queue_depth").map(|sample| sample.value).reduce(|a, b| a + b),
            quarantined: sum("dataplane_quarantined_records"),
            routes: routes(&samples),
        })
    }

    /// Whether the link lets records of some kinds pass.
    pub(super) fn may_pass(&self) -> bool {
        !self.link_down || self.holds_kinds
    }

    /// Whether records are sent.
    pub(super) fn sends(&self) -> bool {
        self.may_pass() && self.drain_holds.is_none()
    }

    pub(super) fn total_depth(&self) -> f64 {
        self.depth.iter().sum()
    }

    pub(super) fn oldest(&self) -> f64 {
        self.age.iter().copied().fold(0.0, f64::max)
    }

    /// How full the outbox is, from 0 to 1.
    pub(super) fn fullness(&self) -> f64 {
        if self.capacity > 0.0 { (self.disk / self.capacity).clamp(0.0, 1.0) } else { 0.0 }
    }
}

fn routes(samples: &[Sample]) -> RouteCounts {
    let mut routes = RouteCounts::new();
    for sample in samples {
        let is_count = sample.name == "dataplane_control_plane_requests_total";
        let is_bucket = sample.name == "dataplane_control_plane_request_seconds_bucket";
        let Some(endpoint) = sample.label("endpoint").filter(|_| is_count || is_bucket) else { continue };
        let route = routes.entry(endpoint.to_owned()).or_default();
        if is_count {
            route.add(sample.label("code").unwrap_or_default(), sample.value as u64);
        } else {
            let bound = sample.label("le").and_then(|bound| bound.parse().ok());
            route.buckets.push((bound.unwrap_or(f64::INFINITY), sample.value as u64));
        }
    }
    routes
}

fn by_reason<'a>(samples: impl Iterator<Item = &'a Sample>) -> Vec<(String, f64)> {
    let mut all: Vec<(String, f64)> = Vec::new();
    for sample in samples.filter(|sample| sample.value > 0.0) {
        let reason = sample.label("reason").unwrap_or_default();
        match all.iter_mut().find(|(known, _)| known == reason) {
            Some((_, count)) => *count += sample.value,
            None => all.push((reason.to_owned(), sample.value)),
        }
    }
    all
}
