//! The window of bytes in flight, and their distribution over requests.
//!
//! The window follows delay, as Vegas, LEDBAT (RFC 6817) and Gradient2 do. A request slower than the fastest of its class,
//! by more than the path varies, has met a queue, usually in the modem, where everything behind it waits too ([`delays`]).
//! The window grows while the queue is shorter than its target, and shrinks while it is longer. Loss delays some requests and a queue delays all of
//! them, so a slow answer weighs less than a fast one; under [`loss`] the bytes are spread over more connections.
//!
//! Delay with hardly anything in flight is not caused by our queue: it becomes the new best. The best also ages, because a
//! server's delays vary. And the window is briefly reduced now and then, like BBR's round-trip probe ([`draining`]):
//! otherwise a standing queue would pass for the path's delay. What requests take longer then is the path's variation.
//!
//! A pure state machine: the time is an argument, nothing here waits.

mod delays;
mod draining;
mod loss;
mod throughput;

use std::time::Duration;

use tokio::time::Instant;

use crate::control_plane::Opening;
use delays::{DelayClass, ShortestDelays, Variation, queue_target};
use draining::QueueDraining;
use loss::Loss;
use throughput::Throughput;

/// The window after a start or an outage. It quadruples every round trip until it meets a limit; after that it doubles in
/// every round trip without a queue.
const FIRST: f64 = 16.0 * 1024.0;
const STARTING_GAIN: f64 = 3.0;
/// It has met a limit when late answers outweigh timely ones by this share of the window. An answer is late that took longer
/// than the shortest of its class by this fraction of the queue target. A lost packet delays a single request.
const STARTING_LATE: f64 = 0.3;
const STARTING_QUEUE: f64 = 0.25;
/// Minimum: a request or two.
const LEAST: f64 = 4.0 * 1024.0;
/// Maximum: no edge server's link needs more in flight.
const MOST: f64 = 8.0 * 1024.0 * 1024.0;
/// Weight of a slow answer relative to a fast one.
const SLOW_WEIGHT: f64 = 1.0 / 3.0;
/// Bytes per request below which requests are not split further.
const REQUEST: f64 = 12.0 * 1024.0;
/// This many answers in a row, each taking twice the expected time, halve the window.
const VERY_LATE: f64 = 0.5;
const VERY_LATE_IN_A_ROW: u32 = 5;
/// Requests always allowed: a single hanging request must not stop all others.
const ALWAYS: usize = 2;
/// Requests in flight at a time; the maximum applies if packets are lost, or if the window is too large for that number.
const PIPES: f64 = 8.0;
const PIPES_MOST: f64 = 32.0;

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
    /// Whether it was sent while there was no queue of ours.
    is_clear: bool,
}

impl Flight {
    /// Notes how the request got its connection.
    pub(in crate::drain) fn over(self, opening: Opening) -> Self {
        Self { waited: opening.took, class: self.class.first(opening.is_first), ..self }
    }

    #[cfg(test)]
    pub(super) fn of_test(sent: Instant, bytes: u64) -> Self {
        Self {
            sent,
            waited: Duration::ZERO,
            bytes,
            class: DelayClass::new(0, bytes),
            filled: true,
            is_clear: false,
        }
    }
}

/// The window of bytes.
#[derive(Debug)]
pub(super) struct Window {
    bytes: f64,
    /// Whether it has not reached the link's capacity since it started.
    is_starting: bool,
    /// The share of the window whose answers were late since it started, less what was in time.
    late: f64,
    in_flight: u64,
    requests: usize,
    delays: ShortestDelays,
    variation: Variation,
    draining: QueueDraining,
    loss: Loss,
    throughput: Throughput,
    /// Answers in a row that took more than twice the expected time.
    very_late: u32,
    last_cut: Option<Instant>,
    last_shed: Option<Instant>,
}

impl Window {
    pub(super) fn new() -> Self {
        Self {
            bytes: FIRST,
            is_starting: true,
            late: 0.0,
            in_flight: 0,
            requests: 0,
            delays: ShortestDelays::default(),
            variation: Variation::default(),
            draining: QueueDraining::default(),
            loss: Loss::default(),
            throughput: Throughput::default(),
            very_late: 0,
            last_cut: None,
            last_shed: None,
        }
    }

    /// The number of requests over which to spread a backlog of so many lanes so that they fill the window, if no body
    /// exceeds `largest` bytes.
    pub(super) fn pipes(&self, largest: f64, lanes: usize) -> usize {
        let most = if self.loss.is_lossy() { PIPES_MOST } else { PIPES };
        let by_size = (self.bytes / REQUEST).ceil().min(most);
        let pipes = by_size.max(self.bytes / largest).ceil().min(PIPES_MOST) as usize;
        pipes.min(lanes).max(1)
    }

