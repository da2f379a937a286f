//! A lane that was cut off asks for its skipped records, and none is sent twice.

use super::*;

#[test]
fn a_full_lane_passes_over_what_comes_and_asks_for_it_when_it_has_room() {
    let most = LANE_MOST as u64;
    let mut lanes = Lanes::new(FEW);
    for seq in 1..=most + 3 {
        load(&mut lanes, Kind::Usage, "a", seq);
    }
    load(&mut lanes, Kind::Completed, "a", 99);
    assert_eq!(lanes.count(Kind::Usage), LANE_MOST);
    assert_eq!(lanes.begin_refill(Log::Usage), None, "nothing has been sent yet");
    let sent: Vec<_> = (0..most).filter_map(|_| send(&mut lanes)).collect();
    assert_eq!(sent, (1..=most).collect::<Vec<_>>());
    assert!(!lanes.has_ready(), "completed waits for the skipped usage");

    assert_eq!(lanes.begin_refill(Log::Usage), Some(most + 1));
    assert_eq!(lanes.begin_refill(Log::Usage), None, "asked once");
    assert!(!lanes.has_ready(), "also while the usage is read again");
    for seq in most + 1..=most + 3 {
        load(&mut lanes, Kind::Usage, "a", seq);
    }
    assert_eq!(send_all(&mut lanes), [most + 1, most + 2, most + 3]);
    lanes.refilled(Log::Usage);
    assert_eq!(send_all(&mut lanes), [99]);
}

#[test]
fn a_refill_begins_at_the_first_cut_of_those_that_asked() {
    // The lanes are asked in another order each time.
    for _ in 0..16 {
        let mut lanes = Lanes::new(FEW);
        for (session, seqs) in [("a", [99, 100, 150]), ("b", [101, 200, 250])] {
            for seq in seqs {
                load(&mut lanes, Kind::Usage, session, seq);
            }
        }
        let not_before = soon();
        let heads: Vec<_> = std::iter::from_fn(|| pick(&mut lanes)).collect();
        for (key, item) in heads {
            lanes.put_back(key, item, not_before);
        }
        lanes.make_room(Kind::Usage, SMALL);
        lanes.wake(not_before);
        let mut heads = [send(&mut lanes), send(&mut lanes)];
        heads.sort_unstable();
        assert_eq!(heads, [Some(99), Some(101)]);

        assert_eq!(lanes.begin_refill(Log::Usage), Some(100));
        for (session, seq) in [("a", 100), ("a", 150), ("b", 200), ("b", 250)] {
            assert!(!lanes.refill_is_done(Log::Usage, seq));
            load(&mut lanes, Kind::Usage, session, seq);
        }
        assert!(lanes.refill_is_done(Log::Usage, 251), "the skipped records have been read");
        lanes.refilled(Log::Usage);
        let mut sent = send_all(&mut lanes);
        sent.sort_unstable();
        assert_eq!(sent, [100, 150, 200, 250]);
    }
}

#[test]
fn a_refill_is_done_when_the_lanes_that_asked_are_full_again() {
    let most = LANE_MOST as u64;
    let mut lanes = Lanes::new(FEW);
    for seq in 1..=most + 1 {
        load(&mut lanes, Kind::Usage, "a", seq);
    }
    assert_eq!(send_all(&mut lanes).len(), LANE_MOST);
    assert_eq!(lanes.begin_refill(Log::Usage), Some(most + 1));
    for seq in most + 1..=2 * most {
        load(&mut lanes, Kind::Usage, "a", seq);
        assert!(!lanes.refill_is_done(Log::Usage, most + 1), "there may be more of it");
    }
    load(&mut lanes, Kind::Usage, "a", 2 * most + 1);
    assert!(lanes.refill_is_done(Log::Usage, most + 1));
    lanes.refilled(Log::Usage);
    assert_eq!(send_all(&mut lanes).len(), LANE_MOST);
    assert_eq!(lanes.begin_refill(Log::Usage), Some(2 * most + 1), "the next one continues from there");
}

#[test]
fn what_was_settled_while_it_was_being_read_again_does_not_go_twice() {
    let mut lanes = Lanes::new(FEW);
    for seq in 1..=LANE_MOST as u64 + 1 {
        load(&mut lanes, Kind::Usage, "a", seq);
    }
    load(&mut lanes, Kind::Usage, "b", 50);
    let (b_key, b_only) = loop {
        let (key, item) = pick(&mut lanes).unwrap();
        if item.ticket.seq == 50 {
            break (key, item);
        }
        lanes.settle(key, &item);
    };
    while send(&mut lanes).is_some() {}
    assert_eq!(lanes.begin_refill(Log::Usage), Some(LANE_MOST as u64 + 1));
    // The read found 50 unsettled; its answer arrives before the records read.
    lanes.settle(b_key, &b_only);
    load(&mut lanes, Kind::Usage, "a", LANE_MOST as u64 + 1);
    load(&mut lanes, Kind::Usage, "b", 50);
    assert_eq!(send_all(&mut lanes), [LANE_MOST as u64 + 1]);
    lanes.forget_emptied();
    lanes.refilled(Log::Usage);
    assert!(lanes.lanes.is_empty());
}
