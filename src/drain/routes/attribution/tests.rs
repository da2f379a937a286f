//! Attribution of failures.

use std::time::Duration;

use super::super::tests::routes;
use super::*;
use crate::drain::routes::Pause;

const SECOND: Duration = Duration::from_secs(1);

/// Fails a request of two sessions at once.
fn fails(routes: &mut Routes, log: Log, trouble: Trouble, now: Instant) -> Attribution {
    failed(routes, log, trouble, now, now)
}

fn failed(routes: &mut Routes, log: Log, trouble: Trouble, sent: Instant, now: Instant) -> Attribution {
    let failure = LinkFailure { trouble, sent, is_asked: false, cause: "status 503" };
    routes.troubled(log, [1, 2].map(LaneKey::of_test).into_iter(), failure, now)
}

/// Makes a kind held for this trouble.
fn fails_alone(routes: &mut Routes, log: Log, trouble: Trouble, now: Instant) {
    let beside = if log == Log::Usage { Log::Quota } else { Log::Usage };
    // More often if it was released before.
    for _ in 0..16 {
        fails(routes, log, trouble, now);
        routes.delivered(beside, 1, now, now);
    }
    assert!(routes.is_held(log));
}

#[test]
fn a_kind_that_alone_fails_in_a_row_is_held_and_the_link_hears_of_it_no_more() {
    use Trouble::{Failing, Overloaded, Timeout};
    let (mut routes, now) = (routes(), Instant::now());
    for _ in 0..10 {
        assert_eq!(
            fails(&mut routes, Log::Started, Overloaded, now),
            Attribution::Link,
            "nothing else has passed"
        );
    }
    for _ in 0..2 {
        fails(&mut routes, Log::Usage, Overloaded, now);
    }
    for passed in 0..8 {
        assert_eq!(
            fails(&mut routes, Log::Started, Overloaded, now),
            Attribution::Link,
            "two failed, {passed} passed"
        );
        routes.delivered(Log::Quota, 100, now, now);
    }
    assert_eq!(fails(&mut routes, Log::Started, Overloaded, now), Attribution::KindFromNowOn);
    assert_eq!(routes.held(), [false, true, false, false]);
    assert_eq!(fails(&mut routes, Log::Started, Failing, now), Attribution::Kind);
    assert_eq!(fails(&mut routes, Log::Started, Timeout, now), Attribution::Kind);
    let told: Vec<_> = routes.all_held().map(|(_, held)| held.trouble).collect();
    assert_eq!(told, [Timeout], "its current trouble is reported");
}

#[test]
fn a_kind_that_was_held_a_moment_ago_and_asks_to_wait_is_held_again_at_once() {
    let (mut routes, now) = (routes(), Instant::now());
    fails_alone(&mut routes, Log::Started, Trouble::Overloaded, now);
    assert!(routes.delivered(Log::Started, 1, now, now));
    let failure =
        LinkFailure { trouble: Trouble::Overloaded, sent: now, is_asked: true, cause: "status 503" };
    let asks = |routes: &mut Routes| {
        routes.troubled(Log::Started, std::iter::once(LaneKey::of_test(1)), failure, now)
    };
    assert_eq!(asks(&mut routes), Attribution::KindFromNowOn);
    assert!(routes.delivered(Log::Started, 1, now, now));
    assert!(!routes.delivered(Log::Started, 1, now, now));
    assert_eq!(asks(&mut routes), Attribution::Link, "counting starts over");
}

#[test]
fn a_kind_that_fails_in_part_is_held_once_and_then_only_when_nothing_of_it_passes() {
    let (mut routes, now) = (routes(), Instant::now());
    let (mut random, mut held) = (1_u64, 0);
    let mut some_pass = |routes: &mut Routes| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        routes.delivered(Log::Started, 1, now, now);
        if (random >> 32) % 2 == 0 {
            routes.delivered(Log::Usage, 1, now, now);
            return;
        }
        let attribution = fails(routes, Log::Usage, Trouble::Failing, now);
        assert!(held == 0 || attribution != Attribution::Link, "the link no longer hears of it");
        held += u32::from(attribution == Attribution::KindFromNowOn);
    };
    (0..10_000).for_each(|_| some_pass(&mut routes));
    assert_eq!(held, 1, "of ten thousand half of which fail");
    assert_eq!(
        fails(&mut routes, Log::Usage, Trouble::Overloaded, now),
        Attribution::Link,
        "but of load it does"
    );
    for _ in 0..16 {
        routes.delivered(Log::Started, 1, now, now);
        fails(&mut routes, Log::Usage, Trouble::Failing, now);
    }
    assert!(routes.is_held(Log::Usage));
    // A kind that has been well for long is held as soon as ever.
    for _ in 0..20 {
        routes.delivered(Log::Usage, 1, now, now);
    }
    for _ in 0..3 {
        routes.delivered(Log::Started, 1, now, now);
        fails(&mut routes, Log::Usage, Trouble::Failing, now);
    }
    assert!(routes.is_held(Log::Usage));
}

