//! The state of each record type, and which types are held.
//!
//! The [`super::link`] is one for all: it can be reached, it lets us in, it is not overloaded. Whether the `ControlPlane`
//! still takes *this* kind it does not tell: a release may refuse all usage, or have lost the route for it, while events and
//! quota requests go on as ever. So deliveries, refusals and unknown sessions are counted for each kind, and what is
//! delivered of one is no evidence for another.
//!
//! A kind of which everything is refused, or every session unknown, or which alone meets what else would be the link's
//! trouble ([`attribution`]), is *held*: no record of it is given up for that, one at a time probes it, and the other kinds go
//! on. However many kinds are held, they take turns: an outage of all of them is as quiet as that of one.
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

/// A longer gap between deliveries does not count as delivering time: a session's grace stands still.
const DELIVERING_GAP: Duration = Duration::from_secs(10);

/// Bad records ahead of good ones are probed quickly: this many probes go without backoff, or this many for each refusal
/// that engaged the brake. After that it is a bad release.
const QUICK_PROBES: u32 = 1_000;
const QUICK_PROBES_OF_EACH: u32 = 10;
/// How long a brake waits for the delivery of a record that was never refused before it walks past refused ones
/// (`drain/queues/walk.rs`).
const WALK_AFTER: Duration = Duration::from_secs(20);

/// After a brake this short, sending need not start small.
const BRIEF: Duration = Duration::from_secs(120);

/// The state of one type.
#[derive(Debug, Default)]
struct Route {
    deliveries: u64,
    delivering: Duration,
    last_delivery: Option<Instant>,
    /// Refusals since the last delivery.
    refusals: u32,
    /// Answers since then that a session is not known ...
    unknown: u32,
    /// ... and their sessions; a few are enough to know.
    unknown_sessions: HashSet<LaneKey>,
    /// Answers since then that there is no such route.
    absent: u32,
    /// Its outcomes so far. A request answered as a whole counts once, whatever its size.
    outcomes: Outcomes,
    /// Lanes whose head got 5xx and waits.
    failing: HashSet<LaneKey>,
    /// What the link may be to blame for, since one of it was last answered.
    streak: FailureStreak,
    /// The outcomes of its last requests.
    recent: RecentOutcomes,
    /// It was held for such, and then some of it passed.
    is_partial: bool,
    /// When one of it was last delivered.
    passed_at: Option<Instant>,
    /// When one of it was last delivered or otherwise answered.
    answered_at: Option<Instant>,
    /// Why it is held.
    held: Option<Held>,
    /// The brake that was released last.
    last_brake: Option<Brake>,
    /// Not to be probed before this.
    asked: Option<Instant>,
}

/// Why a kind is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) trouble: Trouble,
    /// The answer that showed it.
    pub(super) cause: String,
    /// Since when it is held.
    pub(super) since: Instant,
}

/// A brake that was released.
#[derive(Clone, Copy, Debug)]
struct Brake {
    since: Instant,
    until: Instant,
}

/// When the next probe follows a probe of a held type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pause {
    /// None: it is the second half of a step.
    AtOnce,
    /// After this pause, while probes of a braked type may go without backoff.
    Short(Duration),
    /// With backoff: this one brought nothing new.
    Backoff,
}

/// All kinds, in the order of [`LOGS`].
pub(super) struct Routes {
    settings: Settings,
    routes: [Route; LOGS.len()],
    /// Refusals of any type since the last delivery of any, except those of braked types.
    in_a_row: u32,
    /// When the next probe of a held type may go.
    until: Option<Instant>,
    /// Of which log one is under way.
    probing: Option<usize>,
    /// Whose turn it is.
    turn: usize,
    /// Probes in a row that brought nothing.
    failures: u32,
    /// Remaining probes of a braked type without backoff.
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

    /// Refusals that an earlier process met, and of which no delivery is known: the brake goes on where it was. One more
    /// record can be refused and confirmed, so that one bad record is still told from a bad release.
    pub(super) fn remember_refusals(&mut self, log: Log, refusals: u32) {
        let most = self.settings.refusal_brake.saturating_sub(u32::from(CONFIRMED) + 1);
        self.of(log).refusals = refusals.min(most);
    }

    /// So many were delivered, or had been before. True if that ends a hold.
    pub(super) fn delivered(&mut self, log: Log, records: u64, now: Instant) -> bool {
        self.in_a_row = 0;
        // Deliveries of one type say nothing about another that is refused.
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
        self.let_go(log, now)
    }

    /// A record was refused. True if that engages the brake: its type is held from now on.
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

