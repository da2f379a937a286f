//! The request rate, once the peer has shown its capacity.
//!
//! A limit on requests in flight cannot restrain a client whose requests are refused at once: with one in flight it still
//! sends a thousand requests per second. So congestion also sets a rate, which then grows like CUBIC (RFC 9438): quickly
//! back to its old value, slowly past it, then faster and faster. CUBIC grows with time, which at two requests per second
//! would shed nearly half of them. So the rate also grows no faster than good answers arrive. After an outage it starts
//! small and doubles, to avoid overloading a recovering `ControlPlane`; a rate learned from shedding is kept.
//!
//! A pure state machine: the time is an argument, nothing here waits.

use std::time::Duration;

use tokio::time::Instant;

/// Requests per second after an outage, before anything is known.
const FIRST: f64 = 20.0;
/// Minimum rate: below it nothing would be learned.
const LEAST: f64 = 1.0;
/// CUBIC's constants: the share of the rate kept after congestion, and its growth.
const KEPT: f64 = 0.7;
const GROWTH: f64 = 0.4;
/// Minimum number of good answers until the rate is back at its old value: a fleet has about one in this many requests
/// shed.
const ANSWERS_BACK: f64 = 20.0;
/// Period over which the rate is measured.
const MEASURE: Duration = Duration::from_millis(500);
/// Time without congestion after which the limit is lifted.
const RELEASE: Duration = Duration::from_secs(60);
/// Burst size: the rate times this.
const BURST: f64 = 0.05;
/// Most tokens that quota requests may take between two other requests.
const DEBT: u32 = 2;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Growth {
    /// After an outage: doubles.
    Doubling,
    /// After congestion at this rate.
    Cubic { most: f64 },
}

#[derive(Clone, Copy, Debug)]
struct Limit {
    rate: f64,
    growth: Growth,
    since: Instant,
    /// Good answers since then.
    good: u32,
    tokens: f64,
    filled: Instant,
}

/// Limits requests per second to what the answers allow.
#[derive(Debug)]
pub(super) struct RateLimiter {
    limit: Option<Limit>,
    /// Tokens that quota requests have taken since the last other request.
    borrowed: u32,
    /// Requests since `counting`.
    sent: u32,
    counting: Instant,
    measured: f64,
}

impl RateLimiter {
    /// Starts without a limit.
    pub(super) fn new(now: Instant) -> Self {
        Self { limit: None, borrowed: 0, sent: 0, counting: now, measured: 0.0 }
    }

    /// When the next request may be sent, if not now. A request sent early delays the next one.
    pub(super) fn until(&mut self, now: Instant) -> Option<Instant> {
        let limit = self.limit.as_mut()?;
        let filled = now.saturating_duration_since(limit.filled).as_secs_f64() * limit.rate;
        limit.tokens = (limit.tokens + filled).min((limit.rate * BURST).max(1.0));
        limit.filled = now;
        // A wait below the clock's resolution is no wait.
        let wait = Duration::from_secs_f64((1.0 - limit.tokens).max(0.0) / limit.rate);
        (wait >= Duration::from_micros(1)).then(|| now + wait)
    }

    /// A request is sent.
    pub(super) fn sent(&mut self, now: Instant) {
        if let Some(limit) = &mut self.limit {
            // Probes do not wait for the rate either.
            limit.tokens = (limit.tokens - 1.0).max(-f64::from(DEBT));
        }
        self.borrowed = 0;
        self.measure(now);
        self.sent += 1;
    }

    /// Whether there is a limit that congestion set recently.
    pub(super) fn is_fresh(&self, now: Instant) -> bool {
        self.limit.is_some_and(|limit| now.saturating_duration_since(limit.since) < RELEASE)
    }

    /// A quota request is sent without waiting for the rate, and takes the token of a later request. Of every three tokens
    /// one remains for other requests.
    pub(super) fn sent_quota(&mut self, now: Instant) {
        if let Some(limit) = self.limit.as_mut().filter(|_| self.borrowed < DEBT) {
            limit.tokens -= 1.0;
            self.borrowed += 1;
        }
        self.measure(now);
        self.sent += 1;
    }