#[test]
fn failures_among_successes_in_flight_are_not_in_a_row() {
    let (mut routes, begin) = (routes(), Instant::now());
    for n in 1..100 {
        let (sent, now) = (begin + n * SECOND, begin + (n + 2) * SECOND);
        routes.delivered(Log::Usage, 1, now, now);
        for _ in 0..10 {
            routes.delivered(Log::Started, 1, now, now);
            assert_eq!(failed(&mut routes, Log::Usage, Trouble::Overloaded, sent, now), Attribution::Link);
        }
    }
}

#[test]
fn a_kind_does_not_fail_alone_while_others_fail_too() {
    let (mut routes, now) = (routes(), Instant::now());
    // Every other request of one kind passes.
    for _ in 0..1000 {
        for _ in 0..3 {
            assert_eq!(fails(&mut routes, Log::Completed, Trouble::Overloaded, now), Attribution::Link);
            assert_eq!(fails(&mut routes, Log::Usage, Trouble::Overloaded, now), Attribution::Link);
            routes.delivered(Log::Usage, 1, now, now);
        }
        routes.delivered(Log::Completed, 1, now, now);
        assert_eq!(fails(&mut routes, Log::Usage, Trouble::Overloaded, now), Attribution::Link);
    }
}

#[test]
fn two_kinds_fail_alone_beside_a_third_also_after_a_long_outage_of_all() {
    let (mut routes, now) = (routes(), Instant::now());
    for _ in 0..1000 {
        for log in [Log::Quota, Log::Started, Log::Usage] {
            assert_eq!(fails(&mut routes, log, Trouble::Overloaded, now), Attribution::Link);
        }
    }
    for _ in 0..12 {
        routes.delivered(Log::Usage, 1, now, now);
        assert_eq!(fails(&mut routes, Log::Started, Trouble::Overloaded, now), Attribution::Link);
        assert_eq!(fails(&mut routes, Log::Quota, Trouble::Overloaded, now), Attribution::Link);
    }
    routes.delivered(Log::Usage, 1, now, now);
    assert_eq!(fails(&mut routes, Log::Started, Trouble::Overloaded, now), Attribution::KindFromNowOn);
    assert_eq!(fails(&mut routes, Log::Quota, Trouble::Overloaded, now), Attribution::KindFromNowOn);
}

#[test]
fn a_kind_that_asks_to_wait_again_waits_alone() {
    let (mut routes, now) = (routes(), Instant::now());
    let failure =
        LinkFailure { trouble: Trouble::Overloaded, sent: now, is_asked: true, cause: "status 503" };
    let mut asks = || routes.troubled(Log::Started, [1, 2].map(LaneKey::of_test).into_iter(), failure, now);
    assert_eq!([asks(), asks(), asks()], [Attribution::Link; 3], "nothing else passes");
    routes.delivered(Log::Usage, 1, now, now);
    let mut asks = || routes.troubled(Log::Completed, [1, 2].map(LaneKey::of_test).into_iter(), failure, now);
    assert_eq!([asks(), asks()], [Attribution::Link; 2], "nor has anything since");
    routes.delivered(Log::Usage, 1, now, now);
    let mut asks = || routes.troubled(Log::Completed, [1, 2].map(LaneKey::of_test).into_iter(), failure, now);
    assert_eq!(asks(), Attribution::KindFromNowOn);
}

