//! Dead letters age only by a confirmed clock, and are deleted slowly.

use std::time::Duration;

use super::rig::Rig;
use crate::outbox::format::codec::Entry;
use crate::outbox::format::dead_letter::{DeadLetter, Payload, Reason};
use crate::record::{Kind, Timestamp};
use crate::time::tests::TestClock;

const NOW: Timestamp = Timestamp(1_764_000_000_000_000);
const HOUR: Duration = Duration::from_hours(1);
const MINUTE: Duration = Duration::from_mins(1);

/// A dead letter of another outbox, given up at that time.
fn letter(n: u64, last_at: Timestamp) -> Entry {
    let payload =
        Payload::Raw { kind: Kind::Usage, accepted_at: last_at, bytes: n.to_string().into_bytes().into() };
    let detail = "no record".into();
    Entry::Letter(Box::new(DeadLetter {
        id: 0,
        reason: Reason::Invalid,
        detail,
        attempts: 0,
        first_at: last_at,
        last_at,
        payload,
    }))
}

/// `count` dead letters, the n-th given up at `at(n)`, and a run that begins before the outbox is opened.
fn rig(dir: &std::path::Path, count: u64, at: impl Fn(u64) -> Timestamp) -> (Rig, TestClock) {
    let run = TestClock::begin(NOW);
    let mut rig = Rig::open(dir);
    rig.append((0..count).map(|n| letter(n, at(n))).collect()).unwrap();
    while rig.stats().dead_letters < count {
        rig.tick();
    }
    (rig, run)
}

/// Lets time pass second by second, with the chores of each, and saves in between.
fn pass(rig: &mut Rig, run: &mut TestClock, time: Duration) {
    for _ in 0..time.as_secs() {
        rig.maintenance.expire_letters(run.pass(Duration::from_secs(1)));
        if rig.shared.state().is_dirty() {
            rig.tick();
        }
    }
}

fn left(rig: &Rig) -> Vec<DeadLetter> {
    rig.maintenance.letters(0, usize::MAX).unwrap()
}

#[test]
fn old_dead_letters_go_that_lie_behind_young_ones() {
    let dir = tempfile::tempdir().unwrap();
    // As an import leaves them; more than are scanned at once.
    let (mut rig, mut run) = rig(dir.path(), 100, |n| if n % 31 == 30 { Timestamp(1) } else { NOW });
    rig.shared.confirmed.confirm(NOW, run.now);
    pass(&mut rig, &mut run, 2 * MINUTE);
    let stats = rig.stats();
    assert_eq!((stats.dead_letters, stats.dead_letters_expired), (97, 3));
    assert!(left(&rig).iter().all(|letter| letter.last_at == NOW) && left(&rig).len() == 97);
    rig.check_counts();
}

#[test]
fn ten_a_minute_go_and_of_many_a_thousandth() {
    for (count, most) in [(200, 10), (12_000, 12)] {
        let dir = tempfile::tempdir().unwrap();
        let (mut rig, mut run) = rig(dir.path(), count, |_| Timestamp(1));
        rig.shared.confirmed.confirm(NOW, run.now);
        pass(&mut rig, &mut run, Duration::from_secs(59));
        assert_eq!(rig.stats().dead_letters_expired, 0, "none in the first minute, or restarts would add up");
        for minute in 1..5 {
            pass(&mut rig, &mut run, MINUTE);
            let expired = rig.stats().dead_letters_expired;
            assert!(
                expired > (minute - 1) * most && expired <= minute * most,
                "{expired} in {minute} minutes"
            );
        }
    }
}

#[test]
fn no_clock_of_this_machine_deletes_any() {
    let dir = tempfile::tempdir().unwrap();
    let (mut rig, mut run) = rig(dir.path(), 50, |_| NOW);
    run.step(31 * 86_400);
    pass(&mut rig, &mut run, 2 * HOUR);
    assert_eq!(left(&rig).len(), 50, "nothing has confirmed that a month has passed");
    // The ControlPlane says that it has not; this machine's clock stays wrong.
    rig.shared.confirmed.confirm(Timestamp(NOW.0 + run.elapsed().as_micros() as i64), run.now);
    pass(&mut rig, &mut run, 8 * HOUR);
    assert_eq!(left(&rig).len(), 50);
}

#[test]
fn after_a_jump_none_goes_for_hours() {
    let dir = tempfile::tempdir().unwrap();
    let (mut rig, mut run) = rig(dir.path(), 50, |_| NOW);
    rig.shared.confirmed.confirm(NOW, run.now);
    pass(&mut rig, &mut run, HOUR);
    // Both clocks jump by a month.
    let later = run.step(31 * 86_400);
    rig.shared.confirmed.confirm(later.wall, later);
    pass(&mut rig, &mut run, 5 * HOUR);
    assert_eq!(left(&rig).len(), 50);
    pass(&mut rig, &mut run, 3 * HOUR);
    assert!(left(&rig).is_empty(), "hours later it is believed");
}
