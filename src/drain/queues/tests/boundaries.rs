//! Usage of a session in any order, between its events.

use super::*;

#[test]
fn with_boundaries_usage_goes_several_at_once_and_the_events_around_it() {
    let mut lanes = lanes(&[
        (Kind::Started, "a", 1),
        (Kind::Usage, "a", 2),
        (Kind::Usage, "a", 3),
        (Kind::Usage, "a", 4),
        (Kind::Completed, "a", 5),
    ]);
    lanes.set_order(SessionOrder::Boundaries);
    let (key, started) = pick(&mut lanes).unwrap();
    assert!(pick(&mut lanes).is_none(), "started is sent alone");
    lanes.settle(key, &started);
    let mut usage: Vec<_> = std::iter::from_fn(|| pick(&mut lanes)).collect();
    assert_eq!(usage.iter().map(|(_, item)| item.ticket.seq).collect::<Vec<_>>(), [2, 3, 4]);
    let now = Instant::now();
    let (key, first) = usage.remove(0);
    lanes.put_back(key, first, now);
    for (key, item) in usage {
        lanes.settle(key, &item);
        assert!(pick(&mut lanes).is_none(), "completed waits for all usage");
    }
    lanes.wake(now);
    assert_eq!(send_all(&mut lanes), [2, 5]);
    assert!(lanes.lanes.is_empty());
}
