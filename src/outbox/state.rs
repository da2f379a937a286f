//! What the outbox knows at any moment, in memory: the totals, what is settled, and the row of segments.
//!
//! One lock, held for a few instructions. The totals change only after the commit that made them true, so a
//! reader never sees a record that a power cut could still take.

use std::collections::VecDeque;

use super::dead_letter::{DeadLetter, Reason};
use super::schema::{Counters, Recent, Totals};
use super::segment::Listed;
use super::settled::Settled;
use super::{Log, Ticket};
use crate::record::Kind;

/// How many appends' checkpoints are kept. The intake never has as many unacknowledged.
pub(super) const RECENT_APPENDS: usize = 16;

pub(super) struct State {
    pub totals: Totals,
    pub counters: Counters,
    pub settled: [Settled; Log::COUNT],
    pub segments: Vec<Listed>,
    pub recent: VecDeque<(u64, Recent)>,
    /// Dead letters that the next commit of the ledger will hold.
    pub letters: Vec<DeadLetter>,
    pub counters_dirty: bool,
}

/// How a record was settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settlement {
    /// The `ControlPlane` took it.
    Delivered,
    /// The `ControlPlane` had it already.
    Duplicate,
}

pub(super) fn at(kind: Kind) -> usize {
    kind as usize - 1
}

impl State {
    fn settle(&mut self, ticket: &Ticket) -> bool {
        let settled = self.settled[ticket.log.index()].settle(ticket.seq);
        if settled {
            self.counters.bytes += u64::from(ticket.bytes);
            self.counters_dirty = true;
        }
        settled
    }

    pub(super) fn deliver(&mut self, ticket: &Ticket, settlement: Settlement) {
        if self.settle(ticket) {
            match settlement {
                Settlement::Delivered => self.counters.delivered[at(ticket.kind)] += 1,
                Settlement::Duplicate => self.counters.duplicates[at(ticket.kind)] += 1,
            }
        }
    }

    pub(super) fn bury(&mut self, ticket: &Ticket, mut letter: DeadLetter) {
        if self.settle(ticket) {
            self.counters.dead_lettered[at(ticket.kind)][letter.reason as usize] += 1;
            letter.id = self.counters.next_dead_letter;
            self.counters.next_dead_letter += 1;
            self.counters.dead_letters += 1;
            self.letters.push(letter);
        }
    }

    pub(super) fn depth(&self, kind: Kind) -> u64 {
        let (kind, counters) = (at(kind), &self.counters);
        let gone = counters.delivered[kind]
            + counters.duplicates[kind]
            + counters.exported[kind]
            + counters.dead_lettered[kind].iter().sum::<u64>();
        self.totals.enqueued[kind].saturating_sub(gone)
    }

    pub(super) fn pending(&self) -> u64 {
        Kind::ALL.iter().map(|kind| self.depth(*kind)).sum()
    }

    pub(super) fn stats(&self) -> Stats {
        let per_kind = |f: &dyn Fn(usize) -> u64| Kind::ALL.map(|kind| f(at(kind)));
        let oldest = |logs: &[Log]| logs.iter().filter_map(|log| self.settled[log.index()].oldest()).min();
        Stats {
            enqueued: self.totals.enqueued,
            delivered: per_kind(&|k| self.counters.delivered[k]),
            duplicates: per_kind(&|k| self.counters.duplicates[k]),
            exported: per_kind(&|k| self.counters.exported[k]),
            dead_lettered: self.counters.dead_lettered,
            depth: Kind::ALL.map(|kind| self.depth(kind)),
            bytes: self.totals.bytes.saturating_sub(self.counters.bytes),
            oldest_usage: oldest(&[Log::Usage]),
            oldest_lifecycle: oldest(&[Log::Started, Log::Completed]),
            oldest_quota: oldest(&[Log::Quota]),
            dead_letters: self.counters.dead_letters,
            dead_letters_expired: self.counters.expired,
            segments: self.segments.len(),
            disk_bytes: 0,
            capacity_bytes: 0,
            accepting: true,
            paused: None,
            last_seq: self.totals.next.saturating_sub(1),
        }
    }
}

/// A consistent picture of the outbox: the counters and depths of one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stats {
    /// Appended since this outbox began, by kind in the order of [`Kind::ALL`].
    pub enqueued: [u64; 5],
    /// Settled as delivered.
    pub delivered: [u64; 5],
    /// Settled as duplicates.
    pub duplicates: [u64; 5],
    /// Exported.
    pub exported: [u64; 5],
    /// Became dead letters, by kind and reason.
    pub dead_lettered: [[u64; Reason::ALL.len()]; 5],
    /// Waiting.
    pub depth: [u64; 5],
    /// Bytes of what waits.
    pub bytes: u64,
    /// When the oldest waiting usage record was accepted, microseconds since the epoch.
    pub oldest_usage: Option<i64>,
    /// Likewise, of lifecycle events.
    pub oldest_lifecycle: Option<i64>,
    /// Likewise, of quota requests.
    pub oldest_quota: Option<i64>,
    /// Dead letters that are kept.
    pub dead_letters: u64,
    /// Dead letters dropped for their age.
    pub dead_letters_expired: u64,
    /// Segments in the row.
    pub segments: usize,
    /// What all of it takes on the disk, in bytes.
    pub disk_bytes: u64,
    /// The most it may take.
    pub capacity_bytes: u64,
    /// Whether it takes more.
    pub accepting: bool,
    /// Why it does not.
    pub paused: Option<&'static str>,
    /// The number of the last record appended.
    pub last_seq: u64,
}

impl Stats {
    /// All that waits.
    pub fn total_depth(&self) -> u64 {
        self.depth.iter().sum()
    }
}
