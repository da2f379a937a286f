//! Every metric that the agent exports, declared once.
//!
//! Counts that must agree at every scrape (enqueued = delivered + duplicates + dead-lettered + exported + depth) are not kept
//! here: a scrape reads them from the outbox in one consistent snapshot.

use std::time::Duration;

use prometheus::core::Collector;
use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

use crate::record::Queue;
use crate::secret::expiry::Expiry;

/// The commit of this build, if the build set it (`make` does).
pub const COMMIT: Option<&str> = option_env!("DATAPLANE_COMMIT");

/// Buckets for latencies, from half a millisecond to a minute.
const SECONDS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
/// Buckets for acceptance to settlement, which takes hours in an outage.
const DELIVERY_SECONDS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0, 5.0, 30.0, 120.0, 600.0, 3600.0, 21600.0, 86400.0];

/// Values that are read at each scrape.
pub struct ScrapedValues {
    /// Seconds by which the `ControlPlane`'s clock is ahead of ours.
    pub clock_skew_seconds: f64,
    /// When credentials expire.
    pub expiries: Vec<Expiry>,
}

/// Metrics that are updated where the events happen.
pub struct Metrics {
    registry: Registry,
    server_id: String,
    /// Messages taken from each queue.
    pub intake_records: IntCounterVec,
    /// Whether the intake is paused, and why.
    pub intake_paused: IntGaugeVec,
    /// Messages waiting in each Redis queue.
    pub redis_queue_depth: IntGaugeVec,
    /// 1 while Redis answers.
    pub redis_connection: IntGaugeVec,
    /// Failures that ended a Redis session, and commands that Redis refused, each time.
    pub redis_failures: IntCounterVec,
    /// Stream entries deleted while they were pending, before they were read.
    pub stream_trimmed: IntCounterVec,
    /// 1 while the `ControlPlane` answers.
    pub control_plane_connection: IntGaugeVec,
    /// Why requests have failed since the `ControlPlane` last served this agent, if none with records was among them.
    pub control_plane_failing: IntGaugeVec,
    /// 1 while another agent holds the `SERVER_ID`.
    pub server_id_taken: IntGauge,
    /// Failed attempts that will be retried, by reason.
    pub retries: IntCounterVec,
    /// 2xx answers that no `ControlPlane` gives.
    pub foreign_answers: IntCounter,
    /// Batches in which the `ControlPlane` accepted a record after an earlier one of its session had failed.
    pub order_breaches: IntCounter,
    /// Requests by endpoint and status of the `ControlPlane`'s answer, or by what came in its place.
    pub requests: IntCounterVec,
    /// Duration of requests.
    pub request_seconds: HistogramVec,
    /// Time from acceptance to settlement.
    pub delivery_latency: HistogramVec,
    /// Duration of one commit of the outbox, fsync included.
    pub commit_seconds: Histogram,
    /// 0: up, 1: probing, 2: down.
    pub link_state: IntGaugeVec,
    /// Why the link is down.
    pub link_trouble: IntGaugeVec,
    /// Limit of requests per second; 0: no limit.
    pub rate_limit: IntGauge,
    /// Limit of bytes per second on the link; 0: no limit.
    pub bandwidth_limit: IntGauge,
    /// Bytes on the sockets to the `ControlPlane`, by direction.
    pub link_bytes: IntCounterVec,
    /// 1 while the drain is paused by an operator or by an export.
    pub paused: IntGauge,
    /// 1 while the `ControlPlane` knows this server.
    pub registered: IntGauge,
    /// Current limit of requests in flight.
    pub concurrency: IntGaugeVec,
    /// Estimated bytes per second that the link carries.
    pub link_rate: prometheus::Gauge,
    /// Shortest recent round trip of the link, in seconds.
    pub link_round_trip: prometheus::Gauge,
    /// Commands of the `ControlPlane`, by type and outcome.
    pub commands: IntCounterVec,
    /// Requests to the admin API without a valid token.
    pub admin_refused: IntCounter,
}

