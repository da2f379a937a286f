//! The state of the link: circuit, backoff, the brake, and how many requests may be in flight.
//!
//! A pure state machine: the time is an argument, nothing here waits.
//!
//! A failure counts towards opening the circuit only if nothing has succeeded since its request was sent: with
//! many requests in flight a few failures among successes are the records' misfortune, not the link's.

use std::time::Duration;

use rand::RngExt;
use tokio::time::Instant;

use super::pace::Pace;
use super::verdict::Trouble;

/// How the link behaves.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Failures in a row that open the circuit.
    pub failures_to_open: u32,
    /// The shortest wait before a probe.
    pub initial_delay: Duration,
    /// The longest.
    pub max_backoff: Duration,
    /// By how much the wait grows.
    pub multiplier: f64,
    /// The most requests in flight.
    pub concurrency: usize,
    /// Refusals in a row that set the brake; 0: never.
    pub refusal_brake: u32,
}

/// Requests in flight after a start or an outage. It doubles with every round trip that goes well.
const INITIAL_LIMIT: f64 = 2.0;
/// A latency this many times the usual one, and [`SLOW_AT_LEAST`], is a queue building up over there.
const SLOW_TIMES: f64 = 8.0;
const SLOW_AT_LEAST: f64 = 0.25;

/// Longer without a delivery is no time in which records were being delivered: a session's grace stands still.
const DELIVERING_GAP: Duration = Duration::from_secs(10);

/// What the circuit is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Circuit {
    /// Requests flow.
    Closed,
    /// No request before the time given.
    Open {
        /// When the next probe may go.
        until: Instant,
    },
    /// One probe is under way.
    HalfOpen,
}

/// What changed, for the one log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// It went down.
    Down(Trouble),
    /// It came back.
    Up,
}

/// The link to the `ControlPlane`.
pub(super) struct Link {
    settings: Settings,
    circuit: Circuit,
    trouble: Option<Trouble>,
    failures: u32,
    openings: u32,
    refusals: u32,
    unknown: u32,
    last_success: Option<Instant>,
    last_delivery: Option<Instant>,
    deliveries: u64,
    delivering: Duration,
    limit: f64,
    threshold: f64,
    last_cut: Option<Instant>,
    usual_latency: Option<f64>,
    pace: Pace,
}

impl Link {
    /// A closed link that has not been used. `first_contact` jitters the first request of a fleet that starts at once.
    pub(super) fn new(settings: Settings, first_contact: Instant) -> Self {
        let threshold = settings.concurrency as f64;
        Self {
            circuit: Circuit::Open { until: first_contact },
            trouble: None,
            failures: 0,
            openings: 0,
            refusals: 0,
            unknown: 0,
            last_success: None,
            last_delivery: None,
            deliveries: 0,
            delivering: Duration::ZERO,
            limit: INITIAL_LIMIT.min(threshold),
            threshold,
            last_cut: None,
            usual_latency: None,
            pace: Pace::new(first_contact),
            settings,
        }
    }

    /// The circuit, as it is now.
    pub(super) fn circuit(&self) -> Circuit {
        self.circuit
    }

    /// What is wrong, if anything is.
    pub(super) fn trouble(&self) -> Option<Trouble> {
        self.trouble
    }

    /// How many requests may be in flight now.
    pub(super) fn limit(&self, now: Instant) -> usize {
        match self.circuit {
            Circuit::Closed => (self.limit as usize).max(1),
            Circuit::Open { until } => usize::from(until <= now),
            Circuit::HalfOpen => 1,
        }
    }

    /// Records settled by an answer so far.
    pub(super) fn deliveries(&self) -> u64 {
        self.deliveries
    }

    /// For how long records have been delivered, gaps in which the link was down left out.
    pub(super) fn delivering(&self) -> Duration {
        self.delivering
    }

    /// Whether refusals make no dead letters at present.
    pub(super) fn is_braked(&self) -> bool {
        self.trouble == Some(Trouble::Refusing)
    }

    /// When the next request may go, if pace is to be kept and that is not now.
    pub(super) fn paced_until(&mut self, now: Instant) -> Option<Instant> {
        if self.circuit == Circuit::Closed { self.pace.until(now) } else { None }
    }

    /// A request goes out.
    pub(super) fn sent(&mut self, now: Instant) {
        self.pace.sent(now);
        if matches!(self.circuit, Circuit::Open { .. }) {
            self.circuit = Circuit::HalfOpen;
        }
    }

    /// One request delivered so many records (or they had been before).
    pub(super) fn delivered(&mut self, records: u64, sent: Instant, now: Instant) -> Option<Change> {
        if let Some(last) = self.last_delivery {
            self.delivering += now.saturating_duration_since(last).min(DELIVERING_GAP);
        }
        self.last_delivery = Some(now);
        self.deliveries += records;
        self.refusals = 0;
        self.unknown = 0;
        self.good(now);
        self.grow(now.saturating_duration_since(sent), now);
        self.close(now)
    }

