//! The state of each kind of records, and which kinds are held.
//!
//! The [`super::link`] is common to all kinds: it is reachable, accepts us, and is not overloaded. It does not show whether
//! the `ControlPlane` still takes a particular kind: a release may refuse all usage, or have lost its route, while events
//! and quota requests work as before. So deliveries, refusals and unknown sessions are counted for each kind, and
//! deliveries of one are no evidence for another.
//!
//! A kind is *held* if everything of it is refused, if every session is unknown, or if it alone meets what would otherwise
//! be the link's trouble ([`attribution`]). None of its records is given up for that reason, one record at a time probes
//! it, and the other kinds continue. Held kinds take turns with their probes: an outage of all of them causes no more
//! requests than that of one.
//!
//! A pure state machine: the time is an argument, nothing here waits.

mod attribution;
mod own_failures;
mod probes;
mod unknown;

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::Instant;

use super::link::{Jitter, Settings};
use super::queues::{CONFIRMED, LOGS, LaneKey, Outcomes, place};
use super::verdict::Trouble;
use crate::outbox::Log;

pub(super) use attribution::{Attribution, LinkFailure};
use attribution::{FailureStreak, RecentOutcomes};
pub(super) use own_failures::Beside;
pub(super) use probes::Pause;
use probes::{WALK_AFTER, quick_probes};

/// A longer gap between deliveries does not count as delivering time: a session's grace period stands still.
const DELIVERING_GAP: Duration = Duration::from_secs(10);

/// After a brake this short, sending need not start small.
const BRIEF: Duration = Duration::from_secs(120);

/// The state of one kind.
#[derive(Debug, Default)]
struct Route {
    deliveries: u64,
    delivering: Duration,
    last_delivery: Option<Instant>,
    /// Refusals since the last delivery.
    refusals: u32,
    /// Since then, answers that a session is unknown ...
    unknown: u32,
    /// ... and their sessions; a few suffice.
    unknown_sessions: HashSet<LaneKey>,
    /// Since then, answers that the route does not exist.
    absent: u32,
    /// Its outcomes so far. A request answered as a whole counts once, whatever its size.
    outcomes: Outcomes,
    /// Lanes whose head got a 5xx and waits.
    failing: HashSet<LaneKey>,
    /// Possible link troubles since the last answer to this kind.
    streak: FailureStreak,
    /// The outcomes of its latest requests.
    recent: RecentOutcomes,
    /// Whether it was held for such a trouble, and then some of it was delivered.
    is_partial: bool,
    /// When one of its records was last delivered.
    passed_at: Option<Instant>,
    /// When one of its requests was last delivered or otherwise answered.
    answered_at: Option<Instant>,
    /// Why it is held, if it is.
    held: Option<Held>,
    /// The last released brake.
    last_brake: Option<Brake>,
    /// The earliest time for a probe.
    asked: Option<Instant>,
    /// When that was asked for.
    asked_at: Option<Instant>,
}

/// Why a kind is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) trouble: Trouble,
    /// The answer that showed it.
    pub(super) cause: String,
    /// Since when it has been held.
    pub(super) since: Instant,
}

/// A released brake.
#[derive(Clone, Copy, Debug)]
struct Brake {
    since: Instant,
    until: Instant,
}

/// All kinds, in the order of [`LOGS`].
pub(super) struct Routes {
    settings: Settings,
    routes: [Route; LOGS.len()],
    /// Refusals of any kind since the last delivery of any, except those of braked kinds.
    in_a_row: u32,
    /// When the next probe of a held kind may be sent.
    until: Option<Instant>,
    /// The log whose probe is in flight.
    probing: Option<usize>,
    /// The log whose turn it is.
    turn: usize,
    /// Probes in a row without news.
    failures: u32,
    /// Remaining probes of a braked kind without backoff.
    quick_probes: u32,
    jitter: Jitter,
}

impl Routes {
    pub(super) fn new(settings: Settings) -> Self {
        let routes = std::array::from_fn(|_| Route::default());
        let jitter = Jitter::default();
        let quick_probes = quick_probes(&settings);
        let (until, probing) = (None, None);
        Self { settings, routes, in_a_row: 0, until, probing, turn: 0, failures: 0, quick_probes, jitter }
    }

    fn of(&mut self, log: Log) -> &mut Route {
        &mut self.routes[place(log).unwrap_or_default()]
    }

    fn known_of(&self, log: Log) -> &Route {
        &self.routes[place(log).unwrap_or_default()]
    }

    /// Restores refusals counted by an earlier process, of which no delivery is known: the brake continues where it was.
    /// One more record may be refused and confirmed, so that one bad record can still be told from a bad release.
    pub(super) fn remember_refusals(&mut self, log: Log, refusals: u32) {
        let most = self.settings.refusal_brake.saturating_sub(u32::from(CONFIRMED) + 1);
        self.of(log).refusals = refusals.min(most);
    }

    /// This many records were delivered, now or before, by a request sent at `sent`. True if that ends a hold.
    pub(super) fn delivered(&mut self, log: Log, records: u64, sent: Instant, now: Instant) -> bool {
        self.in_a_row = 0;
        // Deliveries of one kind say nothing about another that is refused.
        if self.is_braked(log) || !LOGS.into_iter().any(|log| self.is_braked(log)) {
            self.quick_probes = quick_probes(&self.settings);
        }
        let route = self.of(log);
        route.delivering += route.gap(now);
        (route.last_delivery, route.passed_at, route.answered_at) = (Some(now), Some(now), Some(now));
        route.deliveries += records;
        route.outcomes.passes += 1;
        route.recent.passed();
        route.is_partial &= !route.recent.has_only_passed();
        route.forget();
        // A request sent before the wait was asked for does not end the wait.
        let waits =
            route.asked.is_some_and(|asked| asked > now) && route.asked_at.is_some_and(|at| sent < at);
        !waits && self.let_go(log, now)
    }

