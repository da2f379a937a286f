//! Which records of one log are settled: a low mark, and packs above it that are settled in part.
//!
//! Everything below the low mark is settled. Above it, a pack that was leased is either open (a bit a
//! record) or part of a run of settled packs. Runs merge, so what this takes grows with the number of records that
//! wait, not with what was delivered around them.

use std::collections::{BTreeMap, BTreeSet};

use bincode::{Decode, Encode};

/// The most records in a pack: a bit each in a `u64`.
pub(super) const PACK_RECORDS: usize = 64;

/// What is kept of a pack, in memory and in the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(super) enum Mark {
    /// Not all of its records are settled.
    Open { count: u32, settled: u64, oldest: i64 },
    /// This pack, and all after it up to (not including) `end`, are settled.
    Run { end: u64 },
}

/// Settlement of one log.
#[derive(Debug, Default)]
pub(super) struct Settled {
    low: u64,
    marks: BTreeMap<u64, Mark>,
    /// Keys whose mark in the ledger differs from the one here.
    dirty: BTreeSet<u64>,
    low_dirty: bool,
    stored: BTreeSet<u64>,
}

/// What the ledger has to write to be as we are.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Changes {
    pub low: Option<u64>,
    pub marks: Vec<(u64, Option<Mark>)>,
}

impl Settled {
    /// As the ledger had it.
    pub(super) fn restore(low: u64, marks: BTreeMap<u64, Mark>) -> Self {
        let stored = marks.keys().copied().collect();
        Self { low, marks, stored, ..Self::default() }
    }

    /// Everything below this is settled.
    pub(super) fn low(&self) -> u64 {
        self.low
    }

    /// A pack was read: its records can be settled from now on.
    pub(super) fn enter(&mut self, first: u64, count: u32, oldest: i64) {
        if first >= self.low && !self.in_run(first) {
            self.marks.entry(first).or_insert(Mark::Open { count, settled: 0, oldest });
        }
    }

    /// Where reading goes on from `seq`: behind the run of settled packs that it lies in.
    pub(super) fn skip(&self, seq: u64) -> u64 {
        let seq = seq.max(self.low);
        match self.marks.range(..=seq).next_back() {
            Some((_, Mark::Run { end })) if *end > seq => *end,
            _ => seq,
        }
    }

    fn in_run(&self, seq: u64) -> bool {
        self.skip(seq) != seq
    }

    /// The first number of the pack that holds `seq`.
    pub(super) fn pack_of(&self, seq: u64) -> u64 {
        match self.marks.range(..=seq).next_back() {
            Some((first, Mark::Open { count, .. })) if seq < first + u64::from(*count) => *first,
            _ => seq,
        }
    }

    /// Whether this record is settled.
    pub(super) fn is_settled(&self, seq: u64) -> bool {
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

    /// Settles a record. False if it was settled already, or was never leased.
    pub(super) fn settle(&mut self, seq: u64) -> bool {
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

    /// A new run: joins its neighbours, and the low mark if it has become the first.
    fn merge(&mut self, mut first: u64, mut end: u64) {
        if let Some((&next, &Mark::Run { end: next_end })) = self.marks.range(end..).next() {
            self.remove(next);
            end = next_end;
        }
        if let Some((&before, Mark::Run { .. })) = self.marks.range(..first).next_back() {
            self.remove(first);
            first = before;
        }
        self.marks.insert(first, Mark::Run { end });
        self.dirty.insert(first);
        if self.marks.first_key_value().is_some_and(|(key, _)| *key == first) {
            self.remove(first);
            self.low = end;
            self.low_dirty = true;
        }
    }

    fn remove(&mut self, first: u64) {
        self.marks.remove(&first);
        self.dirty.insert(first);
    }

    /// Whether every pack that begins in `first..=last` is settled.
    pub(super) fn covers(&self, first: u64, last: u64) -> bool {
        self.skip(first) > last
    }

    /// When the oldest record that is not settled was accepted, if its pack was leased.
    pub(super) fn oldest(&self) -> Option<i64> {
        self.marks.values().find_map(|mark| match mark {
            Mark::Open { oldest, .. } => Some(*oldest),
            Mark::Run { .. } => None,
        })
    }

    /// What changed since this was last asked.
    pub(super) fn take_changes(&mut self) -> Changes {
        let mut changes = Changes { low: self.low_dirty.then_some(self.low), marks: Vec::new() };
        self.low_dirty = false;
        for key in std::mem::take(&mut self.dirty) {
            match self.marks.get(&key) {
                Some(mark) => {
                    self.stored.insert(key);
                    changes.marks.push((key, Some(*mark)));
                }
                // Most packs are settled between two ticks: nothing of them was ever stored.
                None if self.stored.remove(&key) => changes.marks.push((key, None)),
                None => {}
            }
        }
        changes
    }

    /// Whether [`Self::take_changes`] would give any.
    pub(super) fn is_dirty(&self) -> bool {
        self.low_dirty || !self.dirty.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Against a plain set: whatever the order of settling, what is settled is known, here and from the ledger.
        #[test]
        fn settles_like_a_set(
            packs in proptest::collection::vec((1u32..=64, 0u64..5), 1..20),
            order in proptest::collection::vec(any::<prop::sample::Index>(), 0..400),
        ) {
            let (mut settled, mut all, mut next) = (Settled::default(), Vec::new(), 1);
            for (count, gap) in packs {
                next += gap;
                settled.enter(next, count, 7);
                all.extend(next..next + u64::from(count));
                next += u64::from(count);
            }
            let mut model = BTreeSet::new();
            let mut ledger = (0, BTreeMap::new());
            for (n, index) in order.iter().enumerate() {
                let seq = all[index.index(all.len())];
                prop_assert_eq!(settled.settle(seq), model.insert(seq));
                if n % 3 == 0 {
                    let changes = settled.take_changes();
                    ledger.0 = changes.low.unwrap_or(ledger.0);
                    for (key, mark) in changes.marks {
                        match mark {
                            Some(mark) => ledger.1.insert(key, mark),
                            None => ledger.1.remove(&key),
                        };
                    }
                    let restored = Settled::restore(ledger.0, ledger.1.clone());
                    for seq in &all {
                        prop_assert_eq!(restored.is_settled(*seq), model.contains(seq));
                    }
                }
            }
            for seq in &all {
                prop_assert_eq!(settled.is_settled(*seq), model.contains(seq));
                prop_assert!(settled.skip(*seq) == *seq || model.contains(seq));
            }
            if model.len() == all.len() {
                prop_assert!(settled.marks.is_empty(), "nothing is left to remember");
            }
        }
    }
}
