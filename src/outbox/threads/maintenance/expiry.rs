//! Dead letters that were kept for long enough are deleted: slowly, and never by a clock that nobody has confirmed.
//!
//! They may be the only trace of a customer's bill, and the one thing that says how old they are is a clock. See
//! [`ConfirmedClock`](crate::time::ConfirmedClock) for which one is believed. What is wrong all the same is to be noticed while
//! most of them are still there: so few are deleted a minute, each time with a line in the log, and an alert counts them.

use std::time::Duration;

use tokio::time::Instant;

use super::Maintenance;
use crate::record::Timestamp;
use crate::time::Moment;

/// How often all of them are looked through for old ones, and how many at once: the next come with the next chores.
const LOOK_EVERY: Duration = Duration::from_hours(1);
const LOOK_AT_ONCE: usize = if cfg!(test) { 10 } else { 1000 };
/// So often some may be deleted: a thousandth of them, or ten if that is more.
const PURGE_EVERY: Duration = Duration::from_mins(1);
const PURGE_PART: u64 = 1000;
const PURGE_AT_LEAST: u64 = 10;

/// How far maintenance has got with it.
pub(super) struct ExpiryScan {
    /// When all of them had been looked through.
    looked_at: Option<Instant>,
    /// Where to look on.
    from: u64,
    /// When a minute began, and how many were deleted in it. An agent that starts again and again deletes none.
    minute: (Instant, u64),
}

impl ExpiryScan {
    pub(super) fn begin() -> Self {
        Self { looked_at: None, from: 0, minute: (Instant::now(), u64::MAX) }
    }
}

impl Maintenance {
    /// Deletes some of those that are too old. Not the oldest come first: some were another outbox's.
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
            // One that cannot be read is kept for whoever can.
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
            tracing::warn!(%error, "old dead letters could not be looked for");
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
