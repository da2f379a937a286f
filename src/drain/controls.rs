//! What an operator may change of the drain while it runs: whether it sends, how fast, and whether the brake holds.

use std::num::NonZeroU32;

use tokio::sync::watch;

/// How fast requests may go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateLimit {
    /// Requests a second; 0: no limit.
    pub per_second: u32,
    /// How many may go at once after a pause; 0: as many as go in a tenth of a second.
    pub burst: u32,
}

pub(super) type Limiter = governor::DefaultDirectRateLimiter;

impl RateLimit {
    pub(super) fn limiter(self) -> Option<Limiter> {
        let rate = NonZeroU32::new(self.per_second)?;
        let burst = NonZeroU32::new(self.burst)
            .or_else(|| NonZeroU32::new(rate.get() / 10))
            .unwrap_or(NonZeroU32::MIN);
        Some(governor::RateLimiter::direct(governor::Quota::per_second(rate).allow_burst(burst)))
    }
}

/// What holds for the drain now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Orders {
    /// No record is sent. What is in flight is waited for.
    pub paused: bool,
    /// What waits is being exported: the same as a pause, and independent of what the operator says meanwhile.
    pub exporting: bool,
    /// How fast requests may go.
    pub rate_limit: RateLimit,
    /// Bytes a second that they may take of the link; 0: no limit.
    pub bandwidth: u64,
    /// How often the brake was released by hand.
    pub brake_releases: u64,
    /// How often the next probe was wanted at once.
    pub probes: u64,
}

impl Orders {
    /// Whether no record may be sent.
    pub fn holds(&self) -> bool {
        self.paused || self.exporting
    }
}

/// Gives orders to the drain. Clones give them to the same one. They end with the process: after a restart what is
/// configured holds.
#[derive(Clone, Debug)]
pub struct Controls(watch::Sender<Orders>);

impl Controls {
    /// What is configured.
    pub fn new(rate_limit: RateLimit, bandwidth: u64) -> Self {
        Self(watch::Sender::new(Orders { rate_limit, bandwidth, ..Orders::default() }))
    }

    /// What holds now.
    pub fn orders(&self) -> Orders {
        *self.0.borrow()
    }

    /// Follows the orders.
    pub fn subscribe(&self) -> watch::Receiver<Orders> {
        self.0.subscribe()
    }

    /// Sends no more records.
    pub fn pause(&self) {
        self.0.send_if_modified(|orders| !std::mem::replace(&mut orders.paused, true));
    }

    /// Sends records again, and asks the `ControlPlane` at once, however long it was to be left alone.
    pub fn resume(&self) {
        self.0.send_modify(|orders| {
            orders.paused = false;
            orders.probes += 1;
        });
    }

    /// Asks the `ControlPlane` at once, however long it was to be left alone.
    pub fn probe(&self) {
        self.0.send_modify(|orders| orders.probes += 1);
    }

    /// Sends no records while what waits is exported.
    pub fn export(&self, exporting: bool) {
        self.0.send_if_modified(|orders| std::mem::replace(&mut orders.exporting, exporting) != exporting);
    }

    /// Limits the rate anew.
    pub fn set_rate_limit(&self, rate_limit: RateLimit) {
        self.0.send_if_modified(|orders| std::mem::replace(&mut orders.rate_limit, rate_limit) != rate_limit);
    }

    /// Limits the bytes a second anew; 0: no limit.
    pub fn set_bandwidth(&self, bandwidth: u64) {
        self.0.send_if_modified(|orders| std::mem::replace(&mut orders.bandwidth, bandwidth) != bandwidth);
    }

    /// Lets records go again after everything was refused, and asks at once as well.
    pub fn release_brake(&self) {
        self.0.send_modify(|orders| {
            orders.brake_releases += 1;
            orders.probes += 1;
        });
    }
}
