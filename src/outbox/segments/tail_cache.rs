//! Reads that need no maintenance: empty ranges, and small recent commits, which are still in memory.
//!
//! With few records, each is its own commit, and a waiting reader reads it a moment later. Asking maintenance and reading
//! the disk would then cost as much as everything else about reading. Several commits are kept: with only one, a reader
//! delayed longer than the next record takes to arrive would fall behind, and would ask maintenance, which may be writing
//! the ledger, for each record until it has caught up.

use std::collections::VecDeque;

use super::settlement::{PACK_BYTES, PACK_RECORDS, Settled};
use crate::outbox::format::codec::Entry;
use crate::outbox::format::log::Log;
use crate::outbox::messages::{LogPage, Ticket, Unsettled};

/// Packs kept per log, the newest.
const KEPT: usize = 16;

/// The last packs of a log, if they are small and unread, in order and without gaps.
#[derive(Debug, Default)]
pub(crate) struct TailCache {
    pub packs: VecDeque<Pack>,
}

/// A durable, small, unread pack.
#[derive(Debug)]
pub(crate) struct Pack {
    first: u64,
    entries: Vec<Entry>,
    /// Where the previous pack begins.
    before: Option<u64>,
}

impl Pack {
    /// The number after its last record.
    fn end(&self) -> u64 {
        self.first + self.entries.len() as u64
    }
}

/// Whether a commit of these entries is small enough for the cache: at most one pack per log.
pub(crate) fn is_small<'a>(entries: impl Iterator<Item = &'a Entry>) -> bool {
    let (mut count, mut bytes) = (0, 0);
    for entry in entries {
        (count, bytes) = (count + 1, bytes + entry.len());
        if count > PACK_RECORDS || bytes >= PACK_BYTES {
            return false;
        }
    }
    true
}

impl TailCache {
    /// Adds a pack, which is the last one of its log.
    pub(crate) fn push(&mut self, first: u64, entries: Vec<Entry>, before: Option<u64>) {
        if self.packs.len() == KEPT {
            self.packs.pop_front();
        }
        self.packs.push_back(Pack { first, entries, before });
    }

    pub(crate) fn clear(&mut self) {
        self.packs.clear();
    }

    /// Everything below `next` has been read.
    pub(crate) fn forget_below(&mut self, next: u64) {
        self.packs.retain(|pack| pack.end() > next);
    }

    /// The first number of the first pack.
    pub(crate) fn first(&self) -> Option<u64> {
        self.packs.front().map(|pack| pack.first)
    }

    /// Whether it contains everything from `start` on; everything before that has been read.
    pub(crate) fn begins_at(&self, start: u64) -> bool {
        self.packs.front().is_some_and(|pack| pack.before.is_none_or(|before| before < start))
    }

    /// Moves the packs in `start..upto`, with at most `most` records, to `page`: their unsettled records from number `from`
    /// on. Returns how many records they had.
    pub(crate) fn take(
        &mut self,
        settled: &mut Settled,
        log: Log,
        (from, start, upto): (u64, u64, u64),
        most: usize,
        page: &mut LogPage,
    ) -> usize {
        let mut taken = 0;
        while let Some(pack) = self.packs.pop_front_if(|pack| {
            let fits = taken + pack.entries.len() <= most;
            fits && (start..upto).contains(&pack.first) && pack.end() <= upto
        }) {
            taken += pack.entries.len();
            let oldest = pack.entries.iter().map(|entry| entry.accepted_at().0).min().unwrap_or_default();
            settled.enter(pack.first, pack.entries.len() as u32, oldest);
            for (seq, entry) in (pack.first..).zip(pack.entries) {
                if seq >= from && !settled.is_settled(seq) {
                    page.records.push(Unsettled { ticket: Ticket::of(seq, log, &entry), entry });
                }
            }
        }
        taken
    }
}
