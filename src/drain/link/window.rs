//! The window of bytes in flight, and their distribution over requests.
//!
//! The window follows delay, as Vegas, LEDBAT (RFC 6817) and Gradient2 do. A request slower than the fastest of its class
//! has met a queue, usually in the modem, where everything behind it waits too. The window grows while the queue is shorter
//! than its target, and shrinks while it is longer. Loss delays some requests and a queue delays all of them, so a slow
//! answer weighs less than a fast one; under loss the bytes are spread over more connections.
//!
//! Delay with hardly anything in flight is not caused by our queue: it becomes the new best. The best also ages, because a
//! server's delays vary. And the window is briefly reduced now and then, like BBR's round-trip probe: otherwise a standing
//! queue would pass for the path's delay.
//!
//! A pure state machine: the time is an argument, nothing here waits.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::control_plane::Opening;

/// The window after a start or an outage. It quadruples every round trip until an answer is later than the shortest of its
/// class by more than this fraction of the queue target; after that it doubles in every round trip without a queue.
const FIRST: f64 = 16.0 * 1024.0;
const STARTING_GAIN: f64 = 3.0;
const STARTING_QUEUE: f64 = 0.25;
/// Minimum: a request or two.
const LEAST: f64 = 4.0 * 1024.0;
/// Maximum: no edge server's link needs more in flight.
const MOST: f64 = 8.0 * 1024.0 * 1024.0;
/// The target queueing delay: twice the path's delay, within these bounds. A quota request waits that long; with a lower
/// bound, servers with varying delays would be mistaken for a queue.
const QUEUE_LEAST: f64 = 0.05;
const QUEUE_MOST: f64 = 0.11;
/// Weight of a slow answer relative to a fast one.
const SLOW_WEIGHT: f64 = 1.0 / 3.0;
/// Bytes per request below which requests are not split further.
const REQUEST: f64 = 12.0 * 1024.0;
/// This many answers in a row, each taking twice the expected time, halve the window.
const VERY_LATE: f64 = 0.5;
const VERY_LATE_IN_A_ROW: u32 = 5;
/// Requests always allowed: a single hanging request must not stop all others.
const ALWAYS: usize = 2;
/// The best delay moves towards observed delays with this time constant, in seconds.
const BEST_AGES: f64 = 20.0;
/// How often the queue is drained to measure the path itself; at most half of the time.
const DRAIN_EVERY: Duration = Duration::from_secs(10);
/// Bytes in flight while draining: as a fraction of what the path holds without a queue, and at most this fraction of the
/// window. With less, everything held back would then be sent at once and form the next queue.
const DRAIN_TO: f64 = 0.75;
const DRAIN_TO_MOST: f64 = 0.4;
/// Requests in flight at a time; the maximum applies if packets are lost, or if the window is too large for that number.
const PIPES: f64 = 8.0;
const PIPES_MOST: f64 = 32.0;
/// Spread of the answers' lateness from which a link counts as lossy, and below which it no longer does.
const LOSSY_FROM: f64 = 0.3;
const CLEAN_BELOW: f64 = 0.15;
/// Share of the best rate kept per second.
const RATE_KEPT: f64 = 0.95;
/// Weight of one answer in the mean lateness and its spread.
const SPREAD_GAIN: f64 = 0.03;
/// Round trip below which loss is not considered: retransmission is too fast to matter.
const LOSSY_WAY: f64 = 0.02;

/// What a request's delay depends on besides the link: endpoint, approximate size, and whether it is the first on its
/// connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct DelayClass {
    route: usize,
    is_first: bool,
    /// Wire bytes, as a power of two.
    magnitude: u32,
}

/// A request in flight.
#[derive(Clone, Copy, Debug)]
pub struct Flight {
    pub(in crate::drain) sent: Instant,
    /// Time spent waiting for a connection, which says nothing about a queue.
    waited: Duration,
    bytes: u64,
    class: DelayClass,
    /// Whether it filled the window: then its answer may let the window grow.
    filled: bool,
}

