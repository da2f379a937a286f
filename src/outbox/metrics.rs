//! The outbox's figures as metrics: looked up when a scrape comes, all in one picture.

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

/// Age in seconds of the oldest record of each queue's kind.
pub fn oldest_ages(stats: &Stats, now_micros: i64) -> [(Queue, f64); 3] {
    let age = |oldest: Option<i64>| oldest.map_or(0.0, |at| (now_micros - at).max(0) as f64 / 1e6);
    [
        (Queue::Usage, age(stats.oldest_usage)),
        (Queue::Lifecycle, age(stats.oldest_lifecycle)),
        (Queue::Quota, age(stats.oldest_quota)),
    ]
}

/// All of them, with the name under which the agent works.
pub fn families(stats: &Stats, now_micros: i64, server_id: &str) -> Vec<MetricFamily> {
    use MetricType::{COUNTER, GAUGE};
    let by_queue = |values: [u64; 5]| -> Vec<(Labels<'_>, f64)> {
        Queue::ALL.iter().map(|queue| (vec![("kind", queue.label())], of_queue(values, *queue))).collect()
    };
    let one = |value: f64| vec![(Vec::new(), value)];
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
    vec![
        family("dataplane_outbox_enqueued_total", "Records taken over", COUNTER, by_queue(stats.enqueued)),
        family("dataplane_delivered_total", "Records delivered", COUNTER, by_queue(stats.delivered)),
        family("dataplane_duplicates_total", "Records processed before", COUNTER, by_queue(stats.duplicates)),
        family("dataplane_exported_total", "Records exported", COUNTER, by_queue(stats.exported)),
        family("dataplane_dead_lettered_total", "Records that became dead letters", COUNTER, dead_lettered),
        family("dataplane_outbox_depth", "Records waiting", GAUGE, by_queue(stats.depth)),
        family("dataplane_outbox_bytes", "Bytes of the records waiting", GAUGE, one(stats.bytes as f64)),
        family("dataplane_outbox_disk_bytes", "Bytes the outbox takes", GAUGE, one(stats.disk_bytes as f64)),
        family(
            "dataplane_outbox_capacity_bytes",
            "Bytes it may take",
            GAUGE,
            one(stats.capacity_bytes as f64),
        ),
        family(
            "dataplane_outbox_disk_free_bytes",
            "Bytes free on the outbox's disk",
            GAUGE,
            stats.disk_free_bytes.map(|free| (Vec::new(), free as f64)).into_iter().collect(),
        ),
        family(
            "dataplane_outbox_min_free_bytes",
            "With less free on its disk the outbox takes no more",
            GAUGE,
            one(stats.min_free_bytes as f64),
        ),
        family(
            "dataplane_outbox_accepting",
            "1 while it takes records",
            GAUGE,
            one(f64::from(u8::from(stats.accepting))),
        ),
        family(
            "dataplane_quarantined_segments",
            "Damaged segments that were set aside and not salvaged",
            GAUGE,
            one(stats.quarantined_segments as f64),
        ),
        family(
            "dataplane_quarantined_records",
            "Records known to wait in those",
            GAUGE,
            one(stats.quarantined_records as f64),
        ),
        family("dataplane_outbox_oldest_age_seconds", "Age of the oldest record waiting", GAUGE, ages),
        family("dataplane_dead_letters", "Dead letters kept", GAUGE, one(stats.dead_letters as f64)),
        family(
            "dataplane_dead_letters_expired_total",
            "Dead letters dropped for their age",
            COUNTER,
            one(stats.dead_letters_expired as f64),
        ),
        family("usage_records_processed_total", "Usage records finished", COUNTER, processed(Queue::Usage)),
        family("quota_requests_processed_total", "Quota requests finished", COUNTER, processed(Queue::Quota)),
        family("session_events_processed_total", "Lifecycle events finished", COUNTER, events),
    ]
}
