//! Reads from memory give the same result as reads from disk, and only if nothing precedes them.

use super::rig::{Rig, entry, transaction, usage};
use crate::outbox::engine::fault;
use crate::outbox::format::log::Log;
use crate::outbox::messages::{Settlement, Unsettled};
use crate::record::Kind;

const END: u64 = u64::MAX;

fn at_hand(rig: &Rig, log: Log, from: u64, upto: u64, most: usize) -> Option<Vec<Unsettled>> {
    let page = rig.shared.at_hand(&mut rig.shared.state(), (log, from, upto), most)?;
    assert_eq!(page.next, rig.shared.state().totals.next.min(upto), "all of it has been read");
    Some(page.records)
}

fn told(unsettled: &[Unsettled]) -> Vec<(u64, String)> {
    unsettled.iter().map(|unsettled| (unsettled.ticket.seq, transaction(&unsettled.entry))).collect()
}

#[test]
fn a_small_commit_is_read_from_memory_once_and_as_it_is_on_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(dir.path());
    for round in 0..3 {
        rig.append(vec![entry(Kind::Usage, round * 2, 100), entry(Kind::Quota, 900 + round, 100)]).unwrap();
        rig.append(vec![entry(Kind::Usage, round * 2 + 1, 100)]).unwrap();
        let from = rig.shared.state().settled[Log::Usage.index()].frontier();
        rig.shared.state().tail_cache[Log::Usage.index()].packs.pop_front();
        assert!(at_hand(&rig, Log::Usage, from, END, 100).is_none(), "another record precedes it");
        assert_eq!(rig.maintenance.read(Log::Usage, from, END, 100).unwrap().records.len(), 2);
        assert_eq!(at_hand(&rig, Log::Quota, from, END, 100).unwrap().len(), 1, "in another log none does");
    }
    let from = rig.shared.state().totals.next;
    let ours = [Kind::Usage, Kind::Started, Kind::Usage].map(|kind| entry(kind, from, 300));
    rig.append(ours.to_vec()).unwrap();
    assert!(at_hand(&rig, Log::Usage, from, from + 1, 100).is_none(), "whole packs only");
    assert!(at_hand(&rig, Log::Usage, from, END, 1).is_none(), "nor more than is asked for");
    let ours = at_hand(&rig, Log::Usage, from, END, 100).unwrap();
    assert_eq!(ours.len(), 2);
    assert!(at_hand(&rig, Log::Usage, from, END, 100).is_none(), "it is given out once");
    let theirs = rig.maintenance.read(Log::Usage, from, END, 100).unwrap().records;
    assert_eq!(format!("{ours:?}"), format!("{theirs:?}"));
    assert_eq!(
        at_hand(&rig, Log::Completed, from, END, 100).unwrap().len(),
        0,
        "and nothing in an empty range"
    );
    for unsettled in &ours {
        rig.shared.state().deliver(&unsettled.ticket, Settlement::Delivered);
    }
    rig.check_counts();
    drop(rig.read(Log::Started, 0, END, 100).unwrap());
    rig.tick();
    drop(rig);
    let mut rig = Rig::open(dir.path());
    let waiting = told(&rig.waiting(Log::Usage));
    assert_eq!(waiting.len(), 6, "settled records stay settled, and the rest waits: {waiting:?}");
}

#[test]
fn a_reader_that_is_a_few_small_commits_behind_reads_them_from_memory_and_one_farther_behind_from_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(dir.path());
    for number in 0..10 {
        rig.append(usage(number, 1, 100)).unwrap();
    }
    let some = rig.shared.at_hand(&mut rig.shared.state(), (Log::Usage, 0, END), 4).unwrap();
    let rest = at_hand(&rig, Log::Usage, some.next, END, 100).unwrap();
    let all: Vec<_> = told(&some.records).into_iter().chain(told(&rest)).collect();
    assert_eq!((some.records.len(), rest.len()), (4, 6));
    assert!(all.windows(2).all(|pair| pair[0].0 < pair[1].0), "{all:?}");
    let from = rig.shared.state().totals.next;
    for number in 10..60 {
        rig.append(usage(number, 1, 100)).unwrap();
    }
    assert!(rig.shared.state().tail_cache[Log::Usage.index()].packs.len() < 50, "few are kept");
    assert!(at_hand(&rig, Log::Usage, from, END, 100).is_none());
    assert_eq!(rig.maintenance.read(Log::Usage, from, END, 100).unwrap().records.len(), 50);
    rig.append(usage(60, 1, 100)).unwrap();
    let from = rig.shared.state().settled[Log::Usage.index()].frontier();
    assert_eq!(at_hand(&rig, Log::Usage, from, END, 100).unwrap().len(), 1, "it has caught up");
}

