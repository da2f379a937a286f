//! Requests to the outbox, and its answers.

use crate::outbox::format::codec::Entry;
use crate::outbox::format::log::Log;
use crate::record::{Kind, Timestamp};

/// Identifies a record that was read, for settling it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// Its number: later records of a log have higher ones.
    pub seq: u64,
    /// Its log.
    pub log: Log,
    /// Its kind.
    pub kind: Kind,
    /// When it was accepted.
    pub accepted_at: Timestamp,
    pub(crate) bytes: u32,
}

impl Ticket {
    pub(crate) fn of(seq: u64, log: Log, entry: &Entry) -> Self {
        Self { seq, log, kind: entry.kind(), accepted_at: entry.accepted_at(), bytes: entry.len() as u32 }
    }
}

/// A record that was read for delivery.
#[derive(Debug)]
pub struct Unsettled {
    /// Identifies it for settling.
    pub ticket: Ticket,
    /// The record.
    pub entry: Entry,
}

#[cfg(test)]
impl Unsettled {
    /// A record read under this number.
    pub(crate) fn new(seq: u64, record: crate::record::Record) -> Self {
        let (kind, accepted_at, bytes) = (record.kind(), record.accepted_at(), record.data().len() as u32);
        let entry = Entry::Record(record);
        Self { ticket: Ticket { seq, log: entry.log(), kind, accepted_at, bytes }, entry }
    }
}

/// A part of a log.
#[derive(Debug, Default)]
pub struct LogPage {
    /// Its unsettled entries, in order.
    pub records: Vec<Unsettled>,
    /// Where to continue reading.
    pub next: u64,
}

/// Why an append failed. None of it is in the outbox.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AppendError {
    /// The outbox is full, or the disk nearly so.
    #[error("the outbox does not accept: {0}")]
    Full(&'static str),
    /// The storage failed; it is being opened again.
    #[error("the outbox's storage failed: {0}")]
    Storage(String),
    /// The entry is too long to be read again.
    #[error("an entry of {bytes} bytes is too long: the outbox stores {most} at most")]
    TooLong {
        /// Its length.
        bytes: usize,
        /// The longest that is stored.
        most: usize,
    },
    /// The outbox was closed.
    #[error("the outbox is closed")]
    Closed,
}

/// How a record was settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settlement {
    /// The `ControlPlane` accepted it.
    Delivered,
    /// The `ControlPlane` already had it.
    Duplicate,
    /// It was written to a file for another outbox.
    Exported,
}
