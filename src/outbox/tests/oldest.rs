//! The age of the oldest record is always known: read or unread, after a restart, and after settled records.

use super::rig::{Rig, settings, usage};
use crate::outbox::api::handle::Outbox;
use crate::outbox::format::codec::Entry;
use crate::outbox::format::log::Log;
use crate::outbox::messages::Settlement;

fn accepted(entries: &[Entry]) -> i64 {
    entries.iter().map(|entry| entry.accepted_at().0).min().unwrap()
}

#[test]
fn what_nobody_has_read_has_an_age() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(dir.path());
    assert_eq!(rig.stats().oldest_usage, None);
    let (first, second) = (usage(0, 3, 100), usage(3, 3, 100));
    let (oldest, later) = (accepted(&first), accepted(&second));
    rig.append(first).unwrap();
    rig.append(second).unwrap();
    assert_eq!(rig.stats().oldest_usage, Some(oldest), "as soon as it is durable");

    // Read and settled, with more records after it: the next tick looks up the next one.
    let end = rig.shared.state().totals.next;
    let page = rig.read(Log::Usage, 0, end, 3).unwrap();
    assert_eq!((page.records.len(), rig.stats().oldest_usage), (3, Some(oldest)));
    for record in &page.records {
        rig.shared.state().deliver(&record.ticket, Settlement::Delivered);
    }
    rig.tick();
    assert_eq!(rig.stats().oldest_usage, Some(later));

    for record in rig.waiting(Log::Usage) {
        rig.shared.state().deliver(&record.ticket, Settlement::Delivered);
    }
    assert_eq!(rig.stats().oldest_usage, None, "nothing waits");
    let third = usage(6, 1, 100);
    let oldest = accepted(&third);
    rig.append(third).unwrap();
    assert_eq!(rig.stats().oldest_usage, Some(oldest));
}

#[test]
fn after_a_restart_the_age_of_a_backlog_is_known_before_anything_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(dir.path());
    // Several segments, and a pack in the middle that is settled out of order.
    let batches: Vec<_> = (0..8).map(|n| usage(n * 100, 100, 4000)).collect();
    let times: Vec<i64> = batches.iter().map(|batch| accepted(batch)).collect();
    for batch in batches {
        rig.append(batch).unwrap();
    }
    assert!(rig.segments() > 2);
    let records = rig.waiting(Log::Usage);
    for record in records.iter().take(100).chain(records.iter().skip(200).take(100)) {
        rig.shared.state().deliver(&record.ticket, Settlement::Delivered);
    }
    assert_eq!(rig.stats().oldest_usage, Some(times[1]));
    rig.tick();
    drop(rig);

    let (outbox, threads) = Outbox::open(settings(dir.path())).unwrap();
    assert_eq!((outbox.stats().total_depth(), outbox.stats().oldest_usage), (600, Some(times[1])));
    assert_eq!(outbox.stats().oldest_quota, None);
    drop(outbox);
    assert!(threads.join());
}
