//! What the drain does every second.

use std::time::Duration;

use tokio::time::Instant;

use super::DrainLoop;

/// How often quota requests are checked for expiry, and bytes are counted.
pub(super) const EVERY: Duration = Duration::from_secs(1);

impl DrainLoop {
    /// Work that no answer and no record causes.
    pub(super) fn sweep(&mut self) {
        let can_probe = !self.orders.holds() && self.lanes.has_ready();
        if !can_probe && self.drain.client.is_reachable() {
            let change = self.link.answered_elsewhere(Instant::now());
            self.announce(change);
        }
        for (key, item) in self.lanes.take_expired(self.expiry().0) {
            self.expire(key, &item);
        }
        self.count_bytes();
        // Reads that failed may work again: storage may have been full, or was reopened.
        self.read_failed = false;
    }

    /// Adds the bytes on the link since the last call to the metrics.
    fn count_bytes(&mut self) {
        let (sent, received) = self.drain.client.wire_totals();
        let (sent_before, received_before) = std::mem::replace(&mut self.counted_bytes, (sent, received));
        for (direction, bytes) in [("sent", sent - sent_before), ("received", received - received_before)] {
            self.drain.metrics.link_bytes.with_label_values(&[direction]).inc_by(bytes);
        }
    }
}
