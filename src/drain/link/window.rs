//! How many bytes may be in flight, and how they are spread over requests.
//!
//! The window follows delay, as Vegas, LEDBAT (RFC 6817) and Gradient2 do: a request that takes longer than its like took
//! at best has met a queue, most often the modem's, and whatever comes behind it waits there as well. The window grows
//! while the queue is shorter than its target and shrinks while it is longer. Loss delays some requests and a queue
//! delays all, so a slow answer weighs less than a quick one; under loss the bytes are spread over more connections.
//!
//! What stays slow though hardly anything is in flight is no queue of ours: that is the best from then on.
//!
//! A pure state machine: the time is an argument, nothing here waits.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

/// The window after a start or an outage. It doubles with every round trip that meets no queue.
const FIRST: f64 = 32.0 * 1024.0;
/// It is never smaller: a request or two.
const LEAST: f64 = 4.0 * 1024.0;
/// More than this in flight no link that an edge server has needs.
const MOST: f64 = 8.0 * 1024.0 * 1024.0;
/// How long the queue may be: twice the way, within these bounds. A quota request waits that long.
const QUEUE_LEAST: f64 = 0.05;
const QUEUE_MOST: f64 = 0.15;
/// What a slow answer weighs, beside a quick one.
const SLOW_WEIGHT: f64 = 1.0 / 3.0;
/// The bytes of one request, before there are more requests at a time.
const REQUEST: f64 = 12.0 * 1024.0;
/// Requests at a time, on a link without and with loss.
const PIPES: f64 = 8.0;
const PIPES_UNDER_LOSS: f64 = 32.0;
/// How far the answers' lateness lies apart on a link that loses packets; and below what it does not.
const LOSSY_FROM: f64 = 0.35;
const CLEAN_BELOW: f64 = 0.2;
/// What one answer counts of that.
const SPREAD_GAIN: f64 = 0.03;
/// On a shorter way a lost packet is sent again too soon to matter.
const LOSSY_WAY: f64 = 0.02;

/// What a request's delay depends on beside the link: where it goes, and about how large it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Class {
    route: usize,
    /// Wire bytes, as a power of two.
    magnitude: u32,
}

/// A request in flight.
#[derive(Clone, Copy, Debug)]
pub(in crate::drain) struct Flight {
    pub(in crate::drain) sent: Instant,
    bytes: u64,
    class: Class,
    /// The window was full with it: its answer may let it grow.
    filled: bool,
}

impl Flight {
    #[cfg(test)]
    pub(super) fn of_test(sent: Instant, bytes: u64) -> Self {
        Self { sent, bytes, class: Class { route: 0, magnitude: bytes.max(1).ilog2() }, filled: true }
    }
}

/// The window of bytes.
#[derive(Debug)]
pub(super) struct Window {
    bytes: f64,
    in_flight: u64,
    /// The shortest delay of each class, in seconds.
    best: BTreeMap<Class, f64>,
    /// How late answers are, as the logarithm of delay to best: the mean, and the mean deviation from it.
    lateness: f64,
    spread: f64,
    is_lossy: bool,
    /// Something has to wait for room.
    is_short: bool,
    last_cut: Option<Instant>,
}

impl Window {
    pub(super) fn new() -> Self {
        Self {
            bytes: FIRST,
            in_flight: 0,
            best: BTreeMap::new(),
            lateness: 0.0,
            spread: 0.0,
            is_lossy: false,
            is_short: false,
            last_cut: None,
        }
    }

    /// Requests to spread what waits over.
    pub(super) fn pipes(&self) -> usize {
        let most = if self.is_lossy { PIPES_UNDER_LOSS } else { PIPES };
        (self.bytes / REQUEST).ceil().clamp(1.0, most) as usize
    }

    /// Bytes of a request's body, if so many may go now.
    pub(super) fn room(&mut self) -> Option<usize> {
        let body = self.bytes / self.pipes() as f64;
        let room = self.bytes - self.in_flight as f64;
        let has_room = self.in_flight == 0 || room >= body / 2.0;
        self.is_short |= !has_room;
        has_room.then_some(body.min(room.max(LEAST)) as usize)
    }

    /// The window, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes as u64
    }

    /// A request of this size goes out.
    pub(super) fn sent(&mut self, route: usize, bytes: u64, now: Instant) -> Flight {
        self.in_flight += bytes;
        let filled = std::mem::take(&mut self.is_short) || self.in_flight as f64 >= self.bytes / 2.0;
        Flight { sent: now, bytes, class: Class { route, magnitude: bytes.max(1).ilog2() }, filled }
    }

    /// A request has ended, one way or another.
    pub(super) fn landed(&mut self, flight: Flight) {
        self.in_flight -= flight.bytes;
    }

    /// It was answered as one would wish.
    pub(super) fn delivered(&mut self, flight: Flight, now: Instant) {
        let delay = now.saturating_duration_since(flight.sent).as_secs_f64().max(1e-6);
        let best = self.best.entry(flight.class).or_insert(delay);
        *best = best.min(delay);
        let best = *best;
        let expected = best + (2.0 * best).clamp(QUEUE_LEAST, QUEUE_MOST);
        let ratio = expected / delay;
        self.observe_spread(best, delay);
        let share = (flight.bytes as f64 / self.bytes).min(1.0);
        if ratio >= 1.0 {
            if flight.filled {
                self.bytes *= 1.0 + (ratio - 1.0).min(1.0) * share;
            }
        } else if self.bytes <= LEAST {
            // Sending less has not helped: it is no queue of ours, and nothing to be slow for.
            self.best.clear();
        } else {
            self.bytes *= 1.0 - (1.0 - ratio).min(0.5) * share * SLOW_WEIGHT;
        }
        self.bytes = self.bytes.clamp(LEAST, MOST);
    }

    /// It got no answer in time, or was shed. True if that says something new: once a round trip.
    pub(super) fn congested(&mut self, flight: Flight, now: Instant) -> bool {
        let is_new = self.last_cut.is_none_or(|cut| flight.sent >= cut);
        if is_new {
            self.last_cut = Some(now);
            self.bytes = (self.bytes / 2.0).max(LEAST);
        }
        is_new
    }

    /// The link was down and is up, or much that was held back may go: it begins small.
    pub(super) fn restart(&mut self) {
        self.bytes = self.bytes.min(FIRST);
        (self.lateness, self.spread, self.is_lossy) = (0.0, 0.0, false);
    }

    /// The shortest round trip of late, of whatever request.
    pub(super) fn round_trip(&self) -> Option<Duration> {
        let best = self.best.values().copied().reduce(f64::min)?;
        Some(Duration::from_secs_f64(best))
    }

    /// Under loss some requests are late and some are not; a queue makes all of them late.
    fn observe_spread(&mut self, best: f64, delay: f64) {
        let lateness = if best < LOSSY_WAY { 0.0 } else { (delay / best).ln() };
        self.spread += ((lateness - self.lateness).abs() - self.spread) * SPREAD_GAIN;
        self.lateness += (lateness - self.lateness) * SPREAD_GAIN;
        self.is_lossy = self.spread > if self.is_lossy { CLEAN_BELOW } else { LOSSY_FROM };
    }
}
