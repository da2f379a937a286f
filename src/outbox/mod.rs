//! The outbox: what was taken from Redis waits here, durable, until the `ControlPlane` has answered.
//!
//! # What is on the disk
//!
//! ```text
//! OUTBOX_DIR/
//!   lock              held (flock) by the one process that has the outbox open
//!   format.json       the format's version and this outbox's id; read before anything else is touched
//!   reserve           bytes given up when the disk is full, so that the outbox can be opened and drained
//!   segments/<id>/    a sled database each: packs of records, appended, then read, then deleted whole
//!   ledger/           a sled database: what is settled, counters, dead letters, the row of segments
//!   quarantine/       what was damaged, with reports; never deleted, brought back by salvaging
//! ```
//!
//! A **segment** holds
//!
//! | key | value |
//! |---|---|
//! | `p` log u8, first u64, chunk u16 | a pack: header and up to 64 zstd-compressed records, numbered from `first` on |
//! | `b` | the totals that it began with |
//! | `t` | totals: the next number, and what was ever appended, by log and kind |
//! | `k` append u64, chunk u16 | what that append took from the queues: positions and digests |
//!
//! and the **ledger**
//!
//! | key | value |
//! |---|---|
//! | `c` | counters of what was settled, by kind and outcome |
//! | `t` | a copy of the newest segment's totals, a second old at most |
//! | `l` log u8 | low mark: all below is settled |
//! | `p` log u8, first u64 | a pack above the low mark that is settled in part, or a run of settled ones |
//! | `d` id u64, chunk u16 | a dead letter |
//! | `g` id u64 | a segment of the row: its numbers, what it holds and what of it is settled |
//! | `x` id u64 | a segment that left the row and whose folder may still be there |
//!
//! Numbers are big endian, so keys sort as numbers do. Values begin with a version byte ([`codec`]); packs and dead
//! letters carry a checksum that covers their place as well. A value in chunks begins with its length.
//!
//! # Logs
//!
//! Records are numbered in the order in which they are appended, and each lies in one of five logs, which are
//! read apart: a quota request is never behind a million usage records, nor a `started` behind its own session's
//! usage. What may be sent when is the drain's business.
//!
//! # Order of writing
//!
//! * **Append**: packs, totals and checkpoint in one atomic batch; barrier; then the appender is told. Appends
//!   that arrive while a barrier is under way share the next one.
//! * **Settle**: in memory at once, in the ledger every 50 ms: marks, counters, dead letters and the segments' own
//!   counts in one atomic batch. A crash loses at most that last tick (and what the requests in flight answer
//!   meanwhile): those records are sent again with the same key and body. Settling never touches a segment.
//! * **A new segment**: created with the totals and the checkpoint, synced; then listed in the ledger, together with
//!   the end of the one before; then used. After a failed write it begins behind what was acknowledged, and what
//!   the failure may have left in the old one is not read: it was never acknowledged.
//! * **A settled segment**: the ledger says that all of it is settled; then the ledger forgets it and notes a tombstone;
//!   then its folder is deleted; then the tombstone.
//! * **Carrying forward**: of a large old segment with a few waiting records, the packs that hold them are copied into
//!   the next segment, numbers and all; barrier; then the ledger gives that one the old one's numbers and forgets
//!   the old one. A copy below a segment's first number is not read.
//!
//! # Damage
//!
//! What cannot be read is set aside and the rest goes on. A whole segment moves to `quarantine/` at once. Of one with a
//! few bad packs, or without packs that it should have (sled silently drops what it finds torn), the rest is
//! delivered first: then its own counts say how many records are missing. What was waiting in it counts as
//! *exported* (it left for a file, and comes back by salvaging as newly enqueued), so that the counters add up. A lost
//! ledger is begun anew: the counters begin anew, and all that the segments hold is sent again with the same keys.
//!
//! # Assumptions
//!
//! The file system keeps what was synced (`fdatasync`, and `fsync` of directories, are honest); one process
//! has the folder at a time (the lock sees to it); the `ControlPlane` recognises a record by its idempotency key.
//!
//! # Known limits
//!
//! * After a barrier fails (not for want of room: the medium) the kernel may forget what it could not write. A segment
//!   is not written to any more then; the ledger is opened again and goes on, so that a power cut after such a failure
//!   can take settlements back (they are sent again, with the same keys) and dead letters with it.
//! * A newest segment that is lost takes along what was appended since the ledger's copy of its totals, a second at most,
//!   without those records being counted.
//! * The ledger's file does not shrink; it fills its gaps before it grows.
//!
//! # Threads
//!
//! The **writer** commits appends; the **keeper** reads packs for the drain, commits the ledger and deletes
//! segments. Neither is the async runtime's. Both end when the [`Outbox`] is dropped.

