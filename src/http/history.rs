//! Records in and out during the last hour, for the status page's charts.
//!
//! It takes some tens of kilobytes, and is saved in a file beside the outbox to survive a restart.

mod file;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde::Serialize;
use utoipa::ToSchema;

use crate::outbox::Stats;
use crate::record::{Kind, Queue};
pub(super) use file::HistoryFile;

/// How often counters are read.
pub(super) const TICK: Duration = Duration::from_secs(1);
/// Ticks per point of a chart.
const TICKS_A_POINT: usize = 5;
/// An hour of points.
const POINTS: usize = 3600 / TICKS_A_POINT;
const HOUR_MS: i64 = 3600 * 1000;
/// Ticks over which the current rate is measured.
const RATE_TICKS: usize = 5;
/// Ticks over which the trend of the backlog is measured, and the fewest that say something.
const TREND_TICKS: usize = 30;
const TREND_TICKS_AT_LEAST: usize = 5;

const KINDS: usize = Queue::ALL.len();

/// The counters of one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct CounterSample {
    at: Instant,
    taken: [u64; KINDS],
    settled: [u64; KINDS],
    /// The backlog, in Redis and in the outbox.
    backlog: u64,
    depth: u64,
    /// Whether the backlog is known, and records could be sent.
    drains: bool,
}

/// Where the backlog is going.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Trend {
    /// Gone after this time, at its current rate.
    GoneIn(Duration),
    /// It does not shrink.
    Lasting,
    /// Too little time has passed since records can be sent.
    Unmeasured,
}

impl CounterSample {
    /// The counters now; `sends`: whether records may be sent.
    pub(super) fn of(at: Instant, stats: &Stats, in_redis: [Option<u64>; KINDS], sends: bool) -> Self {
        let by_queue = |values: [u64; Kind::ALL.len()]| {
            Queue::ALL.map(|queue| {
                let kinds = Kind::ALL.iter().zip(values).filter(|(kind, _)| kind.queue() == queue);
                kinds.map(|(_, value)| value).sum()
            })
        };
        let (delivered, duplicates) = (by_queue(stats.delivered), by_queue(stats.duplicates));
        let depth = stats.total_depth();
        Self {
            at,
            taken: by_queue(stats.enqueued),
            settled: std::array::from_fn(|queue| delivered[queue] + duplicates[queue]),
            backlog: depth + in_redis.iter().flatten().sum::<u64>(),
            depth,
            drains: sends && !in_redis.contains(&None),
        }
    }
}

/// Records per second by kind, in the order of [`Queue::ALL`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Rates {
    pub taken: [f64; KINDS],
    pub settled: [f64; KINDS],
}

impl Rates {
    fn between(earlier: &CounterSample, later: &CounterSample) -> Self {
        let seconds = later.at.duration_since(earlier.at).as_secs_f64();
        let rate = |before: [u64; KINDS], after: [u64; KINDS]| {
            std::array::from_fn(|kind| {
                let more = after[kind].saturating_sub(before[kind]) as f64;
                if seconds > 0.0 { (more / seconds * 10.0).round() / 10.0 } else { 0.0 }
            })
        };
        Self { taken: rate(earlier.taken, later.taken), settled: rate(earlier.settled, later.settled) }
    }
}

/// A point of the charts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Point {
    at_ms: i64,
    depth: u64,
    rates: Rates,
}

/// The last hour as columns: the n-th entry of each column belongs to the n-th moment in `at`.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
#[schema(as = History)]
pub(super) struct HistoryBody {
    /// Seconds from one point to the next.
    step_seconds: u64,
    /// The end of each step, in milliseconds since 1970.
    at: Vec<i64>,
    /// Records that waited.
    depth: Vec<u64>,
    /// Records accepted per second.
    #[serde(rename = "in")]
    taken: ByKind<Vec<f64>>,
    /// Records settled per second: delivered, or already known.
    #[serde(rename = "out")]
    settled: ByKind<Vec<f64>>,
}