    /// The size of a request's body, if it may be sent now and `pipes` requests share the window.
    pub(super) fn room(&self, pipes: usize, now: Instant) -> Option<usize> {
        let body = self.bytes / pipes as f64;
        let room = self.bytes * self.draining.share(now) - self.in_flight as f64;
        let has_room = self.requests < ALWAYS || room >= body / 2.0;
        has_room.then_some(body.min(room.max(LEAST)) as usize)
    }

    /// A request of this size is sent.
    pub(super) fn sent(&mut self, route: usize, bytes: u64, now: Instant) -> Flight {
        self.in_flight += bytes;
        self.requests += 1;
        let filled = self.in_flight as f64 >= self.bytes / 2.0 && !self.draining.is_on(now);
        let is_clear = self.draining.is_clear(now);
        Flight {
            sent: now,
            waited: Duration::ZERO,
            bytes,
            class: DelayClass::new(route, bytes),
            filled,
            is_clear,
        }
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
        let best = self.delays.observe(flight.class, delay, now);
        if flight.is_clear {
            self.variation.observe(delay, best);
        }
        let expected = best + self.variation.seconds() + queue_target(best);
        let ratio = expected / delay;
        self.loss.observe(best, delay);
        self.throughput.delivered(flight.bytes, now);
        if flight.filled && self.draining.is_due(now) {
            self.draining.begin(best, delay, expected, now);
        }
        // Loss delays single requests; several very late ones in a row mean that the link's capacity has dropped.
        self.very_late = if ratio < VERY_LATE { self.very_late + 1 } else { 0 };
        if self.very_late >= VERY_LATE_IN_A_ROW {
            self.congested(flight, now);
        }
        let share = (flight.bytes as f64 / self.bytes).min(1.0);
        if self.is_starting && self.is_late(flight.class, delay) {
            self.late += share;
            if self.late < STARTING_LATE {
                return;
            }
            self.is_starting = false;
            // Drain at once: the coming requests are larger than all before, and would measure the queue as their path.
            if flight.filled {
                self.draining.begin(best, delay, expected, now);
            }
        } else {
            self.late = (self.late - share).max(0.0);
        }
        if ratio >= 1.0 {
            if flight.filled {
                let gain = if self.is_starting { STARTING_GAIN } else { (ratio - 1.0).min(1.0) };
                self.bytes *= 1.0 + gain * share;
            }
        } else if self.bytes <= LEAST {
            // Sending less has not helped: our queue does not cause the delay, so there is no point in slowing down.
            self.delays.forget();
        } else {
            self.bytes *= 1.0 - (1.0 - ratio).min(0.5) * share * SLOW_WEIGHT;
        }
        self.bytes = self.bytes.clamp(LEAST, MOST);
    }

    /// Whether an answer was so much later than the shortest of its class, of any size, that a packet was lost, or the bytes
    /// in flight begin to fill the link or to keep the other side busy.
    fn is_late(&self, class: DelayClass, delay: f64) -> bool {
        let shortest = self.delays.shortest_alike(class).map_or(delay, |shortest| shortest.min(delay));
        delay - shortest > queue_target(shortest) * STARTING_QUEUE
    }

    /// When the window is restored after a brief reduction.
    pub(super) fn whole_again(&self, now: Instant) -> Option<Instant> {
        self.draining.until(now)
    }

    /// A request was shed, which says nothing about bytes. True if that is new information: once per round trip.
    pub(super) fn shed(&mut self, flight: Flight, now: Instant) -> bool {
        is_news(&mut self.last_shed, flight, now)
    }

    /// A request timed out. True if that is new information: once per round trip.
    pub(super) fn congested(&mut self, flight: Flight, now: Instant) -> bool {
        self.is_starting = false;
        let is_new = is_news(&mut self.last_cut, flight, now);
        if is_new {
            self.bytes = (self.bytes / 2.0).max(LEAST);
        }
        is_new
    }

    /// The link is up again, or a large backlog is released: start small.
    pub(super) fn restart(&mut self) {
        (self.bytes, self.is_starting, self.late) = (self.bytes.min(FIRST), true, 0.0);
        self.loss = Loss::default();
    }

    /// Best recent bytes per second on the link.
    pub(super) fn rate(&self) -> f64 {
        self.throughput.rate()
    }

    /// The shortest recent round trip of any request.
    pub(super) fn round_trip(&self) -> Option<Duration> {
        self.delays.shortest().map(Duration::from_secs_f64)
    }
}

/// Whether this flight was sent since `last`, which is then `now`: what the flights of one round trip report counts once.
fn is_news(last: &mut Option<Instant>, flight: Flight, now: Instant) -> bool {
    let is_new = last.is_none_or(|last| flight.sent >= last);
    if is_new {
        *last = Some(now);
    }
    is_new
}

#[cfg(test)]
mod tests;