impl Flight {
    /// Notes how the request got its connection.
    pub(in crate::drain) fn over(self, opening: Opening) -> Self {
        let class = DelayClass { is_first: opening.is_first, ..self.class };
        Self { waited: opening.took, class, ..self }
    }

    #[cfg(test)]
    pub(super) fn of_test(sent: Instant, bytes: u64) -> Self {
        let class = DelayClass { route: 0, magnitude: bytes.max(1).ilog2(), is_first: false };
        Self { sent, waited: Duration::ZERO, bytes, class, filled: true }
    }
}

/// Recent shortest delay, in seconds.
#[derive(Clone, Copy, Debug)]
struct Best {
    delay: f64,
    at: Instant,
}

impl Best {
    fn observe(&mut self, delay: f64, now: Instant) {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = now;
        if delay < self.delay {
            self.delay = delay;
        } else {
            self.delay += (delay - self.delay) * (since / BEST_AGES).min(1.0);
        }
    }
}

/// The window of bytes.
#[derive(Debug)]
pub(super) struct Window {
    bytes: f64,
    /// Whether it has not reached the link's capacity since it started.
    is_starting: bool,
    in_flight: u64,
    requests: usize,
    /// The shortest delay of each class.
    best: BTreeMap<DelayClass, Best>,
    /// When the queue is drained next, and until when it is being drained.
    drain_at: Option<Instant>,
    drain_until: Option<Instant>,
    /// The fraction of the window that may be in flight until then.
    drain_to: f64,
    /// How late answers are, as the logarithm of delay to best: the mean, and the mean deviation from it.
    lateness: f64,
    spread: f64,
    is_lossy: bool,
    /// Answers in a row that took more than twice the expected time.
    very_late: u32,
    /// Bytes delivered since `counting`, while the link was busy.
    delivered: u64,
    counting: Option<Instant>,
    rate: f64,
    last_cut: Option<Instant>,
    last_shed: Option<Instant>,
}

impl Window {
    pub(super) fn new() -> Self {
        Self {
            bytes: FIRST,
            is_starting: true,
            in_flight: 0,
            requests: 0,
            best: BTreeMap::new(),
            drain_at: None,
            drain_until: None,
            drain_to: 1.0,
            lateness: 0.0,
            spread: 0.0,
            is_lossy: false,
            very_late: 0,
            delivered: 0,
            counting: None,
            rate: 0.0,
            last_cut: None,
            last_shed: None,
        }
    }

    /// The number of requests over which to spread the backlog so that they fill the window, if no body exceeds `largest`
    /// bytes.
    pub(super) fn pipes(&self, largest: f64) -> usize {
        let most = if self.is_lossy { PIPES_MOST } else { PIPES };
        let by_size = (self.bytes / REQUEST).ceil().min(most);
        by_size.max(self.bytes / largest).ceil().clamp(1.0, PIPES_MOST) as usize
    }

    /// The size of a request's body, if it may be sent now and `pipes` requests share the window.
    pub(super) fn room(&self, pipes: usize, now: Instant) -> Option<usize> {
        let body = self.bytes / pipes as f64;
        let window = if self.is_draining(now) { self.bytes * self.drain_to } else { self.bytes };
        let room = window - self.in_flight as f64;
        let has_room = self.requests < ALWAYS || room >= body / 2.0;
        has_room.then_some(body.min(room.max(LEAST)) as usize)
    }

    /// A request of this size is sent.
    pub(super) fn sent(&mut self, route: usize, bytes: u64, now: Instant) -> Flight {
        self.in_flight += bytes;
        self.requests += 1;
        let class = DelayClass { route, magnitude: bytes.max(1).ilog2(), is_first: false };
        let filled = self.in_flight as f64 >= self.bytes / 2.0 && !self.is_draining(now);
        Flight { sent: now, waited: Duration::ZERO, bytes, class, filled }
    }

