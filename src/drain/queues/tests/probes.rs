//! What the link and a refused kind are probed with.

use super::*;

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
