//! Decides when the outbox is full: its own limit, the disk's free space, and hysteresis on the way back.

use std::sync::atomic::Ordering;

use super::reserve::free_bytes;
use super::shared::Shared;
use crate::outbox::segments::segment::Listed;

/// A pause ends at this percentage of the limit, which prevents flapping.
const RESUME_PERCENT: u64 = 90;
/// An outbox consists of at least this many segments: one is deleted while others fill.
const SEGMENTS_AT_LEAST: u64 = 8;
/// A smaller segment would consist mostly of sled's overhead.
const SEGMENT_BYTES_AT_LEAST: u64 = 1 << 20;

pub(crate) const FULL: &str = "full";
pub(crate) const DISK_LOW: &str = "disk_low";
pub(crate) const STORAGE: &str = "storage";
/// The folder was moved or deleted, or its mount is lost: nobody would find what is written now.
pub(crate) const FOLDER_GONE: &str = "folder_gone";

/// Why records are not accepted, and what the agent does about it or the operator can do: a phrase for people.
pub(crate) fn meaning_of(pause: &str) -> &'static str {
    match pause {
        FULL => "it is at its limit; delivery empties it. To gain time, raise OUTBOX_MAX_BYTES and restart",
        DISK_LOW => "its disk is almost full: free some space; the agent then goes on by itself",
        FOLDER_GONE => {
            "OUTBOX_DIR is not there any more: put the folder back; do not restart the agent before"
        }
        _ => {
            "its disk cannot be written; the agent keeps trying. See the log for the error, and check the disk"
        }
    }
}

impl Shared {
    /// The size at which the next segment is begun.
    pub(crate) fn segment_bytes(&self) -> u64 {
        let most = (self.settings.max_bytes / SEGMENTS_AT_LEAST).max(SEGMENT_BYTES_AT_LEAST);
        self.settings.segment_bytes.min(most)
    }

    /// An error while the folder is not where it was opened.
    pub(crate) fn in_place(&self) -> std::io::Result<()> {
        if self.dir_lock.is_in_place() {
            return Ok(());
        }
        Err(std::io::Error::new(std::io::ErrorKind::NotFound, "OUTBOX_DIR is not there any more"))
    }

    /// Measures the space, and pauses or resumes. Returns why appends are refused.
    pub(crate) fn measure(&self) -> Option<&'static str> {
        let (segments, letters) = {
            let mut state = self.state();
            let lingering: u64 = state.lingering.iter().map(|(_, bytes)| bytes).sum();
            let listed: u64 = state.segments.iter_mut().map(Listed::disk_bytes).sum();
            let segments = listed + lingering;
            (segments, state.counters.dead_letter_bytes)
        };
        let taken = segments + self.ledger.disk_bytes() + self.reserve.disk_bytes();
        self.used.store(taken, Ordering::Relaxed);
        self.counted.store(segments + letters, Ordering::Relaxed);
        let before = *self.paused.borrow();
        let (max, min_free) = (self.settings.max_bytes, self.settings.min_free_bytes);
        let free = free_bytes(&self.settings.dir).unwrap_or(u64::MAX);
        self.free.store(free, Ordering::Relaxed);
        let limit = if before == Some(FULL) { max / 100 * RESUME_PERCENT } else { max };
        let floor = if before == Some(DISK_LOW) { min_free / RESUME_PERCENT * 100 } else { min_free };
        // Only the dead letters in the ledger count: its file never shrinks, but it fills its gaps before it grows.
        let now = if !self.dir_lock.is_in_place() {
            Some(FOLDER_GONE)
        } else if self.writer_failed.load(Ordering::Relaxed) || self.ledger_failed.load(Ordering::Relaxed) {
            Some(STORAGE)
        } else if segments + letters >= limit {
            Some(FULL)
        } else if free < floor {
            Some(DISK_LOW)
        } else {
            None
        };
        self.pause(now);
        now
    }

    /// Sets whether appends are accepted, and logs each change once.
    fn pause(&self, why: Option<&'static str>) {
        let changed = self.paused.send_if_modified(|now| std::mem::replace(now, why) != why);
        match (changed, why) {
            (true, Some(FOLDER_GONE)) => tracing::error!(
                reason = FOLDER_GONE,
                dir = %self.settings.dir.display(),
                "OUTBOX_DIR is not there any more, or another folder is at its place: nothing more is taken, Redis keeps \
                 the records. What can still be read is delivered. Put the folder back, and it goes on; a restart begins \
                 an empty outbox"
            ),
            (true, Some(FULL)) => tracing::warn!(
                reason = FULL,
                counted_bytes = self.counted.load(Ordering::Relaxed),
                limit_bytes = self.settings.max_bytes,
                "the outbox is full: new records stay in Redis until it is below {RESUME_PERCENT} % of its limit. Delivery \
                 empties it; if that is impossible, raise OUTBOX_MAX_BYTES"
            ),
            (true, Some(DISK_LOW)) => tracing::warn!(
                reason = DISK_LOW,
                dir = %self.settings.dir.display(),
                free_bytes = self.free.load(Ordering::Relaxed),
                min_free_bytes = self.settings.min_free_bytes,
                "too little space is free on the outbox's disk: new records stay in Redis. Free some space, or lower \
                 OUTBOX_MIN_FREE_BYTES"
            ),
            (true, Some(reason)) => tracing::warn!(
                reason,
                dir = %self.settings.dir.display(),
                "the outbox cannot be written: new records stay in Redis, and the agent retries; the error is logged above"
            ),
            (true, None) => tracing::info!("the outbox is accepting records again"),
            (false, _) => {}
        }
    }
}