    /// A request was delivered.
    pub(super) fn delivered(&mut self) {
        if let Some(limit) = &mut self.limit {
            limit.good += 1;
        }
    }

    /// A request succeeded.
    pub(super) fn good(&mut self, now: Instant) {
        self.measure(now);
        let Some(limit) = &mut self.limit else { return };
        let calm = now.saturating_duration_since(limit.since);
        let grown = match limit.growth {
            Growth::Doubling => limit.rate.max(2.0 * self.measured),
            Growth::Cubic { most } => {
                let by_time = calm.as_secs_f64() / (most * (1.0 - KEPT) / GROWTH).cbrt();
                let way_back = by_time.min(f64::from(limit.good) / ANSWERS_BACK);
                most * (1.0 + (1.0 - KEPT) * (way_back - 1.0).powi(3))
            }
        };
        // Rates above twice the one actually used are untested.
        limit.rate = grown.min((2.0 * self.measured).max(limit.rate)).max(LEAST);
        if calm >= RELEASE {
            self.limit = None;
        }
    }

    /// The other side is congested.
    pub(super) fn congested(&mut self, now: Instant) {
        self.measure(now);
        let measured = self.measured.max(self.so_far(now));
        // If little was sent, the current rate says little about the capacity.
        let most =
            self.limit.map_or(measured.max(FIRST), |Limit { rate, .. }| measured.clamp(rate * KEPT, rate));
        self.set((most * KEPT).max(LEAST), Growth::Cubic { most }, now);
    }

    /// The link is up again after an outage.
    pub(super) fn restart(&mut self, now: Instant) {
        (self.measured, self.sent, self.counting) = (0.0, 0, now);
        self.set(FIRST, Growth::Doubling, now);
    }

    /// A backlog is released: start as after an outage, unless congestion has taught a lower rate.
    pub(super) fn restart_if_faster(&mut self, now: Instant) {
        if self.limit.is_none_or(|limit| limit.rate > FIRST) {
            self.restart(now);
        }
    }

    /// The slowdown was not congestion: restore at least the rate after an outage, and double from there.
    pub(super) fn begin_anew(&mut self, now: Instant) {
        if let Some(limit) = self.limit {
            self.set(limit.rate.max(FIRST), Growth::Doubling, now);
        }
    }

    fn set(&mut self, rate: f64, growth: Growth, now: Instant) {
        let tokens = self.limit.map_or(0.0, |limit| limit.tokens.min(1.0));
        self.limit = Some(Limit { rate, growth, since: now, good: 0, tokens, filled: now });
    }

    fn so_far(&self, now: Instant) -> f64 {
        let elapsed = now.saturating_duration_since(self.counting);
        // Too short to measure.
        if elapsed < MEASURE / 10 { 0.0 } else { f64::from(self.sent) / elapsed.as_secs_f64() }
    }

