//! The order of maintenance's work, and how long it keeps things.

use std::sync::mpsc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::rig::{Rig, entry, usage};
use crate::outbox::format::codec::Entry;
use crate::outbox::format::dead_letter::{DeadLetter, Payload, Reason};
use crate::outbox::format::log::Log;
use crate::outbox::messages::LogPage;
use crate::outbox::segments::segment::ReadError;
use crate::outbox::threads::maintenance::{Maintenance, MaintenanceRequest};
use crate::record::{Kind, Timestamp};

/// Asks for the first waiting quota requests.
fn read_quota(requests: &mpsc::Sender<MaintenanceRequest>) -> oneshot::Receiver<Result<LogPage, ReadError>> {
    let (done, page) = oneshot::channel();
    let read = |maintenance: &mut Maintenance| maintenance.read_waiting(Log::Quota, 0, u64::MAX, 10);
    requests.send(Box::new(move |maintenance| drop(done.send(read(maintenance))))).unwrap();
    page
}

#[test]
fn a_flood_of_rejected_messages_keeps_nobody_waiting_and_a_flush_waits_for_all_of_it() {
    const FLOOD: u64 = 3000;
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(dir.path());
    rig.append((0..FLOOD).map(|n| entry(Kind::Lifecycle, n, 20)).collect()).unwrap();
    rig.append(vec![entry(Kind::Quota, 0, 20)]).unwrap();
    let (requests, requested) = mpsc::channel::<MaintenanceRequest>();
    let mut ticked = Instant::now();
    let (done, mut flushed) = oneshot::channel();
    requests.send(Box::new(|maintenance| maintenance.flush(done))).unwrap();
    while rig.stats().dead_letters == 0 {
        assert!(rig.maintenance.turn(&requested, &mut ticked));
    }
    let mut unsettled = read_quota(&requests);
    let page = loop {
        assert!(rig.maintenance.turn(&requested, &mut ticked));
        if let Ok(page) = unsettled.try_recv() {
            break page.unwrap();
        }
    };
    assert_eq!(page.records.len(), 1);
    assert!(rig.stats().dead_letters < FLOOD, "the reader was served in between");
    assert!(flushed.try_recv().is_err(), "and the flush is still waiting");
    let flushed = loop {
        assert!(rig.maintenance.turn(&requested, &mut ticked));
        if let Ok(flushed) = flushed.try_recv() {
            break flushed;
        }
    };
    assert!(flushed);
    assert_eq!(rig.stats().dead_letters, FLOOD);
    rig.check_counts();
}

/// A dead letter of another outbox, given up at that time.
fn letter(n: u64, last_at: Timestamp) -> Entry {
    Entry::Letter(Box::new(DeadLetter {
        id: 0,
        reason: Reason::Invalid,
        detail: "no record".into(),
        attempts: 0,
        first_at: last_at,
        last_at,
        payload: Payload::Raw {
            kind: Kind::Usage,
            accepted_at: last_at,
            bytes: n.to_string().into_bytes().into(),
        },
    }))
}

/// On disk they take a few hundred bytes each.
#[test]
fn a_page_of_dead_letters_is_as_large_as_it_is_in_memory() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(dir.path());
    let large = |n: u64| {
        let Entry::Letter(mut letter) = letter(n, Timestamp(1)) else { unreachable!() };
        let bytes = vec![b'x'; 1 << 20].into();
        letter.payload = Payload::Raw { kind: Kind::Usage, accepted_at: letter.last_at, bytes };
        Entry::Letter(letter)
    };
    rig.append((0..20).map(large).collect()).unwrap();
    while rig.stats().dead_letters < 20 {
        rig.tick();
    }
    let (mut from, mut pages) = (0, 0);
    while let letters = rig.maintenance.letters(from, 500).unwrap()
        && let Some(last) = letters.last()
    {
        let bytes: usize = letters.iter().map(DeadLetter::size).sum();
        assert!(bytes < 3 << 20, "{bytes} bytes in one page");
        (from, pages) = (last.id + 1, pages + 1);
    }
    assert_eq!((from, pages), (21, 20));
}

