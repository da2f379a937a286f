//! Shared by the outbox's threads and handles; and the only code that writes the ledger.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::State;
use super::dir_lock::DirLock;
use super::reserve::DiskReserve;
use crate::outbox::engine::database::Durability;
use crate::outbox::format::log::Log;
use crate::outbox::ledger::dead_letter_log::DeadLetterLog;
use crate::outbox::ledger::{Ledger, LedgerBatch, LedgerError};
use crate::outbox::messages::LogPage;
use crate::outbox::segments::segment::Segment;
use crate::outbox::settings::Settings;
use crate::time::ConfirmedClock;

/// While the ledger cannot be written, reading stops at this many bytes of unsaved dead letters. Together with the records
/// in the drain, this limits their memory.
const UNSAVED_LETTERS: usize = if cfg!(test) { 64 << 10 } else { 4 << 20 };

pub(crate) struct Shared {
    pub settings: Settings,
    /// What an acknowledged record survives: less than configured if the folder is in memory.
    pub durability: Durability,
    pub id: uuid::Uuid,
    pub state: Mutex<State>,
    /// Held while the ledger is written: changes are written in the order they were taken.
    pub saving: Mutex<()>,
    pub ledger: Ledger,
    pub reserve: DiskReserve,
    /// Why appends are refused, if they are.
    pub paused: watch::Sender<Option<&'static str>>,
    /// The number of the last durable record.
    pub last: watch::Sender<u64>,
    /// Used bytes at the last measurement.
    pub used: AtomicU64,
    /// The part of it that counts towards the limit.
    pub counted: AtomicU64,
    /// Free bytes on the disk at the last measurement; `u64::MAX` if unknown.
    pub free: AtomicU64,
    pub ledger_failed: AtomicBool,
    pub writer_failed: AtomicBool,
    /// Quarantined segments and records that are not salvaged.
    pub quarantined: Mutex<(u64, u64)>,
    pub dir_lock: DirLock,
    /// Logs new dead letters.
    pub dead_letter_log: DeadLetterLog,
    /// The time that decides the age of dead letters.
    pub confirmed: ConfirmedClock,
}

impl Shared {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        // Poisoning is harmless: every change under this lock is complete in itself.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether reading must stop: a reader would create more dead letters. Unread records stay where they are.
    pub(crate) fn must_not_read(&self, state: &State) -> bool {
        self.ledger_failed.load(Ordering::Relaxed) && state.letters_bytes() >= UNSAVED_LETTERS
    }

    /// Reads without maintenance, if possible and allowed.
    pub(crate) fn at_hand(
        &self,
        state: &mut State,
        (log, from, upto): (Log, u64, u64),
        most: usize,
    ) -> Option<LogPage> {
        if self.must_not_read(state) { None } else { state.at_hand(log, from, upto, most) }
    }

    /// Saves what the ledger does not have yet: marks, counters, dead letters and segments, in one step. After a failure it
    /// remains to be saved.
    pub(crate) fn save(&self) -> Result<(), LedgerError> {
        let _turn = self.saving.lock().unwrap_or_else(PoisonError::into_inner);
        let mut unsaved = self.state().take_unsaved();
        let written = unsaved.batch().and_then(|batch| self.ledger.commit(batch));
        if let Err(error) = written {
            self.state().put_back(unsaved);
            if !self.ledger_failed.swap(true, Ordering::Relaxed) {
                tracing::error!(%error, "cannot write the outbox's ledger; retrying");
            }
            self.reserve.give_up();
            return Err(error);
        }
        self.ledger_failed.store(false, Ordering::Relaxed);
        self.dead_letter_log.tell(unsaved.letters());
        let leaving = self.state().saved(unsaved);
        for segment in leaving {
            // IMPORTANT: only now: a listed segment without a folder is a loss, an unlisted folder is a remainder.
            if let Err(error) = self.delete(&segment) {
                segment.say_it_stays(&error);
                let bytes = segment.disk_bytes();
                self.state().lingering.push((segment, bytes));
            }
        }
        Ok(())
    }

    /// Deletes a segment's folder; the next save removes its tombstone.
    fn delete(&self, segment: &Segment) -> std::io::Result<()> {
        // IMPORTANT: a segment in a missing folder is not deleted: it may come back with the folder.
        self.in_place()?;
        segment.delete()?;
        self.state().left.push(segment.id);
        Ok(())
    }

    /// Retries deleting folders that could not be deleted.
    pub(crate) fn delete_lingering(&self) {
        // Each counts until it is gone.
        let lingering: Vec<_> =
            self.state().lingering.iter().map(|(segment, _)| std::sync::Arc::clone(segment)).collect();
        for segment in lingering {
            if self.delete(&segment).is_ok() {
                self.state().lingering.retain(|(lingering, _)| lingering.id != segment.id);
                tracing::info!(path = %segment.path().display(), "a settled segment has now been deleted");
            }
        }
    }

    /// Writes what nothing else writes: no marks, counters or dead letters.
    pub(crate) fn write(&self, batch: LedgerBatch) -> Result<(), LedgerError> {
        let _turn = self.saving.lock().unwrap_or_else(PoisonError::into_inner);
        self.ledger.commit(batch).inspect_err(|_| {
            self.reserve.give_up();
        })
    }

    /// Returns when no save is in progress.
    pub(crate) fn wait_for_save(&self) {
        drop(self.saving.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
