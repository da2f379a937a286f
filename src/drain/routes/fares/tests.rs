//! Whose failure it is.

use std::time::Duration;

use super::super::tests::routes;
use super::*;

/// Two sessions, of which each request is.
fn fails(routes: &mut Routes, log: Log, trouble: Trouble, now: Instant) -> Whose {
    routes.troubled(log, [1, 2].map(LaneKey::of_test).into_iter(), trouble, "status 503", now)
}

#[test]
fn a_record_is_poison_only_beside_deliveries_of_its_own_kind() {
    let (mut routes, now) = (routes(), Instant::now());
    let mut tries = Tries::NONE;
    routes.begin(Log::Usage, &mut tries);
    routes.delivered(Log::Quota, 100, now);
    assert!(!routes.failed_on(Log::Usage, &mut tries).beside(Beside::ItsKind));
    routes.delivered(Log::Usage, 1, now);
    assert!(routes.failed_on(Log::Usage, &mut tries).beside(Beside::ItsKind));
    assert!(!routes.failed_on(Log::Usage, &mut tries).beside(Beside::ItsKind), "each delivery counts once");
    routes.delivered(Log::Quota, 1, now);
    assert!(routes.failed_on(Log::Usage, &mut tries).beside(Beside::Any), "where the answer alone was bad");
    assert!(routes.are_its_own(Log::Usage, Beside::ItsKind, &tries), "nothing else has failed");
}

#[test]
fn failures_are_a_records_own_when_hardly_any_other_meets_one() {
    let (mut routes, now) = (routes(), Instant::now());
    let (mut bad, mut other) = (Tries::NONE, Tries::NONE);
    routes.failed_on(Log::Usage, &mut other);
    routes.begin(Log::Usage, &mut bad);
    routes.failed_on(Log::Usage, &mut bad);
    assert!(routes.are_its_own(Log::Usage, Beside::ItsKind, &bad), "what failed before says nothing of now");
    routes.failed_on(Log::Usage, &mut other);
    for passed in 0..4 {
        assert!(!routes.are_its_own(Log::Usage, Beside::ItsKind, &bad), "one failed, {passed} passed");
        // However much is in a request, it passes once.
        routes.delivered(Log::Usage, 500, now);
    }
    assert!(routes.are_its_own(Log::Usage, Beside::ItsKind, &bad));
    routes.failed_on_all(Log::Usage, std::iter::once(&mut other));
    assert!(!routes.are_its_own(Log::Usage, Beside::ItsKind, &bad));
    assert!(
        routes.are_its_own(Log::Usage, Beside::Any, &bad),
        "where the answers of the kind are what is wrong"
    );
    // Each by itself where each was answered by itself.
    routes.delivered(Log::Usage, 4, now);
    routes.passed_apart(Log::Usage, 4);
    assert!(routes.are_its_own(Log::Usage, Beside::ItsKind, &bad));
}

#[test]
fn a_batch_that_failed_as_a_whole_is_no_failure_of_others_to_its_records() {
    let (mut routes, now) = (routes(), Instant::now());
    let mut batch = [Tries::NONE; 3];
    for tries in &mut batch {
        routes.begin(Log::Usage, tries);
    }
    assert!(!routes.failed_on_all(Log::Usage, batch.iter_mut()), "nothing has passed");
    assert!(routes.are_its_own(Log::Usage, Beside::ItsKind, &batch[0]));
    routes.delivered(Log::Usage, 1, now);
    assert!(routes.failed_on_all(Log::Usage, batch[..1].iter_mut()));
    assert!(!routes.failed_on_all(Log::Usage, batch[..1].iter_mut()), "nothing has passed since");
    assert!(!routes.are_its_own(Log::Usage, Beside::ItsKind, &batch[2]), "two others failed, and one passed");
}

#[test]
fn more_failing_records_than_may_be_refused_are_an_outage_that_always_hits_the_same_ones() {
    let (mut routes, now) = (routes(), Instant::now());
    let mut tries = Tries::NONE;
    routes.begin(Log::Usage, &mut tries);
    routes.delivered(Log::Usage, 1, now);
    routes.failed_on(Log::Usage, &mut tries);
    for session in 1..=6 {
        assert!(routes.are_its_own(Log::Usage, Beside::ItsKind, &tries), "{session} fail");
        routes.is_failing(Log::Usage, LaneKey::of_test(session));
        routes.is_failing(Log::Started, LaneKey::of_test(session));
    }
    assert!(!routes.are_its_own(Log::Usage, Beside::ItsKind, &tries));
    assert!(routes.are_its_own(Log::Usage, Beside::Any, &tries), "where every answer of the kind is wrong");
    routes.is_done(Log::Usage, LaneKey::of_test(3));
    assert!(routes.are_its_own(Log::Usage, Beside::ItsKind, &tries));
}