    /// A request has ended.
    pub(super) fn landed(&mut self, flight: Flight) {
        self.in_flight -= flight.bytes;
        self.requests -= 1;
    }

    /// A request succeeded.
    pub(super) fn delivered(&mut self, flight: Flight, now: Instant) {
        let delay = now.saturating_duration_since(flight.sent).saturating_sub(flight.waited);
        let delay = delay.as_secs_f64().max(1e-6);
        let best = self.observe(flight.class, delay, now);
        let expected = best + queue_target(best);
        let ratio = expected / delay;
        self.observe_spread(best, delay);
        self.measure_rate(flight.bytes, now);
        if flight.filled {
            self.drain_now_and_then(best, delay, now);
        }
        // Loss delays single requests; several very late ones in a row mean that the link's capacity has dropped.
        self.very_late = if ratio < VERY_LATE { self.very_late + 1 } else { 0 };
        if self.very_late >= VERY_LATE_IN_A_ROW {
            self.congested(flight, now);
        }
        if self.is_starting && self.has_met_a_limit(flight.class, delay) {
            self.is_starting = false;
            // Drain at once: the coming requests are larger than all before, and would measure the queue as their path.
            if flight.filled {
                self.drain(best, delay, now);
            }
        }
        let share = (flight.bytes as f64 / self.bytes).min(1.0);
        if ratio >= 1.0 {
            if flight.filled {
                let gain = if self.is_starting { STARTING_GAIN } else { (ratio - 1.0).min(1.0) };
                self.bytes *= 1.0 + gain * share;
            }
        } else if self.bytes <= LEAST {
            // Sending less has not helped: our queue does not cause the delay, so there is no point in slowing down.
            self.best.clear();
        } else {
            self.bytes *= 1.0 - (1.0 - ratio).min(0.5) * share * SLOW_WEIGHT;
        }
        self.bytes = self.bytes.clamp(LEAST, MOST);
    }

    /// The shortest delay of requests of this class.
    fn observe(&mut self, class: DelayClass, delay: f64, now: Instant) -> f64 {
        let first = Best { delay, at: now };
        let expected = self.extrapolated(class).filter(|expected| expected.delay < delay).unwrap_or(first);
        let best = self.best.entry(class).or_insert(expected);
        best.observe(delay, now);
        best.delay
    }

    /// The expected shortest delay of a new size: its first request may meet a queue.
    fn extrapolated(&self, class: DelayClass) -> Option<Best> {
        let all_smaller = self.best.range(DelayClass { magnitude: 0, ..class }..class);
        let (smaller, best) = all_smaller.clone().next_back()?;
        // A single size does not separate the path's delay from the time the bytes take.
        let round_trip =
            all_smaller.rev().skip(1).map(|(_, best)| best.delay).reduce(f64::min)?.min(best.delay);
        // Beyond the path's delay, the delay grows with the bytes.
        let times = f64::from(class.magnitude - smaller.magnitude).exp2();
        Some(Best { delay: round_trip + times * (best.delay - round_trip), at: best.at })
    }

    /// Whether an answer was so much later than the shortest of its class, of any size, that the bytes in flight begin to
    /// fill the link or to keep the other side busy.
    fn has_met_a_limit(&self, class: DelayClass, delay: f64) -> bool {
        let alike = self.best.iter().filter(|(other, _)| other.is_first == class.is_first);
        let shortest = alike.map(|(_, best)| best.delay).fold(delay, f64::min);
        delay - shortest > queue_target(shortest) * STARTING_QUEUE
    }

    /// Drains the queue periodically: a queue that never drains looks like a longer path.
    fn drain_now_and_then(&mut self, best: f64, delay: f64, now: Instant) {
        if *self.drain_at.get_or_insert(now + DRAIN_EVERY) <= now {
            self.drain(best, delay, now);
        }
    }

