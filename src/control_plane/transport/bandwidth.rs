//! The limit on bytes per second shared by all connections: a token bucket.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// The bucket holds the bytes of this time: after a pause a small burst may be sent.
const BURST: Duration = Duration::from_millis(50);
/// Two full packets: a low limit must not split requests into tiny pieces.
const BURST_LEAST: f64 = 2.0 * 1_460.0;
/// The deepest debt of urgent requests, as sending time: they must not silence the backlog for long.
const DEBT: Duration = Duration::from_secs(2);
/// The largest grant: one write.
const GRANT_MAX: usize = 16 << 10;
/// A changed limit takes effect within this time, however long a sender would have waited under the old one.
const WAIT_MAX: Duration = Duration::from_millis(200);
const WAIT_LEAST: Duration = Duration::from_millis(1);

/// The bucket. Without a limit it costs one atomic load.
#[derive(Debug, Default)]
pub(super) struct Bandwidth {
    is_limited: AtomicBool,
    bucket: Mutex<Option<Bucket>>,
}

#[derive(Debug)]
struct Bucket {
    bytes_per_second: f64,
    tokens: f64,
    at: Instant,
}

/// The answer to a sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Grant {
    /// It may send this many bytes.
    Bytes(usize),
    /// It must ask again after this time.
    Wait(Duration),
}

impl Bandwidth {
    /// Sets or removes the limit.
    pub(super) fn set(&self, bytes_per_second: Option<NonZeroU64>) {
        let mut bucket = self.lock();
        *bucket = bytes_per_second.map(|rate| Bucket::new(rate, Instant::now()));
        self.is_limited.store(bucket.is_some(), Ordering::Relaxed);
    }

    /// Requests up to `wanted` bytes.
    pub(super) fn take(&self, wanted: usize) -> Grant {
        let wanted = wanted.min(GRANT_MAX);
        if !self.is_limited.load(Ordering::Relaxed) {
            return Grant::Bytes(wanted);
        }
        match &mut *self.lock() {
            Some(bucket) => bucket.take(wanted, Instant::now()),
            None => Grant::Bytes(wanted),
        }
    }

    /// Charges bytes that were sent without a grant.
    pub(super) fn charge(&self, bytes: usize) {
        if self.is_limited.load(Ordering::Relaxed)
            && let Some(bucket) = &mut *self.lock()
        {
            bucket.charge(bytes, Instant::now());
        }
    }

    /// Returns granted bytes that were not sent.
    pub(super) fn give_back(&self, bytes: usize) {
        if let Some(bucket) = self.lock().as_mut().filter(|_| bytes > 0) {
            bucket.tokens += bytes as f64;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Bucket>> {
        self.bucket.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bucket {
    fn new(rate: NonZeroU64, now: Instant) -> Self {
        Self { bytes_per_second: rate.get() as f64, tokens: 0.0, at: now }
    }

    fn charge(&mut self, bytes: usize, now: Instant) {
        self.refill(now);
        let deepest = -self.bytes_per_second * DEBT.as_secs_f64();
        self.tokens = (self.tokens - bytes as f64).max(deepest);
    }

    fn burst(&self) -> f64 {
        (self.bytes_per_second * BURST.as_secs_f64()).max(BURST_LEAST)
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + passed * self.bytes_per_second).min(self.burst());
        self.at = now;
    }

    fn take(&mut self, wanted: usize, now: Instant) -> Grant {
        self.refill(now);
        let grant = (wanted as f64).min(self.burst() / 2.0).floor();
        if self.tokens >= grant {
            self.tokens -= grant;
            return Grant::Bytes(grant as usize);
        }
        let wait = Duration::from_secs_f64((grant - self.tokens) / self.bytes_per_second);
        Grant::Wait(wait.clamp(WAIT_LEAST, WAIT_MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes sent in these seconds by a sender that always has more.
    fn sent_in(bucket: &mut Bucket, now: &mut Instant, seconds: u64) -> u64 {
        let (until, mut sent) = (*now + Duration::from_secs(seconds), 0);
        while *now < until {
            match bucket.take(GRANT_MAX, *now) {
                Grant::Bytes(bytes) => sent += bytes as u64,
                Grant::Wait(wait) => *now += wait,
            }
        }
        sent
    }

    fn bucket(rate: u64) -> (Bucket, Instant) {
        let now = Instant::now();
        (Bucket::new(NonZeroU64::new(rate).unwrap(), now), now)
    }

    #[test]
    fn a_hundred_seconds_carry_a_hundred_times_the_limit() {
        for rate in [500, 12_345, 125_000, 12_500_000] {
            let (mut bucket, mut now) = bucket(rate);
            now += Duration::from_secs(5);
            let sent = sent_in(&mut bucket, &mut now, 100);
            assert!(sent.abs_diff(rate * 100) <= rate * 10, "{sent} at {rate}");
        }
    }

    #[test]
    fn urgent_bytes_are_charged_to_the_backlog_up_to_a_limit() {
        let (mut bucket, mut now) = bucket(10_000);
        bucket.charge(10_000, now);
        let sent = sent_in(&mut bucket, &mut now, 10);
        assert!(sent.abs_diff(90_000) <= 9_000, "{sent}");
        bucket.charge(1_000_000, now);
        let sent = sent_in(&mut bucket, &mut now, 10);
        assert!(sent.abs_diff(80_000) <= 9_000, "{sent}");
    }

    #[test]
    fn a_limit_is_changed_and_lifted_while_somebody_waits() {
        let bandwidth = Bandwidth::default();
        assert_eq!(bandwidth.take(100_000), Grant::Bytes(GRANT_MAX));
        bandwidth.set(NonZeroU64::new(1));
        assert_eq!(bandwidth.take(100_000), Grant::Wait(WAIT_MAX));
        bandwidth.set(None);
        assert_eq!(bandwidth.take(5), Grant::Bytes(5));
    }
}