#[test]
fn nothing_is_poison_while_a_part_of_the_control_plane_is_out() {
    // Three of ten requests meet the part that fails, whatever is in them. Records that have met it are tried again, after a
    // backoff in which others are.
    let (mut routes, now) = (routes(), Instant::now());
    let mut waiting = std::collections::VecDeque::new();
    let mut random = 1_u64;
    for _ in 0..100_000 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let mut tries = if waiting.len() > 20 { waiting.pop_front() } else { None }.unwrap_or_else(|| {
            let mut tries = Tries::NONE;
            routes.begin(Log::Usage, &mut tries);
            tries
        });
        if (random >> 32) % 10 < 7 {
            routes.delivered(Log::Usage, 1, now);
            continue;
        }
        tries.poisoned += u32::from(routes.failed_on(Log::Usage, &mut tries).beside(Beside::ItsKind));
        let is_its_own = routes.are_its_own(Log::Usage, Beside::ItsKind, &tries);
        assert!(tries.poisoned < 4 || !is_its_own, "{tries:?}");
        waiting.push_back(tries);
    }
}

#[test]
fn a_kind_that_alone_fails_in_a_row_is_held_and_the_link_hears_of_it_no_more() {
    let (mut routes, now) = (routes(), Instant::now());
    for _ in 0..10 {
        assert_eq!(
            fails(&mut routes, Log::Started, Trouble::Overloaded, now),
            Whose::Link,
            "nothing else has passed"
        );
    }
    for passed in 0..4 {
        fails(&mut routes, Log::Usage, Trouble::Overloaded, now);
        assert_eq!(
            fails(&mut routes, Log::Started, Trouble::Overloaded, now),
            Whose::Link,
            "one failed, {passed} passed"
        );
        routes.delivered(Log::Quota, 1, now);
    }
    // Usage fails no more.
    routes.delivered(Log::Usage, 100, now);
    assert_eq!(fails(&mut routes, Log::Started, Trouble::Overloaded, now), Whose::KindFromNowOn);
    assert_eq!(routes.held(), [false, true, false, false]);
    assert_eq!(fails(&mut routes, Log::Started, Trouble::Failing, now), Whose::Kind);
    assert_eq!(fails(&mut routes, Log::Started, Trouble::Unreachable, now), Whose::Link, "that is news");
    assert!(routes.delivered(Log::Started, 1, now));
    assert_eq!(fails(&mut routes, Log::Started, Trouble::Overloaded, now), Whose::Link, "and it counts anew");
}

#[test]
fn a_kind_does_not_fail_alone_while_others_fail_too() {
    let (mut routes, now) = (routes(), Instant::now());
    for _ in 0..100 {
        // One in two of the one, and all of the other.
        assert_eq!(fails(&mut routes, Log::Usage, Trouble::Overloaded, now), Whose::Link);
        assert_eq!(fails(&mut routes, Log::Completed, Trouble::Overloaded, now), Whose::Link);
        routes.delivered(Log::Usage, 1, now);
        assert_eq!(fails(&mut routes, Log::Usage, Trouble::Overloaded, now), Whose::Link);
        assert_eq!(fails(&mut routes, Log::Quota, Trouble::Overloaded, now), Whose::Link);
    }
}

#[test]
fn one_session_alone_is_no_kind() {
    let (mut routes, now) = (routes(), Instant::now());
    for _ in 0..100 {
        routes.delivered(Log::Usage, 1, now);
        let one = std::iter::once(LaneKey::of_test(1));
        assert_eq!(routes.troubled(Log::Started, one, Trouble::Failing, "status 500", now), Whose::Link);
    }
}

#[test]
fn a_kind_that_is_answered_is_held_for_its_troubles_no_more_and_for_its_refusals_still() {
    let (mut routes, now) = (routes(), Instant::now());
    for _ in 0..10 {
        routes.delivered(Log::Usage, 1, now);
        fails(&mut routes, Log::Started, Trouble::Timeout, now);
        routes.refused(Log::Quota, "status 422", now);
    }
    assert_eq!(routes.held(), [true, true, false, false]);
    assert!(routes.answered(Log::Started, now) && !routes.answered(Log::Quota, now));
    assert_eq!(routes.held(), [true, false, false, false]);
    fails(&mut routes, Log::Quota, Trouble::Timeout, now);
    assert!(routes.is_braked(Log::Quota), "what else its probes meet does not release a brake");
}

#[test]
fn what_is_held_waits_as_long_as_it_is_asked_to() {
    let (mut routes, now) = (routes(), Instant::now());
    for _ in 0..10 {
        routes.delivered(Log::Usage, 1, now);
        fails(&mut routes, Log::Started, Trouble::Overloaded, now);
    }
    let asked = now + Duration::from_secs(100);
    routes.asked_to_wait(asked);
    assert_eq!(routes.next_probe(), Some(asked));
    routes.link_up(now);
    assert_eq!(routes.next_probe(), Some(asked));
    routes.probe_sent(Log::Started);
    routes.probe_answered(Log::Started, now);
    assert_eq!(routes.next_probe(), Some(asked));
    routes.hurry(now);
    assert_eq!(routes.next_probe(), Some(now), "but for an operator");
}
