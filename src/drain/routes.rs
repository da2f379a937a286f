//! What is known of each kind of records by itself, and which kinds are held.
//!
//! The [`super::link`] is one for all: it can be reached, it lets us in, it is not overloaded. Whether the `ControlPlane`
//! still takes *this* kind it does not tell: a release may refuse all usage, or have lost the route for it, while events and
//! quota requests go on as ever. So deliveries, refusals and unknown sessions are counted for each kind, and what is
//! delivered of one is no evidence for another.
//!
//! A kind of which everything is refused, or every session unknown, is *held*: nothing more of it becomes a dead letter, one
//! of its records at a time probes it, and the other kinds go on. However many kinds are held, they take turns: an outage of
//! all of them is as quiet as that of one.
//!
//! A pure state machine: the time is an argument, nothing here waits.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::Instant;

use super::lanes::{Fares, LOGS, LaneKey, Tries, Unknown, place};
use super::link::{Jitter, Settings};
use super::verdict::Trouble;
use crate::outbox::Log;

/// Longer without a delivery is no time in which records were being delivered: a session's grace stands still.
const DELIVERING_GAP: Duration = Duration::from_secs(10);
/// 5xx is a record's own fault when so much of its kind has passed for each other failure: else it is load, or an outage of
/// a part of the `ControlPlane`.
const PASS_FOR_EACH_FAILED: u64 = 4;

/// What is known of one kind.
#[derive(Debug, Default)]
struct Route {
    deliveries: u64,
    delivering: Duration,
    last_delivery: Option<Instant>,
    /// Refusals since the last delivery.
    refusals: u32,
    /// Answers since then that a session is not known ...
    unknown: u32,
    /// ... and whose these were; a few are enough to know.
    unknown_sessions: HashSet<LaneKey>,
    /// Answers since then that there is no such route.
    absent: u32,
    /// How it has fared so far. What is answered as a whole counts once, however much is in it: an outage does not ask.
    fares: Fares,
    /// Lanes whose head has met 5xx, and waits.
    failing: HashSet<LaneKey>,
    /// Why it is held.
    held: Option<Held>,
}

/// Which others' fortunes tell whether a failure is a record's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Beside {
    /// Those of its kind.
    ItsKind,
    /// Any: it was answered 2xx, and only the answer is worth nothing.
    Any,
}

/// Why a kind is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) trouble: Trouble,
    /// The answer that showed it.
    pub(super) cause: String,
}

/// All kinds, in the order of [`LOGS`].
pub(super) struct Routes {
    settings: Settings,
    routes: [Route; LOGS.len()],
    /// Refusals of whichever kind since the last delivery of any, those left out that met a brake.
    in_a_row: u32,
    /// When the next probe of what is held may go.
    until: Option<Instant>,
    /// Of which log one is under way.
    probing: Option<usize>,
    /// Whose turn it is.
    turn: usize,
    /// Probes in a row that brought nothing.
    failures: u32,
    jitter: Jitter,
}

impl Routes {
    pub(super) fn new(settings: Settings) -> Self {
        let routes = std::array::from_fn(|_| Route::default());
        let jitter = Jitter::default();
        Self { settings, routes, in_a_row: 0, until: None, probing: None, turn: 0, failures: 0, jitter }
    }

    fn of(&mut self, log: Log) -> &mut Route {
        &mut self.routes[place(log).unwrap_or_default()]
    }

    fn known_of(&self, log: Log) -> &Route {
        &self.routes[place(log).unwrap_or_default()]
    }

    /// Refusals that an earlier process met, and of which no delivery is known: the brake goes on where it was. The next
    /// refusal is a dead letter for sure, so that one bad record is still told from a bad release.
    pub(super) fn remember_refusals(&mut self, log: Log, refusals: u32) {
        let most = self.settings.refusal_brake.saturating_sub(1);
        self.of(log).refusals = refusals.min(most);
    }

