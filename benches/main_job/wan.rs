//! The main job over links as they are: long round trips, little bandwidth, loss. `make bench-wan`.
//!
//! Every row starts redis-server, the sandbox and the agent, with all records waiting, and measures from the agent's start
//! until the last record is processed. The link is the sandbox's own (`--link`); loss needs root, and has [`lossy`].
//!
//! `WAN_RECORDS` (200,000) and `WAN_SLOW_RECORDS` (20,000, where the link is slow) make runs shorter; `WAN_ROWS` picks
//! the rows whose name contains it.

use std::time::{Duration, Instant};

use super::report::{number, scaled, setting};

pub(crate) mod load;
pub(crate) mod lossy;
pub(crate) mod measure;

use load::Load;
use measure::{Setting, measure};

/// What a record of 400 bytes takes on the wire at best, compressed among others.
const RECORD_BYTES: f64 = 69.0;

/// A row of the table.
struct Row {
    name: &'static str,
    link: &'static str,
    load: Load,
    records: Records,
    settings: &'static [(&'static str, &'static str)],
    limit: Limit,
    /// Records a second.
    asked: f64,
    /// Whether quota requests are sent meanwhile, and how long 99 % of them may take.
    quota: Option<Duration>,
}

/// How many records a row has.
#[derive(Clone, Copy)]
enum Records {
    Many,
    Slow,
    /// So many of the slow ones' share, where each takes longer still.
    Large(u32),
}

/// What cannot be exceeded.
#[derive(Clone, Copy)]
enum Limit {
    /// The processors: the loopback's rate in the same run.
    Loopback,
    /// Bits a second, and the bytes of a record.
    Rate(f64, f64),
    /// Requests of one record at a time, and a round trip.
    Requests(f64, Duration),
}

const BATCH: &[(&str, &str)] = &[("DELIVERY_MODE", "batch")];
const SINGLE: &[(&str, &str)] =
    &[("DELIVERY_MODE", "single"), ("SESSION_ORDER", "boundaries"), ("DRAIN_CONCURRENCY", "256")];

fn rows() -> Vec<Row> {
    let fast = |name, link, load, asked| Row {
        name,
        link,
        load,
        records: Records::Many,
        settings: BATCH,
        limit: Limit::Loopback,
        asked,
        quota: None,
    };
    let slow = |name, link, load, megabits: f64, asked| Row {
        records: if megabits < 5.0 { Records::Slow } else { Records::Many },
        limit: Limit::Rate(megabits * 1e6, RECORD_BYTES),
        ..fast(name, link, load, asked)
    };
    let usage = |sessions| Load::Usage { sessions };
    let millis = Duration::from_millis;
    vec![
        fast("100 ms, 20 sessions", "rtt=100ms", usage(20), 20_000.0),
        fast("100 ms, 5 sessions", "rtt=100ms", usage(5), 10_000.0),
        fast("300 ms, 20 sessions", "rtt=300ms", usage(20), 10_000.0),
        fast("100 ms, 2,000 sessions", "rtt=100ms", usage(2_000), 20_000.0),
        fast("100 ms, whole sessions of 10 records", "rtt=100ms", Load::Whole, 10_000.0),
        slow("100 ms, 10 Mbit/s, 20 sessions", "rtt=100ms,rate=10mbit", usage(20), 10.0, 14_480.0),
        slow("100 ms, 10 Mbit/s, 2,000 sessions", "rtt=100ms,rate=10mbit", usage(2_000), 10.0, 14_480.0),
        Row {
            quota: Some(millis(300)),
            ..slow(
                "100 ms, 10 Mbit/s, 200 sessions, with quota requests",
                "rtt=100ms,rate=10mbit",
                usage(200),
                10.0,
                0.0,
            )
        },
        slow("100 ms, 1 Mbit/s, 20 sessions", "rtt=100ms,rate=1mbit", usage(20), 1.0, 1_450.0),
        slow("100 ms, 1 Mbit/s, 2,000 sessions", "rtt=100ms,rate=1mbit", usage(2_000), 1.0, 1_450.0),
        Row {
            quota: Some(millis(500)),
            ..slow(
                "100 ms, 1 Mbit/s, 200 sessions, with quota requests",
                "rtt=100ms,rate=1mbit",
                usage(200),
                1.0,
                0.0,
            )
        },
        Row {
            records: Records::Large(1_500),
            limit: Limit::Rate(1e6, load::NOISE_BYTES),
            ..slow(
                "100 ms, 1 Mbit/s, 4 KB of noise each, 200 sessions",
                "rtt=100ms,rate=1mbit",
                Load::Noise,
                1.0,
                24.0,
            )
        },
        Row {
            settings: SINGLE,
            records: Records::Slow,
            limit: Limit::Requests(256.0, millis(100)),
            ..fast(
                "100 ms, 20 sessions, single, boundaries, 256 requests",
                "rtt=100ms",
                Load::Unordered,
                2_000.0,
            )
        },
    ]
}

impl Records {
    fn number(self) -> u32 {
        match self {
            Self::Many => setting("WAN_RECORDS", scaled(200_000)),
            Self::Slow => setting("WAN_SLOW_RECORDS", scaled(20_000)),
            Self::Large(of_slow) => (Self::Slow.number() / 20).saturating_mul(of_slow) / 1000,
        }
    }
}

/// Whether this row is asked for.
fn is_wanted(name: &str) -> bool {
    std::env::var("WAN_ROWS").ok().is_none_or(|part| name.contains(&part))
}

pub(crate) async fn run() {
    println!("over the sandbox's own link; {} records where the link is fast", Records::Many.number());
    let mut sound = true;
    let mut loopback = Vec::new();
    for sessions in [5, 20, 200, 2_000] {
        let name = format!("loopback, {} sessions", number(sessions.into()));
        // The others are measured against that of 20.
        if sessions == 20 || is_wanted(&name) {
            let load = Load::Usage { sessions };
            let figures = measure(&Setting::plain(load, Records::Many.number(), BATCH)).await;
            figures.report("wan", &name, None);
            sound &= figures.is_sound();
            loopback.push((sessions, figures.rate));
        }
    }
    let processors = loopback.iter().find(|(sessions, _)| *sessions == 20).expect("it is measured").1;
    for row in rows().into_iter().filter(|row| is_wanted(row.name)) {
        let setting = Setting {
            link: Some(row.link),
            quota: row.quota,
            ..Setting::plain(row.load, row.records.number(), row.settings)
        };
        let figures = measure(&setting).await;
        sound &= figures.is_sound();
        if row.asked > 0.0 {
            println!("  asked: ≥ {} records/s", row.asked);
        }
        let limit = match row.limit {
            Limit::Loopback => processors,
            Limit::Rate(bits, bytes) => bits / 8.0 / bytes,
            Limit::Requests(at_a_time, round_trip) => at_a_time / round_trip.as_secs_f64(),
        };
        figures.report("wan", row.name, Some(limit));
    }
    assert!(sound, "records were lost, out of order, or repeated under another key");
}

/// How long nothing may happen before it is called stuck.
const STUCK: Duration = Duration::from_secs(120);

/// Waits until `progress` has come to `all`; as long as it becomes more that may take long.
async fn arrive(all: u64, mut progress: impl AsyncFnMut() -> u64) {
    let (mut last, mut at) = (0, Instant::now());
    while last < all {
        let now = progress().await;
        if now > last {
            (last, at) = (now, Instant::now());
        }
        assert!(at.elapsed() < STUCK, "stuck at {last} of {all}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
