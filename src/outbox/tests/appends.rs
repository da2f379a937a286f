//! Why an append is refused, and which others are not affected.

use tokio::sync::oneshot;

use super::rig::{Rig, usage};
use crate::outbox::format::codec::{self, Entry, Rejected};
use crate::outbox::format::log::Log;
use crate::outbox::format::schema::Recent;
use crate::outbox::messages::{AppendError, Settlement};
use crate::outbox::threads::writer::Append;
use crate::record::Kind;

type PendingAppend = oneshot::Receiver<Result<u64, AppendError>>;

fn append(entries: Vec<Entry>, conversation: Option<u64>) -> (Append, PendingAppend) {
    let (done, answer) = oneshot::channel();
    (Append { entries, taken: conversation.map(|number| (number, Recent::default())), done }, answer)
}

fn long(bytes: usize) -> Entry {
    Entry::Rejected(Rejected {
        kind: Kind::Usage,
        accepted_at: crate::time::now(),
        raw: vec![b'x'; bytes].into(),
        detail: String::new(),
    })
}

#[test]
fn the_refusal_of_one_conversation_is_nobody_elses() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(dir.path());
    let (too_long, mut refused) = append(vec![long(codec::ENTRY_BYTES + 1)], Some(7));
    let (import, mut imported) = append(usage(0, 2, 20), None);
    rig.writer.append(vec![too_long, import]);
    assert!(matches!(refused.try_recv().unwrap(), Err(AppendError::TooLong { .. })));
    assert!(imported.try_recv().unwrap().is_ok());
    // Later appends of that conversation would leave a gap; those of others would not.
    let (later, mut refused) = append(usage(2, 2, 20), Some(7));
    let (import, mut imported) = append(usage(4, 2, 20), None);
    let (next, mut appended) = append(usage(6, 2, 20), Some(8));
    rig.writer.append(vec![later, import, next]);
    assert!(matches!(refused.try_recv().unwrap(), Err(AppendError::Full(_))));
    assert!(imported.try_recv().unwrap().is_ok() && appended.try_recv().unwrap().is_ok());
    // Also if another conversation has been refused since.
    let (too_long, _) = append(vec![long(codec::ENTRY_BYTES + 1)], Some(8));
    let (later, mut refused) = append(usage(8, 2, 20), Some(7));
    rig.writer.append(vec![too_long]);
    rig.writer.append(vec![later]);
    assert!(matches!(refused.try_recv().unwrap(), Err(AppendError::Full(_))));
    assert_eq!(rig.waiting(Log::Usage).len(), 6);
    rig.check_counts();
}

/// The longest accepted entry can be read again, and become a dead letter, which can be read as well.
#[test]
fn what_is_accepted_can_be_read_again_however_long_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(dir.path());
    let error = rig.append(vec![long(codec::ENTRY_BYTES + 1)]).unwrap_err();
    assert!(matches!(error, AppendError::TooLong { most: codec::ENTRY_BYTES, .. }), "{error}");
    assert_eq!(rig.shared.state().totals.next, 1, "nothing of it is there");
    rig.append(vec![long(codec::ENTRY_BYTES)]).unwrap();
    rig.tick();
    let letters = rig.maintenance.letters(0, 10).unwrap();
    assert_eq!(letters[0].original().len(), codec::ENTRY_BYTES);
    // The same with the longest detail.
    let mut letter = letters.into_iter().next().unwrap();
    letter.detail = "é".repeat(codec::DETAIL_BYTES);
    let stored = codec::encode_dead_letter(&letter).unwrap();
    let read = codec::decode_dead_letter(letter.id, &stored).unwrap();
    assert!(letter.detail.starts_with(&read.detail) && read.detail.len() >= codec::DETAIL_BYTES - 1);
    assert_eq!(read.original().len(), codec::ENTRY_BYTES);
    assert_eq!(rig.stats().quarantined_segments, 0);
}

/// The settlements of a batch's answer are one change: nobody sees half of it.
#[test]
fn a_whole_batch_is_settled_as_each_of_it_would_be() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(dir.path());
    rig.append(usage(0, 300, 20)).unwrap();
    let waiting = rig.waiting(Log::Usage);
    let (outbox, _requested) = rig.outbox();
    outbox.settle_all(waiting.iter().enumerate().take(250).map(|(n, unsettled)| {
        let settlement = if n % 5 == 0 { Settlement::Duplicate } else { Settlement::Delivered };
        (&unsettled.ticket, settlement)
    }));
    // Settling again has no effect.
    outbox.settle_all(waiting.iter().take(10).map(|unsettled| (&unsettled.ticket, Settlement::Delivered)));
    let stats = rig.stats();
    assert_eq!((stats.delivered[0], stats.duplicates[0], stats.depth[0]), (200, 50, 50));
    rig.check_counts();
    rig.tick();
    drop((outbox, rig));
    let mut rig = Rig::open(dir.path());
    assert_eq!(rig.waiting(Log::Usage).len(), 50);
    rig.check_counts();
}
