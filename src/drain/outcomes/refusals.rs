//! Refused records, and records of unknown sessions.

use std::time::Duration;

use tokio::time::Instant;

use super::RetryReason;
use super::confirmation::Confirmation;
use crate::drain::DrainLoop;
use crate::drain::queues::{Item, LaneKey};
use crate::drain::verdict::Trouble;
use crate::outbox::{Reason, Ticket};

impl DrainLoop {
    /// A record was refused. `counts`: it counts for the brake, as nothing was delivered beside it.
    pub(super) fn refused(
        &mut self,
        key: LaneKey,
        mut item: Item,
        detail: String,
        counts: bool,
        now: Instant,
    ) {
        let log = item.ticket.log;
        self.answers(log, now);
        let sets_brake = counts && self.routes.refused(log, &self.heard, now);
        let is_confirmed = self.confirmation.refused(&mut item.history, now);
        item.refusal = Some(detail.as_str().into());
        if self.routes.is_braked(log) {
            self.lanes.note_refusal(key);
            // Only probes are sent, in their own order and pace. When the brake is released, everything is sent at once.
            self.retry(key, item, RetryReason::Failed(Trouble::Refusing), Some(Duration::ZERO), now);
        } else if is_confirmed {
            self.dead_letter(key, &item, Reason::Refused, detail);
        } else {
            let wait = Confirmation::wait(&item.history);
            self.retry(key, item, RetryReason::Unconfirmed, Some(wait), now);
        }
        if sets_brake {
            self.held(log);
        }
    }

    /// Reports an unknown session to the link and the kind's route.
    pub(super) fn tell_unknown(&mut self, key: LaneKey, item: &Item, now: Instant) {
        let log = item.ticket.log;
        // Whatever was wrong with the link, it answers now.
        if self.shows_the_link(log) {
            let change = self.link.not_found(now);
            self.announce(change);
        }
        self.let_go_if_answered(log, now);
        // A session that was already unknown while others were delivered does not suggest that all are.
        let since = self.lanes.unknown_since(key, self.routes.progress(now));
        let session = LaneKey::of_session(item.record.session());
        let news = self.routes.is_news(log, &since).then_some(session);
        if self.routes.session_unknown(log, news, self.link.limit(now), &self.heard, now) {
            self.held(log);
        }
    }

    pub(super) fn session_unknown(&mut self, key: LaneKey, item: Item, detail: String, now: Instant) {
        let since = self.lanes.unknown_since(key, self.routes.progress(now));
        let unknown_for = self.routes.delivering_since(item.ticket.log, &since);
        if unknown_for >= self.drain.settings.session_grace {
            self.dead_letter(key, &item, Reason::SessionUnknown, detail);
        } else {
            self.retry(key, item, RetryReason::SessionUnknown, None, now);
        }
    }

    /// A record was delivered ahead of others of its session, each refused twice. These become dead letters: sent now, they
    /// could only arrive out of order.
    pub(super) fn dead_letter_before(&mut self, key: LaneKey, delivered: &Item) {
        if !self.lanes.has_walked_past(key) {
            return;
        }
        let Ticket { log, seq, .. } = delivered.ticket;
        while let Some(mut item) = self.lanes.take_refused_before(key, log, seq) {
            let detail = item.refusal.take().map_or_else(|| "refused twice".to_owned(), String::from);
            self.dead_letter(key, &item, Reason::Refused, detail);
        }
    }
}
