//! Whether a failure is the record's own, by comparison with other requests.

use super::Routes;
use super::attribution::PASS_FOR_EACH_FAILED;
use crate::drain::queues::{AttemptHistory, LOGS, LaneKey, place};
use crate::outbox::Log;

/// The requests with which a record's failure is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::drain) enum Beside {
    /// Those of its kind.
    ItsKind,
    /// All: the answer was 2xx, but unusable.
    Any,
}

/// What has succeeded since a record's last attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::drain) struct Passed {
    /// Any of the requests it is compared with.
    pub(in crate::drain) others: bool,
    /// A request of any kind.
    pub(in crate::drain) any: bool,
}

impl Routes {
    /// This many records of a batch that was answered record by record passed individually, beside some that failed.
    pub(in crate::drain) fn passed_apart(&mut self, log: Log, records: u64) {
        self.of(log).outcomes.passes += records.saturating_sub(1);
    }

    /// The server failed on this record alone. Returns what has passed since its last attempt.
    pub(in crate::drain) fn failed_on(
        &mut self,
        log: Log,
        beside: Beside,
        history: &mut AttemptHistory,
    ) -> Passed {
        let before = *history;
        self.note(log, history);
        self.of(log).outcomes.failures += 1;
        history.own_failures += 1;
        let of_its_kind = history.deliveries > before.deliveries;
        let any = history.any_deliveries > before.any_deliveries;
        Passed { others: if beside == Beside::Any { any } else { of_its_kind }, any }
    }

    /// Whether a record of any kind was delivered since this one's last attempt.
    pub(in crate::drain) fn any_passed(&self, history: &AttemptHistory) -> bool {
        self.all_deliveries() > history.any_deliveries
    }

    /// The server failed on a batch as a whole. True if others have passed since the last attempt: the cause may be one of
    /// these records.
    pub(in crate::drain) fn failed_on_all<'a>(
        &mut self,
        batch: impl Iterator<Item = (Log, &'a mut AttemptHistory)>,
    ) -> bool {
        let mut others_passed = false;
        let mut is_in_it = [false; LOGS.len()];
        for (log, history) in batch {
            others_passed |= self.deliveries(log) > history.deliveries;
            self.note(log, history);
            history.own_failures += 1;
            is_in_it[place(log).unwrap_or_default()] = true;
        }
        for (log, _) in LOGS.into_iter().zip(is_in_it).filter(|(_, is_in_it)| *is_in_it) {
            self.of(log).outcomes.failures += 1;
        }
        others_passed
    }

    /// The head of a lane got a 5xx on its own.
    pub(in crate::drain) fn is_failing(&mut self, log: Log, key: LaneKey) {
        self.of(log).failing.insert(key);
    }

    /// The head of a lane is settled.
    pub(in crate::drain) fn is_done(&mut self, log: Log, key: LaneKey) {
        self.of(log).failing.remove(&key);
    }

    /// Forgets all lanes.
    pub(in crate::drain) fn forget_lanes(&mut self) {
        self.routes.iter_mut().for_each(|route| route.failing.clear());
    }

    /// Whether a record's failures are its own: since its first attempt hardly anything else has failed, and no more
    /// records fail at once than may be refused in a row. Otherwise part of the `ControlPlane` is down.
    pub(in crate::drain) fn are_its_own(&self, log: Log, beside: Beside, history: &AttemptHistory) -> bool {
        if beside == Beside::Any {
            return true;
        }
        let (route, most) = (self.known_of(log), self.settings.refusal_brake as usize);
        let others_failed =
            (route.outcomes.failures - history.first.failures).saturating_sub(history.own_failures);
        let passed = route.outcomes.passes - history.first.passes;
        passed >= PASS_FOR_EACH_FAILED * others_failed && (most == 0 || route.failing.len() <= most)
    }

    /// A record is tried for the first time.
    pub(in crate::drain) fn begin(&self, log: Log, history: &mut AttemptHistory) {
        self.note(log, history);
        history.first = self.known_of(log).outcomes;
    }

    fn all_deliveries(&self) -> u64 {
        self.routes.iter().map(|route| route.deliveries).sum()
    }

    /// Notes the others' progress, for comparison at the next attempt.
    fn note(&self, log: Log, history: &mut AttemptHistory) {
        history.deliveries = self.deliveries(log);
        history.any_deliveries = self.all_deliveries();
    }
}

#[cfg(test)]
mod tests;