    fn drain(&mut self, best: f64, delay: f64, now: Instant) {
        // Until the present queue has drained, plus a round trip without it.
        let takes = Duration::from_secs_f64(delay + best);
        self.drain_until = Some(now + takes);
        self.drain_at = Some(now + DRAIN_EVERY.max(takes * 2));
        self.drain_to = (DRAIN_TO * best / (best + queue_target(best))).min(DRAIN_TO_MOST);
    }

    fn is_draining(&self, now: Instant) -> bool {
        self.drain_until.is_some_and(|until| now < until)
    }

    /// When the window is restored after a brief reduction.
    pub(super) fn whole_again(&self, now: Instant) -> Option<Instant> {
        self.drain_until.filter(|until| *until > now)
    }

    /// A request was shed, which says nothing about bytes. True if that is new information: once per round trip.
    pub(super) fn shed(&mut self, flight: Flight, now: Instant) -> bool {
        let is_new = self.last_shed.is_none_or(|shed| flight.sent >= shed);
        if is_new {
            self.last_shed = Some(now);
        }
        is_new
    }

    /// A request timed out. True if that is new information: once per round trip.
    pub(super) fn congested(&mut self, flight: Flight, now: Instant) -> bool {
        self.is_starting = false;
        let is_new = self.last_cut.is_none_or(|cut| flight.sent >= cut);
        if is_new {
            self.last_cut = Some(now);
            self.bytes = (self.bytes / 2.0).max(LEAST);
        }
        is_new
    }

    /// The link is up again, or a large backlog is released: start small.
    pub(super) fn restart(&mut self) {
        (self.bytes, self.is_starting) = (self.bytes.min(FIRST), true);
        (self.lateness, self.spread, self.is_lossy) = (0.0, 0.0, false);
    }

    /// Best recent bytes per second on the link.
    pub(super) fn rate(&self) -> f64 {
        self.rate
    }

    fn measure_rate(&mut self, bytes: u64, now: Instant) {
        self.delivered += bytes;
        let since = *self.counting.get_or_insert(now);
        let seconds = now.saturating_duration_since(since).as_secs_f64();
        if seconds >= 1.0 {
            self.rate = (self.rate * RATE_KEPT).max(self.delivered as f64 / seconds);
            (self.delivered, self.counting) = (0, Some(now));
        }
    }

    /// The shortest recent round trip of any request.
    pub(super) fn round_trip(&self) -> Option<Duration> {
        let best = self.best.values().map(|best| best.delay).reduce(f64::min)?;
        Some(Duration::from_secs_f64(best))
    }

    /// Measures the spread of delays: loss delays some requests, a queue delays all.
    fn observe_spread(&mut self, best: f64, delay: f64) {
        let lateness = if best < LOSSY_WAY { 0.0 } else { (delay / best).ln() };
        self.spread += ((lateness - self.lateness).abs() - self.spread) * SPREAD_GAIN;
        self.lateness += (lateness - self.lateness) * SPREAD_GAIN;
        self.is_lossy = self.spread > if self.is_lossy { CLEAN_BELOW } else { LOSSY_FROM };
    }
}

/// The target queueing delay for a path with this delay, in seconds.
fn queue_target(round_trip: f64) -> f64 {
    (2.0 * round_trip).clamp(QUEUE_LEAST, QUEUE_MOST)
}

#[cfg(test)]
mod tests {
    use std::cmp::Reverse;
    use std::collections::BinaryHeap;

    use rand::{RngExt as _, SeedableRng as _};

    use super::*;

    /// A path with a bottleneck, and an endless backlog.
    struct Bottleneck {
        round_trip: f64,
        bytes_per_second: f64,
        /// Processing time of the other side per byte.
        processing: f64,
        /// Variation of the round trip: the standard deviation of its logarithm.
        varies: f64,
        seed: u64,
    }

    fn log_normal(dice: &mut impl rand::Rng, deviation: f64) -> f64 {
        // The sum of twelve dice minus six approximates a normal distribution.
        let normal: f64 = (0..12).map(|_| dice.random_range(0.0..1.0)).sum::<f64>() - 6.0;
        (deviation * normal).exp()
    }

