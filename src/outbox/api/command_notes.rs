//! The notes of commands, through the handle.

use tokio::sync::oneshot;

use super::handle::Outbox;
use crate::outbox::ledger::LedgerError;
use crate::outbox::ledger::command_notes::{CommandNote, CommandNotes};
use crate::outbox::threads::maintenance;

impl Outbox {
    /// All notes, in the order of their numbers.
    pub async fn command_notes(&self) -> Result<CommandNotes, LedgerError> {
        let (done, notes) = oneshot::channel();
        self.requests
            .send(maintenance::MaintenanceRequest::CommandNotes { done })
            .map_err(|_| LedgerError::Closed)?;
        notes.await.unwrap_or(Err(LedgerError::Closed))
    }

    /// Writes a note and forgets others, in one step. Durable on return.
    pub async fn note_command(
        &self,
        note: Option<(u64, CommandNote)>,
        forget: Vec<u64>,
    ) -> Result<(), LedgerError> {
        let note = note.map(|(number, note)| (number, note.limited()));
        let (done, noted) = oneshot::channel();
        self.requests
            .send(maintenance::MaintenanceRequest::NoteCommand { note, forget, done })
            .map_err(|_| LedgerError::Closed)?;
        noted.await.unwrap_or(Err(LedgerError::Closed))
    }
}
