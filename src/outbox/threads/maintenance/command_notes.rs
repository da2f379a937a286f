//! The notes of commands: read, written and forgotten, each change in its own commit.

use super::Maintenance;
use crate::outbox::ledger::command_notes::{CommandNote, CommandNotes};
use crate::outbox::ledger::{LedgerBatch, LedgerError};

impl Maintenance {
    pub(super) fn command_notes(&self) -> Result<CommandNotes, LedgerError> {
        let notes = self.shared.ledger.commands()?.into_iter();
        let read = notes.map(|(number, note)| {
            let note = note
                .inspect_err(|error| tracing::error!(number, %error, "the note of a command cannot be read"));
            (number, note.ok())
        });
        Ok(read.collect())
    }

    pub(super) fn note_command(
        &self,
        note: Option<&(u64, CommandNote)>,
        forget: &[u64],
    ) -> Result<(), LedgerError> {
        let mut batch = LedgerBatch::default();
        if let Some((number, note)) = note {
            batch.command(*number, note);
        }
        for number in forget {
            batch.forget_command(*number);
        }
        self.shared.write(batch)
    }
}
