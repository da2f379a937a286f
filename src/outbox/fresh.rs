//! What can be read without the keeper: nothing at all, and the small commit of a moment ago, which is still in memory.
//!
//! While few records come, each is a commit of its own, read a moment later by a reader that waits for it. A question to the
//! keeper and a look at the disk cost as much then as all the rest of the reading.

use super::settled::PACK_RECORDS;
use super::state::State;
use super::writer::PACK_BYTES;
use super::{Entry, Lease, Leased, Log, Ticket};

/// The last pack of a log: durable, small, and read by nobody.
#[derive(Debug)]
pub(super) struct Fresh {
    first: u64,
    entries: Vec<Entry>,
    /// Where the pack before it begins.
    before: Option<u64>,
}

impl Fresh {
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
        self.fresh[log.index()] = entries.map(|entries| Fresh { first, entries, before });
    }

    /// What `log` has in `from..upto`, if nobody need be asked for it.
    pub(super) fn at_hand(&mut self, log: Log, from: u64, upto: u64, most: usize) -> Option<Lease> {
        let start = self.settled[log.index()].start(from);
        let ranges = self.segments.iter().filter_map(|listed| listed.info.ranges[log.index()]);
        let has_any = ranges.map(|(_, last)| last).any(|last| last >= start);
        let mut lease = Lease::default();
        if has_any {
            // Only when all before it has been read: else there is more than this.
            let is_next = |fresh: &mut Fresh| {
                fresh.before.is_none_or(|before| before < start)
                    && (start..upto).contains(&fresh.first)
                    && fresh.end() <= upto
                    && fresh.entries.len() <= most
            };
            let fresh = self.fresh[log.index()].take_if(is_next)?;
            let settled = &mut self.settled[log.index()];
            let oldest = fresh.entries.iter().map(|entry| entry.accepted_at().0).min().unwrap_or_default();
            settled.enter(fresh.first, fresh.entries.len() as u32, oldest);
            for (seq, entry) in (fresh.first..).zip(fresh.entries) {
                if seq >= from && !settled.is_settled(seq) {
                    lease.records.push(Leased { ticket: Ticket::of(seq, log, &entry), entry });
                }
            }
        }
        let next = self.totals.next.min(upto).max(start);
        self.settled[log.index()].advance(next);
        lease.next = next.max(from);
        Some(lease)
    }
}
