//! Briefly reduces what is in flight now and then: a queue that never drains would pass for a longer path.

use std::time::Duration;

use tokio::time::Instant;

/// How often the queue is drained to measure the path itself; at most half of the time.
const DRAIN_EVERY: Duration = Duration::from_secs(10);
/// Bytes in flight while draining: as a fraction of what the path holds without a queue, and at most this fraction of the
/// window. With less, everything held back would then be sent at once and form the next queue.
const DRAIN_TO: f64 = 0.75;
pub(super) const DRAIN_TO_MOST: f64 = 0.4;

/// When the queue is drained.
#[derive(Debug, Default)]
pub(super) struct QueueDraining {
    next: Option<Instant>,
    latest: Option<Drained>,
}

#[derive(Clone, Copy, Debug)]
struct Drained {
    /// From here on there is no queue of ours.
    clear: Instant,
    until: Instant,
    /// The fraction of the window that may be in flight until then.
    share: f64,
}

impl QueueDraining {
    /// Whether to begin now. The first call sets the time of the first one.
    pub(super) fn is_due(&mut self, now: Instant) -> bool {
        *self.next.get_or_insert(now + DRAIN_EVERY) <= now
    }

    /// Begins, on a path whose shortest delay is `best`, whose queue makes it `delay`, and whose window allows for `expected`,
    /// in seconds.
    pub(super) fn begin(&mut self, best: f64, delay: f64, expected: f64, now: Instant) {
        // Until the present queue has drained, plus a round trip without it.
        let clear = now + Duration::from_secs_f64(delay);
        let takes = Duration::from_secs_f64(delay + best);
        let share = (DRAIN_TO * best / expected).min(DRAIN_TO_MOST);
        self.latest = Some(Drained { clear, until: now + takes, share });
        self.next = Some(now + DRAIN_EVERY.max(takes * 2));
    }

    /// The end of the current one.
    pub(super) fn until(&self, now: Instant) -> Option<Instant> {
        self.latest.map(|latest| latest.until).filter(|until| *until > now)
    }

    pub(super) fn is_on(&self, now: Instant) -> bool {
        self.until(now).is_some()
    }

    /// Whether a request that is sent now meets no queue of ours.
    pub(super) fn is_clear(&self, now: Instant) -> bool {
        self.latest.is_some_and(|latest| (latest.clear..latest.until).contains(&now))
    }

    /// The fraction of the window that may be in flight now.
    pub(super) fn share(&self, now: Instant) -> f64 {
        self.latest.filter(|latest| latest.until > now).map_or(1.0, |latest| latest.share)
    }
}