    /// So many were delivered, or had been before. True if that ends a hold.
    pub(super) fn delivered(&mut self, log: Log, records: u64, now: Instant) -> bool {
        self.in_a_row = 0;
        let route = self.of(log);
        if let Some(last) = route.last_delivery {
            route.delivering += now.saturating_duration_since(last).min(DELIVERING_GAP);
        }
        route.last_delivery = Some(now);
        route.deliveries += records;
        route.fares.passes += 1;
        route.forget();
        self.let_go(log, now)
    }

    /// One was refused. True if it is one too many: from now on its kind is held.
    pub(super) fn refused(&mut self, log: Log, cause: &str, now: Instant) -> bool {
        let brake = self.settings.refusal_brake;
        self.in_a_row = self.in_a_row.saturating_add(u32::from(!self.is_braked(log)));
        let in_a_row = self.in_a_row;
        let route = self.of(log);
        route.refusals = route.refusals.saturating_add(1);
        let is_enough = brake > 0 && (route.refusals >= brake || in_a_row >= brake);
        is_enough && self.hold(log, Trouble::Refusing, cause, now)
    }

    /// Whether refusals of it make no dead letters at present.
    pub(super) fn is_braked(&self, log: Log) -> bool {
        self.known_of(log).held.as_ref().is_some_and(|held| held.trouble == Trouble::Refusing)
    }

