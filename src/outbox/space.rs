//! When the outbox is full: its own limit, the disk's free space, and the way back with hysteresis.

use std::path::Path;
use std::sync::atomic::Ordering;

use super::Shared;

/// Pausing ends when this share of the limit is free again: so that it does not flap.
const RESUME_PERCENT: u64 = 90;

pub(super) const FULL: &str = "full";
pub(super) const DISK_LOW: &str = "disk_low";
pub(super) const STORAGE: &str = "storage";

/// Free bytes of the file system that `dir` is on.
pub(super) fn free_bytes(dir: &Path) -> Option<u64> {
    rustix::fs::statvfs(dir).ok().map(|stat| stat.f_bavail * stat.f_frsize)
}

impl Shared {
    /// Measures, and pauses or resumes. Returns why appends are not accepted.
    pub(super) fn measure(&self) -> Option<&'static str> {
        let (segments, pending) = {
            let state = self.state();
            (state.segments.iter().map(|listed| listed.segment.disk_bytes()).sum::<u64>(), state.pending())
        };
        let used = segments + self.ledger.disk_bytes();
        self.used.store(used, Ordering::Relaxed);
        let before = *self.paused.borrow();
        if before == Some(STORAGE) {
            // Only the writer, which met the fault, knows when it is over.
            return before;
        }
        let (max, min_free) = (self.settings.max_bytes, self.settings.min_free_bytes);
        let free = free_bytes(&self.settings.dir).unwrap_or(u64::MAX);
        let limit = |limit: u64| if before == Some(FULL) { limit / 100 * RESUME_PERCENT } else { limit };
        let floor = if before == Some(DISK_LOW) { min_free / RESUME_PERCENT * 100 } else { min_free };
        let now = if used >= limit(max) && pending > 0 {
            Some(FULL)
        } else if free < floor {
            Some(DISK_LOW)
        } else {
            None
        };
        self.pause(now);
        now
    }

    /// Says whether appends are accepted; one log line a change.
    pub(super) fn pause(&self, why: Option<&'static str>) {
        let changed = self.paused.send_if_modified(|now| std::mem::replace(now, why) != why);
        match (changed, why) {
            (true, Some(reason)) => {
                let used = self.used.load(Ordering::Relaxed);
                tracing::warn!(reason, used, "the outbox takes no more for now; Redis keeps the records");
            }
            (true, None) => tracing::info!("the outbox takes records again"),
            (false, _) => {}
        }
    }
}
