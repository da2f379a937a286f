//! Failures of a record, of others, and of a part of the `ControlPlane`.

use tokio::time::Instant;

use super::super::tests::routes;
use super::*;

#[test]
fn a_record_is_poison_only_beside_deliveries_of_its_own_kind() {
    let (mut routes, now) = (routes(), Instant::now());
    let mut history = AttemptHistory::NONE;
    routes.begin(Log::Usage, &mut history);
    routes.delivered(Log::Quota, 100, now, now);
    assert!(!routes.failed_on(Log::Usage, Beside::ItsKind, &mut history).others);
    routes.delivered(Log::Usage, 1, now, now);
    assert!(routes.failed_on(Log::Usage, Beside::ItsKind, &mut history).others);
    assert!(!routes.failed_on(Log::Usage, Beside::ItsKind, &mut history).others, "each delivery counts once");
    routes.delivered(Log::Quota, 1, now, now);
    assert!(routes.failed_on(Log::Usage, Beside::Any, &mut history).others, "if only the answer was bad");
    assert!(routes.are_its_own(Log::Usage, Beside::ItsKind, &history), "nothing else has failed");
}

#[test]
fn failures_are_a_records_own_when_hardly_any_other_meets_one() {
    let (mut routes, now) = (routes(), Instant::now());
    let (mut bad, mut other) = (AttemptHistory::NONE, AttemptHistory::NONE);
    routes.failed_on(Log::Usage, Beside::ItsKind, &mut other);
    routes.begin(Log::Usage, &mut bad);
    routes.failed_on(Log::Usage, Beside::ItsKind, &mut bad);
    assert!(routes.are_its_own(Log::Usage, Beside::ItsKind, &bad), "earlier failures say nothing now");
    routes.failed_on(Log::Usage, Beside::ItsKind, &mut other);
    for passed in 0..4 {
        assert!(!routes.are_its_own(Log::Usage, Beside::ItsKind, &bad), "one failed, {passed} passed");
        // However much a request contains, it passes once.
        routes.delivered(Log::Usage, 500, now, now);
    }
    assert!(routes.are_its_own(Log::Usage, Beside::ItsKind, &bad));
    routes.failed_on_all(std::iter::once((Log::Usage, &mut other)));
    assert!(!routes.are_its_own(Log::Usage, Beside::ItsKind, &bad));
    assert!(routes.are_its_own(Log::Usage, Beside::Any, &bad), "if the answers of the kind are wrong");
    // Individually, if each was answered individually.
    routes.delivered(Log::Usage, 4, now, now);
    routes.passed_apart(Log::Usage, 4);
    assert!(routes.are_its_own(Log::Usage, Beside::ItsKind, &bad));
}

#[test]
fn a_batch_that_failed_as_a_whole_is_no_failure_of_others_to_its_records() {
    let (mut routes, now) = (routes(), Instant::now());
    let mut batch = [AttemptHistory::NONE; 3];
    for history in &mut batch {
        routes.begin(Log::Usage, history);
    }
    assert!(
        !routes.failed_on_all(batch.iter_mut().map(|history| (Log::Usage, history))),
        "nothing has passed"
    );
    assert!(routes.are_its_own(Log::Usage, Beside::ItsKind, &batch[0]));
    routes.delivered(Log::Usage, 1, now, now);
    assert!(routes.failed_on_all(batch[..1].iter_mut().map(|history| (Log::Usage, history))));
    assert!(
        !routes.failed_on_all(batch[..1].iter_mut().map(|history| (Log::Usage, history))),
        "nothing has passed since"
    );
    assert!(!routes.are_its_own(Log::Usage, Beside::ItsKind, &batch[2]), "two others failed, and one passed");
}

#[test]
fn more_failing_records_than_may_be_refused_are_an_outage_that_always_hits_the_same_ones() {
    let (mut routes, now) = (routes(), Instant::now());
    let mut history = AttemptHistory::NONE;
    routes.begin(Log::Usage, &mut history);
    routes.delivered(Log::Usage, 1, now, now);
    routes.failed_on(Log::Usage, Beside::ItsKind, &mut history);
    for session in 1..=6 {
        assert!(routes.are_its_own(Log::Usage, Beside::ItsKind, &history), "{session} fail");
        routes.is_failing(Log::Usage, LaneKey::of_test(session));
        routes.is_failing(Log::Started, LaneKey::of_test(session));
    }
    assert!(!routes.are_its_own(Log::Usage, Beside::ItsKind, &history));
    assert!(routes.are_its_own(Log::Usage, Beside::Any, &history), "if every answer of the kind is wrong");
    routes.is_done(Log::Usage, LaneKey::of_test(3));
    assert!(routes.are_its_own(Log::Usage, Beside::ItsKind, &history));
}

#[test]
fn nothing_is_poison_while_a_part_of_the_control_plane_is_out() {
    // Three of ten requests meet the failing part, whatever they contain. Records that met it are tried again after a
    // backoff, in which others are tried.
    let (mut routes, now) = (routes(), Instant::now());
    let mut waiting = std::collections::VecDeque::new();
    let mut random = 1_u64;
    for _ in 0..100_000 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let mut history = if waiting.len() > 20 { waiting.pop_front() } else { None }.unwrap_or_else(|| {
            let mut history = AttemptHistory::NONE;
            routes.begin(Log::Usage, &mut history);
            history
        });
        if (random >> 32) % 10 < 7 {
            routes.delivered(Log::Usage, 1, now, now);
            continue;
        }
        history.poisoned += u32::from(routes.failed_on(Log::Usage, Beside::ItsKind, &mut history).others);
        let is_its_own = routes.are_its_own(Log::Usage, Beside::ItsKind, &history);
        assert!(history.poisoned < 4 || !is_its_own, "{history:?}");
        waiting.push_back(history);
    }
}
