//! Order and fairness, with records as the outbox reads them. [`model`] checks random sequences against a plain log.

mod model;

use std::time::Duration;

use super::memory::MemoryLimits;
use super::*;
use crate::outbox::Unsettled;
use crate::record::{Acceptor, Enrichment, Queue, Timestamp, UnknownFields};

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
        _ => (Queue::Quota, r#""product_code":"speech_transcription""#),
    };
    let enrichment = Enrichment { server_id: "edge-1".into(), region: "eu".into(), version: "1".into() };
    Acceptor::new(&enrichment, UnknownFields::Forward, 1 << 18)
        .at(Timestamp(accepted_at))
        .accept(queue, format!("{{{ids},{rest}}}").as_bytes())
        .unwrap()
}

fn load(lanes: &mut Lanes, kind: Kind, session: &str, seq: u64) {
    lanes.load(Unsettled::new(seq, record(kind, session, &format!("{session}-{seq}"), seq as i64)));
}

fn lanes(records: &[(Kind, &str, u64)]) -> Lanes {
    let mut lanes = Lanes::new(FEW);
    for &(kind, session, seq) in records {
        load(&mut lanes, kind, session, seq);
    }
    lanes
}

/// The only record of a parcel.
fn only(parcel: Parcel) -> (LaneKey, Item) {
    let mut items: Vec<_> = items_of(parcel).collect();
    assert_eq!(items.len(), 1);
    items.remove(0)
}

fn items_of(parcel: Parcel) -> impl Iterator<Item = (LaneKey, Item)> {
    parcel.into_iter().flat_map(|group| group.items.into_iter().map(move |item| (group.lane, item)))
}

/// The next record, sent alone.
fn pick(lanes: &mut Lanes) -> Option<(LaneKey, Item)> {
    lanes.pick(None).map(only)
}

/// Sends the next record, and returns its number.
fn send(lanes: &mut Lanes) -> Option<u64> {
    let (key, item) = pick(lanes)?;
    lanes.settle(key, &item);
    Some(item.ticket.seq)
}

fn send_all(lanes: &mut Lanes) -> Vec<u64> {
    std::iter::from_fn(|| send(lanes)).collect()
}

/// Few, so that short runs cut lanes off and evict them.
const FEW: QueueSettings =
    QueueSettings { records: 12, bytes: 1 << 20, session_records: LANE_MOST, held_lanes: 2 };
const LANE_MOST: usize = 8;
const SMALL: MemoryLimits = MemoryLimits { records: 16, bytes: 1 << 20 };

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

#[test]
fn the_link_is_probed_with_what_was_tried_least() {
    let mut lanes = lanes(&[(Kind::Usage, "a", 1), (Kind::Usage, "b", 2), (Kind::Usage, "c", 3)]);
    let now = Instant::now();
    let picked: Vec<_> = std::iter::from_fn(|| pick(&mut lanes)).collect();
    for ((key, mut item), attempts) in picked.into_iter().zip([2, 1, 2]) {
        item.history.attempts = attempts;
        lanes.put_back(key, item, now);
    }
    lanes.wake(now);
    assert_eq!(only(lanes.pick_probe(|_| 0).unwrap()).1.ticket.seq, 2);
}

#[test]
fn the_link_is_probed_with_the_kind_that_failed_least() {
    let mut lanes = lanes(&[(Kind::Usage, "a", 1), (Kind::Completed, "b", 2), (Kind::Quota, "c", 3)]);
    let failed = |log| u64::from(log == Log::Quota);
    let mut probe = || only(lanes.pick_probe(failed).unwrap()).1.ticket.seq;
    assert_eq!([probe(), probe(), probe()], [2, 1, 3]);
}

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