    /// A record was refused. The link works, but perhaps it refuses everything.
    pub(super) fn refused(&mut self, now: Instant) -> Option<Change> {
        self.refusals = self.refusals.saturating_add(1);
        if self.is_braked()
            || (self.settings.refusal_brake > 0 && self.refusals >= self.settings.refusal_brake)
        {
            return self.open(Trouble::Refusing, None, now);
        }
        self.good(now);
        self.close(now)
    }

    /// A session was not known. When nothing else is heard, it is the route.
    pub(super) fn session_unknown(&mut self, now: Instant) -> Option<Change> {
        self.unknown = self.unknown.saturating_add(1);
        // As many more as may have been in flight together: a few new sessions at once are no outage.
        let in_a_row = self.settings.failures_to_open + self.limit as u32;
        if self.unknown >= in_a_row || self.circuit == Circuit::HalfOpen {
            return self.open(Trouble::NoRoute, None, now);
        }
        None
    }

    /// The link failed.
    pub(super) fn failed(
        &mut self,
        trouble: Trouble,
        retry_after: Option<Duration>,
        sent: Instant,
        now: Instant,
    ) -> Option<Change> {
        if trouble.is_congestion() {
            self.shrink(now);
        }
        let definite = matches!(trouble, Trouble::Credentials | Trouble::Misconfigured);
        let counts = self.last_success.is_none_or(|success| sent >= success);
        self.failures += u32::from(counts);
        let asked_to_wait = retry_after.is_some() && trouble == Trouble::Overloaded;
        if definite
            || asked_to_wait
            || self.failures >= self.settings.failures_to_open
            || self.circuit == Circuit::HalfOpen
        {
            return self.open(trouble, retry_after, now);
        }
        None
    }

    fn good(&mut self, now: Instant) {
        self.pace.good(now);
        self.failures = 0;
        self.last_success = Some(now);
    }

    fn close(&mut self, now: Instant) -> Option<Change> {
        let was_down = self.trouble.take().is_some();
        if was_down {
            self.pace.restart(now);
        }
        if self.circuit != Circuit::Closed {
            self.circuit = Circuit::Closed;
            self.openings = 0;
            self.limit = INITIAL_LIMIT.min(self.settings.concurrency as f64);
        }
        was_down.then_some(Change::Up)
    }

    fn open(&mut self, trouble: Trouble, retry_after: Option<Duration>, now: Instant) -> Option<Change> {
        if let Circuit::Open { until } = self.circuit
            && self.trouble.is_some()
            && until > now
        {
            // Stragglers of the requests that were in flight when it opened change nothing but a longer wait asked for.
            if let Some(wait) = retry_after {
                self.circuit = Circuit::Open { until: until.max(now + wait) };
            }
            return None;
        }
        self.openings = self.openings.saturating_add(1);
        let wait =
            retry_after.unwrap_or_else(|| jittered(self.settings.initial_delay, self.backoff(self.openings)));
        self.circuit = Circuit::Open { until: now + wait };
        self.failures = 0;
        // A gap in which the link was down is no time in which records were delivered.
        self.last_delivery = None;
        let change = self.trouble != Some(trouble);
        // The brake stays the reason until a delivery: a probe that meets a 503 releases nothing.
        if !self.is_braked() {
            self.trouble = Some(trouble);
        }
        change.then_some(Change::Down(trouble))
    }

    /// The longest wait after so many failures.
    fn backoff(&self, failures: u32) -> Duration {
        let exponent = i32::try_from(failures.min(64)).unwrap_or(64);
        let seconds = self.settings.initial_delay.as_secs_f64() * self.settings.multiplier.powi(exponent);
        Duration::from_secs_f64(seconds.min(self.settings.max_backoff.as_secs_f64()))
    }

    /// How long one record waits after its `attempts`-th failure on a link that is up.
    pub(super) fn record_delay(&self, attempts: u32) -> Duration {
        jittered(Duration::ZERO, self.backoff(attempts.saturating_sub(1)))
    }

    fn grow(&mut self, latency: Duration, now: Instant) {
        let latency = latency.as_secs_f64();
        let usual = self.usual_latency.get_or_insert(latency);
        if latency > *usual * SLOW_TIMES && latency > SLOW_AT_LEAST {
            self.shrink(now);
        } else if self.limit < self.settings.concurrency as f64 {
            let step = if self.limit < self.threshold { 1.0 } else { 1.0 / self.limit };
            self.limit = (self.limit + step).min(self.settings.concurrency as f64);
        }
        // Follows a fall at once and a rise slowly, so that a growing queue is seen as one.
        let usual = self.usual_latency.get_or_insert(latency);
        *usual = if latency < *usual { latency } else { *usual * 0.999 + latency * 0.001 };
    }