#[test]
fn a_kind_that_hangs_while_others_pass_to_the_end_is_held_at_once() {
    let (mut routes, sent) = (routes(), Instant::now());
    let now = sent + 30 * SECOND;
    routes.delivered(Log::Usage, 1, sent + 10 * SECOND, sent + 10 * SECOND);
    assert_eq!(
        failed(&mut routes, Log::Started, Trouble::Timeout, sent, now),
        Attribution::Link,
        "all may be hanging since then"
    );
    for _ in 0..10 {
        routes.delivered(Log::Usage, 1, sent + 20 * SECOND, sent + 20 * SECOND);
    }
    assert_eq!(
        failed(&mut routes, Log::Started, Trouble::Failing, sent, now),
        Attribution::Link,
        "that took no time"
    );
    assert_eq!(failed(&mut routes, Log::Completed, Trouble::Timeout, sent, now), Attribution::KindFromNowOn);
}

#[test]
fn failures_of_one_session_do_not_hold_its_kind() {
    let (mut routes, now) = (routes(), Instant::now());
    for _ in 0..100 {
        routes.delivered(Log::Usage, 1, now, now);
        let one = std::iter::once(LaneKey::of_test(1));
        let failure =
            LinkFailure { trouble: Trouble::Failing, sent: now, is_asked: true, cause: "status 500" };
        assert_eq!(routes.troubled(Log::Started, one, failure, now), Attribution::Link);
    }
}

#[test]
fn an_answer_ends_a_hold_for_troubles_but_not_for_refusals() {
    let (mut routes, now) = (routes(), Instant::now());
    fails_alone(&mut routes, Log::Started, Trouble::Timeout, now);
    for _ in 0..5 {
        routes.refused(Log::Quota, "status 422", now);
    }
    assert_eq!(routes.held(), [true, true, false, false]);
    assert!(routes.answered(Log::Started, now) && !routes.answered(Log::Quota, now));
    assert_eq!(routes.held(), [true, false, false, false]);
}

#[test]
fn probes_of_a_held_kind_never_affect_the_link_and_keep_its_brake() {
    let (mut routes, now) = (routes(), Instant::now());
    for n in 0..5 {
        routes.refused(Log::Quota, "status 422", now);
        routes.absent(Log::Started, "status 404", now);
        routes.session_unknown(Log::Usage, Some(LaneKey::of_test(n)), 0, "status 404", now);
    }
    for log in [Log::Quota, Log::Started, Log::Usage] {
        for trouble in [Trouble::Overloaded, Trouble::Timeout] {
            assert_eq!(fails(&mut routes, log, trouble, now), Attribution::Kind);
        }
    }
    assert!(!routes.absent(Log::Quota, "status 404", now) && routes.is_braked(Log::Quota));
    let told: Vec<_> = routes.all_held().map(|(_, held)| held.trouble).collect();
    assert_eq!(told, [Trouble::Refusing, Trouble::NoRoute, Trouble::NoRoute]);
}

#[test]
fn only_the_held_kind_waits_for_its_retry_after() {
    let (mut routes, now) = (routes(), Instant::now());
    let any = |_| true;
    fails_alone(&mut routes, Log::Started, Trouble::Overloaded, now);
    let asked = now + 1000 * SECOND;
    routes.asked_to_wait(Log::Started, 1000 * SECOND, now);
    assert_eq!(routes.next_probe(any), Some(asked));
    let before = now - SECOND;
    assert!(!routes.delivered(Log::Started, 1, before, now), "sent before the wait was asked for");
    assert_eq!(routes.next_probe(any), Some(asked));
    routes.link_up(now);
    assert_eq!(routes.due(now, any), None);
    // Another kind is held meanwhile, probed, and released.
    fails_alone(&mut routes, Log::Quota, Trouble::Overloaded, now);
    routes.link_up(now);
    assert_eq!(routes.due(now, any), Some(Log::Quota));
    assert_eq!(routes.next_probe(|log| log == Log::Started), Some(asked));
    routes.probe_sent(Log::Quota);
    assert!(routes.delivered(Log::Quota, 1, now, now));
    routes.probe_answered(Log::Quota, Pause::AtOnce, now);
    assert_eq!((routes.due(now, any), routes.next_probe(any)), (None, Some(asked)));
    assert_eq!(routes.due(asked, any), Some(Log::Started));
    routes.hurry(now);
    assert_eq!(routes.due(now, any), Some(Log::Started), "except for an operator");
    // A requested wait ends with the hold.
    routes.asked_to_wait(Log::Started, 1000 * SECOND, now);
    assert!(routes.delivered(Log::Started, 1, now, now));
    fails_alone(&mut routes, Log::Started, Trouble::Failing, now);
    assert!(routes.next_probe(any).unwrap() < asked);
}