    /// Whether a refusal that was just told makes a dead letter: also the one that sets the brake, unless so many of other
    /// kinds did before it.
    pub(super) fn gives_up(&self, log: Log, sets_brake: bool) -> bool {
        !self.is_braked(log) || (sets_brake && self.in_a_row <= self.settings.refusal_brake)
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
        // As many more as may have been in flight together: a few new sessions at once are no outage.
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

    /// How many were delivered so far.
    pub(super) fn deliveries(&self, log: Log) -> u64 {
        self.known_of(log).deliveries
    }

    /// How far all kinds have come.
    pub(super) fn progress(&self) -> Unknown {
        Unknown {
            delivering: self.routes.each_ref().map(|route| route.delivering),
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

    /// Of a batch that was answered record by record, so many passed beside some that failed: each by itself.
    pub(super) fn passed_apart(&mut self, log: Log, records: u64) {
        self.of(log).fares.passes += records.saturating_sub(1);
    }

    /// The server failed on this record alone. Whether others have passed since it was last tried.
    pub(super) fn failed_on(&mut self, log: Log, beside: Beside, tries: &mut Tries) -> bool {
        let before = *tries;
        self.note(log, tries);
        self.of(log).fares.failures += 1;
        tries.own_failures += 1;
        match beside {
            Beside::ItsKind => tries.deliveries > before.deliveries,
            Beside::Any => tries.any_deliveries > before.any_deliveries,
        }
    }

    /// The server failed on a batch as a whole: perhaps for one of these, if others have passed since it was last tried.
    pub(super) fn failed_on_all<'a>(&mut self, log: Log, batch: impl Iterator<Item = &'a mut Tries>) -> bool {
        let deliveries = self.deliveries(log);
        let mut others_passed = false;
        for tries in batch {
            others_passed |= deliveries > tries.deliveries;
            self.note(log, tries);
            tries.own_failures += 1;
        }
        self.of(log).fares.failures += 1;
        others_passed
    }

    /// The head of a lane has met 5xx, by itself.
    pub(super) fn is_failing(&mut self, log: Log, key: LaneKey) {
        self.of(log).failing.insert(key);
    }

    /// The head of a lane is done with.
    pub(super) fn is_done(&mut self, log: Log, key: LaneKey) {
        self.of(log).failing.remove(&key);
    }

    /// All lanes are forgotten.
    pub(super) fn forget_lanes(&mut self) {
        self.routes.iter_mut().for_each(|route| route.failing.clear());
    }

    /// Whether the failures that a record has met are its own: since it was first tried, hardly anything else has failed, and
    /// no more records fail at the same time than may be refused in a row. Else it is always the same part that is out.
    pub(super) fn are_its_own(&self, log: Log, beside: Beside, tries: &Tries) -> bool {
        if beside == Beside::Any {
            return true;
        }
        let (route, most) = (self.known_of(log), self.settings.refusal_brake as usize);
        let others_failed = (route.fares.failures - tries.first.failures).saturating_sub(tries.own_failures);
        let passed = route.fares.passes - tries.first.passes;
        passed >= PASS_FOR_EACH_FAILED * others_failed && (most == 0 || route.failing.len() <= most)
    }

    /// A record is tried for the first time.
    pub(super) fn begin(&self, log: Log, tries: &mut Tries) {
        self.note(log, tries);
        tries.first = self.known_of(log).fares;
    }

    /// Notes how far the others have come, to be compared with at the next attempt.
    fn note(&self, log: Log, tries: &mut Tries) {
        tries.deliveries = self.deliveries(log);
        tries.any_deliveries = self.routes.iter().map(|route| route.deliveries).sum();
    }

    /// A gap in which the link was down is no time in which records were delivered.
    pub(super) fn link_down(&mut self) {
        for route in &mut self.routes {
            route.last_delivery = None;
        }
    }

    /// Which logs are held.
    pub(super) fn held(&self) -> [bool; LOGS.len()] {
        self.routes.each_ref().map(|route| route.held.is_some())
    }

    /// Which are held, and why.
    pub(super) fn all_held(&self) -> impl Iterator<Item = (Log, &Held)> {
        LOGS.into_iter().zip(&self.routes).filter_map(|(log, route)| Some((log, route.held.as_ref()?)))
    }

    /// When the next probe of what is held may go, if none is under way.
    pub(super) fn next_probe(&self) -> Option<Instant> {
        self.until.filter(|_| self.probing.is_none())
    }

    /// The log to be probed now, of those of which there `is` something to send.
    pub(super) fn due(&self, now: Instant, is: impl Fn(Log) -> bool) -> Option<Log> {
        self.next_probe().filter(|until| *until <= now)?;
        let in_turn = (0..LOGS.len()).map(|n| (self.turn + n) % LOGS.len());
        in_turn.filter(|at| self.routes[*at].held.is_some()).map(|at| LOGS[at]).find(|log| is(*log))
    }

    /// A probe of this log goes out.
    pub(super) fn probe_sent(&mut self, log: Log) {
        let at = place(log).unwrap_or_default();
        self.probing = Some(at);
        self.turn = at + 1;
    }

    /// The probe was answered, and what it said was told.
    pub(super) fn probe_answered(&mut self, log: Log, now: Instant) {
        self.probing = None;
        // One that was let go has set the next probe of the others itself.
        if self.known_of(log).held.is_some() {
            self.failures = self.failures.saturating_add(1);
            self.wait(now);
        }
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

    /// Somebody knows better than to wait: the next probe may go now.
    pub(super) fn hurry(&mut self, now: Instant) {
        self.until = self.until.map(|until| until.min(now));
    }

    fn hold(&mut self, log: Log, trouble: Trouble, cause: &str, now: Instant) -> bool {
        let route = self.of(log);
        route.last_delivery = None;
        if route.held.as_ref().is_some_and(|held| held.trouble == trouble) {
            return false;
        }
        route.held = Some(Held { trouble, cause: cause.to_owned() });
        if self.until.is_none() {
            self.failures = 1;
            self.wait(now);
        }
        true
    }

    fn let_go(&mut self, log: Log, now: Instant) -> bool {
        let was_held = self.of(log).held.take().is_some();
        if was_held {
            self.failures = 1;
            // Where one is mended the others may be.
            self.until = self.held().contains(&true).then_some(now);
        }
        was_held
    }

    fn wait(&mut self, now: Instant) {
        let (least, most) = (self.settings.initial_delay, self.settings.backoff(self.failures));
        self.until = Some(now + self.jitter.between(least, most));
    }
}

impl Route {
    /// Nothing speaks against it any more.
    fn forget(&mut self) {
        (self.refusals, self.unknown, self.absent) = (0, 0, 0);
        self.unknown_sessions.clear();
    }
}

#[cfg(test)]
mod tests;
