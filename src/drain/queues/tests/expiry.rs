//! Quota requests expire unless they are in flight.

use super::*;

#[test]
fn only_quota_requests_that_are_not_in_flight_expire() {
    let mut lanes = lanes(&[
        (Kind::Quota, "a", 1),
        (Kind::Quota, "a", 2),
        (Kind::Quota, "a", 3),
        (Kind::Quota, "a", 9),
        (Kind::Usage, "a", 4),
    ]);
    let not_before = soon();
    let (key, item) = pick(&mut lanes).unwrap();
    lanes.put_back(key, item, not_before);
    let (key, in_flight) = pick(&mut lanes).unwrap();
    assert_eq!(in_flight.ticket.seq, 2);
    let mut expired = lanes.take_expired(5);
    expired.sort_by_key(|(_, item)| item.ticket.seq);
    assert_eq!(expired.iter().map(|(_, item)| item.ticket.seq).collect::<Vec<_>>(), [1, 3]);
    for (key, item) in &expired {
        lanes.settle(*key, item);
    }
    lanes.settle(key, &in_flight);
    lanes.wake(not_before);
    assert_eq!(send_all(&mut lanes), [9, 4]);
    assert!(lanes.lanes.is_empty() && lanes.next_wake().is_none());
}