/// A value for each kind.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
pub(super) struct ByKind<T> {
    pub usage: T,
    pub lifecycle: T,
    pub quota: T,
}

impl<T> ByKind<T> {
    pub(super) fn each(of: impl Fn(Queue) -> T) -> Self {
        Self { usage: of(Queue::Usage), lifecycle: of(Queue::Lifecycle), quota: of(Queue::Quota) }
    }
}

/// The last hour in points, and the last half minute tick by tick.
#[derive(Default)]
pub(super) struct History {
    recent: VecDeque<CounterSample>,
    points: VecDeque<Point>,
    ticks: usize,
}

impl History {
    /// A history that continues from these points.
    pub(super) fn of(points: Vec<Point>) -> Self {
        Self { points: points.into(), ..Self::default() }
    }

    /// The points in the file's format.
    pub(super) fn kept(&self) -> Vec<u8> {
        file::encode(self.points.iter())
    }

    /// Adds the counters of a tick.
    pub(super) fn note(&mut self, reading: CounterSample, now_ms: i64) {
        let kept = self.recent.len().saturating_sub(TREND_TICKS);
        self.recent.drain(..kept);
        self.recent.push_back(reading);
        self.ticks += 1;
        if !self.ticks.is_multiple_of(TICKS_A_POINT) {
            return;
        }
        // After the clock was set, points may lie outside the last hour, in the past or the future.
        self.points.retain(|point| (1..HOUR_MS).contains(&(now_ms - point.at_ms)));
        if self.points.len() == POINTS {
            self.points.pop_front();
        }
        let rates = self.rates().unwrap_or_default();
        self.points.push_back(Point { at_ms: now_ms, depth: reading.depth, rates });
    }

    fn ago(&self, ticks: usize) -> Option<(&CounterSample, &CounterSample)> {
        let last = self.recent.len().checked_sub(1)?;
        Some((&self.recent[last.saturating_sub(ticks)], &self.recent[last]))
    }

    /// The current rates; `None` before the second reading.
    pub(super) fn rates(&self) -> Option<Rates> {
        let (earlier, later) = self.ago(RATE_TICKS)?;
        (earlier.at < later.at).then(|| Rates::between(earlier, later))
    }

    /// When the backlog will be empty at its rate since records can be sent.
    pub(super) fn trend(&self) -> Trend {
        let Some(later) = self.recent.back() else { return Trend::Unmeasured };
        if later.backlog == 0 {
            return Trend::GoneIn(Duration::ZERO);
        }
        // Time in which nothing could be sent says nothing about how fast it goes now.
        let draining = self.recent.iter().rev().take_while(|sample| sample.drains);
        let Some((ticks, earlier)) = draining.enumerate().last().filter(|(n, _)| *n >= TREND_TICKS_AT_LEAST)
        else {
            return Trend::Unmeasured;
        };
        debug_assert!(ticks <= TREND_TICKS, "{ticks} ticks are kept");
        let shrunk = earlier.backlog.saturating_sub(later.backlog) as f64;
        let rate = shrunk / later.at.duration_since(earlier.at).as_secs_f64();
        Duration::try_from_secs_f64(later.backlog as f64 / rate).map_or(Trend::Lasting, Trend::GoneIn)
    }