/// Returns the heads of all lanes until then, each with this many attempts.
fn put_all_back(lanes: &mut Lanes, not_before: Instant, attempts: u32) {
    let heads: Vec<_> = std::iter::from_fn(|| pick(lanes)).collect();
    for (key, mut item) in heads {
        item.history.attempts = attempts;
        lanes.put_back(key, item, not_before);
    }
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
fn started_and_completed_events_go_in_turns() {
    let mut lanes = Lanes::new(FEW);
    for seq in 1..=6 {
        let kind = if seq > 3 { Kind::Completed } else { Kind::Started };
        load(&mut lanes, kind, &format!("s{seq}"), seq);
    }
    assert_eq!(send_all(&mut lanes), [1, 4, 2, 5, 3, 6]);
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

/// Limits larger than anyone would set.
const LIMITS: BatchLimits =
    BatchLimits { records: 1000, bytes: 1 << 20, of_a_session: None, of_one_kind: false, pipes: 1 };

/// The numbers in a batch, by session.
fn batch_of(lanes: &mut Lanes, limits: BatchLimits) -> (Parcel, Vec<Vec<u64>>) {
    let parcel = lanes.pick(Some(limits)).unwrap_or_default();
    let numbers =
        parcel.iter().map(|group| group.items.iter().map(|item| item.ticket.seq).collect()).collect();
    (parcel, numbers)
}

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

/// Returns the head of every lane as refused once.
fn refuse_heads(lanes: &mut Lanes, now: Instant) {
    for (key, mut item) in std::iter::from_fn(|| pick(lanes)).collect::<Vec<_>>() {
        item.history.refusals = 1;
        lanes.put_back(key, item, now);
    }
    lanes.wake(now);
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
        super::tests::lanes(&[(Kind::Usage, "bad", 1), (Kind::Usage, "bad", 2), (Kind::Usage, "good", 3)]);
    let (parcel, _) = batch_of(&mut lanes, LIMITS);
    for (key, mut item) in items_of(parcel) {
        item.history.refusals = u8::from(item.ticket.seq == 1);
        lanes.put_back(key, item, now);
    }
    lanes.wake(now);
    assert_eq!(batch_of(&mut lanes, LIMITS).1, [[1]], "the confirmation, alone");
    assert_eq!(batch_of(&mut lanes, LIMITS).1, [[3]]);
}

#[test]
fn a_kind_that_is_refused_is_probed_with_sessions_that_were_delivered_and_with_what_was_refused_once() {
    let mut lanes = Lanes::new(FEW);
    let now = Instant::now();
    load(&mut lanes, Kind::Usage, "bad", 1);
    load(&mut lanes, Kind::Usage, "bad", 2);
    refuse_heads(&mut lanes, now);
    for seq in 3..8 {
        load(&mut lanes, Kind::Usage, &format!("new-{seq}"), seq);
    }
    load(&mut lanes, Kind::Usage, "proven", 8);
    lanes.delivered(LaneKey::of_session("proven"));
    lanes.hold([false, false, true, false]);
    let mut probe = || only(lanes.pick_probe_of(Log::Usage, true).unwrap()).1.ticket.seq;
    assert_eq!(probe(), 8, "a session that is known to be good");
    assert_eq!(probe(), 1, "the confirmation, alternating with others: nothing is sent before it");
    let others: Vec<_> = (3..8).map(|_| probe()).collect();
    assert_eq!(others, [3, 4, 5, 6, 7]);
    assert!(lanes.pick_probe_of(Log::Usage, true).is_none());
}

#[test]
fn a_walk_asks_for_the_head_again_before_each_record_behind_what_was_refused_twice() {
    let sessions = [("a", 1), ("b", 2), ("a", 3), ("a", 4), ("b", 5), ("a", 6)];
    let mut lanes = lanes(&sessions.map(|(session, seq)| (Kind::Usage, session, seq)));
    let now = Instant::now();
    refuse_heads(&mut lanes, now);
    lanes.delivered(LaneKey::of_session("a"));
    lanes.hold([false, false, true, false]);
    let mut probe = |walks, refused| {
        let (key, mut item) = only(lanes.pick_probe_of(Log::Usage, walks).unwrap());
        if refused {
            item.history.refusals += 1;
            lanes.note_refusal(key);
        }
        let seq = item.ticket.seq;
        let is_mid_step = lanes.is_mid_step();
        lanes.put_back(key, item, now);
        lanes.wake(now);
        (seq, is_mid_step)
    };
    let in_turns: Vec<_> = (0..4).map(|_| probe(true, true)).collect();
    assert_eq!(in_turns, [(1, false), (1, true), (3, false), (2, false)], "a head, a step, a head");
    assert_eq!(probe(false, true), (1, false), "heads only without a walk");
    let walked: Vec<_> = (0..6).map(|_| probe(true, true)).collect();
    let heads_between = [1, 3, 1, 4, 1, 4].map(|seq| (seq, seq == 1));
    assert_eq!(walked, heads_between, "each record and its confirmation follow the head");
    assert_eq!(probe(true, false), (1, false), "the head failed in another way: nothing is sent before it");
    assert_eq!([probe(true, true), probe(true, true)], [(1, true), (6, false)]);
    // What follows is delivered: those before it are taken out, and none behind it.
    let key = LaneKey::of_session("a");
    let mut taken = Vec::new();
    while let Some(item) = lanes.take_refused_before(key, Log::Usage, 6) {
        lanes.settle(key, &item);
        taken.push(item.ticket.seq);
    }
    assert_eq!(taken, [1, 3, 4]);
}

#[test]
fn a_walk_goes_to_the_end_of_one_lane_however_many_heads_are_left_to_be_tried() {
    let mut all: Vec<(String, u64)> = (1..=100).map(|seq| (format!("s{seq}"), seq)).collect();
    all.extend([("s7".to_owned(), 101), ("s7".to_owned(), 102), ("s9".to_owned(), 103)]);
    let records: Vec<_> = all.iter().map(|(session, seq)| (Kind::Usage, &**session, *seq)).collect();
    let mut lanes = lanes(&records);
    let now = Instant::now();
    refuse_heads(&mut lanes, now);
    lanes.hold([false, false, true, false]);
    let mut probes = 0;
    loop {
        probes += 1;
        let (key, mut item) = only(lanes.pick_probe_of(Log::Usage, true).unwrap());
        if item.ticket.seq == 102 {
            break;
        }
        item.history.refusals += 1;
        item.history.attempts += 1;
        lanes.note_refusal(key);
        lanes.put_back(key, item, now);
        lanes.wake(now);
    }
    assert!(probes < 20, "{probes}");
}

#[test]
fn a_walk_with_nothing_behind_what_was_refused_takes_no_steps() {
    let mut lanes = lanes(&[(Kind::Usage, "a", 1), (Kind::Usage, "b", 2)]);
    let now = Instant::now();
    lanes.hold([false, false, true, false]);
    for _ in 0..10 {
        let (key, mut item) = only(lanes.pick_probe_of(Log::Usage, true).unwrap());
        item.history.attempts += 1;
        item.history.refusals = 2;
        lanes.note_refusal(key);
        assert!(!lanes.is_walking() && !lanes.is_mid_step(), "it would be picked again at once, forever");
        lanes.put_back(key, item, now);
        lanes.wake(now);
    }
}

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
