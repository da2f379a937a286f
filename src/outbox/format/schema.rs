//! The other values in segments and ledger, besides packs and dead letters.

use super::codec::{Decode, Encode};
use super::dead_letter::Reason;
use super::log::Log;

use crate::record::{Kind, Queue};

const KINDS: usize = Kind::ALL.len();

/// Counts of records, by log and kind. A log has one kind, except the log of rejected messages.
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

    /// The remainder after subtracting `other`.
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

/// The index of a kind in arrays.
pub(crate) fn at(kind: Kind) -> usize {
    kind as usize - 1
}

/// Totals of appended records since this outbox was created. Written with each append.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Totals {
    /// The next record's number.
    pub next: u64,
    /// Appended records.
    pub appended: Tally,
    /// Their bytes.
    pub bytes: u64,
}

impl Default for Totals {
    fn default() -> Self {
        Self { next: 1, appended: Tally::default(), bytes: 0 }
    }
}

/// The ledger's copy of a segment's data, which makes opening the segment unnecessary.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct SegmentInfo {
    /// Its first number. Anything below is a copy that does not belong to it yet.
    pub base: u64,
    /// The end of its numbers, once it is sealed. Anything from there on was never acknowledged.
    pub end: Option<u64>,
    /// The totals before it was begun.
    pub before: Totals,
    /// Its appended records. For the newest segment its own totals count.
    pub appended: Tally,
    /// Their bytes, in the same way.
    pub bytes: u64,
    /// Its settled records.
    pub settled: Tally,
    /// Their bytes.
    pub settled_bytes: u64,
    /// First numbers of the first and last pack of each log.
    pub ranges: [Option<(u64, u64)>; Log::COUNT],
}

impl SegmentInfo {
    /// For a segment that begins after `before`.
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

    /// Its contents end with `totals`.
    pub(crate) fn count_to(&mut self, totals: &Totals) {
        self.appended = totals.appended.minus(&self.before.appended);
        self.bytes = totals.bytes.saturating_sub(self.before.bytes);
    }

    /// Its waiting records.
    pub(crate) fn waiting(&self) -> Tally {
        self.appended.minus(&self.settled)
    }

    /// Their bytes.
    pub(crate) fn waiting_bytes(&self) -> u64 {
        self.bytes.saturating_sub(self.settled_bytes)
    }

    /// The first number after its own.
    pub(crate) fn end(&self) -> u64 {
        self.end.unwrap_or(u64::MAX)
    }
}

/// Counters of settled records since this outbox was created. Written with the marks.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Counters {
    /// Records appended before this ledger was created: a lost ledger is replaced, and its counters restart.
    pub forgotten: [u64; KINDS],
    /// Settled by a 2xx, by kind.
    pub delivered: [u64; KINDS],
    /// Settled by a 409, by kind.
    pub duplicates: [u64; KINDS],
    /// Dead-lettered, by kind and reason.
    pub dead_lettered: [[u64; Reason::ALL.len()]; KINDS],
    /// Exported to a file, by kind, including quarantined ones.
    pub exported: [u64; KINDS],
    /// The next dead letter's number.
    pub next_dead_letter: u64,
    /// Stored dead letters.
    pub dead_letters: u64,
    /// Their bytes.
    pub dead_letter_bytes: u64,
    /// Dead letters deleted for their age.
    pub expired: u64,
    /// The last mirrored dead letter.
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
    /// Records appended since the ledger was created, by kind.
    pub(crate) fn enqueued(&self, totals: &Totals) -> [u64; KINDS] {
        let all = totals.appended.by_kind();
        std::array::from_fn(|kind| all[kind].saturating_sub(self.forgotten[kind]))
    }

    /// All records of a kind that have left.
    pub(crate) fn gone(&self, kind: usize) -> u64 {
        let dead_lettered = self.dead_lettered[kind].iter().sum::<u64>();
        self.delivered[kind] + self.duplicates[kind] + self.exported[kind] + dead_lettered
    }
}

/// The messages that one append took from the queues: the checkpoint of invariant 9.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Recent {
    /// By queue, in the order of [`Queue::ALL`].
    pub queues: [Taken; Queue::ALL.len()],
}

/// The messages that one append took from one queue.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Taken {
    /// The number of messages this agent had taken from the queue before.
    pub position: u64,
    /// A digest of each message, in the order taken.
    pub digests: Vec<u32>,
}
