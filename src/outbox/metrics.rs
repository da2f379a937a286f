//! The outbox's metrics, read at each scrape from one consistent snapshot.

use prometheus::proto::{MetricFamily, MetricType};

use crate::outbox::format::dead_letter::Reason;
use crate::outbox::state::stats::Stats;
use crate::record::{Kind, Queue};
use crate::telemetry::metrics::{Labels, family};

/// The sum of `values` over the kinds of `queue`.
fn of_queue(values: [u64; 5], queue: Queue) -> f64 {
    let kinds = Kind::ALL.iter().zip(values).filter(|(kind, _)| kind.queue() == queue);
    kinds.map(|(_, value)| value).sum::<u64>() as f64
}

/// The age in seconds of each queue's oldest record.
pub fn oldest_ages(stats: &Stats, now_micros: i64) -> [(Queue, f64); 3] {
    let age = |oldest: Option<i64>| oldest.map_or(0.0, |at| (now_micros - at).max(0) as f64 / 1e6);
    [
        (Queue::Usage, age(stats.oldest_usage)),
        (Queue::Lifecycle, age(stats.oldest_lifecycle)),
        (Queue::Quota, age(stats.oldest_quota)),
    ]
}

/// All metrics; `server_id` is the agent's ID.
pub fn families(stats: &Stats, now_micros: i64, server_id: &str) -> Vec<MetricFamily> {
    use MetricType::{COUNTER, GAUGE};
    let by_queue = |values: [u64; 5]| -> Vec<(Labels<'_>, f64)> {
        Queue::ALL.iter().map(|queue| (vec![("kind", queue.label())], of_queue(values, *queue))).collect()
    };
    let by_kind = stats.dead_lettered.map(|reasons| reasons.iter().sum::<u64>());
    let mut dead_lettered = Vec::new();
    for queue in Queue::ALL {
        for reason in Reason::ALL {
            let values = stats.dead_lettered.map(|reasons| reasons[reason as usize]);
            dead_lettered
                .push((vec![("kind", queue.label()), ("reason", reason.label())], of_queue(values, queue)));
        }
    }
    let statuses =
        [("delivered", stats.delivered), ("duplicate", stats.duplicates), ("dead_lettered", by_kind)];
    let processed = |queue: Queue| -> Vec<(Labels<'_>, f64)> {
        statuses
            .iter()
            .map(|(status, values)| {
                (vec![("server_id", server_id), ("status", *status)], of_queue(*values, queue))
            })
            .collect()
    };
    let mut events = Vec::new();
    for (kind, event) in [
        (Kind::Started, "session_started"),
        (Kind::Completed, "session_completed"),
        (Kind::Lifecycle, "unknown"),
    ] {
        for (status, values) in statuses {
            let labels = vec![("server_id", server_id), ("event_type", event), ("status", status)];
            events.push((labels, values[kind as usize - 1] as f64));
        }
    }
    let ages = oldest_ages(stats, now_micros);
    let ages = ages.map(|(queue, age)| (vec![("kind", queue.label())], age)).to_vec();
    let counter = |name, help, samples| family(name, help, COUNTER, samples);
    let gauge = |name, help, value: f64| family(name, help, GAUGE, vec![(Vec::new(), value)]);
    let free = stats.disk_free_bytes.map(|free| (Vec::new(), free as f64)).into_iter().collect();
    let expired = vec![(Vec::new(), stats.dead_letters_expired as f64)];
    let (accepting, min_free) = (f64::from(u8::from(stats.accepting)), stats.min_free_bytes as f64);
    let already = "Records that the ControlPlane had already processed";
    let too_little = "Free bytes on its disk below which the outbox accepts no records";
    let damaged = "Damaged segments in quarantine that were not salvaged";
    let (segments, records) = (stats.quarantined_segments as f64, stats.quarantined_records as f64);
    vec![
        counter(
            "dataplane_outbox_enqueued_total",
            "Records accepted into the outbox",
            by_queue(stats.enqueued),
        ),
        counter("dataplane_delivered_total", "Records delivered", by_queue(stats.delivered)),
        counter("dataplane_duplicates_total", already, by_queue(stats.duplicates)),
        counter("dataplane_exported_total", "Records exported", by_queue(stats.exported)),
        counter("dataplane_dead_lettered_total", "Records that became dead letters", dead_lettered),
        family("dataplane_outbox_depth", "Records waiting", GAUGE, by_queue(stats.depth)),
        gauge("dataplane_outbox_bytes", "Bytes of the records waiting", stats.bytes as f64),
        gauge("dataplane_outbox_disk_bytes", "Disk usage of the outbox in bytes", stats.disk_bytes as f64),
        gauge(
            "dataplane_outbox_counted_bytes",
            "Bytes of segments and dead letters: the part of its disk usage that OUTBOX_MAX_BYTES limits",
            stats.counted_bytes as f64,
        ),
        gauge(
            "dataplane_outbox_capacity_bytes",
            "OUTBOX_MAX_BYTES, the limit of dataplane_outbox_counted_bytes",
            stats.capacity_bytes as f64,
        ),
        family("dataplane_outbox_disk_free_bytes", "Bytes free on the outbox's disk", GAUGE, free),
        gauge("dataplane_outbox_min_free_bytes", too_little, min_free),
        gauge("dataplane_outbox_accepting", "1 while the outbox accepts records", accepting),
        gauge("dataplane_quarantined_segments", damaged, segments),
        gauge("dataplane_quarantined_records", "Records known to wait in quarantined segments", records),
        family("dataplane_outbox_oldest_age_seconds", "Age of the oldest record waiting", GAUGE, ages),
        gauge("dataplane_dead_letters", "Dead letters stored now", stats.dead_letters as f64),
        counter("dataplane_dead_letters_expired_total", "Dead letters deleted for their age", expired),
        counter("usage_records_processed_total", "Usage records finished", processed(Queue::Usage)),
        counter("quota_requests_processed_total", "Quota requests finished", processed(Queue::Quota)),
        counter("session_events_processed_total", "Lifecycle events finished", events),
    ]
}
