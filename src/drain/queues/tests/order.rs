//! A session's records go in order, one at a time, also after they were put back.

use super::*;

#[test]
fn of_a_session_one_record_is_in_flight_and_the_next_is_the_next_in_order() {
    let mut lanes = lanes(&[(Kind::Usage, "a", 1), (Kind::Usage, "a", 2), (Kind::Usage, "a", 5)]);
    let (key, item) = pick(&mut lanes).unwrap();
    assert_eq!(item.ticket.seq, 1);
    assert!(!lanes.has_ready() && pick(&mut lanes).is_none(), "its second record waits for the first");
    load(&mut lanes, Kind::Usage, "a", 6);
    assert!(!lanes.has_ready(), "records arriving meanwhile wait as well");
    lanes.settle(key, &item);
    assert_eq!(send_all(&mut lanes), [2, 5, 6]);
    assert_eq!((lanes.count(Kind::Usage), lanes.bytes(Kind::Usage)), (0, 0));
    assert!(lanes.lanes.is_empty(), "a lane without records takes no memory");
}

#[test]
fn started_goes_before_the_usage_in_hand_and_completed_after_it() {
    let mut lanes = lanes(&[
        (Kind::Completed, "a", 9),
        (Kind::Usage, "a", 2),
        (Kind::Usage, "a", 3),
        (Kind::Started, "a", 1),
    ]);
    assert_eq!(send_all(&mut lanes), [1, 2, 3, 9]);
}

#[test]
fn started_events_keep_their_order_and_go_before_usage_that_was_put_back() {
    let mut lanes = lanes(&[(Kind::Usage, "a", 1)]);
    let (key, item) = pick(&mut lanes).unwrap();
    load(&mut lanes, Kind::Started, "a", 2);
    let not_before = soon();
    lanes.put_back(key, item, not_before);
    load(&mut lanes, Kind::Started, "a", 3);
    lanes.wake(not_before);
    assert_eq!(send_all(&mut lanes), [2, 3, 1]);
}

#[test]
fn what_was_put_back_waits_for_its_time_at_the_head_of_its_lane() {
    let mut lanes = lanes(&[(Kind::Usage, "a", 1), (Kind::Usage, "a", 2), (Kind::Usage, "b", 3)]);
    let (key, mut item) = pick(&mut lanes).unwrap();
    item.history.attempts = 7;
    let not_before = soon();
    lanes.put_back(key, item, not_before);
    assert_eq!(lanes.next_wake(), Some(not_before));
    load(&mut lanes, Kind::Usage, "a", 4);
    assert_eq!(send_all(&mut lanes), [3], "only the other session is sent meanwhile");

    lanes.wake(not_before.checked_sub(Duration::from_millis(1)).unwrap());
    assert!(!lanes.has_ready());
    lanes.wake(not_before);
    assert_eq!(lanes.next_wake(), None);
    let (key, item) = pick(&mut lanes).unwrap();
    assert_eq!((item.ticket.seq, item.history.attempts), (1, 7), "its history is kept");
    lanes.settle(key, &item);
    assert_eq!(send_all(&mut lanes), [2, 4]);
}

#[test]
fn completed_that_was_put_back_still_goes_last() {
    let mut lanes = lanes(&[(Kind::Completed, "a", 2)]);
    let (key, item) = pick(&mut lanes).unwrap();
    let not_before = soon();
    lanes.put_back(key, item, not_before);
    load(&mut lanes, Kind::Usage, "a", 1);
    lanes.wake(not_before);
    assert_eq!(send_all(&mut lanes), [1, 2]);
}
