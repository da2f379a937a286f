//! Failed records: poison, a fault of their own, or that of something larger.

use std::time::Duration;

use tokio::time::Instant;

use super::RetryReason;
use crate::drain::DrainLoop;
use crate::drain::link::Flight;
use crate::drain::queues::{Item, LaneKey};
use crate::drain::routes::Beside;
use crate::drain::verdict::Trouble;
use crate::outbox::Reason;

/// Own failures after which a record no longer counts against the link.
const FAILED_AGAIN: u64 = 2;

/// A record's request, or its part of a batch, failed.
#[derive(Clone, Copy)]
pub(super) struct RecordFailure {
    pub(super) trouble: Trouble,
    /// Whether the server may have failed because of the record.
    pub(super) may_be_poison: bool,
    pub(super) beside: Beside,
    pub(super) retry_after: Option<Duration>,
    /// Whether the link was up: otherwise the failure is not the record's.
    pub(super) was_up: bool,
    /// The request, if it was for this record alone and is not yet reported to the link.
    pub(super) flight: Option<Flight>,
}

impl DrainLoop {
    /// Handles the failure of a record's request.
    pub(super) fn failed(
        &mut self,
        key: LaneKey,
        mut item: Item,
        failure: RecordFailure,
        detail: String,
        now: Instant,
    ) {
        let RecordFailure { trouble, may_be_poison, beside, retry_after, was_up, flight } = failure;
        let log = item.ticket.log;
        // While its kind is held, a failure is not the record's own, except if only the answer was unusable.
        let counts = was_up && (beside == Beside::Any || !self.routes.is_held(log));
        let passed = self.routes.failed_on(log, beside, &mut item.history);
        let others_passed = passed.others && counts;
        item.history.poisoned += u32::from(others_passed && may_be_poison);
        self.routes.is_failing(log, key);
        let is_its_own = self.routes.are_its_own(log, beside, &item.history);
        let is_poison = item.history.poisoned >= self.drain.settings.poison_attempts;
        if may_be_poison && is_poison && others_passed && is_its_own {
            self.dead_letter(key, &item, Reason::Poison, detail);
            return;
        }
        // A record that fails repeatedly while nothing else does must not slow down everything else.
        let speaks_for_itself =
            is_its_own && passed.any && was_up && item.history.own_failures >= FAILED_AGAIN;
        if let Some(flight) = flight.filter(|_| !speaks_for_itself) {
            self.renew_credentials(trouble);
            self.troubled(log, std::iter::once(key), trouble, retry_after, flight, now);
        }
        let is_known = speaks_for_itself || (others_passed && is_its_own);
        let wait = match trouble {
            // It need not be retried with every probe that finds the others well.
            _ if is_known => {
                let own = self.own_delay(&item);
                Some(own.max(retry_after.unwrap_or_default()))
            }
            Trouble::Failing => retry_after,
            _ => None,
        };
        self.retry(key, item, RetryReason::Failed(trouble), wait, now);
    }

    /// Whether one more failure would be this record's own. Called before the next attempt is recorded.
    pub(super) fn fails_by_itself(&self, item: &Item) -> bool {
        let history = &item.history;
        let is_again = history.own_failures + 1 >= FAILED_AGAIN;
        let is_its_own = || self.routes.are_its_own(item.ticket.log, Beside::ItsKind, history);
        is_again && self.routes.any_passed(history) && is_its_own()
    }
}
