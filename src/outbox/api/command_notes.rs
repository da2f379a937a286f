//! The notes of commands, through the handle: read, written and forgotten, each change in its own commit.

use super::handle::Outbox;
use crate::outbox::ledger::command_notes::{CommandNote, CommandNotes};
use crate::outbox::ledger::{LedgerBatch, LedgerError};

impl Outbox {
    /// All notes, in the order of their numbers.
    pub async fn command_notes(&self) -> Result<CommandNotes, LedgerError> {
        let notes = self.with_ledger(|shared| shared.ledger.commands()).await?.into_iter();
        let read = notes.map(|(number, note)| {
            let note = note
                .inspect_err(|error| tracing::error!(number, %error, "the note of a command cannot be read"));
            (number, note.ok())
        });
        Ok(read.collect())
    }

    /// Writes a note and forgets others, in one step. Durable on return.
    pub async fn note_command(
        &self,
        note: Option<(u64, CommandNote)>,
        forget: Vec<u64>,
    ) -> Result<(), LedgerError> {
        self.with_ledger(move |shared| {
            let mut batch = LedgerBatch::default();
            if let Some((number, note)) = note {
                batch.command(number, &note.limited());
            }
            for number in forget {
                batch.forget_command(number);
            }
            shared.write(batch)
        })
        .await
    }
}
