//! What holds and releases a kind; no kind affects another.

use super::probes::QUICK_PROBES;
use super::*;

const MS: Duration = Duration::from_millis(1);
const SHORT: Pause = Pause::Short(Duration::from_millis(50));
const FOR_LONG: Duration = Duration::from_secs(3600);

pub(super) fn routes() -> Routes {
    Routes::new(Settings::of_test())
}

fn session(number: u128) -> LaneKey {
    LaneKey::of_test(number)
}

#[test]
fn refusals_of_a_kind_engage_its_brake_despite_other_deliveries_and_its_own_delivery_releases_it() {
    let (mut routes, now) = (routes(), Instant::now());
    for n in 1..=5 {
        routes.delivered(Log::Quota, 1, now, now);
        routes.delivered(Log::Started, 1, now, now);
        assert_eq!(routes.refused(Log::Usage, "status 422", now), n == 5);
    }
    assert!(routes.is_braked(Log::Usage) && !routes.is_braked(Log::Quota));
    assert!(!routes.refused(Log::Usage, "status 422", now), "it is reported once");
    assert!(!routes.delivered(Log::Quota, 1, now, now) && routes.is_braked(Log::Usage));
    assert!(routes.delivered(Log::Usage, 1, now, now) && !routes.is_braked(Log::Usage));
    assert!(!routes.refused(Log::Usage, "status 422", now), "counting starts over");
}

#[test]
fn refusal_of_every_kind_costs_the_dead_letters_of_one_brake() {
    let (mut routes, now) = (routes(), Instant::now());
    let mut not_braked = 0;
    for n in 0..100 {
        let log = LOGS[n % LOGS.len()];
        routes.refused(log, "status 422", now);
        not_braked += u32::from(!routes.is_braked(log));
    }
    assert_eq!((not_braked, routes.held()), (4, [true; LOGS.len()]));
}

#[test]
fn the_first_probe_behind_a_brake_goes_at_once() {
    let (mut routes, now) = (routes(), Instant::now());
    for _ in 0..5 {
        routes.refused(Log::Usage, "status 422", now);
    }
    assert!(routes.is_braked(Log::Usage));
    assert_eq!(routes.due(now, |_| true), Some(Log::Usage));
    routes.probe_sent(Log::Usage);
    routes.probe_answered(Log::Usage, SHORT, now);
    assert_eq!(routes.due(now, |_| true), None, "the next one waits");
}

#[test]
fn probes_of_a_braked_kind_back_off_once_they_show_a_bad_release() {
    let (mut routes, start) = (routes(), Instant::now());
    let refuse =
        |routes: &mut Routes| (0..5).for_each(|_| _ = routes.refused(Log::Usage, "status 422", start));
    let waits = |routes: &mut Routes, pause| {
        routes.probe_sent(Log::Usage);
        routes.probe_answered(Log::Usage, pause, start);
        routes.next_probe(|_| true).unwrap() - start
    };
    refuse(&mut routes);
    assert!(waits(&mut routes, Pause::Backoff) >= Duration::from_secs(5), "nothing new can be expected");
    for _ in 0..QUICK_PROBES {
        assert_eq!(waits(&mut routes, SHORT), 50 * MS);
    }
    assert!(waits(&mut routes, SHORT) >= Duration::from_secs(5));
    assert_eq!(waits(&mut routes, Pause::AtOnce), Duration::ZERO, "the second half of a step");
    // A delivery restores them.
    assert!(routes.delivered(Log::Usage, 1, start, start));
    refuse(&mut routes);
    assert_eq!(waits(&mut routes, SHORT), 50 * MS);
    // Other held kinds are probed no more often because of that.
    for _ in 0..3 {
        routes.absent(Log::Completed, "status 404", start);
    }
    assert!(waits(&mut routes, SHORT) >= Duration::from_secs(5));
}

