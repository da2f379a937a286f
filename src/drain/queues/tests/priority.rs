//! Quota requests go first, lifecycle events second, and suspects by turns; none starves.

use super::*;
use crate::drain::queues::priority::STREAKS;

#[test]
fn sessions_and_quota_requests_never_wait_for_each_other() {
    let mut lanes =
        lanes(&[(Kind::Usage, "a", 1), (Kind::Usage, "b", 2), (Kind::Quota, "a", 3), (Kind::Quota, "a", 4)]);
    let in_flight: Vec<_> =
        std::iter::from_fn(|| pick(&mut lanes)).map(|(_, item)| item.ticket.seq).collect();
    assert_eq!(in_flight, [3, 4, 1, 2]);
}

#[test]
fn quota_goes_first_and_lifecycle_second_and_neither_starves_the_others() {
    let mut lanes = Lanes::new(FEW);
    for seq in 1..=1000 {
        let kind = match seq {
            1..=600 => Kind::Quota,
            601..=800 => Kind::Started,
            _ => Kind::Usage,
        };
        load(&mut lanes, kind, &format!("s{seq}"), seq);
    }
    let classes: Vec<_> =
        std::iter::from_fn(|| pick(&mut lanes)).map(|(_, item)| place_of(item.ticket.kind)).collect();
    let streak = STREAKS[0] as usize;
    assert!(classes[..streak].iter().all(|class| *class == 0));
    for (at, run) in classes[..600].windows(streak + 1).enumerate() {
        assert!(run.iter().any(|class| *class > 0), "only quota from {at} on");
    }
    for (at, run) in classes[..600].windows((streak + 1) * (streak + 1)).enumerate() {
        assert!(run.contains(&2), "no usage from {at} on");
    }
    let quota_done = classes.iter().rposition(|class| *class == 0).unwrap();
    for run in classes[quota_done..900].windows(streak + 2) {
        assert!(run.contains(&1) || run.iter().all(|class| *class == 2), "lifecycle before usage: {run:?}");
    }
    assert_eq!(classes.len(), 1000);
}

#[test]
fn started_and_completed_events_go_in_turns() {
    let mut lanes = Lanes::new(FEW);
    for seq in 1..=6 {
        let kind = if seq > 3 { Kind::Completed } else { Kind::Started };
        load(&mut lanes, kind, &format!("s{seq}"), seq);
    }
    assert_eq!(send_all(&mut lanes), [1, 4, 2, 5, 3, 6]);
}

#[test]
fn suspects_travel_by_themselves_and_take_turns_with_good_records() {
    let mut lanes = lanes(&[(Kind::Usage, "bad-1", 1), (Kind::Usage, "bad-2", 2), (Kind::Usage, "bad-2", 3)]);
    let now = Instant::now();
    refuse_heads(&mut lanes, now);
    for seq in 10..14 {
        load(&mut lanes, Kind::Usage, &format!("good-{seq}"), seq);
    }
    let order: Vec<_> = std::iter::from_fn(|| pick(&mut lanes)).map(|(_, item)| item.ticket.seq).collect();
    assert_eq!(order, [1, 10, 2, 11, 12, 13], "one suspect, one good record");

    let mut lanes =
        super::lanes(&[(Kind::Usage, "bad", 1), (Kind::Usage, "bad", 2), (Kind::Usage, "good", 3)]);
    let (parcel, _) = batch_of(&mut lanes, LIMITS);
    for (key, mut item) in items_of(parcel) {
        item.history.refusals = u8::from(item.ticket.seq == 1);
        lanes.put_back(key, item, now);
    }
    lanes.wake(now);
    assert_eq!(batch_of(&mut lanes, LIMITS).1, [[1]], "the confirmation, alone");
    assert_eq!(batch_of(&mut lanes, LIMITS).1, [[3]]);
}