    /// The result of a run: bytes per second, the mean time in the bottleneck's queue, and the final window.
    struct Run {
        rate: f64,
        queue: f64,
        window: Window,
    }

    /// Sends over the path for this long; the second half counts.
    fn run(mut window: Window, path: &Bottleneck, begin: Instant, seconds: f64) -> Run {
        let mut dice = rand::rngs::SmallRng::seed_from_u64(path.seed);
        // Requests of an earlier run have landed.
        (window.in_flight, window.requests) = (0, 0);
        let (mut now, mut free_at) = (0.0_f64, 0.0_f64);
        let mut events: BinaryHeap<Reverse<(u64, usize)>> = BinaryHeap::new();
        let mut flights: Vec<Flight> = Vec::new();
        let (mut carried, mut queues, mut requests) = (0.0, 0.0, 0.0_f64);
        let at = |seconds: f64| begin + Duration::from_secs_f64(seconds);
        while now < seconds {
            while events.len() < window.pipes(f64::MAX)
                && let Some(bytes) = window.room(window.pipes(f64::MAX), at(now))
            {
                let starts = free_at.max(now);
                free_at = starts + bytes as f64 / path.bytes_per_second;
                let round_trip = path.round_trip * log_normal(&mut dice, path.varies);
                let answered = free_at + round_trip + path.processing * bytes as f64;
                events.push(Reverse(((answered * 1e9) as u64, flights.len())));
                flights.push(window.sent(0, bytes as u64, at(now)));
                if now > seconds / 2.0 {
                    (carried, queues, requests) =
                        (carried + bytes as f64, queues + starts - now, requests + 1.0);
                }
            }
            let Some(Reverse((nanos, flight))) = events.pop() else { break };
            now = nanos as f64 / 1e9;
            window.landed(flights[flight]);
            window.delivered(flights[flight], at(now));
        }
        Run { rate: carried / (seconds / 2.0), queue: queues / requests.max(1.0), window }
    }

    const CLEAN: Bottleneck =
        Bottleneck { round_trip: 0.1, bytes_per_second: 125_000.0, processing: 0.0, varies: 0.0, seed: 7 };

    #[test]
    fn a_thin_link_is_filled_and_its_queue_stays_short() {
        for (bytes_per_second, round_trip) in [(125e3, 0.1), (125e3, 0.02), (1.25e6, 0.1), (1.25e6, 0.3)] {
            let path = Bottleneck { round_trip, bytes_per_second, ..CLEAN };
            let ran = run(Window::new(), &path, Instant::now(), 60.0);
            assert!(ran.rate >= 0.9 * bytes_per_second, "{bytes_per_second} at {round_trip}: {}", ran.rate);
            assert!(ran.queue <= 0.3, "{bytes_per_second} at {round_trip}: {} s in the queue", ran.queue);
        }
    }

    #[test]
    fn a_wide_link_is_filled_within_seconds() {
        let path = Bottleneck { bytes_per_second: 12.5e6, ..CLEAN };
        let ran = run(Window::new(), &path, Instant::now(), 6.0);
        assert!(ran.rate >= 8e6, "{}", ran.rate);
    }

    #[test]
    fn a_start_fills_a_wide_link_within_ten_round_trips_and_does_not_flood_a_thin_one() {
        let wide = Bottleneck { bytes_per_second: 12.5e6, ..CLEAN };
        let ran = run(Window::new(), &wide, Instant::now(), 1.0);
        assert!(ran.rate >= 8e6, "{}", ran.rate);
        for bytes_per_second in [125e3, 1.25e6] {
            let thin = Bottleneck { bytes_per_second, ..CLEAN };
            for seconds in [0.5, 1.0, 2.0, 4.0, 8.0] {
                let ran = run(Window::new(), &thin, Instant::now(), seconds);
                assert!(ran.queue <= 0.17, "{bytes_per_second}, {seconds} s: {} s in the queue", ran.queue);
            }
        }
    }

