//! How long requests take, and whether that is longer than they should.
//!
//! A batch of five hundred honestly takes longer than one quota request, and one route longer than another: a request is
//! compared with its like alone. And what stays slow though hardly anything is under way, by a longer way or a slower machine,
//! is no queue that would get shorter if we sent less: it is what is usual from then on.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::drain::lanes::{Item, LaneKey, place_of};

/// A latency this many times the usual one, and [`SLOW_AT_LEAST`], is a queue building up over there.
const SLOW_TIMES: f64 = 8.0;
const SLOW_AT_LEAST: f64 = 0.25;
/// The least of the last one to two of these is what is usual. While requests are slow fewer are under way, and what
/// they take then is what the way takes.
const WINDOW: Duration = Duration::from_secs(30);

/// What a request's latency depends on beside the link: where it goes, and about how much is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Sort {
    route: usize,
    /// Each in powers of two.
    records: u32,
    kib: u32,
}

/// A request on its way.
#[derive(Clone, Copy, Debug)]
pub(in crate::drain) struct Trip {
    pub(in crate::drain) sent: Instant,
    sort: Sort,
}

impl Trip {
    pub(in crate::drain) fn begin(parcel: &[(LaneKey, Item)], now: Instant) -> Self {
        let bytes: usize = parcel.iter().map(|(_, item)| item.record.body().len()).sum();
        let route = parcel.first().map_or(0, |(_, item)| place_of(item.ticket.kind));
        let magnitude = |of: usize| of.checked_ilog2().map_or(0, |power| power + 1);
        Self {
            sent: now,
            sort: Sort { route, records: magnitude(parcel.len()), kib: magnitude(bytes >> 10) },
        }
    }

    #[cfg(test)]
    pub(super) fn of_test(sent: Instant, records: u32) -> Self {
        Self { sent, sort: Sort { route: 0, records, kib: 0 } }
    }
}

/// The least latency of late.
#[derive(Debug)]
struct Usual {
    /// Of this window, and of the one before it.
    now: f64,
    before: f64,
    since: Instant,
}

impl Usual {
    fn least(&self) -> f64 {
        self.now.min(self.before)
    }

    fn note(&mut self, latency: f64, now: Instant) {
        let age = now.saturating_duration_since(self.since);
        if age >= WINDOW {
            // What was before a long rest says nothing any more.
            self.before = if age < 2 * WINDOW { self.now } else { latency };
            (self.now, self.since) = (latency, now);
        }
        self.now = self.now.min(latency);
    }
}

/// What is usual for each sort of request.
#[derive(Debug, Default)]
pub(super) struct Latencies(BTreeMap<Sort, Usual>);

impl Latencies {
    /// What a request like this one takes.
    pub(super) fn usual(&self, trip: Trip) -> Option<Duration> {
        self.0.get(&trip.sort).map(|usual| Duration::from_secs_f64(usual.least()))
    }

    /// Notes how long a request took. Whether it was so long that a queue is building up over there.
    pub(super) fn is_slow(&mut self, trip: Trip, now: Instant) -> bool {
        let latency = now.saturating_duration_since(trip.sent).as_secs_f64();
        let usual = self.0.entry(trip.sort).or_insert(Usual { now: latency, before: latency, since: now });
        let is_slow = latency > usual.least() * SLOW_TIMES && latency > SLOW_AT_LEAST;
        usual.note(latency, now);
        is_slow
    }

    /// What is known says nothing any more: what comes is what is usual.
    pub(super) fn forget(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_request_is_compared_with_its_like_alone() {
        let (mut latencies, begin) = (Latencies::default(), Instant::now());
        let (single, batch) = (|at| Trip::of_test(at, 1), |at| Trip::of_test(at, 9));
        for n in 0..100 {
            let at = begin + n * 500 * MS;
            assert!(!latencies.is_slow(single(at), at + 20 * MS));
            assert!(!latencies.is_slow(batch(at), at + 400 * MS), "a batch takes its time");
        }
        let at = begin + 50_000 * MS;
        assert!(latencies.is_slow(single(at), at + 400 * MS), "a single request does not take so long");
        assert!(latencies.is_slow(batch(at), at + 3300 * MS));
        assert!(!latencies.is_slow(batch(at), at + 3100 * MS));
        assert_eq!(latencies.usual(batch(at)), Some(400 * MS));
    }

    #[test]
    fn what_is_slow_for_good_is_usual_after_a_while() {
        let (mut latencies, begin) = (Latencies::default(), Instant::now());
        let mut slow_until = begin;
        for n in 0..300 {
            let at = begin + n * 1000 * MS;
            let latency = if n < 100 { 20 * MS } else { 500 * MS };
            if latencies.is_slow(Trip::of_test(at, 1), at + latency) {
                slow_until = at;
            }
        }
        let slow_for = slow_until.saturating_duration_since(begin + 100_000 * MS);
        assert!((WINDOW / 2..=2 * WINDOW).contains(&slow_for), "{slow_for:?}");
    }
}
