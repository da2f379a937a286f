//! What an operator can change while the drain runs: whether it sends, how fast, and the refusal brake.

use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use tokio::sync::watch;
use tokio::time::Instant;

/// How fast requests may be sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateLimit {
    /// Requests per second; 0: no limit.
    pub per_second: u32,
    /// Requests allowed at once after a pause; 0: as many as a tenth of a second allows.
    pub burst: u32,
}

/// The time since the limiter was created, on the runtime's clock, which tests can stop.
#[derive(Clone, Debug)]
struct RuntimeClock(Instant);

impl Clock for RuntimeClock {
    type Instant = Duration;

    fn now(&self) -> Duration {
        self.0.elapsed()
    }
}

/// Limits the request rate.
pub(super) struct Limiter {
    rate: RateLimiter<NotKeyed, InMemoryState, RuntimeClock, NoOpMiddleware<Duration>>,
    clock: RuntimeClock,
}

impl Limiter {
    /// Takes the token of a request. Without one: the time until there is one.
    pub(super) fn take(&self) -> Result<(), Duration> {
        self.rate.check().map_err(|wait| wait.wait_time_from(self.clock.now()))
    }
}

impl RateLimit {
    pub(super) fn limiter(self) -> Option<Limiter> {
        let rate = NonZeroU32::new(self.per_second)?;
        let burst = NonZeroU32::new(self.burst)
            .or_else(|| NonZeroU32::new(rate.get() / 10))
            .unwrap_or(NonZeroU32::MIN);
        let (quota, clock) = (Quota::per_second(rate).allow_burst(burst), RuntimeClock(Instant::now()));
        Some(Limiter { rate: RateLimiter::direct_with_clock(quota, clock.clone()), clock })
    }
}

/// The drain's current orders.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Orders {
    /// No record is sent. Requests in flight are finished.
    pub paused: bool,
    /// An export is running: like a pause, but independent of the operator's.
    pub exporting: bool,
    /// How fast requests may be sent.
    pub rate_limit: RateLimit,
    /// Bytes per second that requests may use of the link; 0: no limit.
    pub bandwidth: u64,
    /// How often an operator released the brake.
    pub brake_releases: u64,
    /// How often an immediate probe was requested.
    pub probes: u64,
}

impl Orders {
    /// Whether no record may be sent.
    pub fn holds(&self) -> bool {
        self.paused || self.exporting
    }
}

/// Gives orders to the drain; clones share it. Orders end with the process: after a restart the configuration applies.
#[derive(Clone, Debug)]
pub struct Controls(watch::Sender<Orders>);

impl Controls {
    /// With the configured limits.
    pub fn new(rate_limit: RateLimit, bandwidth: u64) -> Self {
        Self(watch::Sender::new(Orders { rate_limit, bandwidth, ..Orders::default() }))
    }

    /// The current orders.
    pub fn orders(&self) -> Orders {
        *self.0.borrow()
    }

    /// Subscribes to the orders.
    pub fn subscribe(&self) -> watch::Receiver<Orders> {
        self.0.subscribe()
    }

    /// Pauses sending.
    pub fn pause(&self) {
        self.0.send_if_modified(|orders| !std::mem::replace(&mut orders.paused, true));
    }

    /// Resumes sending and probes the `ControlPlane` now, even during a `Retry-After`.
    pub fn resume(&self) {
        self.0.send_modify(|orders| {
            orders.paused = false;
            orders.probes += 1;
        });
    }

    /// Probes the `ControlPlane` now, even during a `Retry-After`.
    pub fn probe(&self) {
        self.0.send_modify(|orders| orders.probes += 1);
    }

    /// Stops sending while an export runs.
    pub fn export(&self, exporting: bool) {
        self.0.send_if_modified(|orders| std::mem::replace(&mut orders.exporting, exporting) != exporting);
    }

    /// Sets the rate limit.
    pub fn set_rate_limit(&self, rate_limit: RateLimit) {
        self.0.send_if_modified(|orders| std::mem::replace(&mut orders.rate_limit, rate_limit) != rate_limit);
    }

    /// Sets the limit of bytes per second; 0: no limit.
    pub fn set_bandwidth(&self, bandwidth: u64) {
        self.0.send_if_modified(|orders| std::mem::replace(&mut orders.bandwidth, bandwidth) != bandwidth);
    }

    /// Releases the refusal brake and probes now.
    pub fn release_brake(&self) {
        self.0.send_modify(|orders| {
            orders.brake_releases += 1;
            orders.probes += 1;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_rate_follows_the_runtimes_clock() {
        let limiter = RateLimit { per_second: 10, burst: 2 }.limiter().expect("a limit");
        let taken =
            |limiter: &Limiter| std::iter::repeat_with(|| limiter.take()).take_while(Result::is_ok).count();
        assert_eq!(taken(&limiter), 2, "the burst");
        assert_eq!(limiter.take(), Err(Duration::from_millis(100)));
        tokio::time::advance(Duration::from_millis(100)).await;
        assert_eq!(taken(&limiter), 1);
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(taken(&limiter), 2, "no more than the burst, however long nothing was sent");
    }
}