pub(crate) mod codec;
mod database;
mod dead_letter;
mod fault;
mod inspect;
mod keeper;
mod ledger;
mod manifest;
mod open;
mod probe;
mod quarantine;
mod replay;
mod reserve;
mod row;
mod salvage;
mod schema;
mod segment;
mod settled;
mod shared;
mod slot;
mod space;
mod state;
mod stats;
#[cfg(test)]
mod tests;
mod transfer;
mod verify;
mod writer;

use std::sync::{Arc, PoisonError, mpsc};
use std::thread::JoinHandle;

use tokio::sync::{oneshot, watch};

pub use codec::{CodecError, Entry, Rejected};
pub use database::{DatabaseError, Durability};
pub use dead_letter::{DeadLetter, Payload, Reason};
pub use inspect::Inspection;
pub use ledger::LedgerError;
pub use open::{OpenError, Settings};
pub use probe::{ProbeSettings, id_in, probe};
pub use quarantine::Report;
pub use replay::{ReplayError, Replayed};
pub use salvage::{SalvageError, Salvaged};
pub use schema::{Recent, Taken};
pub use segment::ReadError;
pub use state::Settlement;
pub use stats::Stats;
pub use transfer::{Chunk, ExportPage, ExportPlace, TransferError, check_lines, chunks};
pub use verify::Verified;

use crate::record::{Kind, Queue, Timestamp};
use shared::Shared;

/// One of the rows of records that are read apart. The numbers are persisted: never renumber.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Log {
    /// Quota requests: they wait for nobody.
    Quota = 1,
    /// Session-started events: they wait for nobody either.
    Started = 2,
    /// Usage records.
    Usage = 3,
    /// Session-completed events.
    Completed = 4,
    /// What is no record, on its way to the dead letters. The keeper's alone.
    Rejected = 5,
}

impl Log {
    pub(crate) const COUNT: usize = 5;
    /// All of them, in the order in which an append numbers its records.
    pub(crate) const ALL: [Self; Self::COUNT] =
        [Self::Quota, Self::Started, Self::Usage, Self::Completed, Self::Rejected];

    fn index(self) -> usize {
        self as usize - 1
    }

    /// The name on the command line and in reports.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Quota => "quota",
            Self::Started => "started",
            Self::Usage => "usage",
            Self::Completed => "completed",
            Self::Rejected => "rejected",
        }
    }

    fn of(entry: &Entry) -> Self {
        match entry {
            Entry::Rejected(_) => Self::Rejected,
            Entry::Record(record) => match record.kind() {
                Kind::Quota => Self::Quota,
                Kind::Started => Self::Started,
                Kind::Completed => Self::Completed,
                Kind::Usage | Kind::Lifecycle => Self::Usage,
            },
        }
    }
}

/// What settles a leased record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// Its number: later records of a log have greater ones.
    pub seq: u64,
    /// Its log.
    pub log: Log,
    /// What it is.
    pub kind: Kind,
    /// When it was accepted.
    pub accepted_at: Timestamp,
    bytes: u32,
}

/// A record that was read to be delivered.
#[derive(Debug)]
pub struct Leased {
    /// What settles it.
    pub ticket: Ticket,
    /// The record.
    pub entry: Entry,
}