    /// Sends a request of this many bytes, answered after this many milliseconds.
    fn answered(window: &mut Window, bytes: u64, millis: u64, now: &mut Instant) -> Flight {
        let flight = window.sent(0, bytes, *now);
        *now += Duration::from_millis(millis);
        window.landed(flight);
        window.delivered(flight, *now);
        flight
    }

    #[test]
    fn the_delay_of_a_new_size_does_not_include_the_queue_it_meets() {
        let (mut window, mut now) = (Window::new(), Instant::now());
        (window.bytes, window.is_starting) = (1e6, false);
        // The path takes 100 ms plus 10 ms per 10,000 bytes; later there is a queue of 200 ms.
        for (bytes, millis, best) in
            [(1_000, 100, 0.1), (10_000, 110, 0.11), (20_000, 320, 0.12), (80_000, 380, 0.18)]
        {
            let class = answered(&mut window, bytes, millis, &mut now).class;
            let found = window.best[&class].delay;
            assert!((best..best + 0.02).contains(&found), "{bytes}: {found}");
        }
        // Old measurements do not count.
        now += Duration::from_secs(60);
        let class = answered(&mut window, 160_000, 900, &mut now).class;
        assert!(window.best[&class].delay > 0.8);
    }

    #[test]
    fn the_queue_is_drained_once_a_limit_is_met_but_not_for_a_lone_late_request() {
        let (mut window, mut now) = (Window::new(), Instant::now());
        window.bytes = 1e6;
        answered(&mut window, 8_000, 100, &mut now);
        answered(&mut window, 8_000, 300, &mut now);
        assert!(!window.is_starting && !window.is_draining(now) && window.bytes > 0.99e6, "{window:?}");
        (window.bytes, window.is_starting) = (1e6, true);
        answered(&mut window, 600_000, 400, &mut now);
        assert!(window.is_draining(now));
        let whole = window.bytes;
        assert!(window.room(1, now).unwrap() as f64 <= whole * DRAIN_TO_MOST);
        assert!(!window.sent(0, 600_000, now).filled, "requests sent meanwhile do not let the window grow");
        let again = window.whole_again(now).unwrap();
        assert!((now + Duration::from_millis(300)..now + Duration::from_secs(2)).contains(&again));
        assert_eq!(window.room(1, again), Some((whole - 6e5).max(LEAST) as usize));
    }

    /// The number of pipes after requests of which a third must retransmit, or of which all meet the same queue.
    fn pipes_after(delays: [u64; 3]) -> usize {
        let (mut window, begin) = (Window::new(), Instant::now());
        (window.bytes, window.is_starting) = (MOST, false);
        for n in 0..300_u64 {
            let sent = begin + Duration::from_millis(n * 10);
            let flight = window.sent(0, 20_000, sent);
            window.landed(flight);
            window.delivered(flight, sent + Duration::from_millis(delays[n as usize % 3]));
        }
        window.pipes(f64::MAX)
    }

    #[test]
    fn bytes_are_spread_over_more_pipes_where_packets_are_lost() {
        assert_eq!(pipes_after([100, 100, 300]), PIPES_MOST as usize);
        assert_eq!(pipes_after([250, 260, 250]), PIPES as usize, "a queue");
    }

    #[test]
    fn a_window_that_few_requests_cannot_fill_is_spread_over_more() {
        let mut window = Window::new();
        window.bytes = 2.0 * 1024.0 * 1024.0;
        assert_eq!([1024.0, 256.0, 128.0, 16.0].map(|kib| window.pipes(kib * 1024.0)), [8, 8, 16, 32]);
        window.bytes = FIRST;
        assert_eq!(window.pipes(1024.0 * 1024.0), 2);
    }

