//! What the segments and the ledger store beside packs and dead letters.

use bincode::{Decode, Encode};

use super::Log;
use super::dead_letter::Reason;
use crate::record::{Kind, Queue};

/// What a sealed segment holds, so that it need not be opened to know.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub(super) struct SegmentInfo {
    /// The first number that it can hold.
    pub base: u64,
    /// What had been appended before it.
    pub before: Totals,
    /// Whether it takes no more.
    pub sealed: bool,
    /// First numbers of the first and the last pack of each log.
    pub ranges: [Option<(u64, u64)>; Log::COUNT],
}

/// What was appended since this outbox began. Written with each append.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub(super) struct Totals {
    /// The next record's number.
    pub next: u64,
    /// Records, by kind.
    pub enqueued: [u64; Kind::ALL.len()],
    /// Their bytes.
    pub bytes: u64,
}

/// What was settled since this outbox began. Written with the marks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub(super) struct Counters {
    /// Settled by 2xx, by kind.
    pub delivered: [u64; Kind::ALL.len()],
    /// Settled by 409, by kind.
    pub duplicates: [u64; Kind::ALL.len()],
    /// Became dead letters, by kind and reason.
    pub dead_lettered: [[u64; Reason::ALL.len()]; Kind::ALL.len()],
    /// Exported to another outbox, by kind.
    pub exported: [u64; Kind::ALL.len()],
    /// Bytes of all these.
    pub bytes: u64,
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
