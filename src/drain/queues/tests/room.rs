//! Lanes that wait make room for others when the window is full, and forget nothing.

use super::*;

/// Returns the heads of all lanes until then, each with this many attempts.
fn put_all_back(lanes: &mut Lanes, not_before: Instant, attempts: u32) {
    let heads: Vec<_> = std::iter::from_fn(|| pick(lanes)).collect();
    for (key, mut item) in heads {
        item.history.attempts = attempts;
        lanes.put_back(key, item, not_before);
    }
}

#[test]
fn room_is_made_by_lanes_that_wait_and_they_keep_their_head() {
    let mut lanes = lanes(&[
        (Kind::Usage, "a", 1),
        (Kind::Usage, "a", 2),
        (Kind::Usage, "a", 3),
        (Kind::Usage, "b", 4),
        (Kind::Usage, "b", 5),
    ]);
    let (key, item) = pick(&mut lanes).unwrap();
    let not_before = soon();
    lanes.put_back(key, item, not_before);
    let one = lanes.bytes(Kind::Usage) / 5;
    lanes.make_room(Kind::Usage, SMALL);
    assert_eq!((lanes.count(Kind::Usage), lanes.bytes(Kind::Usage)), (3, 3 * one));
    assert_eq!(send_all(&mut lanes), [4, 5], "a ready lane keeps its records");
    lanes.wake(not_before);
    assert_eq!(send_all(&mut lanes), [1]);
    assert_eq!(lanes.begin_refill(Log::Usage), Some(2), "from the first lane that was cut off");
}

#[test]
fn sessions_that_wait_leave_room_for_others_and_forget_nothing() {
    let mut lanes = Lanes::new(FEW);
    for seq in 1..=SMALL.records as u64 {
        load(&mut lanes, Kind::Usage, &format!("unknown-{seq}"), seq);
        load(&mut lanes, Kind::Completed, &format!("unknown-{seq}"), 100 + seq);
    }
    let unknown = |seconds| Unknown {
        delivering: [Duration::from_secs(seconds); LOGS.len()],
        deliveries: [seconds; LOGS.len()],
    };
    let not_before = soon();
    let first = LaneKey::of_session("unknown-1");
    assert_eq!(lanes.unknown_since(first, unknown(7)), unknown(7));
    put_all_back(&mut lanes, not_before, 3);
    assert!(lanes.is_full(Kind::Usage, SMALL));
    lanes.make_room(Kind::Usage, SMALL);
    let kept = SMALL.records / 8;
    assert_eq!(lanes.count(Kind::Usage), kept, "the others have most of the window");
    assert_eq!(lanes.count(Kind::Completed), kept, "its successors were released with it");
    assert_eq!(lanes.next_wake(), Some(not_before));
    load(&mut lanes, Kind::Usage, "other", 90);
    assert_eq!(send_all(&mut lanes), [90]);

    lanes.wake(not_before);
    assert!(lanes.begin_refill(Log::Completed).is_none(), "their usage comes first");
    assert!(lanes.begin_refill(Log::Usage).is_some());
    for seq in 1..=SMALL.records as u64 {
        load(&mut lanes, Kind::Usage, &format!("unknown-{seq}"), seq);
    }
    lanes.refilled(Log::Usage);
    assert_eq!(lanes.unknown_since(first, unknown(14)), unknown(7), "its grace period continues");
    let again: Vec<_> = std::iter::from_fn(|| pick(&mut lanes)).collect();
    assert_eq!(again.len(), SMALL.records);
    for (key, item) in again {
        assert_eq!(item.history.attempts, 3, "its history is kept");
        lanes.settle(key, &item);
    }
    assert!(lanes.begin_refill(Log::Completed).is_some());
    for seq in 1..=SMALL.records as u64 {
        load(&mut lanes, Kind::Completed, &format!("unknown-{seq}"), 100 + seq);
    }
    lanes.refilled(Log::Completed);
    assert_eq!(send_all(&mut lanes).len(), SMALL.records);
    assert!(lanes.lanes.is_empty());
}

#[test]
fn a_few_that_wait_keep_their_head_in_a_full_window() {
    let mut lanes = lanes(&[(Kind::Usage, "waits", 1)]);
    put_all_back(&mut lanes, soon(), 1);
    for seq in 2..=SMALL.records as u64 {
        load(&mut lanes, Kind::Usage, &format!("ready-{seq}"), seq);
    }
    lanes.make_room(Kind::Usage, SMALL);
    assert_eq!(lanes.count(Kind::Usage), SMALL.records, "reading again would cost more than it frees");
}

#[test]
fn started_events_that_were_given_up_still_go_before_their_usage() {
    let mut lanes = Lanes::new(FEW);
    for seq in 1..=SMALL.records as u64 {
        load(&mut lanes, Kind::Started, &format!("s-{seq}"), seq);
        load(&mut lanes, Kind::Usage, &format!("s-{seq}"), 50 + seq);
    }
    let not_before = soon();
    put_all_back(&mut lanes, not_before, 1);
    lanes.make_room(Kind::Started, SMALL);
    let last = SMALL.records as u64;
    // Usage that arrives meanwhile is skipped: it could not be sent.
    load(&mut lanes, Kind::Usage, &format!("s-{last}"), 99);
    lanes.wake(not_before);
    let kept = send_all(&mut lanes);
    assert_eq!(kept.len(), 2 * (SMALL.records / 8), "lanes that kept their records: {kept:?}");
    assert!(lanes.begin_refill(Log::Usage).is_none());
    assert!(lanes.begin_refill(Log::Started).is_some());
    for seq in 1..=last {
        if !kept.contains(&seq) {
            load(&mut lanes, Kind::Started, &format!("s-{seq}"), seq);
        }
    }
    lanes.refilled(Log::Started);
    assert!(send_all(&mut lanes).iter().all(|seq| *seq <= last));
    assert!(lanes.begin_refill(Log::Usage).is_some());
    for seq in 51..=50 + last {
        if !kept.contains(&seq) {
            load(&mut lanes, Kind::Usage, &format!("s-{}", seq - 50), seq);
        }
    }
    load(&mut lanes, Kind::Usage, &format!("s-{last}"), 99);
    lanes.refilled(Log::Usage);
    assert_eq!(send_all(&mut lanes).last(), Some(&99));
    assert!(lanes.lanes.is_empty());
}