    /// All points.
    pub(super) fn body(&self) -> HistoryBody {
        let column = |of: fn(&Rates) -> &[f64; KINDS], queue: Queue| -> Vec<f64> {
            self.points.iter().map(|point| of(&point.rates)[queue as usize]).collect()
        };
        HistoryBody {
            step_seconds: TICK.as_secs() * TICKS_A_POINT as u64,
            at: self.points.iter().map(|point| point.at_ms).collect(),
            depth: self.points.iter().map(|point| point.depth).collect(),
            taken: ByKind::each(|queue| column(|rates| &rates.taken, queue)),
            settled: ByKind::each(|queue| column(|rates| &rates.settled, queue)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A history of `seconds` in which one record is taken and two are settled per second, from this backlog.
    fn history(seconds: u64, backlog: u64) -> History {
        history_after(0, seconds, backlog)
    }

    /// The same after seconds in which nothing could be sent.
    fn history_after(held: u64, seconds: u64, backlog: u64) -> History {
        let (begun, mut history) = (Instant::now(), History::default());
        for second in 0..held + seconds {
            let waits = backlog.saturating_sub(second.saturating_sub(held));
            let reading = CounterSample {
                at: begun + TICK * second as u32,
                taken: [second, 0, 0],
                settled: [second * 2, 0, 0],
                backlog: waits,
                depth: waits,
                drains: second >= held,
            };
            history.note(reading, second as i64 * 1000);
        }
        history
    }

    #[test]
    fn a_day_takes_no_more_than_an_hour() {
        let history = history(24 * 3600, 10);
        let body = history.body();
        assert_eq!((body.at.len(), body.depth.len(), body.taken.usage.len()), (720, 720, 720));
        assert!(history.recent.len() <= TREND_TICKS + 1);
        assert_eq!(body.at.last(), Some(&((24 * 3600 - 1) * 1000)));
        assert!(body.at.is_sorted_by(|a, b| b - a == 5000));
        assert!(body.taken.usage.iter().all(|rate| (rate - 1.0).abs() < 1e-9));
        assert!(body.settled.usage.iter().all(|rate| (rate - 2.0).abs() < 1e-9));
        assert!(body.settled.quota.iter().all(|rate| *rate == 0.0));
    }

    #[test]
    fn points_of_another_hour_go_when_the_clock_is_set() {
        let mut history = history(60, 10);
        assert_eq!(history.points.len(), 12);
        let reading = history.recent[0];
        let mut note = |now_ms: i64| {
            (0..TICKS_A_POINT).for_each(|_| history.note(reading, now_ms));
            history.points.iter().map(|point| point.at_ms).collect::<Vec<_>>()
        };
        assert_eq!(note(24_000), [4_000, 9_000, 14_000, 19_000, 24_000], "back");
        assert_eq!(note(24_000 + HOUR_MS), [24_000 + HOUR_MS], "forth");
    }

    #[test]
    fn the_end_of_a_backlog_is_forecast_from_its_rate() {
        assert_eq!(history(0, 0).trend(), Trend::Unmeasured, "no reading yet");
        assert_eq!(history(1, 100).trend(), Trend::Unmeasured, "one reading gives no rate");
        assert_eq!(history(5, 100).trend(), Trend::Unmeasured, "nor do a few seconds");
        let Trend::GoneIn(left) = history(61, 100).trend() else { panic!("it shrinks by one each second") };
        assert!((left.as_secs_f64() - 40.0).abs() < 1e-6, "{left:?}");
        assert_eq!(history(61, 60).trend(), Trend::GoneIn(Duration::ZERO));
        let mut growing = history(61, 100);
        growing.recent.make_contiguous().reverse();
        let (first, last) = (growing.recent[0].at, growing.recent[30].at);
        growing.recent[0].at = last;
        growing.recent[30].at = first;
        assert_eq!(growing.trend(), Trend::Lasting);
    }

    #[test]
    fn the_forecast_begins_anew_when_records_can_be_sent_again() {
        assert_eq!(history_after(30, 0, 100).trend(), Trend::Unmeasured);
        assert_eq!(history_after(30, 5, 100).trend(), Trend::Unmeasured);
        // One a second, whatever was before: 95 are left.
        let Trend::GoneIn(left) = history_after(30, 6, 100).trend() else {
            panic!("five seconds say something")
        };
        assert!((left.as_secs_f64() - 95.0).abs() < 1e-6, "{left:?}");
    }
}