    /// Whether the window is still starting after these answers: whether the request was the first on its connection, how
    /// long it waited for one, and its total duration, in milliseconds.
    fn starts_after(answers: &[(bool, u64, u64)]) -> bool {
        let (mut window, begin) = (Window::new(), Instant::now());
        for (is_first, waited, took) in answers {
            let opening = Opening { took: Duration::from_millis(*waited), is_first: *is_first };
            let flight = window.sent(0, 8_000, begin).over(opening);
            window.landed(flight);
            window.delivered(flight, begin + Duration::from_millis(*took));
        }
        window.is_starting
    }

    #[test]
    fn opening_a_connection_is_not_a_queue() {
        // Through a relay, the first request takes two round trips.
        assert!(starts_after(&[(true, 0, 215), (false, 0, 105), (true, 0, 220), (false, 0, 105)]));
        assert!(starts_after(&[(false, 0, 105), (false, 100, 205)]), "it waited for a connection");
        // In either case, other requests of the class were faster.
        assert!(!starts_after(&[(true, 0, 215), (true, 0, 260)]));
        assert!(!starts_after(&[(false, 0, 105), (true, 0, 215), (false, 0, 150)]));
    }

    #[test]
    fn sending_less_does_not_speed_up_a_slow_control_plane() {
        let begin = Instant::now();
        let fast = run(Window::new(), &Bottleneck { bytes_per_second: 12.5e6, ..CLEAN }, begin, 20.0);
        let slow = Bottleneck { round_trip: 0.4, bytes_per_second: 12.5e6, processing: 40e-6, ..CLEAN };
        let ran = run(fast.window, &slow, begin + Duration::from_secs(20), 120.0);
        assert!(ran.rate >= 50e3, "{}", ran.rate);
    }

    #[test]
    fn a_server_with_varying_delays_is_not_a_queue() {
        // The least throughput, in first windows per round trip.
        for (round_trip, varies, least) in
            [(0.2, 0.5, 50.0), (0.2, 0.7, 5.0), (0.4, 0.3, 2.0), (0.4, 0.7, 1.5)]
        {
            let windows = |seed| {
                let path = Bottleneck { round_trip, bytes_per_second: 12.5e6, varies, seed, ..CLEAN };
                run(Window::new(), &path, Instant::now(), 120.0).rate * round_trip / FIRST
            };
            let windows = (1..=8).map(windows).sum::<f64>() / 8.0;
            assert!(windows >= least, "{round_trip}, {varies}: {windows}");
        }
    }

    #[test]
    fn a_standing_queue_is_not_taken_for_the_round_trip() {
        let ran = run(Window::new(), &CLEAN, Instant::now(), 1200.0);
        assert!(ran.queue <= 0.3, "{} s in the queue after twenty minutes", ran.queue);
    }

    #[test]
    fn a_link_that_becomes_thin_is_not_flooded() {
        let begin = Instant::now();
        let wide = run(Window::new(), &Bottleneck { bytes_per_second: 12.5e6, ..CLEAN }, begin, 20.0);
        let ran = run(wide.window, &CLEAN, begin + Duration::from_secs(20), 300.0);
        assert!(ran.rate >= 0.9 * CLEAN.bytes_per_second, "{}", ran.rate);
        assert!(ran.queue <= 0.4, "{} s in the queue", ran.queue);
    }

    #[test]
    fn a_lone_request_always_has_room_and_timeouts_halve_the_window_once_a_round() {
        let (mut window, now) = (Window::new(), Instant::now());
        for n in 0..20 {
            let sent = now + Duration::from_secs(n);
            assert!(
                window.room(window.pipes(f64::MAX), sent).is_some_and(|bytes| bytes >= LEAST as usize / 2)
            );
            let flights: Vec<Flight> = (0..3).map(|_| window.sent(0, 1 << 20, sent)).collect();
            assert!(window.room(window.pipes(f64::MAX), sent).is_none(), "it is full");
            let before = window.bytes;
            for flight in flights {
                window.landed(flight);
                window.congested(flight, sent + Duration::from_millis(500));
            }
            assert!((window.bytes - (before / 2.0).max(LEAST)).abs() < 1.0);
        }
    }
}