fn registered<M: Collector + Clone + 'static>(
    registry: &Registry,
    metric: prometheus::Result<M>,
) -> prometheus::Result<M> {
    let metric = metric?;
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

impl Metrics {
    /// Registers all metrics.
    #[expect(clippy::too_many_lines, reason = "every metric, declared once")]
    pub fn new(server_id: &str) -> prometheus::Result<Self> {
        let registry = Registry::new();
        let counter = |name: &str, help: &str, labels: &[&str]| {
            registered(&registry, IntCounterVec::new(Opts::new(name, help), labels))
        };
        let gauge = |name: &str, help: &str, labels: &[&str]| {
            registered(&registry, IntGaugeVec::new(Opts::new(name, help), labels))
        };
        let count = |name: &str, help: &str| registered(&registry, IntCounter::new(name, help));
        let single = |name: &str, help: &str| registered(&registry, IntGauge::new(name, help));
        let measured = |name: &str, help: &str| registered(&registry, prometheus::Gauge::new(name, help));
        let histogram = |name: &str, help: &str, buckets: &[f64], labels: &[&str]| {
            let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
            registered(&registry, HistogramVec::new(options, labels))
        };
        let commit = HistogramOpts::new(
            "dataplane_outbox_commit_seconds",
            "Duration of one commit of the outbox, fsync included",
        );
        let commit = commit.buckets(SECONDS.to_vec());
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        let build = gauge("dataplane_build_info", "Version of this agent", &["version", "commit"])?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION"), COMMIT.unwrap_or("unknown")]).set(1);
        let metrics = Self {
            intake_records: counter(
                "dataplane_intake_records_total",
                "Messages taken from Redis",
                &["queue"],
            )?,
            intake_paused: gauge("dataplane_intake_paused", "1 while the intake is paused", &["reason"])?,
            redis_queue_depth: gauge(
                "redis_queue_depth",
                "Messages waiting in Redis; absent while unknown",
                &["server_id", "queue_name"],
            )?,
            redis_connection: gauge("redis_connection_status", "1 while Redis answers", &["server_id"])?,
            redis_failures: counter(
                "dataplane_redis_failures_total",
                "Redis failures: what ended the conversation, or which command was refused and why",
                &["reason"],
            )?,
            stream_trimmed: counter(
                "dataplane_stream_trimmed_total",
                "Stream entries deleted while pending, before they were read: lost records",
                &["queue"],
            )?,
            control_plane_connection: gauge(
                "control_plane_connection_status",
                "1 while the ControlPlane answers",
                &["server_id"],
            )?,
            control_plane_failing: gauge(
                "dataplane_control_plane_failing",
                "1 while five or more requests have failed since the ControlPlane last served this agent, the last for this reason, and no record has taken the link down",
                &["reason"],
            )?,
            server_id_taken: single(
                "dataplane_server_id_taken",
                "1 while another agent uses this SERVER_ID, so that this one takes no records",
            )?,
            retries: counter("dataplane_retries_total", "Attempts that will be retried", &["reason"])?,
            foreign_answers: count(
                "dataplane_foreign_answers_total",
                "2xx answers that no ControlPlane gives: from a captive portal, a proxy or another host",
            )?,
            order_breaches: count(
                "dataplane_batch_order_breaches_total",
                "Batches in which the ControlPlane accepted a record although an earlier one of the same session had failed",
            )?,
            requests: counter(
                "dataplane_control_plane_requests_total",
                "Requests to the ControlPlane, by the status of its answer or by what came in its place",
                &["endpoint", "code"],
            )?,
            request_seconds: histogram(
                "dataplane_control_plane_request_seconds",
                "Duration of requests to the ControlPlane",
                SECONDS,
                &["endpoint"],
            )?,
            delivery_latency: histogram(
                "dataplane_delivery_latency_seconds",
                "Time from acceptance to the final answer",
                DELIVERY_SECONDS,
                &["kind"],
            )?,
            commit_seconds: registered(&registry, Histogram::with_opts(commit))?,
            link_state: gauge("dataplane_link_state", "0 up, 1 probing, 2 down", &[])?,
            link_trouble: gauge(
                "dataplane_link_trouble",
                "1 while the link is down for this reason",
                &["reason"],
            )?,
            rate_limit: single("dataplane_drain_rate_limit", "Limit of requests per second; 0: no limit")?,
            bandwidth_limit: single(
                "dataplane_drain_bandwidth_limit",
                "Limit of bytes per second on the link; 0: no limit",
            )?,
            link_bytes: counter(
                "dataplane_link_bytes_total",
                "Bytes sent and received on the sockets to the ControlPlane",
                &["direction"],
            )?,
            paused: single(
                "dataplane_drain_paused",
                "1 while the sender is paused, by an operator or by an export",
            )?,
            registered: single("dataplane_server_registered", "1 while the ControlPlane knows this server")?,
            link_rate: measured(
                "dataplane_link_rate_bytes",
                "Estimated bytes per second that the link carries",
            )?,
            link_round_trip: measured(
                "dataplane_link_round_trip_seconds",
                "Shortest recent round trip of the link",
            )?,
            concurrency: gauge("dataplane_drain_concurrency", "Current limit of requests in flight", &[])?,
            commands: counter(
                "dataplane_commands_total",
                "Commands from the ControlPlane",
                &["type", "outcome"],
            )?,
            admin_refused: count(
                "dataplane_admin_refused_total",
                "Requests to /admin without a valid token",
            )?,
            server_id: server_id.to_owned(),
            registry,
        };
        metrics.first_samples();
        Ok(metrics)
    }

    /// Exports series from the start: a series that only appears with its first event triggers no alert and leaves a graph gap.
    fn first_samples(&self) {
        self.redis_connection.with_label_values(&[&self.server_id]).set(0);
        self.control_plane_connection.with_label_values(&[&self.server_id]).set(0);
        self.link_state.with_label_values(&[] as &[&str]).set(0);
        for queue in Queue::ALL {
            self.intake_records.with_label_values(&[queue.label()]).inc_by(0);
            self.stream_trimmed.with_label_values(&[queue.label()]).inc_by(0);
            self.delivery_latency.with_label_values(&[queue.label()]);
        }
    }

    /// Notes whether Redis answers.
    pub fn redis_up(&self, up: bool) {
        self.redis_connection.with_label_values(&[&self.server_id]).set(i64::from(up));
    }

    /// Notes whether the `ControlPlane` answers.
    pub fn control_plane_up(&self, up: bool) {
        self.control_plane_connection.with_label_values(&[&self.server_id]).set(i64::from(up));
    }

    /// Notes a queue's depth; an unknown one has no sample.
    pub fn queue_depth(&self, queue: &str, depth: Option<u64>) {
        let labels = [&self.server_id, queue];
        match depth {
            Some(depth) => self.redis_queue_depth.with_label_values(&labels).set(depth as i64),
            // The error says that there was no sample.
            None => drop(self.redis_queue_depth.remove_label_values(&labels)),
        }
    }

    /// Notes one request to the `ControlPlane`.
    pub fn request(&self, endpoint: &str, code: &str, took: Duration) {
        self.requests.with_label_values(&[endpoint, code]).inc();
        self.request_seconds.with_label_values(&[endpoint]).observe(took.as_secs_f64());
    }

    /// The exposition in Prometheus' text format, with `moment` and the families in `others`.
    pub fn expose(&self, moment: &ScrapedValues, others: Vec<MetricFamily>) -> prometheus::Result<Vec<u8>> {
        let mut families = self.registry.gather();
        families.extend(others);
        families.extend(other_families(moment));
        // A family without samples cannot be encoded.
        families.retain(|family| !family.get_metric().is_empty());
        families.sort_by(|a, b| a.name().cmp(b.name()));
        let mut text = Vec::with_capacity(16 << 10);
        TextEncoder::new().encode(&families, &mut text)?;
        Ok(text)
    }
}

/// Label names and values.
pub(crate) type Labels<'a> = Vec<(&'a str, &'a str)>;

/// Builds a metric family from samples.
pub(crate) fn family(
    name: &str,
    help: &str,
    kind: MetricType,
    samples: Vec<(Labels<'_>, f64)>,
) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    let metrics = samples.into_iter().map(|(labels, value)| {
        let mut metric = Metric::default();
        let labels = labels.into_iter().map(|(name, value)| {
            let mut label = LabelPair::default();
            label.set_name(name.to_owned());
            label.set_value(value.to_owned());
            label
        });
        metric.set_label(labels.collect());
        if kind == MetricType::COUNTER {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        } else {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
        metric
    });
    family.set_metric(metrics.collect());
    family
}

fn other_families(moment: &ScrapedValues) -> [MetricFamily; 2] {
    let expiries = moment.expiries.iter();
    let expiries = expiries.map(|end| (vec![("credential", end.credential)], end.at as f64)).collect();
    [
        family(
            "dataplane_clock_skew_seconds",
            "Seconds by which the ControlPlane's clock is ahead of this machine's; 0 up to five seconds",
            MetricType::GAUGE,
            vec![(Vec::new(), moment.clock_skew_seconds)],
        ),
        family(
            "dataplane_credential_expiry_timestamp_seconds",
            "When a certificate, or an API key that is a JWT, expires",
            MetricType::GAUGE,
            expiries,
        ),
    ]
}
