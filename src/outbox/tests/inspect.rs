//! Verifying an outbox in use: an intact outbox has no problems, and each problem is found.

use std::path::Path;

use super::rig::{settings, usage};
use crate::outbox::api::handle::{Outbox, Threads};
use crate::outbox::engine::batch::WriteBatch;
use crate::outbox::format::codec::Entry;
use crate::outbox::format::dead_letter::{DeadLetter, Payload, Reason};
use crate::outbox::format::log::Log;
use crate::outbox::messages::Settlement;
use crate::outbox::segments::segment;
use crate::outbox::tools::verify::Verified;
use crate::record::Kind;

fn on_runtime<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

/// Several segments with partly settled records, and two dead letters.
async fn open(dir: &Path) -> (Outbox, Threads) {
    let (outbox, threads) = Outbox::open(settings(dir)).unwrap();
    for n in 0..6 {
        outbox.append(usage(n * 300, 300, 800), None).await.unwrap().await.unwrap().unwrap();
    }
    let end = *outbox.last().borrow() + 1;
    let (mut from, mut unsettled) = (0, Vec::new());
    while from < end {
        let page = outbox.read(Log::Usage, from, end, 500).await.unwrap();
        unsettled.extend(page.records);
        from = page.next;
    }
    for unsettled in unsettled.iter().filter(|unsettled| unsettled.ticket.seq.is_multiple_of(3)) {
        outbox.settle(&unsettled.ticket, Settlement::Delivered);
    }
    for unsettled in &unsettled[..2] {
        let Entry::Record(record) = &unsettled.entry else { panic!("no record") };
        let at = crate::time::now();
        let letter = DeadLetter {
            id: 0,
            reason: Reason::Refused,
            detail: "no".into(),
            attempts: 1,
            first_at: at,
            last_at: at,
            payload: Payload::Record(record.clone()),
        };
        outbox.settle_as_dead_letter(&unsettled.ticket, letter);
    }
    assert!(outbox.flush().await);
    (outbox, threads)
}

async fn verified(outbox: &Outbox) -> Verified {
    outbox.inspect(|_| ()).await.unwrap()
}

fn close(outbox: Outbox, threads: Threads) {
    drop(outbox);
    assert!(threads.join());
}

#[test]
fn a_sound_outbox_is_found_so_as_when_it_is_closed() {
    let dir = tempfile::tempdir().unwrap();
    on_runtime(async {
        let (outbox, threads) = open(dir.path()).await;
        assert!(outbox.stats().segments > 1, "{:?}", outbox.stats());
        let running = verified(&outbox).await;
        assert_eq!(running.problems, Vec::<String>::new());
        assert_eq!((running.records, running.waiting, running.dead_letters), (1800, 1198, 2));
        close(outbox, threads);
        assert_eq!(Outbox::verify(&settings(dir.path()), &mut |_| ()).unwrap(), running);
    });
}

/// Breaks something, and returns the reported problems.
fn problems_after(breaks: impl FnOnce(&Outbox)) -> String {
    let dir = tempfile::tempdir().unwrap();
    on_runtime(async {
        let (outbox, threads) = open(dir.path()).await;
        breaks(&outbox);
        let verified = verified(&outbox).await;
        close(outbox, threads);
        verified.problems.join("\n")
    })
}

#[test]
fn each_count_that_does_not_add_up_is_found() {
    let said = problems_after(|outbox| outbox.shared.state().counters.delivered[0] += 1);
    assert!(said.contains("usage_record: 1800 enqueued, but 603 gone and 1198 waiting"), "{said}");
    let said = problems_after(|outbox| {
        outbox.shared.state().segments[0].info.appended.add(Log::Usage, Kind::Usage, 1);
    });
    assert!(said.contains("segment 1: ") && said.contains("usage_record counted"), "{said}");
    let said = problems_after(|outbox| {
        outbox.shared.state().segments[0].info.settled.add(Log::Usage, Kind::Usage, 1);
    });
    assert!(said.contains("settled usage_record counted"), "{said}");
    let said = problems_after(|outbox| outbox.shared.state().counters.dead_letters += 1);
    assert!(said.contains("dead letters: 3 counted, 2 found"), "{said}");
}

#[test]
fn a_pack_that_is_damaged_is_found() {
    let said = problems_after(|outbox| {
        let segment = std::sync::Arc::clone(&outbox.shared.state().segments[0].segment);
        let mut pack = segment.raw_pack(Log::Usage, 1).unwrap().unwrap();
        let middle = pack.len() / 2;
        pack[middle] ^= 1;
        let mut batch = WriteBatch::default();
        segment::put_pack(&mut batch, Log::Usage, 1, &pack);
        segment.commit(batch).unwrap();
    });
    assert!(said.contains("segment 1: usage pack 1: "), "{said}");
}
