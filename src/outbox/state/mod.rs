//! The outbox's state in memory: the totals, the settlements, and the segment catalog.
//!
//! One lock, held briefly: for a few dozen records at most. The totals change only after the commit that made them true, so
//! a reader never sees a record that a power cut could still lose.

pub(crate) mod dir_lock;
pub(crate) mod medium;
pub(crate) mod reserve;
pub(crate) mod shared;
pub(crate) mod space;
pub(crate) mod stats;
pub(crate) mod unsaved;

use std::collections::VecDeque;
use std::sync::Arc;

use crate::outbox::format::codec::Entry;
use crate::outbox::format::dead_letter::DeadLetter;
use crate::outbox::format::log::Log;
use crate::outbox::format::schema::{Counters, Recent, Tally, Totals, at};
use crate::outbox::messages::{LogPage, Settlement, Ticket};
use crate::outbox::segments::segment::{Listed, Segment};
use crate::outbox::segments::settlement::Settled;
use crate::outbox::segments::tail_cache::TailCache;
use crate::record::Queue;
use stats::Stats;

/// Appends whose checkpoints are kept for each queue. The intake never has as many unacknowledged: before it takes new
/// messages from a queue, it takes unacknowledged ones again. It may have taken many from other queues meanwhile, over
/// connections that were lost before this queue's turn.
pub(crate) const RECENT_APPENDS: usize = 16;

/// The checkpoints of the last appends, with their numbers, oldest first.
pub(crate) type RecentAppends = VecDeque<(u64, Arc<Recent>)>;

/// Removes those that no queue needs any more.
pub(crate) fn take_forgotten(recent: &mut RecentAppends) -> RecentAppends {
    let mut newer = [0; Queue::ALL.len()];
    let mut forgotten = RecentAppends::new();
    for at in (0..recent.len()).rev() {
        let mut is_needed = false;
        for (taken, newer) in recent[at].1.queues.iter().zip(&mut newer) {
            if taken.digests.is_empty() {
                continue;
            }
            is_needed |= *newer < RECENT_APPENDS;
            *newer += 1;
        }
        if !is_needed {
            forgotten.extend(recent.remove(at));
        }
    }
    forgotten
}

/// Segments with their disk usage in bytes.
pub(crate) type Lingering = Vec<(Arc<Segment>, u64)>;

pub(crate) struct State {
    pub totals: Totals,
    pub counters: Counters,
    /// The counters as stored in the ledger, to which a crash would return.
    pub durable: Counters,
    pub settled: [Settled; Log::COUNT],
    /// In the order of their numbers; the last accepts appends.
    pub segments: Vec<Listed>,
    pub recent: RecentAppends,
    /// For each log, the first unread pack at the last lookup.
    pub unread: [Option<Unread>; Log::COUNT],
    /// For each log, the last packs if they are small and unread.
    pub tail_cache: [TailCache; Log::COUNT],
    /// Dead letters for the ledger's next commit.
    pub letters: Vec<DeadLetter>,
    pub counters_dirty: bool,
    /// The next number according to the ledger's copy of the totals.
    pub totals_stored: u64,
    /// Segments that have left the catalog: the ledger must forget them, then their folders are deleted.
    pub leaving: Vec<Arc<Segment>>,
    /// Segments that the ledger has forgotten, but whose folders could not be deleted yet; with their disk usage.
    pub lingering: Lingering,
    /// Segments whose folders are gone.
    pub left: Vec<u64>,
    /// Dead letters to be removed, with their stored length.
    pub dropped: Vec<(u64, usize)>,
}

/// A segment to read, and the range of its own numbers.
pub(crate) struct Stretch {
    pub segment: Arc<Segment>,
    pub base: u64,
    pub end: u64,
    pub is_newest: bool,
}

/// A pack that nobody has read yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unread {
    first: u64,
    /// When its oldest record was accepted.
    oldest: i64,
}

impl Unread {
    pub(crate) fn new(first: u64, oldest: i64) -> Self {
        Self { first, oldest }
    }
}

impl State {
    /// This segment of the catalog.
    pub(crate) fn listed(&self, id: u64) -> Option<&Listed> {
        self.segments.iter().find(|listed| listed.segment.id == id)
    }

    /// The same, to be changed.
    pub(crate) fn listed_mut(&mut self, id: u64) -> Option<&mut Listed> {
        self.segments.iter_mut().find(|listed| listed.segment.id == id)
    }

    /// The first numbers of the last packs of `log`, segment by segment.
    pub(crate) fn last_packs(&self, log: Log) -> impl Iterator<Item = u64> {
        self.segments.iter().filter_map(move |listed| listed.info.ranges[log.index()]).map(|(_, last)| last)
    }

