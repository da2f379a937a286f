//! Restores the counts of the refusal brakes after a restart.

use super::DrainLoop;
use super::queues::{LOGS, place_of};
use crate::outbox::{Payload, Reason};

/// Dead letters read at startup to restore the brakes' counts, newest first, and their maximum age: a week.
const REMEMBERED_LETTERS: u64 = 2000;
const REMEMBERED_MICROS: i64 = 7 * 24 * 3600 * 1_000_000;

impl DrainLoop {
    /// Counts each kind's refusals among the newest dead letters, which an earlier process may have made a moment ago.
    /// Otherwise each restart would cost another brake's worth of dead letters.
    pub(super) async fn remember_refusals(&mut self) {
        if self.drain.settings.link.refusal_brake == 0 {
            return;
        }
        let outbox = self.drain.outbox.clone();
        let since = crate::time::now().0.saturating_sub(REMEMBERED_MICROS);
        let end = outbox.next_dead_letter();
        let mut from = end.saturating_sub(REMEMBERED_LETTERS);
        let mut refusals = [0; LOGS.len()];
        // The end is fixed: a flood of malformed messages keeps adding dead letters.
        while from < end {
            // Unreadable dead letters must not stop sending: the brake then counts from zero.
            let letters = outbox.dead_letters(from, 100).await.unwrap_or_default();
            let Some(last) = letters.last() else { break };
            from = last.id + 1;
            for letter in letters {
                let was_answered = letter.reason == Reason::Refused && letter.detail.starts_with("status ");
                if let Payload::Record(record) = &letter.payload
                    && was_answered
                    && letter.last_at.0 >= since
                {
                    refusals[place_of(record.kind())] += 1;
                }
            }
        }
        for (log, refusals) in LOGS.into_iter().zip(refusals) {
            self.routes.remember_refusals(log, refusals);
        }
    }
}