    /// A record was refused. True if that engages the brake: its kind is held from now on.
    pub(super) fn refused(&mut self, log: Log, cause: &str, now: Instant) -> bool {
        let brake = self.settings.refusal_brake;
        self.in_a_row = self.in_a_row.saturating_add(u32::from(!self.is_braked(log)));
        let in_a_row = self.in_a_row;
        let route = self.of(log);
        route.refusals = route.refusals.saturating_add(1);
        let is_enough = brake > 0 && (route.refusals >= brake || in_a_row >= brake);
        is_enough && self.hold(log, Trouble::Refusing, cause, now)
    }

    /// Why it is held, if it is.
    fn held_for(&self, log: Log) -> Option<Trouble> {
        self.known_of(log).held.as_ref().map(|held| held.trouble)
    }

    /// Whether the brake is engaged: refusals make no dead letters.
    pub(super) fn is_braked(&self, log: Log) -> bool {
        self.held_for(log) == Some(Trouble::Refusing)
    }

    /// Whether it is held for a trouble that may come from a missing batch endpoint.
    pub(super) fn may_lack_batches(&self, log: Log) -> bool {
        matches!(self.held_for(log), Some(Trouble::Refusing | Trouble::NoRoute))
    }

    /// Whether the last released brake had been engaged only briefly.
    pub(super) fn was_braked_briefly(&self, log: Log) -> bool {
        self.known_of(log).last_brake.is_some_and(|brake| brake.until < brake.since + BRIEF)
    }

    /// Refusals of this type since its last delivery.
    pub(super) fn refusals(&self, log: Log) -> u32 {
        self.known_of(log).refusals
    }

    /// The number of deliveries so far.
    pub(super) fn deliveries(&self, log: Log) -> u64 {
        self.known_of(log).deliveries
    }

    /// Whether a log is held.
    pub(super) fn is_held(&self, log: Log) -> bool {
        self.known_of(log).held.is_some()
    }

    /// Which logs are held.
    pub(super) fn held(&self) -> [bool; LOGS.len()] {
        self.routes.each_ref().map(|route| route.held.is_some())
    }

    /// The held logs, and the reasons.
    pub(super) fn all_held(&self) -> impl Iterator<Item = (Log, &Held)> {
        LOGS.into_iter().zip(&self.routes).filter_map(|(log, route)| Some((log, route.held.as_ref()?)))
    }

    /// Releases all brakes for an operator: records are sent again, and may be refused. Kinds without a route are probed at
    /// once. Returns the released logs.
    pub(super) fn release_brakes(&mut self, now: Instant) -> Vec<Log> {
        let braked: Vec<Log> = LOGS.into_iter().filter(|log| self.is_braked(*log)).collect();
        for log in &braked {
            self.of(*log).forget();
            self.let_go(*log, now);
        }
        self.in_a_row = 0;
        self.hurry(now);
        braked
    }

    fn hold(&mut self, log: Log, trouble: Trouble, cause: &str, now: Instant) -> bool {
        let route = self.of(log);
        route.last_delivery = None;
        // IMPORTANT: a brake stays engaged: otherwise each change of the answer would cost a dead letter.
        let stays = |held: &Held| held.trouble == trouble || held.trouble == Trouble::Refusing;
        if route.held.as_ref().is_some_and(stays) {
            return false;
        }
        // The same bad records as a moment ago: keep what was learned about them.
        let again =
            route.last_brake.filter(|brake| trouble == Trouble::Refusing && now < brake.until + WALK_AFTER);
        let since = again.map_or(now, |brake| brake.since);
        route.held = Some(Held { trouble, cause: cause.to_owned(), since });
        if self.until.is_none() {
            self.failures = 1;
            self.wait(now);
        }
        if trouble == Trouble::Refusing {
            // Bad records and a bad release look alike: the first other session tells them apart.
            self.until = Some(now);
        }
        true
    }

    fn let_go(&mut self, log: Log, now: Instant) -> bool {
        let route = self.of(log);
        let Some(held) = route.held.take() else { return false };
        route.asked = None;
        route.last_brake =
            (held.trouble == Trouble::Refusing).then_some(Brake { since: held.since, until: now });
        if held.trouble.may_be_a_kinds() {
            // Its own failures say nothing about others.
            (route.streak.is_known, route.is_partial, route.recent) = (true, true, RecentOutcomes::default());
        }
        self.failures = 1;
        // If one works again, the others may too.
        self.until = self.held().contains(&true).then_some(now);
        true
    }
}

impl Route {
    /// The time since its last delivery, as far as it would count as delivering time if a delivery came now.
    fn gap(&self, now: Instant) -> Duration {
        let since = |last| now.saturating_duration_since(last).min(DELIVERING_GAP);
        self.last_delivery.map(since).unwrap_or_default()
    }

    /// Clears everything that speaks against it.
    fn forget(&mut self) {
        (self.refusals, self.unknown, self.absent) = (0, 0, 0);
        self.unknown_sessions.clear();
        self.streak = FailureStreak::default();
    }
}

#[cfg(test)]
mod tests;
