//! The settlement of one log: a low mark, and marks for partly settled packs above it.
//!
//! Everything below the low mark is settled. Above it, a pack that was read is either open (one bit per record) or part of
//! a run of settled packs. Runs merge, so memory grows with the number of waiting records, not with the number delivered
//! around them.
//!
//! The *frontier* is how far the log has been read without a gap since the outbox was opened. Below it every pack has a
//! mark or is settled; above it nothing is known about the space between two marks, so nothing is merged there.

use std::collections::{BTreeMap, BTreeSet};

use crate::outbox::format::codec::{Decode, Encode};

/// The most records in a pack: one bit each in a `u64`.
pub(crate) const PACK_RECORDS: usize = 64;
/// A pack is closed at this many bytes of records, about 4 KiB compressed.
pub(crate) const PACK_BYTES: usize = 32 << 10;

/// The state of a pack, in memory and in the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) enum Mark {
    /// Not all of its records are settled.
    Open { count: u32, settled: u64, oldest: i64 },
    /// This pack and all later ones up to (not including) `end` are settled.
    Run { end: u64 },
}

/// Settlement of one log.
#[derive(Debug, Default)]
pub(crate) struct Settled {
    low: u64,
    frontier: u64,
    marks: BTreeMap<u64, Mark>,
    /// Keys whose mark in the ledger differs from the one here.
    dirty: BTreeSet<u64>,
    low_dirty: bool,
    stored: BTreeSet<u64>,
}

/// What the ledger must write to match.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Changes {
    pub low: Option<u64>,
    pub marks: Vec<(u64, Option<Mark>)>,
}

impl Settled {
    /// The state stored in the ledger.
    pub(crate) fn restore(low: u64, marks: BTreeMap<u64, Mark>) -> Self {
        let stored = marks.keys().copied().collect();
        Self { low, frontier: low, marks, stored, ..Self::default() }
    }

    /// Everything below this number is settled.
    #[cfg(test)]
    pub(crate) fn low(&self) -> u64 {
        self.low
    }

    /// How far it has been read without a gap.
    pub(crate) fn frontier(&self) -> u64 {
        self.frontier
    }

    /// Where to start reading for everything from `seq` on: not beyond the frontier, at a pack's start.
    pub(crate) fn start(&self, seq: u64) -> u64 {
        self.skip(self.pack_of(seq.min(self.frontier)))
    }

    /// A pack was read: its records can now be settled.
    pub(crate) fn enter(&mut self, first: u64, count: u32, oldest: i64) {
        if first >= self.low && !self.in_run(first) {
            self.marks.entry(first).or_insert(Mark::Open { count, settled: 0, oldest });
        }
    }

    /// Everything from the frontier to `upto` has been read and entered.
    pub(crate) fn advance(&mut self, upto: u64) {
        self.frontier = self.frontier.max(upto);
        self.raise();
    }

    /// Removes runs at the start, which the low mark then covers.
    fn raise(&mut self) {
        while let Some((&first, &Mark::Run { end })) = self.marks.first_key_value() {
            if first > self.frontier {
                break;
            }
            self.remove(first);
            (self.low, self.low_dirty) = (end, true);
            self.frontier = self.frontier.max(end);
        }
    }

    /// Nothing in `from..upto` is available any more: all of it counts as settled.
    pub(crate) fn write_off(&mut self, from: u64, upto: u64) {
        let from = from.max(self.low);
        if from >= upto {
            return;
        }
        let mut end = upto;
        let inside: Vec<(u64, Mark)> =
            self.marks.range(from..upto).map(|(first, mark)| (*first, *mark)).collect();
        for (first, mark) in inside {
            if let Mark::Run { end: farther } = mark {
                end = end.max(farther);
            }
            self.remove(first);
        }
        self.merge(from, end);
    }

    /// The settled ranges in `from..upto`.
    pub(crate) fn settled_in(&self, from: u64, upto: u64) -> Vec<(u64, u64)> {
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        let mut put = |begin: u64, end: u64| {
            let (begin, end) = (begin.max(from), end.min(upto));
            match ranges.last_mut() {
                _ if begin >= end => {}
                Some((_, last)) if *last == begin => *last = end,
                _ => ranges.push((begin, end)),
            }
        };
        put(0, self.low);
        for (first, mark) in &self.marks {
            match mark {
                Mark::Run { end } => put(*first, *end),
                Mark::Open { count, settled, .. } => {
                    for bit in (0..u64::from(*count)).filter(|bit| settled >> bit & 1 == 1) {
                        put(first + bit, first + bit + 1);
                    }
                }
            }
        }
        ranges
    }

    /// The packs in `from..upto` with waiting records, and their marks.
    pub(crate) fn open_in(&self, from: u64, upto: u64) -> impl Iterator<Item = (u64, Mark)> {
        let marks = self.marks.range(from..upto.max(from)).map(|(first, mark)| (*first, *mark));
        marks.filter(|(_, mark)| matches!(mark, Mark::Open { .. }))
    }