#[cfg(test)]
impl Leased {
    /// A record as it is read under this number.
    pub(crate) fn new(seq: u64, record: crate::record::Record) -> Self {
        let (kind, accepted_at, bytes) = (record.kind(), record.accepted_at(), record.data().len() as u32);
        let entry = Entry::Record(record);
        Self { ticket: Ticket { seq, log: Log::of(&entry), kind, accepted_at, bytes }, entry }
    }
}

/// A stretch of a log.
#[derive(Debug, Default)]
pub struct Lease {
    /// What in it is not settled, in order.
    pub records: Vec<Leased>,
    /// Where to read on.
    pub next: u64,
}

/// Why an append was not made. Nothing of it is in the outbox.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AppendError {
    /// The outbox is full, or the disk nearly so.
    #[error("the outbox does not accept: {0}")]
    Full(&'static str),
    /// The storage failed; it is being opened again.
    #[error("the outbox's storage failed: {0}")]
    Storage(String),
    /// The outbox was closed.
    #[error("the outbox is closed")]
    Closed,
}

/// An open outbox. Clones share it.
#[derive(Clone)]
pub struct Outbox {
    shared: Arc<Shared>,
    appends: tokio::sync::mpsc::Sender<writer::Order>,
    requests: mpsc::Sender<keeper::Request>,
}

/// The threads of an outbox: wait for them after the last clone of it is gone.
pub struct Threads {
    writer: JoinHandle<()>,
    keeper: JoinHandle<()>,
}

impl Threads {
    /// Waits until everything settled is durable and the folder is free. False if one of them panicked.
    pub fn join(self) -> bool {
        let writer = self.writer.join().is_ok();
        self.keeper.join().is_ok() && writer
    }

    /// Whether one of them has ended.
    pub fn ended(&self) -> bool {
        self.writer.is_finished() || self.keeper.is_finished()
    }
}

impl Outbox {
    /// Appends `entries`, taken as `recent` says; the answer comes when all of it would survive a power cut.
    ///
    /// Waits for room in a bounded queue only. Entries of one log keep their order. `taken` is the checkpoint of what
    /// came from the queues, and the number of the conversation that took it: when one append of a conversation is
    /// refused, all its later ones are, so that what is committed of it has no gaps.
    pub async fn append(
        &self,
        entries: Vec<Entry>,
        taken: Option<(u64, Recent)>,
    ) -> Result<oneshot::Receiver<Result<u64, AppendError>>, AppendError> {
        let (done, committed) = oneshot::channel();
        let append = writer::Append { entries, taken, done };
        self.appends.send(writer::Order::Append(append)).await.map_err(|_| AppendError::Closed)?;
        Ok(committed)
    }

    /// Reads `log` in `from..upto`: whole packs, until `most` records that are not settled are found, or some MiB of
    /// them. `upto` must be the end of an append. When all of it has been read, the lease's `next` is `upto`.
    ///
    /// A record is given out as often as it is read: the caller knows what it has in hand.
    pub async fn lease(&self, log: Log, from: u64, upto: u64, most: usize) -> Result<Lease, ReadError> {
        let (done, lease) = oneshot::channel();
        self.requests
            .send(keeper::Request::Lease { log, from, upto, most, done })
            .map_err(|_| ReadError::Closed)?;
        lease.await.unwrap_or(Err(ReadError::Closed))
    }

    /// Settles a record: at once for every reader, on the disk within 100 ms.
    pub fn settle(&self, ticket: &Ticket, settlement: Settlement) {
        self.change(|state| state.deliver(ticket, settlement));
    }

