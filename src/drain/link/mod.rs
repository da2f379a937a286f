//! The state of the link: circuit breaker, backoff, and how many requests may be in flight. It is shared by all kinds of
//! records; the state of a single kind is in [`super::routes`].
//!
//! A pure state machine: the time is an argument, nothing here waits.
//!
//! A failure counts towards opening the circuit only if nothing has succeeded since its request was sent: with many requests
//! in flight, a few failures among successes are the records', not the link's.
//!
//! Two limits apply to what is in flight: requests, which a `ControlPlane` reduces by shedding them, and bytes, which
//! follow the path's delay ([`window`]).

mod rate;
mod waits;
mod window;

use std::time::Duration;

use tokio::time::Instant;

use super::verdict::Trouble;
use rate::RateLimiter;
pub(super) use waits::{Jitter, asked_wait};
use waits::{SHORTEST_ASKED, jittered};
pub use window::Flight;
use window::Window;

/// Settings of the link.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Failures in a row that open the circuit.
    pub failures_to_open: u32,
    /// The shortest wait before a probe.
    pub initial_delay: Duration,
    /// The longest.
    pub max_backoff: Duration,
    /// Growth factor of the wait.
    pub multiplier: f64,
    /// Maximum requests in flight.
    pub concurrency: usize,
    /// Refusals of a kind in a row that engage its refusal brake; 0: never.
    pub refusal_brake: u32,
}

impl Settings {
    #[cfg(test)]
    pub(super) fn of_test() -> Self {
        Self {
            failures_to_open: 3,
            initial_delay: Duration::from_secs(5),
            max_backoff: Duration::from_secs(30),
            multiplier: 2.0,
            concurrency: 32,
            refusal_brake: 5,
        }
    }

    /// The longest wait after this many failures.
    pub(super) fn backoff(&self, failures: u32) -> Duration {
        self.backoff_from(self.initial_delay, failures)
    }

    fn backoff_from(&self, first: Duration, failures: u32) -> Duration {
        let exponent = i32::try_from(failures.min(64)).unwrap_or(64);
        let seconds = first.as_secs_f64() * self.multiplier.powi(exponent);
        Duration::from_secs_f64(seconds.min(self.max_backoff.as_secs_f64()))
    }
}

/// Requests in flight after a start or an outage. The limit doubles with every successful round trip.
const INITIAL_LIMIT: f64 = 2.0;

/// The longest wait of a quota request after its first failure on a link that is up.
const QUOTA_DELAY: Duration = Duration::from_secs(1);

/// The state of the circuit breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Circuit {
    /// Requests flow.
    Closed,
    /// No request before this time.
    Open {
        /// When the next probe may be sent.
        until: Instant,
    },
    /// One probe is in flight.
    HalfOpen,
}

/// A change of state, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The link went down.
    Down(Trouble),
    /// The link came back.
    Up,
}

/// The link to the `ControlPlane`.
pub struct Link {
    settings: Settings,
    circuit: Circuit,
    trouble: Option<Trouble>,
    /// Whether nothing but shedding has gone wrong since the link was last up.
    is_only_shed: bool,
    failures: u32,
    openings: u32,
    /// Whether the peer asked for the wait: then only a probe after it ends it.
    asked_to_wait: bool,
    last_success: Option<Instant>,
    limit: f64,
    threshold: f64,
    window: Window,
    rate_limiter: RateLimiter,
    jitter: Jitter,
}

impl Link {
    /// A closed, unused link. `first_contact` delays the first request, which spreads a fleet that starts at once.
    pub fn new(settings: Settings, first_contact: Instant) -> Self {
        let threshold = settings.concurrency as f64;
        Self {
            circuit: Circuit::Open { until: first_contact },
            trouble: None,
            is_only_shed: false,
            failures: 0,
            openings: 0,
            asked_to_wait: false,
            last_success: None,
            limit: INITIAL_LIMIT.min(threshold),
            threshold,
            window: Window::new(),
            rate_limiter: RateLimiter::new(first_contact),
            jitter: Jitter::default(),
            settings,
        }
    }

    /// The state of the circuit breaker.
    pub fn circuit(&self) -> Circuit {
        self.circuit
    }

    /// The current trouble, if any.
    pub(super) fn trouble(&self) -> Option<Trouble> {
        self.trouble
    }