    fn settle(&mut self, ticket: &Ticket) -> bool {
        let settled = self.settled[ticket.log.index()].settle(ticket.seq);
        if settled {
            self.counters_dirty = true;
            let behind = self.segments.partition_point(|listed| listed.info.base <= ticket.seq);
            if let Some(listed) = behind.checked_sub(1).and_then(|at| self.segments.get_mut(at)) {
                listed.info.settled.add(ticket.log, ticket.kind, 1);
                listed.info.settled_bytes += u64::from(ticket.bytes);
                listed.dirty = true;
            }
        }
        settled
    }

    pub(crate) fn deliver(&mut self, ticket: &Ticket, settlement: Settlement) {
        if self.settle(ticket) {
            let counter = match settlement {
                Settlement::Delivered => &mut self.counters.delivered,
                Settlement::Duplicate => &mut self.counters.duplicates,
                Settlement::Exported => &mut self.counters.exported,
            };
            counter[at(ticket.kind)] += 1;
        }
    }

    pub(crate) fn settle_as_dead_letter(&mut self, ticket: &Ticket, mut letter: DeadLetter) {
        if self.settle(ticket) {
            self.counters.dead_lettered[at(ticket.kind)][letter.reason as usize] += 1;
            letter.id = self.counters.next_dead_letter;
            self.counters.next_dead_letter += 1;
            self.counters.dead_letters += 1;
            self.letters.push(letter);
        }
    }

    /// The approximate bytes of dead letters that are not in the ledger yet.
    pub(crate) fn letters_bytes(&self) -> usize {
        self.letters.iter().map(|letter| letter.original().len() + letter.detail.len()).sum()
    }

    /// The waiting records of segment `id` are unreachable: they count as exported, and can no longer be settled.
    pub(crate) fn write_off(&mut self, id: u64) -> Tally {
        let Some(place) = self.segments.iter().position(|listed| listed.segment.id == id) else {
            return Tally::default();
        };
        let Listed { info, segment, .. } = self.segments.remove(place);
        self.leaving.push(segment);
        let lost = info.waiting();
        for (counter, lost) in self.counters.exported.iter_mut().zip(lost.by_kind()) {
            *counter += lost;
        }
        let end = info.end.unwrap_or(self.totals.next);
        for settled in &mut self.settled {
            settled.write_off(info.base, end);
        }
        self.counters_dirty = true;
        lost
    }

    pub(crate) fn is_dirty(&self) -> bool {
        let has_left = !(self.leaving.is_empty() && self.left.is_empty());
        self.counters_dirty || has_left || self.settled.iter().any(Settled::is_dirty)
    }

    /// Removes a dead letter.
    pub(crate) fn drop_letter(&mut self, id: u64, len: usize) -> bool {
        if self.dropped.iter().any(|(dropped, _)| *dropped == id) {
            return false;
        }
        self.dropped.push((id, len));
        self.counters.dead_letters = self.counters.dead_letters.saturating_sub(1);
        self.counters.dead_letter_bytes = self.counters.dead_letter_bytes.saturating_sub(len as u64);
        self.counters_dirty = true;
        true
    }

    /// The segments with packs of `log` from `start` on.
    pub(crate) fn stretches(&self, log: Log, start: u64) -> Vec<Stretch> {
        let newest = self.segments.last().map(|listed| listed.segment.id);
        let has_any =
            |listed: &&Listed| listed.info.ranges[log.index()].is_some_and(|(_, last)| last >= start);
        let stretch = |listed: &Listed| Stretch {
            segment: Arc::clone(&listed.segment),
            base: listed.info.base,
            end: listed.info.end(),
            is_newest: Some(listed.segment.id) == newest,
        };
        self.segments.iter().filter(has_any).map(stretch).collect()
    }

    /// Where the first unread pack of `log` may begin; `None`: everything was read.
    fn unread_from(&self, log: Log) -> Option<u64> {
        let settled = &self.settled[log.index()];
        let start = settled.skip(settled.frontier());
        self.last_packs(log).any(|last| last >= start).then_some(start)
    }

    /// Packs of `log` are durable, this one first. The ranges do not include them yet.
    pub(crate) fn appended(&mut self, log: Log, pack: Unread) {
        if self.unread_from(log).is_none() {
            self.unread[log.index()] = Some(pack);
        }
    }

    /// Where to look for the oldest record of `log`, if it is unknown.
    pub(crate) fn unknown_oldest(&self, log: Log) -> Option<u64> {
        let start = self.unread_from(log)?;
        let is_known = self.unread[log.index()].is_some_and(|unread| unread.first >= start);
        (!is_known && self.settled[log.index()].oldest().is_none()).then_some(start)
    }