#[test]
fn a_large_commit_is_read_from_the_disk_and_with_it_what_lay_before() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(dir.path());
    rig.append(usage(0, 1, 100)).unwrap();
    rig.append(usage(1, 100, 100)).unwrap();
    assert!(at_hand(&rig, Log::Usage, 0, END, 1000).is_none());
    assert_eq!(rig.waiting(Log::Usage).len(), 101);
    rig.append(usage(101, 2, 40_000)).unwrap();
    let from = rig.shared.state().settled[Log::Usage.index()].frontier();
    assert!(at_hand(&rig, Log::Usage, from, END, 1000).is_none(), "it is not small");
}

#[test]
fn what_failed_to_become_durable_is_not_at_hand() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(dir.path());
    fault::fail_at(Some(0));
    assert!(rig.append(usage(0, 1, 100)).is_err());
    assert!(at_hand(&rig, Log::Usage, 0, END, 100).unwrap().is_empty());
    rig.append(usage(1, 1, 100)).unwrap();
    assert_eq!(told(&at_hand(&rig, Log::Usage, 0, END, 100).unwrap()).len(), 1);
}

#[test]
fn what_the_disk_gave_is_in_memory_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(dir.path());
    rig.append(usage(0, 1, 100)).unwrap();
    rig.append(vec![entry(Kind::Lifecycle, 1, 100)]).unwrap();
    assert_eq!(rig.maintenance.read(Log::Usage, 0, END, 100).unwrap().records.len(), 1);
    assert!(
        rig.shared.state().tail_cache.iter().all(|cache| cache.packs.is_empty()),
        "nor what only maintenance reads"
    );
}

#[test]
fn nothing_is_at_hand_while_too_many_dead_letters_wait_for_the_ledger() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(dir.path());
    rig.append(usage(0, 1, 100_000)).unwrap();
    let large = rig.waiting(Log::Usage).remove(0);
    rig.shared.state().settle_as_dead_letter(&large.ticket, super::model::letter(&large.entry));
    rig.append(usage(1, 1, 100)).unwrap();
    rig.shared.ledger_failed.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(at_hand(&rig, Log::Usage, large.ticket.seq + 1, END, 100).is_none());
    assert!(at_hand(&rig, Log::Quota, 0, END, 100).is_none());
    rig.tick();
    assert_eq!(at_hand(&rig, Log::Usage, large.ticket.seq + 1, END, 100).unwrap().len(), 1);
}

#[test]
fn a_segment_that_ended_or_was_quarantined_since_makes_no_difference() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(dir.path());
    rig.append(usage(0, 1, 100)).unwrap();
    rig.writer.roll_if_used();
    let first = at_hand(&rig, Log::Usage, 0, END, 100).unwrap();
    assert_eq!(first.len(), 1);
    rig.append(usage(1, 1, 100)).unwrap();
    let last = rig.shared.state().segments.last().unwrap().segment.id;
    rig.writer.roll_if_used();
    rig.shared.quarantine(last, "tried").unwrap();
    assert!(at_hand(&rig, Log::Usage, 1, END, 100).unwrap_or_default().is_empty(), "it is elsewhere now");
    rig.shared.state().deliver(&first[0].ticket, Settlement::Delivered);
    rig.check_counts();
    assert!(rig.waiting(Log::Usage).is_empty());
}
