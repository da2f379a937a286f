//! A batch carries runs of whole sessions within its limits.

use std::num::NonZeroUsize;

use super::*;

#[test]
fn a_batch_holds_whole_sessions_each_in_its_order() {
    let mut lanes = lanes(&[
        (Kind::Usage, "a", 2),
        (Kind::Started, "a", 1),
        (Kind::Usage, "a", 4),
        (Kind::Completed, "a", 6),
        (Kind::Usage, "b", 3),
        (Kind::Usage, "b", 5),
        (Kind::Quota, "a", 7),
    ]);
    assert_eq!(lanes.sendable(), 2, "a quota request is in no batch");
    let quota = lanes.pick(Some(LIMITS)).unwrap();
    assert_eq!(only(quota).1.ticket.seq, 7, "quota requests are never batched");
    let (_, numbers) = batch_of(&mut lanes, LIMITS);
    assert_eq!(numbers, [vec![1, 2, 4, 6], vec![3, 5]]);
    assert!(!lanes.has_ready(), "each session is in one request at a time");
}

#[test]
fn sessions_are_spread_over_pipes_and_share_a_batch_evenly() {
    let mut lanes = Lanes::new(FEW);
    for seq in 0..64 {
        load(&mut lanes, Kind::Usage, &format!("s{}", seq % 8), seq + 1);
    }
    let limits = BatchLimits { records: 8, pipes: 4, ..LIMITS };
    for _ in 0..4 {
        let (_, numbers) = batch_of(&mut lanes, limits);
        assert_eq!(numbers.iter().map(Vec::len).collect::<Vec<_>>(), [4, 4]);
        assert_eq!(lanes.sendable(), 8, "in flight or ready");
    }
    assert!(!lanes.has_ready());
}

#[test]
fn what_has_no_room_in_a_batch_goes_first_in_the_next() {
    let mut lanes = lanes(&[(Kind::Usage, "a", 1), (Kind::Usage, "b", 2), (Kind::Usage, "c", 3)]);
    let limits = BatchLimits { records: 2, ..LIMITS };
    assert_eq!(batch_of(&mut lanes, limits).1, [[1], [2]]);
    load(&mut lanes, Kind::Usage, "d", 4);
    assert_eq!(batch_of(&mut lanes, limits).1, [[3], [4]]);
}

#[test]
fn a_record_that_is_looked_for_travels_with_as_few_as_it_may() {
    let mut lanes = lanes(&[(Kind::Usage, "a", 1), (Kind::Usage, "b", 2), (Kind::Usage, "c", 3)]);
    let (parcel, _) = batch_of(&mut lanes, LIMITS);
    let now = Instant::now();
    for (key, mut item) in items_of(parcel) {
        item.history.batch_most = if item.ticket.seq == 2 { 1 } else { 2 };
        lanes.put_back(key, item, now);
    }
    lanes.wake(now);
    let mut sizes: Vec<usize> = Vec::new();
    while lanes.has_ready() {
        sizes.push(batch_of(&mut lanes, LIMITS).1.iter().map(Vec::len).sum());
    }
    assert!(sizes.iter().all(|size| *size <= 2) && sizes.contains(&1), "{sizes:?}");
}

#[test]
fn after_a_breach_a_batch_holds_one_record_of_a_session() {
    let mut lanes = lanes(&[(Kind::Usage, "a", 1), (Kind::Usage, "a", 2), (Kind::Usage, "b", 3)]);
    let limits = BatchLimits { of_a_session: NonZeroUsize::new(1), ..LIMITS };
    assert_eq!(batch_of(&mut lanes, limits).1, [[1], [3]]);
}

#[test]
fn kinds_go_apart_while_it_is_not_known_which_of_them_fails() {
    let mut lanes = lanes(&[(Kind::Started, "a", 1), (Kind::Usage, "a", 2), (Kind::Usage, "b", 3)]);
    let limits = BatchLimits { of_one_kind: true, ..LIMITS };
    assert_eq!(batch_of(&mut lanes, limits).1, [[1]]);
    assert_eq!(batch_of(&mut lanes, limits).1, [[3]]);
}

#[test]
fn what_comes_back_of_a_batch_takes_its_place_again() {
    let mut lanes = lanes(&[(Kind::Started, "a", 1), (Kind::Usage, "a", 2), (Kind::Usage, "a", 3)]);
    load(&mut lanes, Kind::Usage, "a", 4);
    let (parcel, _) = batch_of(&mut lanes, LIMITS);
    load(&mut lanes, Kind::Usage, "a", 5);
    let now = Instant::now();
    for (key, item) in items_of(parcel).collect::<Vec<_>>().into_iter().rev() {
        match item.ticket.seq {
            2 | 4 => lanes.put_back(key, item, now),
            _ => lanes.settle(key, &item),
        }
        assert!(!lanes.has_ready(), "not before all records have come back");
    }
    lanes.wake(now);
    assert_eq!(batch_of(&mut lanes, LIMITS).1, [[2, 4, 5]]);
}