    /// How many requests may be in flight now.
    pub fn limit(&self, now: Instant) -> usize {
        match self.circuit {
            Circuit::Closed => (self.limit as usize).max(1),
            Circuit::Open { until } => usize::from(until <= now),
            Circuit::HalfOpen => 1,
        }
    }

    /// Overrides the wait for an operator: the next probe may be sent now.
    pub(super) fn hurry(&mut self, now: Instant) {
        if let Circuit::Open { until } = &mut self.circuit {
            *until = now.min(*until);
        }
    }

    /// The probe's answer showed nothing about the link: another probe may be sent.
    pub(super) fn undecided(&mut self, now: Instant) {
        if self.circuit == Circuit::HalfOpen {
            self.circuit = Circuit::Open { until: now };
        }
    }

    /// A request without a record was answered while no record can probe: the peer is reachable and accepts the
    /// credentials.
    pub(super) fn answered_elsewhere(&mut self, now: Instant) -> Option<Change> {
        use Trouble::{Credentials, Timeout, Tls, Unreachable};
        let is_mended = matches!(self.trouble, Some(Unreachable | Timeout | Tls | Credentials));
        let is_due = matches!(self.circuit, Circuit::Open { until } if until <= now);
        if is_mended && is_due { self.close(now) } else { None }
    }

    /// When the rate limit allows the next request, if not now. Quota requests do not wait for it; later requests make up
    /// for them.
    pub fn rate_limited_until(&mut self, now: Instant) -> Option<Instant> {
        if self.circuit == Circuit::Closed { self.rate_limiter.until(now) } else { None }
    }

    /// The number of requests over which to spread a backlog of so many lanes.
    pub fn pipes(&self, largest: f64, lanes: usize, now: Instant) -> usize {
        self.window.pipes(largest, lanes).min(self.limit(now)).max(1)
    }

    /// The size of the next request's body, if the window of bytes has room for it among so many `pipes`.
    pub fn room(&self, pipes: usize, now: Instant) -> Option<usize> {
        self.window.room(pipes, now)
    }

    /// When the window is restored after a brief reduction.
    pub fn whole_again(&self, now: Instant) -> Option<Instant> {
        self.window.whole_again(now)
    }

    /// Recent bytes per second on the link, and its shortest round trip.
    pub(super) fn measured(&self) -> (f64, Option<Duration>) {
        (self.window.rate(), self.window.round_trip())
    }

    /// A request of this many bytes is sent on this route.
    pub fn sent(&mut self, route: usize, bytes: u64, now: Instant) -> Flight {
        self.rate_limiter.sent(now);
        self.begin(route, bytes, now)
    }

    /// The same for a quota request, which did not wait for the rate.
    pub fn sent_quota(&mut self, route: usize, bytes: u64, now: Instant) -> Flight {
        self.rate_limiter.sent_quota(now);
        self.begin(route, bytes, now)
    }

    fn begin(&mut self, route: usize, bytes: u64, now: Instant) -> Flight {
        if matches!(self.circuit, Circuit::Open { .. }) {
            self.circuit = Circuit::HalfOpen;
        }
        self.window.sent(route, bytes, now)
    }

    /// A request has ended.
    pub fn landed(&mut self, flight: Flight) {
        self.window.landed(flight);
    }

    /// A request delivered records, now or before. Call it once per request.
    pub fn delivered(&mut self, flight: Flight, now: Instant) -> Option<Change> {
        self.rate_limiter.delivered();
        self.good(now);
        self.window.delivered(flight, now);
        self.grow();
        self.close(now)
    }

    /// A request was answered, though without success: the link works.
    pub(super) fn answered(&mut self, now: Instant) -> Option<Change> {
        self.good(now);
        self.close(now)
    }

    /// A session or route was not found: the link answers again.
    pub(super) fn not_found(&mut self, now: Instant) -> Option<Change> {
        if self.circuit == Circuit::HalfOpen { self.close(now) } else { None }
    }

    /// A possibly large backlog is released: start small, as after an outage.
    pub(super) fn begin_small(&mut self, now: Instant) {
        self.rate_limiter.restart_if_faster(now);
        self.window.restart();
        self.limit = self.limit.min(INITIAL_LIMIT);
    }