#[test]
fn a_segment_that_is_read_stays_open_whatever_else_is_read_and_is_closed_afterwards() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(dir.path());
    for batch in 0..20 {
        rig.append(usage(batch * 100, 100, 2000)).unwrap();
    }
    assert!(rig.segments() > 2);
    let is_open = |rig: &Rig| rig.shared.state().segments[0].segment.is_open();
    let begun = Instant::now();
    let end = rig.shared.state().totals.next;
    rig.maintenance.read(Log::Usage, 0, end, 10).unwrap();
    for _ in 0..20 {
        rig.maintenance.read(Log::Quota, 0, end, 10).unwrap();
    }
    assert!(is_open(&rig) || begun.elapsed() > Duration::from_millis(900), "it is still read");
    while is_open(&rig) {
        assert!(begun.elapsed() < Duration::from_secs(60), "nobody reads it any more");
        rig.chores();
    }
}

/// Replaying it again would duplicate it.
#[test]
fn a_dead_letter_whose_dropping_is_not_on_the_disk_yet_is_none_any_more() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(dir.path());
    rig.append(usage(0, 2, 50)).unwrap();
    for unsettled in rig.waiting(Log::Usage) {
        let letter = super::model::letter(&unsettled.entry);
        rig.shared.state().settle_as_dead_letter(&unsettled.ticket, letter);
    }
    rig.tick();
    let ids = |rig: &Rig| -> Vec<u64> {
        rig.maintenance.letters(0, 10).unwrap().iter().map(|letter| letter.id).collect()
    };
    assert_eq!(ids(&rig), [1, 2]);
    assert!(rig.shared.state().drop_letter(1, 1));
    assert_eq!(ids(&rig), [2]);
}

/// Letters that are not in the ledger yet come with the ticks, between which other requests are served.
#[test]
fn a_reader_past_the_last_dead_letter_holds_up_nobody() {
    const FLOOD: u64 = 3000;
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(dir.path());
    // One letter before, so that the reader can be past it.
    rig.append(vec![letter(0, crate::time::now())]).unwrap();
    rig.tick();
    rig.append((0..FLOOD).map(|n| entry(Kind::Lifecycle, n, 20)).collect()).unwrap();
    rig.append(vec![entry(Kind::Quota, 0, 20)]).unwrap();
    let (requests, requested) = mpsc::channel::<MaintenanceRequest>();
    let mut ticked = Instant::now();
    let read = |from| {
        let (done, letters) = oneshot::channel();
        requests.send(Box::new(move |maintenance| maintenance.read_letters(from, 10, done))).unwrap();
        letters
    };
    // The second reader is so far ahead that all letters must arrive before it can be told that there are no more.
    let (mut first, mut beyond) = (read(2), read(1_000_000));
    let mut unsettled = read_quota(&requests);
    let dead_lettered = rig.stats().dead_letters;
    for _ in 0..3 {
        assert!(rig.maintenance.turn(&requested, &mut ticked));
    }
    assert_eq!(unsettled.try_recv().unwrap().unwrap().records.len(), 1);
    assert!(rig.stats().dead_letters < dead_lettered + FLOOD / 2, "the reader did not wait for all of them");
    let answer = loop {
        assert!(rig.maintenance.turn(&requested, &mut ticked));
        if let Ok(answer) = first.try_recv() {
            break answer.unwrap();
        }
    };
    assert_eq!(answer.iter().map(|letter| letter.id).collect::<Vec<_>>(), (2..12).collect::<Vec<_>>());
    assert!(beyond.try_recv().is_err(), "there are more to come");
    let answer = loop {
        assert!(rig.maintenance.turn(&requested, &mut ticked));
        if let Ok(answer) = beyond.try_recv() {
            break answer.unwrap();
        }
    };
    assert!(answer.is_empty());
    assert_eq!(rig.stats().dead_letters, FLOOD + 1);
}

/// Nothing is kept for a reader that is gone.
#[test]
fn a_reader_who_has_gone_is_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(dir.path());
    let (requests, requested) = mpsc::channel::<MaintenanceRequest>();
    let mut ticked = Instant::now();
    let (done, letters) = oneshot::channel();
    requests.send(Box::new(|maintenance| maintenance.read_letters(0, 10, done))).unwrap();
    drop(letters);
    let (done, mut letters) = oneshot::channel();
    requests.send(Box::new(|maintenance| maintenance.read_letters(0, 10, done))).unwrap();
    let answer = loop {
        assert!(rig.maintenance.turn(&requested, &mut ticked));
        if let Ok(answer) = letters.try_recv() {
            break answer.unwrap();
        }
    };
    assert!(answer.is_empty());
}
