//! How long a request takes without a queue: the shortest recent delay of its class, and how much the path varies.

use std::collections::BTreeMap;

use tokio::time::Instant;

/// The target queueing delay: twice the path's delay, at least and at most this. A quota request waits that long.
const QUEUE_LEAST: f64 = 0.05;
const QUEUE_MOST: f64 = 0.085;
/// The best delay moves towards observed delays with this time constant, in seconds.
const BEST_AGES: f64 = 20.0;

/// The target queueing delay for a path with this delay, in seconds.
pub(super) fn queue_target(round_trip: f64) -> f64 {
    (2.0 * round_trip).clamp(QUEUE_LEAST, QUEUE_MOST)
}

/// Weight of a new excess in the variation, and the most that counts of one, as a multiple of what a request usually takes:
/// a single lost packet says nothing.
const VARIATION_WEIGHT: f64 = 0.125;
const EXCESS_MOST: f64 = 2.0;
/// The greatest variation, as a multiple of the shortest delay: a queue of somebody else's traffic is to be yielded to.
const VARIATION_MOST: f64 = 4.0;

/// By how much the path's delay usually exceeds the shortest without a queue of ours: servers and radio links vary.
#[derive(Debug, Default)]
pub(super) struct Variation(f64);

impl Variation {
    /// A request that met no queue of ours took `delay`, and the shortest of its class `best`, in seconds.
    pub(super) fn observe(&mut self, delay: f64, best: f64) {
        let excess = (delay - best).min(EXCESS_MOST * (best + self.0));
        self.0 = (self.0 + (excess - self.0) * VARIATION_WEIGHT).min(VARIATION_MOST * best);
    }

    pub(super) fn seconds(&self) -> f64 {
        self.0
    }
}

/// What a request's delay depends on besides the link: endpoint, approximate size, and whether it is the first on its
/// connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct DelayClass {
    route: usize,
    is_first: bool,
    /// Wire bytes, as a power of two.
    magnitude: u32,
}

impl DelayClass {
    pub(super) fn new(route: usize, bytes: u64) -> Self {
        Self { route, is_first: false, magnitude: bytes.max(1).ilog2() }
    }

    /// The same for the first request on a connection, or not.
    pub(super) fn first(self, is_first: bool) -> Self {
        Self { is_first, ..self }
    }
}

/// Recent shortest delay, in seconds.
#[derive(Clone, Copy, Debug)]
struct Best {
    delay: f64,
    at: Instant,
}

impl Best {
    fn observe(&mut self, delay: f64, now: Instant) {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = now;
        if delay < self.delay {
            self.delay = delay;
        } else {
            self.delay += (delay - self.delay) * (since / BEST_AGES).min(1.0);
        }
    }
}

/// The shortest delay of each class.
#[derive(Debug, Default)]
pub(super) struct ShortestDelays(BTreeMap<DelayClass, Best>);

impl ShortestDelays {
    /// A request of this class took this long. Returns the shortest delay of the class.
    pub(super) fn observe(&mut self, class: DelayClass, delay: f64, now: Instant) -> f64 {
        let first = Best { delay, at: now };
        let expected = self.extrapolated(class).filter(|expected| expected.delay < delay).unwrap_or(first);
        let best = self.0.entry(class).or_insert(expected);
        best.observe(delay, now);
        best.delay
    }

    /// The expected shortest delay of a new size: its first request may meet a queue.
    fn extrapolated(&self, class: DelayClass) -> Option<Best> {
        let all_smaller = self.0.range(DelayClass { magnitude: 0, ..class }..class);
        let (smaller, best) = all_smaller.clone().next_back()?;
        // A single size does not separate the path's delay from the time the bytes take.
        let round_trip =
            all_smaller.rev().skip(1).map(|(_, best)| best.delay).reduce(f64::min)?.min(best.delay);
        // Beyond the path's delay, the delay grows with the bytes.
        let times = f64::from(class.magnitude - smaller.magnitude).exp2();
        Some(Best { delay: round_trip + times * (best.delay - round_trip), at: best.at })
    }

    /// The shortest delay of requests of any route and size that, like this class, are the first on their connection or
    /// not.
    pub(super) fn shortest_alike(&self, class: DelayClass) -> Option<f64> {
        let alike = self.0.iter().filter(|(other, _)| other.is_first == class.is_first);
        alike.map(|(_, best)| best.delay).reduce(f64::min)
    }

    /// The shortest delay of any request.
    pub(super) fn shortest(&self) -> Option<f64> {
        self.0.values().map(|best| best.delay).reduce(f64::min)
    }

    /// Forgets all delays: the next ones are the new shortest.
    pub(super) fn forget(&mut self) {
        self.0.clear();
    }

    #[cfg(test)]
    pub(super) fn of(&self, class: DelayClass) -> f64 {
        self.0[&class].delay
    }
}