    fn shrink(&mut self, now: Instant) {
        // Once a round trip: the other answers to the same excess say nothing new.
        let round = Duration::from_secs_f64(self.usual_latency.unwrap_or(0.1).max(0.01));
        if self.last_cut.is_none_or(|cut| now.saturating_duration_since(cut) > round) {
            self.last_cut = Some(now);
            self.pace.congested(now);
            self.limit = (self.limit / 2.0).max(1.0);
            self.threshold = self.limit;
        }
    }
}

fn jittered(least: Duration, most: Duration) -> Duration {
    if most <= least { least } else { rand::rng().random_range(least..=most) }
}

#[cfg(test)]
mod fleet;

#[cfg(test)]
mod tests {
    use super::*;

    fn link() -> Link {
        let settings = Settings {
            failures_to_open: 3,
            initial_delay: Duration::from_secs(5),
            max_backoff: Duration::from_secs(30),
            multiplier: 2.0,
            concurrency: 32,
            refusal_brake: 5,
        };
        Link::new(settings, Instant::now())
    }

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn three_failures_in_a_row_open_it_and_one_success_closes_it() {
        let (mut link, start) = (link(), Instant::now());
        link.sent(start);
        link.delivered(1, start, start + MS);
        assert_eq!(link.circuit(), Circuit::Closed);
        let now = start + 2 * MS;
        assert_eq!(link.failed(Trouble::Unreachable, None, now, now), None);
        assert_eq!(link.failed(Trouble::Unreachable, None, now, now), None);
        let change = link.failed(Trouble::Unreachable, None, now, now);
        assert_eq!(change, Some(Change::Down(Trouble::Unreachable)));
        assert_eq!(link.limit(now), 0, "nothing goes before the backoff is over");
        assert_eq!(link.limit(now + Duration::from_secs(31)), 1, "one probe");
        link.sent(start);
        assert_eq!(link.circuit(), Circuit::HalfOpen);
        assert_eq!(link.delivered(1, now, now + MS), Some(Change::Up));
        assert_eq!(link.limit(now), INITIAL_LIMIT as usize, "it starts small");
    }

    #[test]
    fn failures_among_successes_do_not_open_it() {
        let (mut link, start) = (link(), Instant::now());
        for n in 0..100 {
            let now = start + n * MS;
            link.delivered(1, start, now);
            assert_eq!(link.failed(Trouble::Failing, None, start, now + MS), None, "sent before the success");
        }
        assert_eq!(link.circuit(), Circuit::Closed);
    }

    #[test]
    fn the_wait_stays_between_its_bounds_and_grows() {
        let mut link = link();
        for round in 0..40 {
            let now = Instant::now();
            link.circuit = Circuit::HalfOpen;
            link.failed(Trouble::Unreachable, None, now, now);
            let Circuit::Open { until } = link.circuit() else { panic!("round {round}: not open") };
            let most = if round == 0 { 10 } else { 30 };
            assert!(until - now >= Duration::from_secs(5) && until - now <= Duration::from_secs(most));
        }
    }

    #[test]
    fn the_brake_holds_until_a_delivery() {
        let (mut link, now) = (link(), Instant::now());
        link.delivered(1, now, now);
        for _ in 0..4 {
            assert_eq!(link.refused(now), None);
        }
        assert_eq!(link.refused(now), Some(Change::Down(Trouble::Refusing)));
        assert!(link.is_braked());
        link.circuit = Circuit::HalfOpen;
        link.failed(Trouble::Unreachable, None, now, now);
        assert!(link.is_braked(), "another fault does not release it");
        link.circuit = Circuit::HalfOpen;
        assert_eq!(link.delivered(1, now, now), Some(Change::Up));
        assert!(!link.is_braked());
    }

    #[test]
    fn retry_after_is_obeyed() {
        let (mut link, now) = (link(), Instant::now());
        link.failed(Trouble::Overloaded, Some(Duration::from_secs(77)), now, now);
        assert_eq!(link.circuit(), Circuit::Open { until: now + Duration::from_secs(77) });
    }

    #[test]
    fn time_in_which_the_link_was_down_is_not_time_of_delivering() {
        let (mut link, start) = (link(), Instant::now());
        link.delivered(1, start, start);
        link.delivered(1, start, start + Duration::from_secs(10));
        assert_eq!(link.delivering(), Duration::from_secs(10));
        let later = start + Duration::from_secs(20);
        for _ in 0..3 {
            link.failed(Trouble::Unreachable, None, later, later);
        }
        link.delivered(1, later, later + Duration::from_secs(3600));
        assert_eq!(link.delivering(), Duration::from_secs(10));
    }
}
