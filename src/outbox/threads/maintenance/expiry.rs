//! Deletes old dead letters: slowly, and only by a confirmed clock.
//!
//! They may be the only trace of a customer's bill, and only a clock says how old they are. See
//! [`ConfirmedClock`](crate::time::ConfirmedClock) for which clock is trusted. If the clock is wrong nevertheless, that must be
//! noticed while most letters still exist: so only a few are deleted per minute, each time with a log line, and an alert
//! counts them.

use std::time::Duration;

use tokio::time::Instant;

use super::Maintenance;
use crate::record::Timestamp;
use crate::time::Moment;

/// How often all letters are scanned for old ones, and how many at once; the scan continues with the next chores.
const LOOK_EVERY: Duration = Duration::from_hours(1);
const LOOK_AT_ONCE: usize = if cfg!(test) { 10 } else { 1000 };
/// How often some may be deleted: a thousandth of them, or ten if that is more.
const PURGE_EVERY: Duration = Duration::from_mins(1);
const PURGE_PART: u64 = 1000;
const PURGE_AT_LEAST: u64 = 10;

/// The progress of the scan.
pub(super) struct ExpiryScan {
    /// When the last full scan ended.
    looked_at: Option<Instant>,
    /// Where to continue.
    from: u64,
    /// When the current minute began, and how many were deleted in it. An agent that keeps restarting deletes none.
    minute: (Instant, u64),
}

impl ExpiryScan {
    pub(super) fn begin() -> Self {
        Self { looked_at: None, from: 0, minute: (Instant::now(), u64::MAX) }
    }
}

impl Maintenance {
    /// Deletes some letters that are too old. They are not in order of age: some come from another outbox.
    pub(crate) fn expire_letters(&mut self, moment: Moment) {
        let Some(now) = self.shared.confirmed.now(moment) else { return };
        let since = |at: Instant| moment.monotonic.saturating_duration_since(at);
        if self.expiry.looked_at.is_some_and(|at| since(at) < LOOK_EVERY) {
            return;
        }
        if since(self.expiry.minute.0) >= PURGE_EVERY {
            self.expiry.minute = (moment.monotonic, 0);
        }
        let most = (self.shared.state().counters.dead_letters / PURGE_PART).max(PURGE_AT_LEAST);
        let room = most.saturating_sub(self.expiry.minute.1);
        if room == 0 {
            return;
        }
        let keep = i64::try_from(self.shared.settings.dead_letter_retention.as_micros()).unwrap_or(i64::MAX);
        let oldest = now.0.saturating_sub(keep);
        let (mut expired, mut seen) = (Vec::new(), 0);
        let mut from = std::mem::take(&mut self.expiry.from);
        let read = self.shared.ledger.letters(from, |(id, letter, len)| {
            // An unreadable letter is kept for whoever can read it.
            if let Ok(letter) = letter
                && letter.last_at.0 < oldest
            {
                expired.push((id, len, letter.last_at));
            }
            (seen, from) = (seen + 1, id + 1);
            seen < LOOK_AT_ONCE && (expired.len() as u64) < room
        });
        let is_through = seen < LOOK_AT_ONCE && (expired.len() as u64) < room;
        if let Err(error) = &read {
            tracing::warn!(%error, "cannot scan for old dead letters");
        }
        if is_through || read.is_err() {
            self.expiry.looked_at = Some(moment.monotonic);
        } else {
            self.expiry.from = from;
        }
        self.purge(&expired);
    }

    fn purge(&mut self, expired: &[(u64, usize, Timestamp)]) {
        let mut state = self.shared.state();
        let mut dropped = Vec::new();
        for (id, len, last_at) in expired {
            if state.drop_letter(*id, *len) {
                state.counters.expired += 1;
                dropped.push((*id, *last_at));
            }
        }
        let left = state.counters.dead_letters;
        drop(state);
        self.expiry.minute.1 += dropped.len() as u64;
        let (Some((first, _)), Some((last, _))) = (dropped.first(), dropped.last()) else { return };
        let youngest = dropped.iter().map(|(_, last_at)| last_at.0).max().unwrap_or_default();
        tracing::warn!(
            deleted = dropped.len(),
            first,
            last,
            youngest = Timestamp(youngest).to_rfc3339(),
            left,
            "dead letters are deleted: they were kept for DEAD_LETTER_RETENTION_DAYS. If they are wanted, raise it and \
             restart, or export them"
        );
    }
}
