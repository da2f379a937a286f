//! What can be read without maintenance: nothing at all, and the small commits of a moment ago, which are still in memory.
//!
//! While few records come, each is a commit of its own, read a moment later by a reader that waits for it. A question to the
//! maintenance and a look at the disk cost as much then as all the rest of the reading. Several are kept: a reader that was held up
//! for longer than it takes the next to come would fall behind one that is kept alone, and ask maintenance, which may be writing
//! the ledger, for each until it has caught up.

use std::collections::VecDeque;

use super::settlement::{PACK_BYTES, PACK_RECORDS, Settled};
use crate::outbox::format::codec::Entry;
use crate::outbox::format::log::Log;
use crate::outbox::messages::{LogPage, Ticket, Unsettled};

/// So many packs of a log are kept, the newest.
const KEPT: usize = 16;

/// The last packs of a log, if they are small and nobody has read them, in order and with nothing between them.
#[derive(Debug, Default)]
pub(crate) struct TailCache {
    pub packs: VecDeque<Pack>,
}

/// A pack: durable, small, and read by nobody.
#[derive(Debug)]
pub(crate) struct Pack {
    first: u64,
    entries: Vec<Entry>,
    /// Where the pack before it begins.
    before: Option<u64>,
}

impl Pack {
    /// Behind its last record.
    fn end(&self) -> u64 {
        self.first + self.entries.len() as u64
    }
}

/// Whether a commit of these is small enough to be kept in memory: not more than one pack a log.
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
    /// Keeps a pack, which is the last one of its log.
    pub(crate) fn push(&mut self, first: u64, entries: Vec<Entry>, before: Option<u64>) {
        if self.packs.len() == KEPT {
            self.packs.pop_front();
        }
        self.packs.push_back(Pack { first, entries, before });
    }

    pub(crate) fn clear(&mut self) {
        self.packs.clear();
    }

    /// All below `next` has been read.
    pub(crate) fn forget_below(&mut self, next: u64) {
        self.packs.retain(|pack| pack.end() > next);
    }

    /// Where the first pack begins.
    pub(crate) fn first(&self) -> Option<u64> {
        self.packs.front().map(|pack| pack.first)
    }

    /// Whether it has all that lies from `start` on: what lies before it has been read.
    pub(crate) fn begins_at(&self, start: u64) -> bool {
        self.packs.front().is_some_and(|pack| pack.before.is_none_or(|before| before < start))
    }

    /// Takes the packs that lie in `start..upto`, with at most `most` records, into `page`: what of them is not settled,
    /// from number `from` on. Gives how many records they had.
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
