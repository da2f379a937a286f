//! The part of the state that is not in the ledger yet.

use std::sync::Arc;

use super::State;
use crate::outbox::format::codec;
use crate::outbox::format::dead_letter::DeadLetter;
use crate::outbox::format::log::Log;
use crate::outbox::format::schema::{Counters, SegmentInfo, Totals};
use crate::outbox::ledger::{LedgerBatch, LedgerError};
use crate::outbox::segments::segment::Segment;
use crate::outbox::segments::settlement::{Changes, Settled};

/// Changes for the ledger: taken out of the state, and restored if they could not be saved.
pub(crate) struct Unsaved {
    changes: [Changes; Log::COUNT],
    letters: Vec<DeadLetter>,
    infos: Vec<(u64, SegmentInfo)>,
    counters: Counters,
    totals: Totals,
    letter_bytes: u64,
    leaving: Vec<Arc<Segment>>,
    left: Vec<u64>,
    dropped: Vec<(u64, usize)>,
}

impl State {
    /// Takes everything that is not in the ledger yet.
    pub(crate) fn take_unsaved(&mut self) -> Unsaved {
        self.counters_dirty = false;
        self.totals_stored = self.totals.next;
        let dirty = self.segments.iter_mut().filter_map(|listed| {
            std::mem::take(&mut listed.dirty).then(|| (listed.segment.id, listed.info.clone()))
        });
        Unsaved {
            infos: dirty.collect(),
            changes: self.settled.each_mut().map(Settled::take_changes),
            // IMPORTANT: in one step with the changes: a mark without its letter would lose the letter.
            letters: std::mem::take(&mut self.letters),
            counters: self.counters.clone(),
            totals: self.totals.clone(),
            letter_bytes: 0,
            leaving: std::mem::take(&mut self.leaving),
            left: std::mem::take(&mut self.left),
            dropped: std::mem::take(&mut self.dropped),
        }
    }

    /// Restores changes that were not saved, or may not have been: all of them are written again.
    pub(crate) fn put_back(&mut self, unsaved: Unsaved) {
        self.counters_dirty = true;
        for (settled, changes) in self.settled.iter_mut().zip(&unsaved.changes) {
            settled.put_back(changes);
        }
        self.letters.splice(0..0, unsaved.letters);
        self.leaving.extend(unsaved.leaving);
        self.left.extend(unsaved.left);
        self.dropped.extend(unsaved.dropped);
        for listed in &mut self.segments {
            listed.dirty |= unsaved.infos.iter().any(|(id, _)| *id == listed.segment.id);
        }
    }

    /// The changes are on disk. Returns the segments whose folders may now be deleted.
    pub(crate) fn saved(&mut self, unsaved: Unsaved) -> Vec<Arc<Segment>> {
        self.counters.dead_letter_bytes += unsaved.letter_bytes;
        self.durable = unsaved.counters;
        unsaved.leaving
    }
}

impl Unsaved {
    pub(crate) fn letters(&self) -> &[DeadLetter] {
        &self.letters
    }

    /// The changes as one commit of the ledger.
    pub(crate) fn batch(&mut self) -> Result<LedgerBatch, LedgerError> {
        let mut batch = LedgerBatch::default();
        let mut letter_bytes = 0;
        for letter in &self.letters {
            let value = codec::encode_dead_letter(letter)?;
            letter_bytes += value.len() as u64;
            batch.letter(letter.id, &value);
        }
        for (log, changes) in Log::ALL.into_iter().zip(&self.changes) {
            batch.settled(log, changes);
        }
        for (id, info) in &self.infos {
            batch.segment(*id, info);
        }
        for segment in &self.leaving {
            batch.forget_segment(segment.id);
        }
        for id in &self.left {
            batch.forget_tombstone(*id);
        }
        for (id, len) in &self.dropped {
            batch.forget_letter(*id, *len);
        }
        let mut counters = self.counters.clone();
        counters.dead_letter_bytes += letter_bytes;
        batch.counters(&counters);
        batch.totals(&self.totals);
        self.letter_bytes = letter_bytes;
        Ok(batch)
    }
}