    /// A session was not known, which is `news` of this one. When that is all that is heard, of several sessions, it is the
    /// route: true if from now on it is held.
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
        // Plus as many as may have been in flight together: a few new sessions at once are no outage.
        let in_a_row = failures_to_open.saturating_add(u32::try_from(in_flight).unwrap_or(u32::MAX));
        let is_route = route.unknown_sessions.len() >= enough && route.unknown >= in_a_row;
        is_route && self.hold(log, Trouble::NoRoute, cause, now)
    }

    /// It was said that there is no such route, whatever the record. True if from now on it is held.
    pub(super) fn absent(&mut self, log: Log, cause: &str, now: Instant) -> bool {
        let enough = self.settings.failures_to_open;
        let route = self.of(log);
        route.absent = route.absent.saturating_add(1);
        route.absent >= enough && self.hold(log, Trouble::NoRoute, cause, now)
    }

    /// Whether it is held for what an endpoint of batches that is none says to everything.
    pub(super) fn may_lack_batches(&self, log: Log) -> bool {
        let held = self.known_of(log).held.as_ref();
        held.is_some_and(|held| matches!(held.trouble, Trouble::Refusing | Trouble::NoRoute))
    }

    /// Whether it is held because nobody knows its sessions, or its route.
    pub(super) fn has_no_route(&self, log: Log) -> bool {
        self.known_of(log).held.as_ref().is_some_and(|held| held.trouble == Trouble::NoRoute)
    }

    /// Whether the last released brake had been engaged only briefly.
    pub(super) fn was_braked_briefly(&self, log: Log) -> bool {
        self.known_of(log).last_brake.is_some_and(|brake| brake.until < brake.since + BRIEF)
    }

    /// How many were delivered so far.
    pub(super) fn deliveries(&self, log: Log) -> u64 {
        self.known_of(log).deliveries
    }

    /// The current progress of all types.
    pub(super) fn progress(&self, now: Instant) -> Unknown {
        Unknown {
            delivering: self.routes.each_ref().map(|route| route.delivering + route.gap(now)),
            deliveries: self.routes.each_ref().map(|route| route.deliveries),
        }
    }

    /// For how long its kind has been delivered since a session was first unknown.
    pub(super) fn delivering_since(&self, log: Log, since: &Unknown) -> Duration {
        let at = place(log).unwrap_or_default();
        self.routes[at].delivering.saturating_sub(since.delivering[at])
    }

    /// Whether none of its kind has been delivered since a session was first unknown.
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

    /// The link is up again: held types may have failed with it.
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

    /// Which are held, and why.
    pub(super) fn all_held(&self) -> impl Iterator<Item = (Log, &Held)> {
        LOGS.into_iter().zip(&self.routes).filter_map(|(log, route)| Some((log, route.held.as_ref()?)))
    }

    /// When the next probe may go of what is held and of which there `is` something to send, if none is under way.
    pub(super) fn next_probe(&self, is: impl Fn(Log) -> bool) -> Option<Instant> {
        let until = self.until.filter(|_| self.probing.is_none())?;
        let held = LOGS.into_iter().zip(&self.routes).filter(|(log, route)| route.held.is_some() && is(*log));
        held.map(|(_, route)| route.asked.map_or(until, |asked| asked.max(until))).min()
    }

    /// The log to be probed now, of those of which there `is` something to send.
    pub(super) fn due(&self, now: Instant, is: impl Fn(Log) -> bool) -> Option<Log> {
        self.next_probe(&is).filter(|until| *until <= now)?;
        let in_turn = (0..LOGS.len()).map(|n| (self.turn + n) % LOGS.len());
        let may_go = |route: &Route| route.held.is_some() && route.asked.is_none_or(|asked| asked <= now);
        in_turn.filter(|at| may_go(&self.routes[*at])).map(|at| LOGS[at]).find(|log| is(*log))
    }

    /// A probe of this log goes out.
    pub(super) fn probe_sent(&mut self, log: Log) {
        let at = place(log).unwrap_or_default();
        self.probing = Some(at);
        self.turn = at + 1;
    }

    /// The probe was answered, and what it said was told.
    pub(super) fn probe_answered(&mut self, log: Log, pause: Pause, now: Instant) {
        self.probing = None;
        // A release has already set the next probe of the others.
        let Some(held) = &self.known_of(log).held else { return };
        let walks_at = held.since + WALK_AFTER;
        let is_quick = self.quick_probes > 0 && self.all_held().all(|(log, _)| self.is_braked(log));
        match pause {
            Pause::AtOnce => {
                // The second half of a step is of the same type.
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

    /// Whether a probe of this log may go past records that were refused.
    pub(super) fn may_walk(&self, log: Log, now: Instant) -> bool {
        let held = self.known_of(log).held.as_ref();
        held.is_some_and(|held| held.trouble == Trouble::Refusing && now >= held.since + WALK_AFTER)
    }

    /// The operator knows better: records may go again, and be refused. What has no route is asked for it at once. Gives
    /// what was let go.
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

    /// Delays probes of a held type until this.
    pub(super) fn asked_to_wait(&mut self, log: Log, until: Instant) {
        let asked = &mut self.of(log).asked;
        *asked = (*asked).max(Some(until));
    }

    /// An operator overrides the wait: the next probe may go now.
    pub(super) fn hurry(&mut self, now: Instant) {
        self.routes.iter_mut().for_each(|route| route.asked = None);
        self.link_up(now);
    }

    fn hold(&mut self, log: Log, trouble: Trouble, cause: &str, now: Instant) -> bool {
        let route = self.of(log);
        route.last_delivery = None;
        // IMPORTANT: a brake stays engaged; otherwise each change of the answer would cost a dead letter.
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
        // If one works again the others may, too.
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
    /// The time since its last delivery, as far as a delivery now would make it one in which it was being delivered.
    fn gap(&self, now: Instant) -> Duration {
        let since = |last| now.saturating_duration_since(last).min(DELIVERING_GAP);
        self.last_delivery.map(since).unwrap_or_default()
    }

    /// Nothing speaks against it any more.
    fn forget(&mut self) {
        (self.refusals, self.unknown, self.absent) = (0, 0, 0);
        self.unknown_sessions.clear();
        self.streak = FailureStreak::default();
    }
}

#[cfg(test)]
mod tests;