#[test]
fn only_a_kind_braked_for_a_while_is_walked() {
    let (mut routes, now) = (routes(), Instant::now());
    assert!(!routes.may_walk(Log::Usage, now + FOR_LONG));
    for _ in 0..5 {
        routes.refused(Log::Usage, "status 422", now);
    }
    assert!(
        !routes.may_walk(Log::Usage, now + WALK_AFTER / 2) && routes.may_walk(Log::Usage, now + WALK_AFTER)
    );
    for _ in 0..3 {
        routes.absent(Log::Completed, "status 404", now);
    }
    assert!(!routes.may_walk(Log::Completed, now + FOR_LONG));
    // The next brake finds the same bad records or, much later, others.
    for (pause, walks) in [(Duration::from_secs(1), true), (FOR_LONG, false)] {
        let released = now + FOR_LONG;
        routes.delivered(Log::Usage, 1, released, released);
        for _ in 0..5 {
            routes.refused(Log::Usage, "status 422", released + pause);
        }
        assert_eq!(routes.may_walk(Log::Usage, released + pause), walks);
    }
}

#[test]
fn bad_records_among_good_ones_do_not_engage_the_brake() {
    let (mut routes, now) = (routes(), Instant::now());
    for _ in 0..100 {
        for _ in 0..4 {
            assert!(!routes.refused(Log::Usage, "status 422", now));
        }
        routes.delivered(Log::Usage, 1, now, now);
    }
}

#[test]
fn refusals_of_an_earlier_process_count() {
    let (mut routes, now) = (routes(), Instant::now());
    routes.remember_refusals(Log::Usage, 1000);
    assert!(!routes.is_braked(Log::Usage), "nothing is held before it was tried");
    assert!(!routes.refused(Log::Usage, "status 422", now) && !routes.refused(Log::Usage, "status 422", now));
    assert!(routes.refused(Log::Usage, "status 422", now), "behind one record and its confirmation");
    assert!(!routes.refused(Log::Started, "status 422", now));
}

#[test]
fn if_every_session_of_a_kind_is_unknown_its_route_is_missing() {
    let (mut routes, now) = (routes(), Instant::now());
    for n in 0..34 {
        routes.delivered(Log::Started, 1, now, now);
        assert!(!routes.session_unknown(Log::Usage, Some(session(n)), 32, "status 404", now));
    }
    assert!(routes.session_unknown(Log::Usage, Some(session(34)), 32, "status 404", now));
    assert_eq!(routes.held(), [false, false, true, false]);
    assert!(routes.delivered(Log::Usage, 1, now, now));
}

#[test]
fn one_unknown_session_is_no_outage_and_several_are() {
    let (mut routes, now) = (routes(), Instant::now());
    for _ in 0..200 {
        assert!(!routes.session_unknown(Log::Usage, Some(session(1)), 2, "status 404", now));
    }
    assert!(!routes.session_unknown(Log::Usage, Some(session(2)), 2, "status 404", now));
    assert!(routes.session_unknown(Log::Usage, Some(session(3)), 2, "status 404", now));
}

#[test]
fn sessions_that_have_been_unknown_for_long_are_no_sign_of_the_route() {
    let (mut routes, now) = (routes(), Instant::now());
    for _ in 0..1000 {
        assert!(!routes.session_unknown(Log::Usage, None, 2, "status 404", now));
    }
}

#[test]
fn a_grace_runs_only_while_others_of_its_kind_are_delivered() {
    let (mut routes, start) = (routes(), Instant::now());
    routes.delivered(Log::Usage, 1, start, start);
    let since = routes.progress(start);
    for n in 1..=1000 {
        routes.delivered(Log::Started, 1, start + n * 1000 * MS, start + n * 1000 * MS);
    }
    assert_eq!(routes.delivering_since(Log::Usage, &since), Duration::ZERO);
    assert!(routes.is_news(Log::Usage, &since));
    routes.delivered(Log::Usage, 1, start, start + Duration::from_secs(3));
    assert_eq!(routes.delivering_since(Log::Usage, &since), Duration::from_secs(3));
    assert!(!routes.is_news(Log::Usage, &since));
    // Nor while the link is down, or nothing is delivered.
    routes.link_down();
    routes.delivered(Log::Usage, 1, start + FOR_LONG, start + FOR_LONG);
    assert_eq!(routes.delivering_since(Log::Usage, &since), Duration::from_secs(3));
    routes.delivered(Log::Usage, 1, start + 2 * FOR_LONG, start + 2 * FOR_LONG);
    assert_eq!(routes.delivering_since(Log::Usage, &since), Duration::from_secs(13));
}

