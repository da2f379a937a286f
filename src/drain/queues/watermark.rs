//! How far `completed` events may be sent, given how far usage has been read.

use std::collections::VecDeque;

use crate::outbox::Watermark;

/// Watermarks remembered. Beyond that, the one that makes the least difference is dropped.
const MOST: usize = 128;

/// Watermarks that reading has not reached yet. Several are kept: the latest alone lies behind the whole backlog, so no
/// event could be sent before its end. That is the case after a start for events in the outbox, because nobody remembers
/// which of them were already released: they wait until the usage present at the start has been read once.
#[derive(Debug, Default)]
pub(super) struct Watermarks {
    /// The latest watermark.
    told: Watermark,
    /// Events numbered below this may be sent.
    completed: u64,
    /// In the order they were received, which is the order of both numbers.
    ahead: VecDeque<Watermark>,
}

impl Watermarks {
    /// Adds the intake's current watermark.
    pub(super) fn tell(&mut self, watermark: Watermark) {
        if watermark == self.told {
            return;
        }
        self.told = watermark;
        self.ahead.push_back(watermark);
        if self.ahead.len() > MOST {
            // The events it would release wait for the next one. The last is never dropped: there is no next.
            let before = |at: usize| at.checked_sub(1).map_or(0, |before| self.ahead[before].usage);
            let least = (0..MOST).min_by_key(|at| self.ahead[at + 1].usage - before(*at));
            self.ahead.remove(least.unwrap_or_default());
        }
    }

    /// The number up to which events may be sent when usage has been read up to `usage`.
    pub(super) fn completed(&mut self, usage: u64) -> u64 {
        while let Some(passed) = self.ahead.front().filter(|watermark| watermark.usage <= usage) {
            self.completed = passed.completed;
            self.ahead.pop_front();
        }
        self.completed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watermark(n: u64) -> Watermark {
        Watermark { completed: 10 * n, usage: 10 * n + 1 }
    }

    #[test]
    fn events_are_released_as_far_as_usage_was_read_and_not_only_at_the_end() {
        let mut watermarks = Watermarks::default();
        assert_eq!(watermarks.completed(1000), 0, "no watermark yet");
        (1..=5).for_each(|n| watermarks.tell(watermark(n)));
        assert_eq!(watermarks.completed(10), 0, "one record of usage is missing");
        assert_eq!(watermarks.completed(11), 10);
        assert_eq!(watermarks.completed(50), 40);
        watermarks.tell(watermark(6));
        assert_eq!(watermarks.completed(61), 60);
    }

    #[test]
    fn a_long_backlog_is_remembered_evenly_and_nothing_is_released_early() {
        let mut watermarks = Watermarks::default();
        let told = 100_000;
        (1..=told).for_each(|n| watermarks.tell(watermark(n)));
        assert!(watermarks.ahead.len() <= MOST);
        let mut behind = 0;
        for n in (0..=told).step_by(100) {
            let allowed = watermarks.completed(watermark(n).usage);
            assert!(allowed <= 10 * n, "usage {} releases {allowed}", watermark(n).usage);
            behind = behind.max(10 * n - allowed);
        }
        assert!(behind < 10 * told / 30, "at the most {behind} behind of {}", 10 * told);
        assert_eq!(watermarks.completed(watermark(told).usage), 10 * told);
    }
}