    /// Settles many records under one lock.
    pub fn settle_all<'a>(&self, tickets: impl IntoIterator<Item = (&'a Ticket, Settlement)>) {
        self.change(|state| {
            for (ticket, settlement) in tickets {
                state.deliver(ticket, settlement);
            }
        });
    }

    /// Settles a record as a dead letter, in one step.
    pub fn bury(&self, ticket: &Ticket, letter: DeadLetter) {
        self.change(|state| state.bury(ticket, letter));
    }

    /// Changes what the ledger has to hold; the first change after a rest wakes the keeper.
    fn change(&self, change: impl FnOnce(&mut state::State)) {
        let mut state = self.shared.state();
        let had_work = state.is_dirty();
        change(&mut state);
        drop(state);
        if !had_work {
            // A keeper that is gone has failed: whoever leases hears of it.
            let _ = self.requests.send(keeper::Request::Wake);
        }
    }

    /// The dead letters from number `from` on, at most `most` of them, and fewer when they are large. Empty only when
    /// there are no more.
    pub async fn dead_letters(&self, from: u64, most: usize) -> Result<Vec<DeadLetter>, LedgerError> {
        let (done, letters) = oneshot::channel();
        self.requests.send(keeper::Request::Letters { from, most, done }).map_err(|_| LedgerError::Closed)?;
        letters.await.unwrap_or(Err(LedgerError::Closed))
    }

    /// Drops dead letters for good. Gives how many of them there were.
    pub async fn drop_dead_letters(&self, ids: Vec<u64>) -> Result<u64, LedgerError> {
        let (done, dropped) = oneshot::channel();
        self.requests.send(keeper::Request::DropLetters { ids, done }).map_err(|_| LedgerError::Closed)?;
        dropped.await.unwrap_or(Err(LedgerError::Closed))
    }

    /// The number of the last dead letter that was mirrored.
    pub fn mirrored(&self) -> u64 {
        self.shared.state().counters.mirrored
    }

    /// Dead letters up to this number have been mirrored.
    pub fn set_mirrored(&self, id: u64) {
        self.change(|state| {
            state.counters.mirrored = id;
            state.counters_dirty = true;
        });
    }

    /// The number that the next dead letter will have.
    pub fn next_dead_letter(&self) -> u64 {
        self.shared.state().counters.next_dead_letter
    }

    /// The counters and depths of this moment.
    pub fn stats(&self) -> Stats {
        let stats = self.shared.state().stats();
        self.completed(stats)
    }

    /// The same with what is settled as a crash would leave it, at most 100 ms old: for counters that must never go
    /// back.
    pub fn durable_stats(&self) -> Stats {
        let stats = {
            let state = self.shared.state();
            state.stats_by(&state.durable)
        };
        self.completed(stats)
    }

    fn completed(&self, mut stats: Stats) -> Stats {
        let (segments, records) = *self.shared.quarantined.lock().unwrap_or_else(PoisonError::into_inner);
        stats.quarantined_segments += segments;
        stats.quarantined_records = records;
        stats.disk_bytes = self.shared.used.load(std::sync::atomic::Ordering::Relaxed);
        stats.id = self.shared.id;
        stats.durability = self.shared.settings.durability;
        stats.capacity_bytes = self.shared.settings.max_bytes;
        stats.paused = *self.shared.paused.borrow();
        stats.accepting = stats.paused.is_none();
        stats
    }

    /// Why appends are not accepted, if they are not; follows changes.
    pub fn paused(&self) -> watch::Receiver<Option<&'static str>> {
        self.shared.paused.subscribe()
    }

    /// The number of the last durable record; follows changes.
    pub fn last(&self) -> watch::Receiver<u64> {
        self.shared.last.subscribe()
    }

    /// What the last appends took from `queue`, oldest first.
    pub fn recently_taken(&self, queue: Queue) -> Vec<Taken> {
        let state = self.shared.state();
        let taken = state.recent.iter().map(|(_, recent)| recent.queues[queue as usize].clone());
        taken.filter(|taken| !taken.digests.is_empty()).collect()
    }

    /// This outbox's identity: made when its folder was.
    pub fn id(&self) -> uuid::Uuid {
        self.shared.id
    }

    /// Waits until everything settled so far is durable. False if that cannot be had just now: it stays to be written.
    pub async fn flush(&self) -> bool {
        let (done, flushed) = oneshot::channel();
        self.requests.send(keeper::Request::Flush { done }).is_ok() && flushed.await.unwrap_or(false)
    }
}