#[test]
fn a_gap_before_a_session_was_unknown_is_no_time_of_its_grace() {
    let (mut routes, start) = (routes(), Instant::now());
    routes.delivered(Log::Usage, 1, start, start);
    // Nothing was delivered for nine seconds; then a session is unknown, and the next delivery follows at once.
    let unknown_at = start + Duration::from_secs(9);
    let since = routes.progress(unknown_at);
    routes.delivered(Log::Usage, 1, unknown_at + 100 * MS, unknown_at + 100 * MS);
    assert_eq!(routes.delivering_since(Log::Usage, &since), 100 * MS);
}

#[test]
fn kinds_that_are_held_are_probed_in_turn_and_no_more_often_than_one() {
    let (mut routes, start) = (routes(), Instant::now());
    for log in LOGS {
        for _ in 0..5 {
            routes.refused(log, "status 422", start);
        }
    }
    let (mut now, mut probed) = (start, Vec::new());
    let mut long_after = start + Duration::from_secs(600);
    while now < long_after {
        now = routes.next_probe(|_| true).unwrap();
        let log = routes.due(now, |log| log != Log::Completed).unwrap();
        routes.probe_sent(log);
        assert_eq!(routes.due(now + FOR_LONG, |_| true), None, "one at a time");
        routes.refused(log, "status 422", now);
        routes.probe_answered(log, SHORT, now);
        probed.push(log);
        if probed.len() == QUICK_PROBES as usize {
            assert!(now <= start + 50 * MS * QUICK_PROBES, "without backoff");
            long_after = now + Duration::from_secs(600);
        }
    }
    let slow = probed.len() - QUICK_PROBES as usize;
    assert!((20..=40).contains(&slow), "{slow} more in ten minutes");
    assert_eq!(probed[..4], [Log::Quota, Log::Started, Log::Usage, Log::Quota], "what has something to send");
}

#[test]
fn when_one_kind_recovers_the_others_are_tried_at_once() {
    let (mut routes, now) = (routes(), Instant::now());
    for log in [Log::Usage, Log::Started] {
        for _ in 0..5 {
            routes.refused(log, "status 422", now);
        }
    }
    for _ in 0..2 {
        let probed = routes.due(now, |_| true).unwrap_or(Log::Usage);
        routes.probe_sent(probed);
        routes.probe_answered(probed, SHORT, now);
    }
    assert_eq!(routes.due(now, |_| true), None);
    assert!(routes.delivered(Log::Usage, 1, now, now));
    assert_eq!(routes.due(now, |_| true), Some(Log::Started));
    assert!(routes.delivered(Log::Started, 1, now, now));
    assert_eq!(routes.next_probe(|_| true), None, "nothing is held any more");
}

#[test]
fn an_operator_releases_every_brake_and_makes_the_probe_of_a_lost_route_due() {
    let (mut routes, now) = (routes(), Instant::now());
    for _ in 0..5 {
        routes.refused(Log::Usage, "status 422", now);
    }
    for _ in 0..3 {
        routes.absent(Log::Completed, "status 404", now);
    }
    assert_eq!(routes.release_brakes(now), [Log::Usage]);
    assert_eq!(routes.held(), [false, false, false, true]);
    assert_eq!(routes.due(now, |_| true), Some(Log::Completed));
}
