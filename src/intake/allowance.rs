//! The size limit of one answer from Redis. It shrinks after an answer was cut off.
//!
//! Redis closes a connection whose answer exceeds its `client-output-buffer-limit`, without an error. A connection that
//! broke instead of returning messages may have hit that limit, or Redis stopped. Asking for less helps in the first case
//! and is harmless in the second. After a while the limit grows again, ever later if answers are still cut off.

use std::fmt;
use std::time::Duration;

use tokio::time::Instant;

/// The longest message ever fetched.
pub(super) const MESSAGE_BYTES: usize = 1 << 20;
/// Bytes of messages per round, plus one message of each queue; 0: one message in total.
const STEPS: [usize; 5] = [1 << 20, 256 << 10, 64 << 10, 16 << 10, 0];
/// The largest answer ever requested: a round's bytes, plus one message of each of three queues.
pub(super) const ANSWER_BYTES: usize = STEPS[0] + 3 * MESSAGE_BYTES;
/// The minimum. A note on an oversized message is smaller, and must not itself count as oversized.
const MESSAGE_BYTES_LEAST: usize = 16 << 10;
/// When to try a higher limit: the first delay, and the longest.
const MORE_AFTER: Duration = Duration::from_secs(10);
const MORE_AFTER_MOST: Duration = Duration::from_secs(3600);

/// The current limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    step: usize,
    /// The longest message that is fetched.
    pub(super) message_bytes: usize,
}

impl Allowance {
    /// The highest limits.
    pub(super) fn full() -> Self {
        Self { step: 0, message_bytes: MESSAGE_BYTES }
    }

    pub(super) fn bytes(self) -> usize {
        STEPS.get(self.step).copied().unwrap_or(0)
    }

    /// Whether only one message in total may be requested.
    pub(super) fn is_single(self) -> bool {
        self.bytes() == 0
    }
}

impl fmt::Display for Allowance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.bytes() {
            0 => write!(f, "for one message of up to {} bytes", self.message_bytes),
            bytes => write!(f, "for messages of {bytes} bytes in total"),
        }
    }
}

/// The limits, kept across sessions.
pub(super) struct Allowances {
    now: Allowance,
    /// The longest message that can be a record. A longer message may stay in Redis if even a request for it alone is cut
    /// off.
    record_bytes: usize,
    more_at: Instant,
    more_after: Duration,
}

impl Allowances {
    pub(super) fn new(record_bytes: usize) -> Self {
        let record_bytes = record_bytes.clamp(MESSAGE_BYTES_LEAST, MESSAGE_BYTES);
        Self { now: Allowance::full(), record_bytes, more_at: Instant::now(), more_after: MORE_AFTER }
    }

    pub(super) fn now(&mut self) -> Allowance {
        if self.now != Allowance::full() && self.more_at <= Instant::now() {
            if self.now.message_bytes < MESSAGE_BYTES {
                self.now.message_bytes = MESSAGE_BYTES;
            } else {
                self.now.step -= 1;
            }
            // If the higher limit is cut off too, the next attempt comes later.
            self.more_after = (self.more_after * 2).min(MORE_AFTER_MOST);
            self.more_at = Instant::now() + self.more_after;
        }
        self.now
    }

    /// Lowers the limit after a cut-off answer. False if it is already the lowest.
    pub(super) fn cut(&mut self) -> bool {
        self.more_at = Instant::now() + self.more_after;
        if self.now.step + 1 < STEPS.len() {
            self.now.step += 1;
        } else if self.record_bytes < self.now.message_bytes {
            self.now.message_bytes = self.record_bytes;
        } else {
            return false;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn less_is_asked_for_after_each_cut_down_to_one_message_that_can_be_a_record() {
        let mut allowances = Allowances::new(20_000);
        let mut seen = Vec::new();
        while allowances.cut() {
            let now = allowances.now();
            seen.push((now.bytes(), now.message_bytes));
        }
        let large = MESSAGE_BYTES;
        assert_eq!(seen, [(256 << 10, large), (64 << 10, large), (16 << 10, large), (0, large), (0, 20_000)]);
        assert!(allowances.now().is_single());
    }

    #[test]
    fn more_is_tried_again_step_by_step_and_later_each_time() {
        let mut allowances = Allowances::new(MESSAGE_BYTES);
        assert!(allowances.cut() && allowances.cut());
        assert_eq!(allowances.now().bytes(), 64 << 10, "not immediately");
        allowances.more_at = Instant::now();
        assert_eq!(allowances.now().bytes(), 256 << 10);
        assert_eq!(allowances.now().bytes(), 256 << 10, "one step");
        assert!(allowances.cut());
        assert!(allowances.more_at > Instant::now() + MORE_AFTER, "the next delay is longer");
        for _ in 0..2 {
            allowances.more_at = Instant::now();
            allowances.now();
        }
        assert_eq!(allowances.now(), Allowance::full());
    }
}
