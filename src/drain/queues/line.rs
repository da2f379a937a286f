//! A lane's records of one log: those in memory, and from where the log must be read again.

use std::collections::VecDeque;

use super::parcel::{AttemptHistory, Item};

/// Histories kept per lane and log of released records, for the next ones to send.
const REMEMBERED: usize = 64;

/// A lane's records of one log, in order.
#[derive(Default)]
pub(super) struct LaneQueue {
    pub(super) items: VecDeque<Item>,
    /// Records up to this number are in `items` or have been.
    loaded: u64,
    /// Records from this number on were skipped, or released to make room, and must be read again.
    pub(super) cut: Option<u64>,
    /// The last of these.
    passed: u64,
    /// Whether it is being read again.
    pub(super) refilling: bool,
    /// Numbers and histories of released records, last first.
    given_up: Vec<(u64, AttemptHistory)>,
}

impl LaneQueue {
    /// Whether nothing must be read again.
    pub(super) fn is_whole(&self) -> bool {
        self.cut.is_none() && !self.refilling
    }

    pub(super) fn is_done(&self) -> bool {
        self.items.is_empty() && self.is_whole()
    }

    pub(super) fn wants_refill(&self, most: usize) -> bool {
        self.items.len() <= most / 4 && self.cut.is_some()
    }

    /// Whether reading again from `next` on would bring nothing more.
    pub(super) fn is_refilled(&self, next: u64) -> bool {
        self.cut.is_some() || self.passed < next
    }

    /// Loads a record, unless it was in memory before or there is no room.
    pub(super) fn load(&mut self, mut item: Item, room: usize) -> bool {
        let seq = item.ticket.seq;
        if seq <= self.loaded {
            return false;
        }
        if self.cut.is_some() || self.items.len() >= room {
            self.cut.get_or_insert(seq);
            self.passed = self.passed.max(seq);
            return false;
        }
        while let Some((number, history)) = self.given_up.pop_if(|(number, _)| *number <= seq) {
            if number == seq {
                item.history = history;
            }
        }
        self.loaded = seq;
        self.items.push_back(item);
        true
    }

    /// Releases the last record, to be read again later.
    pub(super) fn give_up_last(&mut self) -> Option<Item> {
        let item = self.items.pop_back()?;
        let seq = item.ticket.seq;
        self.cut = Some(seq);
        self.loaded = seq - 1;
        self.passed = self.passed.max(seq);
        if item.history.attempts > 0 {
            if self.given_up.len() >= REMEMBERED {
                self.given_up.remove(0);
            }
            self.given_up.push((seq, item.history));
        }
        Some(item)
    }

    /// Returns a record to its place.
    pub(super) fn put_back(&mut self, item: Item) {
        let at = self.items.partition_point(|other| other.ticket.seq < item.ticket.seq);
        self.items.insert(at, item);
    }
}