    fn measure(&mut self, now: Instant) {
        if now.saturating_duration_since(self.counting) >= MEASURE {
            self.measured = 0.8 * self.so_far(now) + 0.2 * self.measured;
            (self.sent, self.counting) = (0, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends as fast as allowed for this many seconds, always with success; returns the number of requests.
    fn run(limiter: &mut RateLimiter, begin: Instant, seconds: u64) -> u32 {
        let (mut now, end, mut sent) = (begin, begin + Duration::from_secs(seconds), 0);
        while now < end {
            if let Some(until) = limiter.until(now) {
                now = until;
                continue;
            }
            limiter.sent(now);
            limiter.delivered();
            limiter.good(now);
            sent += 1;
            now += Duration::from_micros(50);
        }
        sent
    }

    #[test]
    fn there_is_no_limit_until_there_is_congestion() {
        let begin = Instant::now();
        let mut limiter = RateLimiter::new(begin);
        assert_eq!(limiter.until(begin), None);
        assert_eq!(run(&mut limiter, begin, 1), 20_000);
    }

    #[test]
    fn congestion_cuts_the_rate_and_calm_brings_it_back() {
        let begin = Instant::now();
        let mut limiter = RateLimiter::new(begin);
        for n in 0..200 {
            limiter.sent(begin + Duration::from_millis(n * 10));
        }
        let now = begin + Duration::from_secs(2);
        limiter.congested(now);
        let first = run(&mut limiter, now, 1);
        assert!((60..90).contains(&first), "about 0.7 of 100: {first}");
        let later = run(&mut limiter, now + Duration::from_secs(1), 5);
        assert!((350..600).contains(&later), "back at about 100 per second: {later}");
        assert!(
            run(&mut limiter, now + Duration::from_secs(6), 20) > 5000,
            "and past it when all stays calm"
        );
    }

    #[test]
    fn a_hardly_used_rate_is_not_cut_to_nothing() {
        let begin = Instant::now();
        let mut limiter = RateLimiter::new(begin);
        // Two requests per second, and congestion twice.
        for n in 0..10 {
            limiter.sent(begin + Duration::from_millis(n * 500));
        }
        let now = begin + Duration::from_secs(5);
        limiter.congested(now);
        limiter.congested(now);
        let first = run(&mut limiter, now, 1);
        assert!((7..40).contains(&first), "{first}");
        // A subsequent outage changes nothing.
        limiter.congested(now);
        limiter.restart(now);
        assert!(run(&mut limiter, now, 1) >= 15);
    }

    #[test]
    fn after_an_outage_it_begins_small_and_doubles() {
        let begin = Instant::now();
        let mut limiter = RateLimiter::new(begin);
        limiter.restart(begin);
        let first = run(&mut limiter, begin, 1);
        assert!((15..60).contains(&first), "{first}");
        assert!(run(&mut limiter, begin + Duration::from_secs(1), 9) > 20_000);
    }

    #[test]
    fn a_released_backlog_begins_small_and_no_faster_than_congestion_has_taught() {
        let begin = Instant::now();
        let mut limiter = RateLimiter::new(begin);
        limiter.restart_if_faster(begin);
        let first = run(&mut limiter, begin, 1);
        assert!((15..60).contains(&first), "{first}");
        for n in 0..100 {
            limiter.congested(begin + Duration::from_millis(1_000 + n * 10));
        }
        let now = begin + Duration::from_secs(2);
        limiter.restart_if_faster(now);
        let sent = run(&mut limiter, now, 3);
        assert!(sent <= 10, "{sent}");
    }

    #[test]
    fn a_slowdown_without_congestion_leaves_no_low_rate() {
        let begin = Instant::now();
        let mut limiter = RateLimiter::new(begin);
        limiter.begin_anew(begin);
        assert_eq!(limiter.until(begin), None, "without a limit before there is none now");
        for n in 0..100 {
            limiter.congested(begin + Duration::from_millis(n * 10));
        }
        let now = begin + Duration::from_secs(1);
        limiter.begin_anew(now);
        let first = run(&mut limiter, now, 1);
        assert!((15..60).contains(&first), "{first}");
        assert!(run(&mut limiter, now + Duration::from_secs(1), 9) > 20_000);
        let later = now + Duration::from_secs(10);
        limiter.congested(later);
        limiter.begin_anew(later);
        assert!(run(&mut limiter, later, 1) > 2000, "a fast rate stays fast");
    }

    #[test]
    fn repeated_congestion_never_stops_it() {
        let begin = Instant::now();
        let mut limiter = RateLimiter::new(begin);
        for n in 0..100 {
            limiter.congested(begin + Duration::from_secs(n));
        }
        let now = begin + Duration::from_secs(100);
        let next = limiter.until(now).unwrap_or(now);
        assert!(next - now <= Duration::from_secs(1));
    }
}
