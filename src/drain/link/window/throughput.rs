//! The best recent rate of the link.

use tokio::time::Instant;

/// Share of the best rate kept per measurement.
const RATE_KEPT: f64 = 0.95;

/// Measures the bytes delivered per second.
#[derive(Debug, Default)]
pub(super) struct Throughput {
    /// Bytes delivered since `counting`.
    delivered: u64,
    counting: Option<Instant>,
    rate: f64,
}

impl Throughput {
    pub(super) fn delivered(&mut self, bytes: u64, now: Instant) {
        self.delivered += bytes;
        let since = *self.counting.get_or_insert(now);
        let seconds = now.saturating_duration_since(since).as_secs_f64();
        if seconds >= 1.0 {
            self.rate = (self.rate * RATE_KEPT).max(self.delivered as f64 / seconds);
            (self.delivered, self.counting) = (0, Some(now));
        }
    }

    /// The best recent bytes per second.
    pub(super) fn rate(&self) -> f64 {
        self.rate
    }
}
