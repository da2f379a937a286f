//! What can be read without the keeper: nothing at all, and the small commits of a moment ago, which are still in memory.
//!
//! While few records come, each is a commit of its own, read a moment later by a reader that waits for it. A question to the
//! keeper and a look at the disk cost as much then as all the rest of the reading. Several are kept: a reader that was held up
//! for longer than it takes the next to come would fall behind one that is kept alone, and ask the keeper, who may be writing
//! the ledger, for each until it has caught up.

use std::collections::VecDeque;

use super::settled::PACK_RECORDS;
use super::state::State;
use super::writer::PACK_BYTES;
use super::{Entry, Lease, Leased, Log, Ticket};

/// So many packs of a log are kept, the newest.
const KEPT: usize = 16;

/// The last packs of a log, if they are small and nobody has read them, in order and with nothing between them.
pub(super) type Fresh = VecDeque<Pack>;

/// A pack: durable, small, and read by nobody.
#[derive(Debug)]
pub(super) struct Pack {
    first: u64,
    entries: Vec<Entry>,
    /// Where the pack before it begins.
    before: Option<u64>,
}

impl Pack {
    /// Behind its last record.
    pub(super) fn end(&self) -> u64 {
        self.first + self.entries.len() as u64
    }
}

/// Whether a commit of these is small enough to be kept in memory: not more than one pack a log.
pub(super) fn is_small<'a>(entries: impl Iterator<Item = &'a Entry>) -> bool {
    let (mut count, mut bytes) = (0, 0);
    for entry in entries {
        (count, bytes) = (count + 1, bytes + entry.len());
        if count > PACK_RECORDS || bytes >= PACK_BYTES {
            return false;
        }
    }
    true
}

impl State {
    /// A pack of `log` is durable, at `first`; with what is in it, if that is to be kept until it is read.
    pub(super) fn committed(&mut self, log: Log, first: u64, entries: Option<Vec<Entry>>) {
        let ranges = self.segments.iter().filter_map(|listed| listed.info.ranges[log.index()]);
        let before = ranges.map(|(_, last)| last).max();
        // What was rejected is for the keeper alone.
        let entries = entries.filter(|_| log != Log::Rejected);
        let fresh = &mut self.fresh[log.index()];
        let Some(entries) = entries else { return fresh.clear() };
        if fresh.len() == KEPT {
            fresh.pop_front();
        }
        fresh.push_back(Pack { first, entries, before });
    }

    /// What `log` has in `from..upto`, if nobody need be asked for it.
    pub(super) fn at_hand(&mut self, log: Log, from: u64, upto: u64, most: usize) -> Option<Lease> {
        let start = self.settled[log.index()].start(from);
        let ranges = self.segments.iter().filter_map(|listed| listed.info.ranges[log.index()]);
        let has_any = ranges.map(|(_, last)| last).any(|last| last >= start);
        let mut lease = Lease::default();
        let fresh = &mut self.fresh[log.index()];
        if has_any {
            // Only when all before it has been read: else there is more than this.
            fresh.front().filter(|pack| pack.before.is_none_or(|before| before < start))?;
            let settled = &mut self.settled[log.index()];
            let mut taken = 0;
            while let Some(pack) = fresh.pop_front_if(|pack| {
                let fits = taken + pack.entries.len() <= most;
                fits && (start..upto).contains(&pack.first) && pack.end() <= upto
            }) {
                taken += pack.entries.len();
                let oldest = pack.entries.iter().map(|entry| entry.accepted_at().0).min().unwrap_or_default();
                settled.enter(pack.first, pack.entries.len() as u32, oldest);
                for (seq, entry) in (pack.first..).zip(pack.entries) {
                    if seq >= from && !settled.is_settled(seq) {
                        lease.records.push(Leased { ticket: Ticket::of(seq, log, &entry), entry });
                    }
                }
            }
            if taken == 0 {
                return None;
            }
        } else {
            // What is still there is of a segment that was set aside.
            fresh.clear();
        }
        let end = fresh.front().map_or(self.totals.next, |pack| pack.first);
        let next = end.min(upto).max(start);
        self.settled[log.index()].advance(next);
        lease.next = next.max(from);
        Some(lease)
    }
}
