//! A held log sends only probes, takes no room from others, and is read again when it is released.

use super::*;

#[test]
fn of_a_log_that_is_held_nothing_goes_but_a_probe_and_the_others_go_past_it() {
    let mut lanes = lanes(&[
        (Kind::Started, "a", 1),
        (Kind::Completed, "b", 2),
        (Kind::Usage, "c", 3),
        (Kind::Completed, "d", 4),
        (Kind::Started, "e", 5),
    ]);
    lanes.hold([false, true, false, false]);
    assert_eq!(send_all(&mut lanes), [2, 4, 3]);
    assert!(!lanes.has_ready() && lanes.has_held(Log::Started) && !lanes.has_held(Log::Usage));
    let (key, item) = only(lanes.pick_probe_of(Log::Started, false).unwrap());
    assert_eq!(item.ticket.seq, 1);
    lanes.settle(key, &item);
    lanes.hold([false; LOGS.len()]);
    assert_eq!(send_all(&mut lanes), [5]);
}

#[test]
fn lanes_that_fill_the_window_of_a_held_log_rest_until_it_is_let_go() {
    let mut lanes = Lanes::new(FEW);
    lanes.hold([false, true, false, false]);
    for seq in 1..=6 {
        load(&mut lanes, Kind::Started, &format!("s{seq}"), seq);
    }
    lanes.make_room(Kind::Started, SMALL);
    assert_eq!(lanes.count(Kind::Started), 2, "a few to probe with");
    // Its usage would have to follow it, and takes no room meanwhile.
    load(&mut lanes, Kind::Usage, "s6", 7);
    assert_eq!((lanes.count(Kind::Usage), send_all(&mut lanes)), (0, vec![]));
    lanes.wake(Instant::now() + Duration::from_secs(3600));
    assert_eq!(lanes.begin_refill(Log::Started), None, "time alone changes nothing");

    lanes.hold([false; LOGS.len()]);
    assert_eq!(send_all(&mut lanes), [1, 2]);
    lanes.wake(soon());
    assert_eq!(lanes.begin_refill(Log::Started), Some(3));
    for seq in 3..=6 {
        load(&mut lanes, Kind::Started, &format!("s{seq}"), seq);
    }
    lanes.refilled(Log::Started);
    assert_eq!(send_all(&mut lanes), [3, 4, 5, 6]);
    assert_eq!(lanes.begin_refill(Log::Usage), Some(7));
    load(&mut lanes, Kind::Usage, "s6", 7);
    lanes.refilled(Log::Usage);
    assert_eq!(send_all(&mut lanes), [7]);
    assert!(lanes.lanes.is_empty() && lanes.next_wake().is_none());
}

#[test]
fn what_goes_behind_a_held_head_takes_no_room_from_others_and_is_read_again() {
    let mut lanes = Lanes::new(FEW);
    load(&mut lanes, Kind::Started, "a", 1);
    lanes.hold([false, true, false, false]);
    for seq in 2..=5 {
        load(&mut lanes, Kind::Usage, "a", seq);
    }
    load(&mut lanes, Kind::Completed, "a", 6);
    lanes.make_room(Kind::Usage, SMALL);
    assert_eq!(
        (lanes.count(Kind::Started), lanes.count(Kind::Usage), lanes.count(Kind::Completed)),
        (1, 0, 0)
    );
    load(&mut lanes, Kind::Usage, "a", 7);
    load(&mut lanes, Kind::Usage, "b", 8);
    assert_eq!(send_all(&mut lanes), [8], "other lanes are read past it");

    lanes.hold([false; LOGS.len()]);
    assert_eq!(send_all(&mut lanes), [1]);
    assert_eq!(lanes.begin_refill(Log::Usage), Some(2));
    for seq in [2, 3, 4, 5, 7] {
        load(&mut lanes, Kind::Usage, "a", seq);
    }
    lanes.refilled(Log::Usage);
    assert_eq!(send_all(&mut lanes), [2, 3, 4, 5, 7]);
    assert_eq!(lanes.begin_refill(Log::Completed), Some(6));
}
