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
//! ```
//!
//! A **segment** holds, in one tree,
//!
//! | key | value |
//! |---|---|
//! | `p` log u8, first u64, chunk u16 | a pack: header and up to 64 zstd-compressed records, numbered from `first` on |
//! | `t` | totals: the next number, and what was ever appended, by kind |
//! | `k` append u64, chunk u16 | what that append took from the queues: positions and digests |
//!
//! and the **ledger**
//!
//! | key | value |
//! |---|---|
//! | `c` | counters of what was settled, by kind and outcome |
//! | `l` log u8 | low mark: all below is settled |
//! | `p` log u8, first u64 | a pack above the low mark that is settled in part, or a run of settled ones |
//! | `d` id u64, chunk u16 | a dead letter |
//! | `g` id u64 | a segment of the row |
//!
//! Numbers are big endian, so keys sort as numbers do. Values begin with a version byte ([`codec`]).
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
//! * **Settle**: in memory at once, in the ledger every 50 ms: marks, counters and dead letters in one atomic
//!   batch. A crash loses at most that last tick (and what the requests in flight answer meanwhile): those
//!   records are sent again with the same key and body. Settling never touches a segment.
//! * **A new segment**: created and synced, then listed in the ledger, then used.
//! * **A settled segment**: the ledger says that all of it is settled; then the ledger forgets it; then its
//!   folder is deleted. A folder that the ledger does not know is such a remainder and is deleted at opening.
//!
//! # Assumptions
//!
//! The file system keeps what was synced (`fdatasync`, and `fsync` of directories, are honest); one process
//! has the folder at a time (the lock sees to it); the `ControlPlane` recognises a record by its idempotency key.
//!
//! # Threads
//!
//! The **writer** commits appends; the **keeper** reads packs for the drain, commits the ledger and deletes
//! segments. Neither is the async runtime's. Both end when the [`Outbox`] is dropped.

pub(crate) mod codec;
mod database;
mod dead_letter;
mod keeper;
mod ledger;
mod open;
mod schema;
mod segment;
mod settled;
mod space;
mod state;
mod writer;

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;

use tokio::sync::{oneshot, watch};

pub use codec::{CodecError, Entry, Rejected};
pub use database::{DatabaseError, Durability};
pub use dead_letter::{DeadLetter, Payload, Reason};
pub use ledger::LedgerError;
pub use open::{OpenError, Settings};
pub use schema::{Recent, Taken};
pub use segment::ReadError;
pub use state::{Settlement, Stats};

use crate::record::{Kind, Queue, Timestamp};
use state::State;

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
    appends: tokio::sync::mpsc::Sender<writer::Append>,
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

struct Shared {
    settings: Settings,
    id: uuid::Uuid,
    state: Mutex<State>,
    ledger: ledger::Ledger,
    /// Why appends are not accepted, if they are not.
    paused: watch::Sender<Option<&'static str>>,
    /// The number of the last durable record.
    last: watch::Sender<u64>,
    /// Used bytes, as last measured.
    used: std::sync::atomic::AtomicU64,
    ledger_failed: AtomicBool,
    _lock: std::fs::File,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Poisoned or not: every change under this lock is complete in itself.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
        self.appends.send(append).await.map_err(|_| AppendError::Closed)?;
        Ok(committed)
    }

    /// Reads `log` in `from..upto`: whole packs, until `most` records that are not settled are found. `upto` must
    /// be the end of an append. When all of it has been read, the lease's `next` is `upto`.
    ///
    /// A record is given out as often as it is read: the caller knows what it has in hand.
    pub async fn lease(&self, log: Log, from: u64, upto: u64, most: usize) -> Result<Lease, ReadError> {
        let (done, lease) = oneshot::channel();
        // A closed outbox has nothing more to give.
        if self.requests.send(keeper::Request::Lease { log, from, upto, most, done }).is_err() {
            return Ok(Lease { records: Vec::new(), next: from });
        }
        lease.await.unwrap_or(Ok(Lease { records: Vec::new(), next: from }))
    }

    /// Settles a record: at once for every reader, on the disk within 100 ms.
    pub fn settle(&self, ticket: &Ticket, settlement: Settlement) {
        self.shared.state().deliver(ticket, settlement);
    }

    /// Settles many records under one lock.
    pub fn settle_all<'a>(&self, tickets: impl IntoIterator<Item = (&'a Ticket, Settlement)>) {
        let mut state = self.shared.state();
        for (ticket, settlement) in tickets {
            state.deliver(ticket, settlement);
        }
    }

    /// Settles a record as a dead letter, in one step.
    pub fn bury(&self, ticket: &Ticket, letter: DeadLetter) {
        self.shared.state().bury(ticket, letter);
    }

    /// The dead letters from number `from` on, at most `most` of them.
    pub async fn dead_letters(&self, from: u64, most: usize) -> Result<Vec<DeadLetter>, LedgerError> {
        let (done, letters) = oneshot::channel();
        if self.requests.send(keeper::Request::Letters { from, most, done }).is_err() {
            return Ok(Vec::new());
        }
        letters.await.unwrap_or_else(|_| Ok(Vec::new()))
    }

    /// The number of the last dead letter that was mirrored.
    pub fn mirrored(&self) -> u64 {
        self.shared.state().counters.mirrored
    }

    /// Dead letters up to this number have been mirrored.
    pub fn set_mirrored(&self, id: u64) {
        let mut state = self.shared.state();
        state.counters.mirrored = id;
        state.counters_dirty = true;
    }

    /// The number that the next dead letter will have.
    pub fn next_dead_letter(&self) -> u64 {
        self.shared.state().counters.next_dead_letter
    }

    /// The counters and depths of this moment.
    pub fn stats(&self) -> Stats {
        let mut stats = self.shared.state().stats();
        stats.disk_bytes = self.shared.used.load(std::sync::atomic::Ordering::Relaxed);
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

    /// Waits until everything settled so far is durable.
    pub async fn flush(&self) {
        let (done, flushed) = oneshot::channel();
        if self.requests.send(keeper::Request::Flush { done }).is_ok() {
            // Dropped unanswered only when the keeper is gone, and then it has flushed.
            let _ = flushed.await;
        }
    }
}
