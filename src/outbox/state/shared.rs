//! What the outbox's threads and handles share, and the one way in which the ledger is written.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::State;
use super::dir_lock::DirLock;
use super::liveness::Liveness;
use super::reserve::DiskReserve;
use crate::outbox::format::log::Log;
use crate::outbox::ledger::dead_letter_log::DeadLetterLog;
use crate::outbox::ledger::{Ledger, LedgerBatch, LedgerError};
use crate::outbox::messages::LogPage;
use crate::outbox::segments::segment::Segment;
use crate::outbox::settings::Settings;
use crate::time::ConfirmedClock;

/// While the ledger cannot be written, reading stops at so many bytes of dead letters that wait for it: with what is in
/// the drain's hands, a bound on their memory.
const UNSAVED_LETTERS: usize = if cfg!(test) { 64 << 10 } else { 4 << 20 };

pub(crate) struct Shared {
    pub settings: Settings,
    pub id: uuid::Uuid,
    pub state: Mutex<State>,
    /// Held while the ledger is written: what is written later was taken later.
    pub saving: Mutex<()>,
    pub ledger: Ledger,
    pub reserve: DiskReserve,
    /// Why appends are not accepted, if they are not.
    pub paused: watch::Sender<Option<&'static str>>,
    /// The number of the last durable record.
    pub last: watch::Sender<u64>,
    /// Used bytes, as last measured.
    pub used: AtomicU64,
    /// Of these, what counts towards the limit.
    pub counted: AtomicU64,
    /// Free bytes of the disk, as last measured; `u64::MAX` where that cannot be.
    pub free: AtomicU64,
    pub ledger_failed: AtomicBool,
    pub writer_failed: AtomicBool,
    /// Whether the threads get on.
    pub liveness: Liveness,
    /// Segments and records that were set aside and not salvaged.
    pub quarantined: Mutex<(u64, u64)>,
    pub dir_lock: DirLock,
    /// New dead letters, in the log.
    pub dead_letter_log: DeadLetterLog,
    /// The time by which dead letters grow old.
    pub confirmed: ConfirmedClock,
}

impl Shared {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        // Poisoned or not: every change under this lock is complete in itself.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nobody may read on: he would have more to dead-letter. What is not read stays where it is.
    pub(crate) fn must_not_read(&self, state: &State) -> bool {
        self.ledger_failed.load(Ordering::Relaxed) && state.letters_bytes() >= UNSAVED_LETTERS
    }

    /// What can be read without maintenance, if it may be read.
    pub(crate) fn at_hand(
        &self,
        state: &mut State,
        (log, from, upto): (Log, u64, u64),
        most: usize,
    ) -> Option<LogPage> {
        if self.must_not_read(state) { None } else { state.at_hand(log, from, upto, most) }
    }

    /// Makes durable what the ledger does not know yet: marks, counters, dead letters and segments, in one step.
    /// What cannot be written stays to be written.
    pub(crate) fn save(&self) -> Result<(), LedgerError> {
        let _turn = self.saving.lock().unwrap_or_else(PoisonError::into_inner);
        let mut unsaved = self.state().take_unsaved();
        let written = unsaved.batch().and_then(|batch| self.ledger.commit(batch));
        if let Err(error) = written {
            self.state().put_back(unsaved);
            if !self.ledger_failed.swap(true, Ordering::Relaxed) {
                tracing::error!(%error, "the outbox's ledger could not be written; it is tried again until it can");
            }
            self.reserve.give_up();
            return Err(error);
        }
        self.ledger_failed.store(false, Ordering::Relaxed);
        self.dead_letter_log.tell(unsaved.letters());
        let leaving = self.state().saved(unsaved);
        for segment in leaving {
            // IMPORTANT: only now: a listing without a folder would be a loss, a folder without one is a remainder.
            if let Err(error) = self.delete(&segment) {
                segment.say_it_stays(&error);
                let bytes = segment.disk_bytes();
                self.state().lingering.push((segment, bytes));
            }
        }
        Ok(())
    }

    /// Deletes a segment's folder; the next save forgets its tombstone.
    fn delete(&self, segment: &Segment) -> std::io::Result<()> {
        // IMPORTANT: one that is only out of sight is not deleted: it may come back with the rest.
        self.in_place()?;
        segment.delete()?;
        self.state().left.push(segment.id);
        Ok(())
    }

    /// Tries again to delete the folders that could not be deleted.
    pub(crate) fn delete_lingering(&self) {
        // Each counts until it is gone.
        let lingering: Vec<_> =
            self.state().lingering.iter().map(|(segment, _)| std::sync::Arc::clone(segment)).collect();
        for segment in lingering {
            if self.delete(&segment).is_ok() {
                self.state().lingering.retain(|(lingering, _)| lingering.id != segment.id);
                tracing::info!(path = %segment.path().display(), "a settled segment is deleted at last");
            }
        }
    }

    /// Writes what nobody else writes: no mark, no counter, no dead letter.
    pub(crate) fn write(&self, batch: LedgerBatch) -> Result<(), LedgerError> {
        let _turn = self.saving.lock().unwrap_or_else(PoisonError::into_inner);
        self.ledger.commit(batch).inspect_err(|_| {
            self.reserve.give_up();
        })
    }

    /// Returns when no save is under way.
    pub(crate) fn wait_for_save(&self) {
        drop(self.saving.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
