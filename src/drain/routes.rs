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

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::Instant;

use super::link::{Jitter, Settings};
use super::queues::{CONFIRMED, LOGS, LaneKey, Outcomes, Unknown, place};
use super::verdict::Trouble;
use crate::outbox::Log;

pub(super) use attribution::{Attribution, Beside, LinkFailure};
use attribution::{FailureStreak, RecentOutcomes};

/// A longer gap between deliveries does not count as delivering time: a session's grace period stands still.
const DELIVERING_GAP: Duration = Duration::from_secs(10);

/// Bad records ahead of good ones are probed quickly: this many probes are sent without backoff, or this many for each
/// refusal that engaged the brake. After that it counts as a bad release.
const QUICK_PROBES: u32 = 1_000;
const QUICK_PROBES_OF_EACH: u32 = 10;
/// How long a brake waits for the delivery of a record that was never refused, before it walks past refused ones
/// (`drain/queues/walk.rs`).
const WALK_AFTER: Duration = Duration::from_secs(20);

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

/// When the next probe follows a probe of a held kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pause {
    /// At once: it is the second half of a step.
    AtOnce,
    /// After this pause, while probes of a braked kind may be sent without backoff.
    Short(Duration),
    /// With backoff: the probe brought nothing new.
    Backoff,
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

    /// Whether the brake is engaged: refusals make no dead letters.
    pub(super) fn is_braked(&self, log: Log) -> bool {
        self.known_of(log).held.as_ref().is_some_and(|held| held.trouble == Trouble::Refusing)
    }

    /// A session was unknown, which is `news` about this session. If several sessions get no other answer, the route is at
    /// fault: true if the kind is held from now on.
    pub(super) fn session_unknown(
        &mut self,
        log: Log,
        news: Option<LaneKey>,
        in_flight: usize,
        cause: &str,
        now: Instant,
    ) -> bool {
        let Some(session) = news else { return false };
        let failures_to_open = self.settings.failures_to_open;
        let enough = failures_to_open as usize;
        let route = self.of(log);
        route.unknown = route.unknown.saturating_add(1);
        if route.unknown_sessions.len() < enough {
            route.unknown_sessions.insert(session);
        }
        // Allows for as many as may have been in flight together: a few new sessions at once are not an outage.
        let in_a_row = failures_to_open.saturating_add(u32::try_from(in_flight).unwrap_or(u32::MAX));
        let is_route = route.unknown_sessions.len() >= enough && route.unknown >= in_a_row;
        is_route && self.hold(log, Trouble::NoRoute, cause, now)
    }

    /// The answer was that the route does not exist, whatever the record. True if the kind is held from now on.
    pub(super) fn absent(&mut self, log: Log, cause: &str, now: Instant) -> bool {
        let enough = self.settings.failures_to_open;
        let route = self.of(log);
        route.absent = route.absent.saturating_add(1);
        route.absent >= enough && self.hold(log, Trouble::NoRoute, cause, now)
    }

    /// Whether it is held for a trouble that may come from a missing batch endpoint.
    pub(super) fn may_lack_batches(&self, log: Log) -> bool {
        let held = self.known_of(log).held.as_ref();
        held.is_some_and(|held| matches!(held.trouble, Trouble::Refusing | Trouble::NoRoute))
    }

    /// Whether it is held because its sessions or its route are unknown.
    pub(super) fn has_no_route(&self, log: Log) -> bool {
        self.known_of(log).held.as_ref().is_some_and(|held| held.trouble == Trouble::NoRoute)
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

    /// The current progress of all kinds.
    pub(super) fn progress(&self, now: Instant) -> Unknown {
        Unknown {
            delivering: self.routes.each_ref().map(|route| route.delivering + route.gap(now)),
            deliveries: self.routes.each_ref().map(|route| route.deliveries),
        }
    }

    /// How long its kind has been delivered since a session was first unknown.
    pub(super) fn delivering_since(&self, log: Log, since: &Unknown) -> Duration {
        let at = place(log).unwrap_or_default();
        self.routes[at].delivering.saturating_sub(since.delivering[at])
    }

    /// Whether nothing of its kind was delivered since a session was first unknown.
    pub(super) fn is_news(&self, log: Log, since: &Unknown) -> bool {
        let at = place(log).unwrap_or_default();
        self.routes[at].deliveries == since.deliveries[at]
    }

    /// Time with the link down does not count as delivering time.
    pub(super) fn link_down(&mut self) {
        for route in &mut self.routes {
            route.last_delivery = None;
        }
    }

    /// The link is up again: held kinds may have failed with it.
    pub(super) fn link_up(&mut self, now: Instant) {
        self.until = self.until.map(|until| until.min(now));
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

    /// When a held log may be probed next, if there `is` something to send and no probe is in flight.
    pub(super) fn next_probe(&self, is: impl Fn(Log) -> bool) -> Option<Instant> {
        let until = self.until.filter(|_| self.probing.is_none())?;
        let held = LOGS.into_iter().zip(&self.routes).filter(|(log, route)| route.held.is_some() && is(*log));
        held.map(|(_, route)| route.asked.map_or(until, |asked| asked.max(until))).min()
    }

    /// The log to probe now, among those with something to send (`is`).
    pub(super) fn due(&self, now: Instant, is: impl Fn(Log) -> bool) -> Option<Log> {
        self.next_probe(&is).filter(|until| *until <= now)?;
        let in_turn = (0..LOGS.len()).map(|n| (self.turn + n) % LOGS.len());
        let may_go = |route: &Route| route.held.is_some() && route.asked.is_none_or(|asked| asked <= now);
        in_turn.filter(|at| may_go(&self.routes[*at])).map(|at| LOGS[at]).find(|log| is(*log))
    }

    /// A probe of this log was sent.
    pub(super) fn probe_sent(&mut self, log: Log) {
        let at = place(log).unwrap_or_default();
        self.probing = Some(at);
        self.turn = at + 1;
    }

    /// The probe was answered, and its result has been reported.
    pub(super) fn probe_answered(&mut self, log: Log, pause: Pause, now: Instant) {
        self.probing = None;
        // A release has already set the next probe of the others.
        let Some(held) = &self.known_of(log).held else { return };
        let walks_at = held.since + WALK_AFTER;
        let is_quick = self.quick_probes > 0 && self.all_held().all(|(log, _)| self.is_braked(log));
        match pause {
            Pause::AtOnce => {
                // The second half of a step is of the same kind.
                (self.until, self.turn) = (Some(now), place(log).unwrap_or_default());
            }
            Pause::Short(pause) if is_quick => {
                self.quick_probes -= 1;
                self.until = Some(now + pause);
            }
            Pause::Short(_) | Pause::Backoff => {
                self.failures = self.failures.saturating_add(1);
                self.wait(now);
                // A walk begins when it may.
                if is_quick && walks_at > now {
                    self.until = self.until.map(|until| until.min(walks_at));
                }
            }
        }
    }

    /// Whether a probe of this log may pass refused records.
    pub(super) fn may_walk(&self, log: Log, now: Instant) -> bool {
        let held = self.known_of(log).held.as_ref();
        held.is_some_and(|held| held.trouble == Trouble::Refusing && now >= held.since + WALK_AFTER)
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

    /// Delays probes of a held kind until this time.
    pub(super) fn asked_to_wait(&mut self, log: Log, wait: Duration, now: Instant) {
        let route = self.of(log);
        (route.asked, route.asked_at) = (route.asked.max(Some(now + wait)), Some(now));
    }

    /// Overrides the wait for an operator: the next probe may be sent now.
    pub(super) fn hurry(&mut self, now: Instant) {
        self.routes.iter_mut().for_each(|route| route.asked = None);
        self.link_up(now);
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

    fn wait(&mut self, now: Instant) {
        let (least, most) = (self.settings.initial_delay, self.settings.backoff(self.failures));
        self.until = Some(now + self.jitter.between(least, most));
    }
}

fn quick_probes(settings: &Settings) -> u32 {
    settings.refusal_brake.saturating_mul(QUICK_PROBES_OF_EACH).max(QUICK_PROBES)
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