    /// Where to continue reading from `seq`: after the run of settled packs that contains it.
    pub(crate) fn skip(&self, seq: u64) -> u64 {
        let seq = seq.max(self.low);
        match self.marks.range(..=seq).next_back() {
            Some((_, Mark::Run { end })) if *end > seq => *end,
            _ => seq,
        }
    }

    fn in_run(&self, seq: u64) -> bool {
        self.skip(seq) != seq
    }

    /// The first number of the pack that contains `seq`.
    pub(crate) fn pack_of(&self, seq: u64) -> u64 {
        match self.marks.range(..=seq).next_back() {
            Some((first, Mark::Open { count, .. })) if seq < first + u64::from(*count) => *first,
            _ => seq,
        }
    }

    /// Whether this record is settled.
    pub(crate) fn is_settled(&self, seq: u64) -> bool {
        if seq < self.low {
            return true;
        }
        match self.marks.range(..=seq).next_back() {
            Some((first, Mark::Open { settled, count, .. })) => {
                seq - first < u64::from(*count) && settled >> (seq - first) & 1 == 1
            }
            Some((_, Mark::Run { end })) => seq < *end,
            None => false,
        }
    }

    /// Settles a record. False if it was already settled, or was never read.
    pub(crate) fn settle(&mut self, seq: u64) -> bool {
        let Some((&first, mark)) = self.marks.range_mut(..=seq).next_back() else { return false };
        let Mark::Open { count, settled, .. } = mark else { return false };
        let bit = seq - first;
        if bit >= u64::from(*count) || *settled >> bit & 1 == 1 {
            return false;
        }
        *settled |= 1 << bit;
        self.dirty.insert(first);
        if settled.count_ones() == *count {
            let end = first + u64::from(*count);
            *mark = Mark::Run { end };
            self.merge(first, end);
        }
        true
    }

    /// Adds a run: it joins its neighbours, and raises the low mark if it is the first.
    fn merge(&mut self, mut first: u64, mut end: u64) {
        // IMPORTANT: only what has been read is known to be contiguous; nothing is joined across a gap.
        if let Some((&next, &Mark::Run { end: next_end })) = self.marks.range(end..).next()
            && (next == end || next <= self.frontier)
        {
            self.remove(next);
            end = next_end;
        }
        if let Some((&before, &Mark::Run { end: before_end })) = self.marks.range(..first).next_back()
            && (before_end >= first || first <= self.frontier)
        {
            self.remove(first);
            first = before;
            end = end.max(before_end);
        }
        self.marks.insert(first, Mark::Run { end });
        self.dirty.insert(first);
        self.raise();
    }

    fn remove(&mut self, first: u64) {
        self.marks.remove(&first);
        self.dirty.insert(first);
    }

    /// Whether every pack that begins in `first..=last` is settled.
    pub(crate) fn covers(&self, first: u64, last: u64) -> bool {
        let mut at = self.skip(first);
        while at <= last {
            match self.marks.range(at..).next() {
                Some((begin, Mark::Run { end })) if *begin <= self.frontier => at = *end,
                // Nothing was found between here and the unread part.
                Some((begin, _)) if *begin <= last => return false,
                _ => return self.frontier > last,
            }
        }
        true
    }

    /// When the oldest unsettled record was accepted, if its pack was read. For a pack beyond the frontier, earlier packs
    /// are unknown.
    pub(crate) fn oldest(&self) -> Option<i64> {
        let mut read = self.marks.range(..=self.skip(self.frontier));
        read.find_map(|(_, mark)| match mark {
            Mark::Open { oldest, .. } => Some(*oldest),
            Mark::Run { .. } => None,
        })
    }

    /// The changes since the last call.
    pub(crate) fn take_changes(&mut self) -> Changes {
        let mut changes = Changes { low: self.low_dirty.then_some(self.low), marks: Vec::new() };
        self.low_dirty = false;
        for key in std::mem::take(&mut self.dirty) {
            match self.marks.get(&key) {
                Some(mark) => {
                    self.stored.insert(key);
                    changes.marks.push((key, Some(*mark)));
                }
                // Most packs are settled between two ticks and were never stored.
                None if self.stored.remove(&key) => changes.marks.push((key, None)),
                None => {}
            }
        }
        changes
    }

    /// Restores changes that could not be written, or may not have been.
    pub(crate) fn put_back(&mut self, changes: &Changes) {
        self.low_dirty |= changes.low.is_some();
        for (key, _) in &changes.marks {
            self.dirty.insert(*key);
            self.stored.insert(*key);
        }
    }

    /// The highest number known to be settled, plus one.
    pub(crate) fn end(&self) -> u64 {
        let last = self.marks.last_key_value().map_or(0, |(first, mark)| match mark {
            Mark::Open { count, .. } => first + u64::from(*count),
            Mark::Run { end } => *end,
        });
        last.max(self.low)
    }

    /// Whether [`Self::take_changes`] would return any.
    pub(crate) fn is_dirty(&self) -> bool {
        self.low_dirty || !self.dirty.is_empty()
    }
}

#[cfg(test)]
mod tests;