    /// A kind's trouble was wrongly attributed to the link: undo that. The next request shows whether all else is well.
    pub(super) fn was_not_to_blame(&mut self, trouble: Trouble, now: Instant) {
        self.hurry(now);
        if trouble.is_congestion() {
            self.rate_limiter.begin_anew(now);
            self.threshold = self.settings.concurrency as f64;
        }
    }

    /// The link failed.
    pub fn failed(
        &mut self,
        trouble: Trouble,
        retry_after: Option<Duration>,
        flight: Flight,
        now: Instant,
    ) -> Option<Change> {
        let is_new = match trouble {
            // Smaller requests would mean more requests. A shed probe says nothing about the rate.
            Trouble::Overloaded => self.circuit == Circuit::Closed && self.window.shed(flight, now),
            Trouble::Timeout => self.window.congested(flight, now),
            _ => false,
        };
        if is_new {
            self.limit = (self.limit / 2.0).max(1.0);
            self.threshold = self.limit;
            self.rate_limiter.congested(now);
        }
        let counts = self.last_success.is_none_or(|success| flight.sent >= success);
        self.failures += u32::from(counts);
        let asked_to_wait = retry_after.is_some_and(|wait| wait >= SHORTEST_ASKED);
        if trouble.is_definite() && counts
            || asked_to_wait
            || self.failures >= self.settings.failures_to_open
            || self.circuit == Circuit::HalfOpen
        {
            return self.open(trouble, retry_after, now);
        }
        None
    }

    fn good(&mut self, now: Instant) {
        self.rate_limiter.good(now);
        self.failures = 0;
        self.last_success = Some(now);
    }

    fn close(&mut self, now: Instant) -> Option<Change> {
        let waits = matches!(self.circuit, Circuit::Open { until } if until > now);
        if self.asked_to_wait && waits {
            // The answer belongs to a request sent before the wait was asked for.
            return None;
        }
        let trouble = self.trouble.take();
        let was_down = trouble.is_some();
        // A recently learned limit still holds: a fleet that forgot it would be shed again.
        let was_shed = was_down && self.is_only_shed && self.rate_limiter.is_fresh(now);
        if was_down && !was_shed {
            self.rate_limiter.restart(now);
        }
        if self.circuit != Circuit::Closed {
            self.circuit = Circuit::Closed;
            self.openings = 0;
            if !was_shed {
                self.window.restart();
            }
            self.limit = INITIAL_LIMIT.min(self.settings.concurrency as f64);
        }
        was_down.then_some(Change::Up)
    }

    fn open(&mut self, trouble: Trouble, retry_after: Option<Duration>, now: Instant) -> Option<Change> {
        let asked = asked_wait(retry_after);
        let change = (self.trouble != Some(trouble)).then_some(Change::Down(trouble));
        if let Circuit::Open { until } = self.circuit
            && self.trouble.is_some()
            && until > now
        {
            // Requests that were in flight when it opened can only extend the wait.
            if let Some(wait) = asked {
                self.circuit = Circuit::Open { until: until.max(now + wait) };
                self.asked_to_wait = true;
            }
            return None;
        }
        self.openings = self.openings.saturating_add(1);
        self.asked_to_wait = asked.is_some();
        let (least, most) = (self.settings.initial_delay, self.settings.backoff(self.openings));
        let wait = asked.unwrap_or_else(|| self.jitter.between(least, most));
        self.circuit = Circuit::Open { until: now + wait };
        self.failures = 0;
        self.is_only_shed = trouble == Trouble::Overloaded && (self.trouble.is_none() || self.is_only_shed);
        self.trouble = Some(trouble);
        change
    }

    /// How long a record waits after its `attempts`-th failure on a link that is up.
    pub fn record_delay(&self, attempts: u32) -> Duration {
        jittered(Duration::ZERO, self.settings.backoff(attempts.saturating_sub(1)))
    }

    /// The same for a quota request, for whose answer a session is waiting.
    pub fn quota_delay(&self, attempts: u32) -> Duration {
        let first = self.settings.initial_delay.min(QUOTA_DELAY);
        jittered(Duration::ZERO, self.settings.backoff_from(first, attempts.saturating_sub(1)))
    }

    fn grow(&mut self) {
        let step = if self.limit < self.threshold { 1.0 } else { 1.0 / self.limit };
        self.limit = (self.limit + step).min(self.settings.concurrency as f64);
    }
}

#[cfg(test)]
mod tests;
