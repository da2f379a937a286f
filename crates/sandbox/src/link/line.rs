//! One direction of a link: what is queued, and when it arrives. Time is an argument.

use std::{
    num::NonZeroU64,
    time::{Duration, Instant},
};

use serde::Serialize;

use super::settings::Settings;

/// A line that sends one chunk after another.
pub(super) struct Line {
    /// When everything queued has been sent.
    free: Instant,
    /// The rate on which `free` is based.
    rate: Option<NonZeroU64>,
    traffic: Traffic,
}

/// Traffic so far.
#[derive(Clone, Copy, Default, Serialize)]
pub(super) struct Traffic {
    bytes: u64,
    longest_queue_bytes: usize,
}

/// The fate of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Queued {
    /// It is in flight until then.
    Arrives(Instant),
    /// The queue has no room for it before then.
    FullUntil(Instant),
}

impl Line {
    pub(super) fn new(now: Instant) -> Self {
        Self { free: now, rate: None, traffic: Traffic::default() }
    }

    pub(super) fn traffic(&self) -> Traffic {
        self.traffic
    }

    pub(super) fn reset(&mut self) {
        self.traffic = Traffic::default();
    }

    /// Queues a chunk if there is room for it.
    pub(super) fn enter(&mut self, bytes: usize, settings: &Settings, now: Instant) -> Queued {
        if self.rate != settings.rate {
            // Times based on the old rate would delay new chunks at that rate.
            (self.rate, self.free) = (settings.rate, now);
        }
        let mut sent = now;
        if let Some(rate) = settings.rate {
            let begins = self.free.max(now);
            let queued = begins.saturating_duration_since(now);
            // A chunk longer than the queue waits until the queue is empty.
            let room = time(settings.queue.saturating_sub(bytes), rate);
            if queued > room {
                return Queued::FullUntil(now + queued.saturating_sub(room));
            }
            sent = begins + time(bytes, rate);
            self.free = sent;
            let queued = (queued.as_secs_f64() * rate.get() as f64 / 8.0) as usize + bytes;
            self.traffic.longest_queue_bytes = self.traffic.longest_queue_bytes.max(queued);
        }
        self.traffic.bytes += bytes as u64;
        Queued::Arrives(sent + settings.rtt / 2)
    }
}

/// The time that these bytes take at this many bits per second.
fn time(bytes: usize, rate: NonZeroU64) -> Duration {
    let nanos = bytes as u128 * 8 * 1_000_000_000 / u128::from(rate.get());
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEBIBYTE: usize = 1 << 20;

    fn settings(text: &str) -> Settings {
        text.parse().unwrap()
    }

    /// Lets senders take turns, each sending a chunk when there is room. Returns when each byte count arrived.
    fn run(settings: &Settings, senders: &mut [usize], start: Instant) -> Vec<(usize, Duration)> {
        let mut line = Line::new(start);
        let (mut now, mut arrivals, mut turn) = (start, Vec::new(), 0);
        while senders.iter().any(|left| *left > 0) {
            let sender = turn % senders.len();
            turn += 1;
            let bytes = senders[sender].min(settings.chunk());
            if bytes == 0 {
                continue;
            }
            loop {
                match line.enter(bytes, settings, now) {
                    Queued::Arrives(at) => break arrivals.push((sender, at - start)),
                    Queued::FullUntil(at) => now = at,
                }
            }
            senders[sender] -= bytes;
        }
        arrivals
    }

    #[test]
    fn without_a_rate_everything_arrives_after_half_a_round_trip() {
        let start = Instant::now();
        let arrivals = run(&settings("rtt=100ms"), &mut [100 * MEBIBYTE], start);
        assert!(arrivals.iter().all(|&(_, at)| at == Duration::from_millis(50)));
    }

    #[test]
    fn a_rate_is_kept_exactly_and_idle_time_is_not_made_up_for() {
        for (rate, bits) in [("1mbit", 1e6), ("10mbit", 1e7), ("1gbit", 1e9)] {
            let settings = settings(&format!("rtt=100ms,rate={rate}"));
            let start = Instant::now();
            let last = run(&settings, &mut [10 * MEBIBYTE], start).last().unwrap().1;
            let expected = 0.05 + (10 * MEBIBYTE * 8) as f64 / bits;
            assert!((last.as_secs_f64() / expected - 1.0).abs() < 0.001, "{rate}: {last:?}, not {expected}");
        }
        let (settings, start) = (settings("rate=8kbit"), Instant::now());
        let mut line = Line::new(start);
        let second = Duration::from_secs(1);
        for minute in [0, 60, 120] {
            let now = start + Duration::from_secs(minute);
            assert_eq!(line.enter(1000, &settings, now), Queued::Arrives(now + second));
            assert_eq!(line.enter(1000, &settings, now), Queued::Arrives(now + 2 * second), "behind it");
        }
    }

    #[test]
    fn the_queue_is_bounded_and_a_chunk_longer_than_it_passes_an_empty_one() {
        let (settings, start) = (settings("rate=8kbit,queue=4k"), Instant::now());
        let mut line = Line::new(start);
        let seconds = |seconds: f64| start + Duration::from_secs_f64(seconds);
        for n in 1..=4 {
            assert_eq!(line.enter(1024, &settings, start), Queued::Arrives(seconds(1.024 * f64::from(n))));
        }
        assert_eq!(line.enter(1024, &settings, start), Queued::FullUntil(seconds(1.024)));
        assert_eq!(line.enter(1024, &settings, seconds(1.024)), Queued::Arrives(seconds(5.12)));
        assert_eq!(line.enter(5000, &settings, seconds(2.0)), Queued::FullUntil(seconds(5.12)));
        assert_eq!(line.enter(5000, &settings, seconds(5.12)), Queued::Arrives(seconds(10.12)));
        assert_eq!(line.traffic().longest_queue_bytes, 5000);
        assert_eq!(line.traffic().bytes, 5 * 1024 + 5000);
    }

    #[test]
    fn a_new_rate_does_not_wait_for_what_the_old_one_had_queued() {
        let start = Instant::now();
        let mut line = Line::new(start);
        line.enter(100_000, &settings("rate=8kbit"), start);
        let fast = settings("rate=8mbit");
        assert_eq!(line.enter(1000, &fast, start), Queued::Arrives(start + Duration::from_millis(1)));
    }

    #[test]
    fn senders_share_the_line_evenly() {
        let settings = settings("rtt=20ms,rate=1mbit");
        let arrivals = run(&settings, &mut [MEBIBYTE, MEBIBYTE, MEBIBYTE / 4], Instant::now());
        let last = |sender| arrivals.iter().rfind(|(of, _)| *of == sender).unwrap().1.as_secs_f64();
        let (short, all) = (last(2), last(0));
        assert!(
            (short / all - 1.0 / 3.0).abs() < 0.02,
            "a quarter of the bytes in a third of the time: {short} {all}"
        );
        assert!((last(1) - all).abs() < 0.05);
    }
}
