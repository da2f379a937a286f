//! What the segments and the ledger store beside packs and dead letters.

use super::codec::{Decode, Encode};
use super::dead_letter::Reason;
use super::log::Log;

use crate::record::{Kind, Queue};

const KINDS: usize = Kind::ALL.len();

/// Numbers of records, by log and kind. A log has one kind, except that of rejected messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Tally([[u64; KINDS]; Log::COUNT]);

impl Tally {
    pub(crate) fn add(&mut self, log: Log, kind: Kind, n: u64) {
        self.0[log.index()][at(kind)] += n;
    }

    pub(crate) fn plus(mut self, other: &Self) -> Self {
        for (ours, theirs) in self.0.iter_mut().flatten().zip(other.0.iter().flatten()) {
            *ours += theirs;
        }
        self
    }

    /// What is left of this without `other`.
    pub(crate) fn minus(mut self, other: &Self) -> Self {
        for (ours, theirs) in self.0.iter_mut().flatten().zip(other.0.iter().flatten()) {
            *ours = ours.saturating_sub(*theirs);
        }
        self
    }

    pub(crate) fn of(&self, log: Log) -> u64 {
        self.0[log.index()].iter().sum()
    }

    pub(crate) fn by_kind(&self) -> [u64; KINDS] {
        std::array::from_fn(|kind| self.0.iter().map(|log| log[kind]).sum())
    }

    pub(crate) fn total(&self) -> u64 {
        self.0.iter().flatten().sum()
    }
}

/// The place of a kind in arrays.
pub(crate) fn at(kind: Kind) -> usize {
    kind as usize - 1
}

/// What was appended since this outbox began. Written with each append.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Totals {
    /// The next record's number.
    pub next: u64,
    /// Records.
    pub appended: Tally,
    /// Their bytes.
    pub bytes: u64,
}

impl Default for Totals {
    fn default() -> Self {
        Self { next: 1, appended: Tally::default(), bytes: 0 }
    }
}

/// What the ledger knows of a segment, so that it need not be opened to know.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct SegmentInfo {
    /// Its numbers: none below this one. What lies below is a copy that is not its own yet.
    pub base: u64,
    /// And none from this one on, once it is sealed. What lies above was never acknowledged.
    pub end: Option<u64>,
    /// What had been appended before it was begun.
    pub before: Totals,
    /// What it holds. Of the newest it is known from its own totals.
    pub appended: Tally,
    /// Its records' bytes. Likewise.
    pub bytes: u64,
    /// What of it is settled.
    pub settled: Tally,
    /// The bytes of that.
    pub settled_bytes: u64,
    /// First numbers of the first and the last pack of each log.
    pub ranges: [Option<(u64, u64)>; Log::COUNT],
}

impl SegmentInfo {
    /// Of a segment that begins after `before`.
    pub(crate) fn beginning(before: &Totals) -> Self {
        Self {
            base: before.next,
            end: None,
            before: before.clone(),
            appended: Tally::default(),
            bytes: 0,
            settled: Tally::default(),
            settled_bytes: 0,
            ranges: [None; Log::COUNT],
        }
    }

    /// What waits in it.
    pub(crate) fn waiting(&self) -> Tally {
        self.appended.minus(&self.settled)
    }

    /// The bytes of that.
    pub(crate) fn waiting_bytes(&self) -> u64 {
        self.bytes.saturating_sub(self.settled_bytes)
    }

    /// The first number that is not its own.
    pub(crate) fn end(&self) -> u64 {
        self.end.unwrap_or(u64::MAX)
    }
}

/// What was settled since this outbox began. Written with the marks.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Counters {
    /// Appended before this ledger began: a lost ledger is begun anew, and all counters with it.
    pub forgotten: [u64; KINDS],
    /// Settled by 2xx, by kind.
    pub delivered: [u64; KINDS],
    /// Settled by 409, by kind.
    pub duplicates: [u64; KINDS],
    /// Became dead letters, by kind and reason.
    pub dead_lettered: [[u64; Reason::ALL.len()]; KINDS],
    /// Exported to a file, by kind; those in quarantine are among them.
    pub exported: [u64; KINDS],
    /// The next dead letter's number.
    pub next_dead_letter: u64,
    /// Dead letters that are kept.
    pub dead_letters: u64,
    /// What they take, in bytes.
    pub dead_letter_bytes: u64,
    /// Dead letters dropped for their age.
    pub expired: u64,
    /// The last dead letter that was mirrored.
    pub mirrored: u64,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            forgotten: [0; KINDS],
            delivered: [0; KINDS],
            duplicates: [0; KINDS],
            dead_lettered: [[0; Reason::ALL.len()]; KINDS],
            exported: [0; KINDS],
            next_dead_letter: 1,
            dead_letters: 0,
            dead_letter_bytes: 0,
            expired: 0,
            mirrored: 0,
        }
    }
}

impl Counters {
    /// All that left, of one kind.
    pub(crate) fn gone(&self, kind: usize) -> u64 {
        let dead_lettered = self.dead_lettered[kind].iter().sum::<u64>();
        self.delivered[kind] + self.duplicates[kind] + self.exported[kind] + dead_lettered
    }
}

/// What one append took from the queues: the checkpoint of invariant 9.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Recent {
    /// By queue, in the order of [`Queue::ALL`].
    pub queues: [Taken; Queue::ALL.len()],
}

/// What one append took from one queue.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Taken {
    /// How many messages this agent had taken from the queue before these.
    pub position: u64,
    /// A digest of each message, in the order in which they were taken.
    pub digests: Vec<u32>,
}
