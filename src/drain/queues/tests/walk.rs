//! The walk past refused records of one lane.

use super::*;

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
