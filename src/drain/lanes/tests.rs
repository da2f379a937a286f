//! Order and fairness, on records as the outbox reads them; [`model`] runs whole lives against a plain log.

mod model;

use super::*;
use crate::outbox::Leased;
use crate::record::{Acceptor, Origin, Queue, Timestamp, UnknownFields};

/// A record that a producer could have pushed.
fn record(kind: Kind, session: &str, transaction: &str, accepted_at: i64) -> Record {
    let ids = format!(r#""transaction_id":"{transaction}","api_session_id":"{session}","customer_id":"c""#);
    let (queue, rest) = match kind {
        Kind::Usage => (
            Queue::Usage,
            r#""connection_duration_seconds":1,"data_bytes_processed":1,"audio_duration_seconds":1,
               "request_timestamp":0,"response_timestamp":0"#,
        ),
        Kind::Started => (Queue::Lifecycle, r#""event_type":"session_started""#),
        Kind::Completed => (Queue::Lifecycle, r#""event_type":"session_completed""#),
        _ => (Queue::Quota, r#""timestamp":0"#),
    };
    let origin = Origin { server_id: "edge-1".into(), region: "eu".into(), version: "1".into() };
    Acceptor::new(&origin, UnknownFields::Forward, 1 << 18)
        .at(Timestamp(accepted_at))
        .accept(queue, format!("{{{ids},{rest}}}").as_bytes())
        .unwrap()
}

fn load(lanes: &mut Lanes, kind: Kind, session: &str, seq: u64) {
    lanes.load(Leased::new(seq, record(kind, session, &format!("{session}-{seq}"), seq as i64)));
}

fn lanes(records: &[(Kind, &str, u64)]) -> Lanes {
    let mut lanes = Lanes::default();
    for &(kind, session, seq) in records {
        load(&mut lanes, kind, session, seq);
    }
    lanes
}

/// The next record, one by one.
fn pick(lanes: &mut Lanes) -> Option<(LaneKey, Item)> {
    lanes.pick(None)?.pop()
}

/// Sends the next record, and says which.
fn send(lanes: &mut Lanes) -> Option<u64> {
    let (key, item) = pick(lanes)?;
    lanes.settle(key, &item);
    Some(item.ticket.seq)
}

fn send_all(lanes: &mut Lanes) -> Vec<u64> {
    std::iter::from_fn(|| send(lanes)).collect()
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(1)
}

#[test]
fn of_a_session_one_record_is_in_flight_and_the_next_is_the_next_in_order() {
    let mut lanes = lanes(&[(Kind::Usage, "a", 1), (Kind::Usage, "a", 2), (Kind::Usage, "a", 5)]);
    let (key, item) = pick(&mut lanes).unwrap();
    assert_eq!(item.ticket.seq, 1);
    assert!(!lanes.has_ready() && pick(&mut lanes).is_none(), "its second record waits for the first");
    load(&mut lanes, Kind::Usage, "a", 6);
    assert!(!lanes.has_ready(), "what comes meanwhile waits as well");
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
fn started_events_keep_their_order_also_around_usage_that_was_put_back() {
    let mut lanes = lanes(&[(Kind::Usage, "a", 1)]);
    let (key, item) = pick(&mut lanes).unwrap();
    load(&mut lanes, Kind::Started, "a", 2);
    let not_before = soon();
    lanes.put_back(key, item, not_before);
    load(&mut lanes, Kind::Started, "a", 3);
    lanes.wake(not_before);
    assert_eq!(send_all(&mut lanes), [1, 2, 3]);
}

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
    let mut lanes = Lanes::default();
    for seq in 1..=1000 {
        let kind = match seq {
            1..=600 => Kind::Quota,
            601..=800 => Kind::Started,
            _ => Kind::Usage,
        };
        load(&mut lanes, kind, &format!("s{seq}"), seq);
    }
    let classes: Vec<_> =
        std::iter::from_fn(|| pick(&mut lanes)).map(|(_, item)| class_of(item.ticket.kind)).collect();
    let streak = STREAK as usize;
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
fn what_was_put_back_waits_for_its_time_at_the_head_of_its_lane() {
    let mut lanes = lanes(&[(Kind::Usage, "a", 1), (Kind::Usage, "a", 2), (Kind::Usage, "b", 3)]);
    let (key, mut item) = pick(&mut lanes).unwrap();
    item.attempts = 7;
    let not_before = soon();
    lanes.put_back(key, item, not_before);
    assert_eq!(lanes.next_wake(), Some(not_before));
    load(&mut lanes, Kind::Usage, "a", 4);
    assert_eq!(send_all(&mut lanes), [3], "only the other session goes meanwhile");

    lanes.wake(not_before.checked_sub(Duration::from_millis(1)).unwrap());
    assert!(!lanes.has_ready());
    lanes.wake(not_before);
    assert_eq!(lanes.next_wake(), None);
    let (key, item) = pick(&mut lanes).unwrap();
    assert_eq!((item.ticket.seq, item.attempts), (1, 7), "what happened to it is not forgotten");
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

#[test]
fn the_link_is_probed_with_what_was_tried_least() {
    let mut lanes = lanes(&[(Kind::Usage, "a", 1), (Kind::Usage, "b", 2), (Kind::Usage, "c", 3)]);
    let now = Instant::now();
    let picked: Vec<_> = std::iter::from_fn(|| pick(&mut lanes)).collect();
    for ((key, mut item), attempts) in picked.into_iter().zip([2, 1, 2]) {
        item.attempts = attempts;
        lanes.put_back(key, item, now);
    }
    lanes.wake(now);
    assert_eq!(lanes.pick_probe().unwrap()[0].1.ticket.seq, 2);
}

#[test]
fn a_full_lane_passes_over_what_comes_and_asks_for_it_when_it_has_room() {
    let most = LANE_MOST as u64;
    let mut lanes = Lanes::default();
    for seq in 1..=most + 3 {
        load(&mut lanes, Kind::Usage, "a", seq);
    }
    load(&mut lanes, Kind::Completed, "a", 99);
    assert_eq!(lanes.count(Kind::Usage), LANE_MOST);
    assert_eq!(lanes.begin_refill(), None, "nothing has gone yet");
    let sent: Vec<_> = (0..most).filter_map(|_| send(&mut lanes)).collect();
    assert_eq!(sent, (1..=most).collect::<Vec<_>>());
    assert!(!lanes.has_ready(), "completed waits for the usage that was passed over");

    assert_eq!(lanes.begin_refill(), Some(most + 1));
    assert_eq!(lanes.begin_refill(), None, "asked once");
    assert!(!lanes.has_ready(), "also while that is read again");
    for seq in most + 1..=most + 3 {
        load(&mut lanes, Kind::Usage, "a", seq);
    }
    assert_eq!(send_all(&mut lanes), [most + 1, most + 2, most + 3]);
    lanes.refilled();
    assert_eq!(send_all(&mut lanes), [99]);
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
    lanes.cut_waiting();
    assert_eq!((lanes.count(Kind::Usage), lanes.bytes(Kind::Usage)), (3, 3 * one));
    assert_eq!(send_all(&mut lanes), [4, 5], "a lane that may go is left alone");
    lanes.wake(not_before);
    assert_eq!(send_all(&mut lanes), [1]);
    assert_eq!(lanes.begin_refill(), Some(2), "from the first that was cut off");
}

#[test]
fn a_refill_begins_at_the_first_cut_of_all_whichever_lane_asked_for_it() {
    // The lanes are asked in another order each time.
    for _ in 0..16 {
        let mut lanes = Lanes::default();
        let (a, b) = ([99, 100, 150], [101, 200, 250]);
        for seq in a {
            load(&mut lanes, Kind::Usage, "a", seq);
        }
        for seq in b {
            load(&mut lanes, Kind::Usage, "b", seq);
        }
        let not_before = soon();
        let heads: Vec<_> = std::iter::from_fn(|| pick(&mut lanes)).collect();
        for ((key, item), later) in heads.into_iter().zip(0..) {
            lanes.put_back(key, item, not_before + Duration::from_secs(later));
        }
        lanes.cut_waiting();
        lanes.wake(not_before + Duration::from_secs(1));
        // Only b has its head settled; a's is in flight.
        let (a_key, a_head) = pick(&mut lanes).unwrap();
        assert_eq!((a_head.ticket.seq, send(&mut lanes)), (99, Some(101)));

        assert_eq!(lanes.begin_refill(), Some(100));
        for (session, seq) in [("a", 100), ("a", 150), ("b", 200), ("b", 250)] {
            load(&mut lanes, Kind::Usage, session, seq);
        }
        lanes.refilled();
        lanes.settle(a_key, &a_head);
        let mut sent = send_all(&mut lanes);
        sent.sort_unstable();
        assert_eq!(sent, [100, 150, 200, 250]);
    }
}

#[test]
fn a_refill_is_done_when_the_lanes_that_asked_are_full_again() {
    let most = LANE_MOST as u64;
    let mut lanes = Lanes::default();
    for seq in 1..=most + 1 {
        load(&mut lanes, Kind::Usage, "a", seq);
    }
    assert_eq!(send_all(&mut lanes).len(), LANE_MOST);
    assert_eq!(lanes.begin_refill(), Some(most + 1));
    for seq in most + 1..=2 * most {
        load(&mut lanes, Kind::Usage, "a", seq);
        assert!(!lanes.refill_is_done(), "there may be more of it");
    }
    load(&mut lanes, Kind::Usage, "a", 2 * most + 1);
    assert!(lanes.refill_is_done());
    lanes.refilled();
    assert_eq!(send_all(&mut lanes).len(), LANE_MOST);
    assert_eq!(lanes.begin_refill(), Some(2 * most + 1), "the next one goes on from there");
}

#[test]
fn what_was_settled_while_it_was_being_read_again_does_not_go_twice() {
    let mut lanes = Lanes::default();
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
    assert_eq!(lanes.begin_refill(), Some(LANE_MOST as u64 + 1));
    // The read found 50 not settled; the answer to it arrives before what was read.
    lanes.settle(b_key, &b_only);
    load(&mut lanes, Kind::Usage, "a", LANE_MOST as u64 + 1);
    load(&mut lanes, Kind::Usage, "b", 50);
    assert_eq!(send_all(&mut lanes), [LANE_MOST as u64 + 1]);
    lanes.forget_emptied();
    lanes.refilled();
    assert!(lanes.lanes.is_empty());
}

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
