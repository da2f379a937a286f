//! Attributes a possible trouble of the link to the link or to a kind, by comparison with other kinds.

use std::collections::HashSet;

use tokio::time::Instant;

use super::{Held, Routes};
use crate::drain::queues::{LOGS, LaneKey};
use crate::drain::verdict::Trouble;
use crate::outbox::Log;

/// A failure counts as a record's or kind's own if this many others passed for each other one that failed. Otherwise the
/// cause is load, or an outage of part of the `ControlPlane`.
pub(super) const PASS_FOR_EACH_FAILED: u64 = 4;
/// Failing lanes (sessions, or quota requests) from which a kind counts as failing: one may be a record's own failure.
const LANES_OF_A_KIND: usize = 2;
/// How often in a row a kind must be asked to wait, while others succeed, until it waits alone.
const ASKED_AGAIN: u32 = 2;

/// The attribution of a failure that may be the link's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::drain) enum Attribution {
    /// The link's, as far as known.
    Link,
    /// Its kind's: it is held, or fails only in part.
    Kind,
    /// Its kind's, as has just become known.
    KindFromNowOn,
}

/// A failure that may be the link's.
#[derive(Clone, Copy, Debug)]
pub(in crate::drain) struct LinkFailure<'a> {
    pub(in crate::drain) trouble: Trouble,
    /// When the request was sent.
    pub(in crate::drain) sent: Instant,
    /// Whether the answer asked to wait.
    pub(in crate::drain) is_asked: bool,
    /// The answer.
    pub(in crate::drain) cause: &'a str,
}

/// Possible link troubles that a kind has met since it was last answered.
#[derive(Debug, Default)]
pub(super) struct FailureStreak {
    /// Whether it was held for such a trouble until it was answered: then one more costly failure suffices.
    pub(super) is_known: bool,
    /// Failed requests.
    failed: u32,
    /// Their lanes, up to the required number.
    lanes: HashSet<LaneKey>,
    /// Passed requests of other kinds when the first failed.
    others_passed: u64,
}

/// The outcomes of a kind's latest requests, up to a fixed number.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RecentOutcomes {
    /// The latest in the lowest bit; set: it met a possible link trouble.
    failed: u16,
    known: u32,
}

impl RecentOutcomes {
    pub(super) fn passed(&mut self) {
        self.note(0);
    }

    /// Whether none of them failed.
    pub(super) fn has_only_passed(self) -> bool {
        self.known == u16::BITS && self.failed == 0
    }

    fn has_only_failed(self) -> bool {
        self.failed == u16::MAX
    }

    fn note(&mut self, failed: u16) {
        self.failed = self.failed << 1 | failed;
        self.known = (self.known + 1).min(u16::BITS);
    }
}

impl Routes {
    /// A request of this kind, with the heads of these lanes, met a possible link trouble. Returns the attribution.
    pub(in crate::drain) fn troubled(
        &mut self,
        log: Log,
        lanes: impl Iterator<Item = LaneKey>,
        failure: LinkFailure<'_>,
        now: Instant,
    ) -> Attribution {
        let others_passed = self.passes_beside(log);
        let route = self.of(log);
        route.recent.note(1);
        if let Some(held) = &mut route.held {
            // A kind held for refusals keeps that reason, and its brake.
            if held.trouble.may_be_a_kinds() {
                *held = Held { trouble: failure.trouble, cause: failure.cause.to_owned(), since: held.since };
            }
            return Attribution::Kind;
        }
        // With many requests in flight, some fail among others that succeed.
        if route.answered_at.is_some_and(|answered| failure.sent < answered) {
            return Attribution::Link;
        }
        let streak = &mut route.streak;
        if streak.failed == 0 {
            streak.others_passed = others_passed;
        }
        streak.failed = streak.failed.saturating_add(1);
        for lane in lanes {
            if streak.lanes.len() >= LANES_OF_A_KIND {
                break;
            }
            streak.lanes.insert(lane);
        }
        if self.fails_alone(log, failure, now) {
            self.hold(log, failure.trouble, failure.cause, now);
            return Attribution::KindFromNowOn;
        }
        // A kind known to fail in part still does: slowing down everything would not help.
        let route = self.known_of(log);
        let is_in_part =
            failure.trouble == Trouble::Failing && route.is_partial && !route.recent.has_only_failed();
        if is_in_part && self.others_are_well(log) { Attribution::Kind } else { Attribution::Link }
    }

    /// Whether it has failed as often in a row as opens the circuit, in more than one lane, while others passed; and those
    /// others hardly fail, except kinds that fail alone themselves.
    fn fails_alone(&self, log: Log, failure: LinkFailure<'_>, now: Instant) -> bool {
        let (route, enough) = (self.known_of(log), self.settings.failures_to_open);
        let mut others = LOGS.into_iter().zip(&self.routes).filter(|(other, _)| *other != log);
        let FailureStreak { is_known, failed, lanes, others_passed } = &route.streak;
        let is_shown = if failure.trouble == Trouble::Timeout {
            // Others succeeded throughout that time: no need for another long wait.
            let half = failure.sent + now.saturating_duration_since(failure.sent) / 2;
            others.any(|(_, route)| route.passed_at.is_some_and(|passed| passed >= half))
        } else {
            let passed = self.passes_beside(log) > *others_passed;
            // Each `Retry-After` made everything wait.
            let again = failure.is_asked && *failed >= ASKED_AGAIN;
            // If a kind fails in part, the rest should pass.
            let is_all = !route.is_partial || route.recent.has_only_failed();
            passed && (again || is_all && *failed >= enough)
        };
        let is_dear = failure.is_asked || failure.trouble == Trouble::Timeout;
        (is_shown && lanes.len() >= LANES_OF_A_KIND || *is_known && is_dear) && self.others_are_well(log)
    }

    /// Whether the other kinds hardly fail, except those that fail alone themselves.
    fn others_are_well(&self, log: Log) -> bool {
        let others = LOGS.into_iter().zip(&self.routes).filter(|(other, route)| {
            *other != log && route.held.is_none() && route.streak.failed < self.settings.failures_to_open
        });
        let (failed, known) = others.fold((0, 0), |(failed, known), (_, route)| {
            (failed + route.recent.failed.count_ones(), known + route.recent.known)
        });
        u64::from(known - failed) >= PASS_FOR_EACH_FAILED * u64::from(failed)
    }

    /// How often it has failed in a row.
    pub(in crate::drain) fn troubles_in_a_row(&self, log: Log) -> u64 {
        self.known_of(log).streak.failed.into()
    }

    /// It was answered, though without success. True if that ends a hold.
    pub(in crate::drain) fn answered(&mut self, log: Log, now: Instant) -> bool {
        let route = self.of(log);
        route.streak = FailureStreak::default();
        route.answered_at = Some(now);
        let is_held = route.held.as_ref().is_some_and(|held| held.trouble.may_be_a_kinds());
        is_held && self.let_go(log, now)
    }

    fn passes_beside(&self, log: Log) -> u64 {
        LOGS.into_iter().filter(|other| *other != log).map(|other| self.known_of(other).outcomes.passes).sum()
    }
}

#[cfg(test)]
mod tests;
