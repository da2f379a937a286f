//! The window over a path with a bottleneck: it fills the link, and its queue stays short.

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
        while events.len() < window.pipes(f64::MAX, MANY)
            && let Some(bytes) = window.room(window.pipes(f64::MAX, MANY), at(now))
        {
            let starts = free_at.max(now);
            free_at = starts + bytes as f64 / path.bytes_per_second;
            let round_trip = path.round_trip * log_normal(&mut dice, path.varies);
            let answered = free_at + round_trip + path.processing * bytes as f64;
            events.push(Reverse(((answered * 1e9) as u64, flights.len())));
            flights.push(window.sent(0, bytes as u64, at(now)));
            if now > seconds / 2.0 {
                (carried, queues, requests) = (carried + bytes as f64, queues + starts - now, requests + 1.0);
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
    for (bytes_per_second, round_trip, varies) in [
        (125e3, 0.1, 0.0),
        (125e3, 0.02, 0.0),
        (1.25e6, 0.1, 0.0),
        (1.25e6, 0.3, 0.0),
        (125e3, 0.1, 0.3),
        (1.25e6, 0.1, 0.3),
    ] {
        let path = Bottleneck { round_trip, bytes_per_second, varies, ..CLEAN };
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
        [(0.2, 0.5, 100.0), (0.2, 0.7, 50.0), (0.4, 0.3, 200.0), (0.4, 0.7, 50.0)]
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
