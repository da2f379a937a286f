//! The window answer by answer; [`bottleneck`] runs it over a path.

mod bottleneck;

use super::draining::DRAIN_TO_MOST;
use super::*;

/// More lanes than requests.
const MANY: usize = 1000;

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
        let found = window.delays.of(class);
        assert!((best..best + 0.02).contains(&found), "{bytes}: {found}");
    }
    // Old measurements do not count.
    now += Duration::from_secs(60);
    let class = answered(&mut window, 160_000, 900, &mut now).class;
    assert!(window.delays.of(class) > 0.8);
}

#[test]
fn the_queue_is_drained_once_a_limit_is_met_but_not_for_a_lone_late_request() {
    let (mut window, mut now) = (Window::new(), Instant::now());
    window.bytes = 1e6;
    answered(&mut window, 8_000, 100, &mut now);
    answered(&mut window, 8_000, 300, &mut now);
    assert!(window.is_starting && !window.draining.is_on(now) && window.bytes > 0.99e6, "{window:?}");
    answered(&mut window, 600_000, 400, &mut now);
    assert!(window.draining.is_on(now));
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
    window.pipes(f64::MAX, MANY)
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
    assert_eq!([1024.0, 256.0, 128.0, 16.0].map(|kib| window.pipes(kib * 1024.0, MANY)), [8, 8, 16, 32]);
    window.bytes = FIRST;
    assert_eq!(window.pipes(1024.0 * 1024.0, MANY), 2);
}

#[test]
fn lanes_that_are_fewer_than_requests_fill_the_window() {
    let mut window = Window::new();
    window.bytes = 2.0 * 1024.0 * 1024.0;
    assert_eq!([MANY, 8, 5, 1, 0].map(|lanes| window.pipes(f64::MAX, lanes)), [8, 8, 5, 1, 1]);
    let now = Instant::now();
    for _ in 0..5 {
        let room = window.room(window.pipes(f64::MAX, 5), now).unwrap();
        window.sent(0, room as u64, now);
    }
    assert!(window.in_flight as f64 > 0.99 * window.bytes, "{window:?}");
}

/// Whether the window is still starting after these delays in milliseconds, each of a sixteenth of it.
fn starts_after_delays(delays: impl IntoIterator<Item = u64>) -> bool {
    let (mut window, mut now) = (Window::new(), Instant::now());
    for millis in delays {
        let bytes = window.bytes as u64 / 16;
        answered(&mut window, bytes, millis, &mut now);
    }
    window.is_starting
}

#[test]
fn lost_packets_do_not_end_a_start_and_a_queue_does() {
    assert!(starts_after_delays([105, 105, 210].repeat(30)));
    assert!(starts_after_delays([105, 130, 130, 130, 130]), "few of those in flight");
    assert!(!starts_after_delays([105, 130, 130, 130, 130, 130, 130]));
    assert!(!starts_after_delays([130, 105, 130].repeat(6)));
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
fn a_lone_request_always_has_room_and_timeouts_halve_the_window_once_a_round() {
    let (mut window, now) = (Window::new(), Instant::now());
    for n in 0..20 {
        let sent = now + Duration::from_secs(n);
        assert!(
            window.room(window.pipes(f64::MAX, MANY), sent).is_some_and(|bytes| bytes >= LEAST as usize / 2)
        );
        let flights: Vec<Flight> = (0..3).map(|_| window.sent(0, 1 << 20, sent)).collect();
        assert!(window.room(window.pipes(f64::MAX, MANY), sent).is_none(), "it is full");
        let before = window.bytes;
        for flight in flights {
            window.landed(flight);
            window.congested(flight, sent + Duration::from_millis(500));
        }
        assert!((window.bytes - (before / 2.0).max(LEAST)).abs() < 1.0);
    }
}

#[test]
fn one_late_answer_hardly_changes_the_variation_and_many_do() {
    let mut variation = Variation::default();
    variation.observe(60.0, 0.1);
    assert!(variation.seconds() <= 0.03, "{}", variation.seconds());
    for _ in 0..30 {
        variation.observe(0.2, 0.1);
    }
    assert!((variation.seconds() - 0.1).abs() < 0.01, "{}", variation.seconds());
    // Somebody else's queue on a short path.
    for _ in 0..100 {
        variation.observe(0.52, 0.02);
    }
    assert!((variation.seconds() - 0.08).abs() < 1e-9, "{}", variation.seconds());
}