    /// A pack of `log` is durable at `first`; with its entries, if they are to be cached until they are read.
    pub(crate) fn committed(&mut self, log: Log, first: u64, entries: Option<Vec<Entry>>) {
        let before = self.last_packs(log).max();
        let cache = &mut self.tail_cache[log.index()];
        // Only maintenance reads rejected messages.
        match entries.filter(|_| log != Log::Rejected) {
            Some(entries) => cache.push(first, entries, before),
            None => cache.clear(),
        }
    }

    /// The content of `log` in `from..upto`, if it is in memory.
    pub(crate) fn at_hand(&mut self, log: Log, from: u64, upto: u64, most: usize) -> Option<LogPage> {
        let start = self.settled[log.index()].start(from);
        let has_any = self.last_packs(log).any(|last| last >= start);
        let mut page = LogPage::default();
        let cache = &mut self.tail_cache[log.index()];
        if has_any {
            // Only if everything before it has been read: otherwise there is more than this.
            if !cache.begins_at(start) {
                return None;
            }
            let settled = &mut self.settled[log.index()];
            if cache.take(settled, log, (from, start, upto), most, &mut page) == 0 {
                return None;
            }
        } else {
            // What remains belongs to a quarantined segment.
            cache.clear();
        }
        let end = cache.first().unwrap_or(self.totals.next);
        let next = end.min(upto).max(start);
        self.settled[log.index()].advance(next);
        page.next = next.max(from);
        Some(page)
    }

    /// When the oldest record of `log` was accepted. For one tick after all earlier records were settled it may be the
    /// previous one.
    fn oldest(&self, log: Log) -> Option<i64> {
        let read = self.settled[log.index()].oldest();
        read.or_else(|| self.unread_from(log).and(self.unread[log.index()]).map(|unread| unread.oldest))
    }

    /// The current snapshot.
    pub(crate) fn stats(&self) -> Stats {
        self.stats_by(&self.counters)
    }

    /// The snapshot with settlements as of `counters`.
    pub(crate) fn stats_by(&self, counters: &Counters) -> Stats {
        let enqueued = self.counters.enqueued(&self.totals);
        let oldest = |logs: &[Log]| logs.iter().filter_map(|log| self.oldest(*log)).min();
        Stats {
            enqueued,
            delivered: counters.delivered,
            duplicates: counters.duplicates,
            exported: counters.exported,
            dead_lettered: counters.dead_lettered,
            depth: std::array::from_fn(|kind| enqueued[kind].saturating_sub(counters.gone(kind))),
            bytes: self.segments.iter().map(|listed| listed.info.waiting_bytes()).sum(),
            oldest_usage: oldest(&[Log::Usage]),
            oldest_lifecycle: oldest(&[Log::Started, Log::Completed]),
            oldest_quota: oldest(&[Log::Quota]),
            dead_letters: counters.dead_letters,
            dead_letter_bytes: counters.dead_letter_bytes,
            dead_letters_expired: counters.expired,
            segments: self.segments.len(),
            quarantined_segments: self.segments.iter().filter(|listed| !listed.faults.is_empty()).count()
                as u64,
            last_seq: self.totals.next.saturating_sub(1),
            ..Stats::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::format::schema::Taken;

    /// A checkpoint with one message of each of these queues.
    fn taken(queues: &[Queue]) -> Arc<Recent> {
        let mut recent = Recent::default();
        for queue in queues {
            recent.queues[*queue as usize] = Taken { position: 0, digests: vec![1] };
        }
        Arc::new(recent)
    }

    #[test]
    fn a_queues_checkpoint_is_kept_whatever_other_queues_have_brought_since() {
        let (mut recent, mut number) = (RecentAppends::new(), 0);
        let mut append = |recent: &mut RecentAppends, queues: &[Queue]| {
            number += 1;
            recent.push_back((number, taken(queues)));
            take_forgotten(recent).iter().map(|(number, _)| *number).collect::<Vec<_>>()
        };
        assert_eq!(append(&mut recent, &[Queue::Usage]), [0; 0]);
        assert_eq!(append(&mut recent, &[Queue::Usage, Queue::Lifecycle]), [0; 0]);
        for n in 3..1000 {
            let forgotten = append(&mut recent, &[Queue::Lifecycle]);
            assert_eq!(forgotten, if n < 19 { vec![] } else { vec![n - 16] });
        }
        assert_eq!(recent.iter().take(2).map(|(number, _)| *number).collect::<Vec<_>>(), [1, 2]);
        for n in 1..=14 {
            assert_eq!(append(&mut recent, &[Queue::Usage]), [0; 0], "{n}");
        }
        assert_eq!(append(&mut recent, &[Queue::Usage, Queue::Lifecycle]), [984, 1], "newest first");
        for _ in 0..100 {
            append(&mut recent, &Queue::ALL);
        }
        assert_eq!(recent.len(), 16);
    }
}
