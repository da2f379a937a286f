//! The journal of commands: which were begun and with what result, in memory and, across restarts, in the outbox.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use crate::outbox::{COMMAND_ID_BYTES, CommandNote, CommandOutcome, LedgerError, Outbox};

/// Commands remembered.
const MOST: usize = 1_000;

/// Why a command cannot be begun.
#[derive(Debug, thiserror::Error)]
pub(super) enum BeginError {
    #[error("the command could not be recorded")]
    Ledger(#[from] LedgerError),
    #[error("the journal is full: {MOST} commands that must not be forgotten yet")]
    Full,
    #[error("an entry of the journal is unreadable and may be this command's")]
    Unreadable,
}

/// A command to be recorded.
pub(super) struct Begun<'a> {
    pub(super) id: &'a str,
    pub(super) kind: &'a str,
    /// Whether it is an authorised change.
    pub(super) is_change: bool,
    /// Expiry of its token in seconds since the Unix epoch: until then the token could be replayed.
    pub(super) expires: Option<i64>,
}

/// The journal.
pub(super) struct Journal {
    outbox: Outbox,
    /// Minimum time for which a command is remembered.
    ttl: Duration,
    notes: BTreeMap<u64, CommandNote>,
    numbers: HashMap<String, u64>,
    /// Numbers up to this one were recorded by an earlier process.
    earlier: u64,
    /// The last entry that cannot be read.
    unreadable: Option<u64>,
}

impl Journal {
    /// Reads the journal. A command that was begun and has no recorded result is not executed again, but reported as interrupted.
    pub(super) async fn open(outbox: Outbox, ttl: Duration) -> Result<Self, LedgerError> {
        let (mut notes, mut unreadable) = (BTreeMap::new(), None);
        for (number, note) in outbox.command_notes().await? {
            match note {
                Some(note) => drop(notes.insert(number, note)),
                None => unreadable = Some(number),
            }
        }
        let now = crate::time::now().0;
        for note in notes.values_mut().filter(|note: &&mut CommandNote| note.outcome.is_none()) {
            tracing::warn!(
                command_id = note.command_id,
                command_type = note.command_type,
                "a command was interrupted when the agent ended; it will not be repeated"
            );
            note.outcome = Some(CommandOutcome {
                success: false,
                result: "null".into(),
                error: Some(
                    "interrupted: the agent ended during execution; the command may have taken effect and is not repeated"
                        .into(),
                ),
                at: now,
            });
        }
        let numbers = notes.iter().map(|(number, note)| (note.command_id.clone(), *number)).collect();
        let earlier = notes.last_key_value().map_or(0, |(number, _)| *number);
        Ok(Self { outbox, ttl, notes, numbers, earlier, unreadable })
    }

    /// Whether the id fits into an entry and can be told from all others.
    pub(super) fn can_note(id: &str) -> bool {
        id.len() <= COMMAND_ID_BYTES
    }

    /// The command's number, if it was recorded before.
    pub(super) fn find(&self, id: &str) -> Option<u64> {
        self.numbers.get(id).copied()
    }

    pub(super) fn note(&self, number: u64) -> Option<&CommandNote> {
        self.notes.get(&number)
    }

    /// Whether it was recorded by an earlier process.
    pub(super) fn is_earlier(&self, number: u64) -> bool {
        number <= self.earlier
    }

    /// The numbers of unreported results, in order.
    pub(super) fn unreported(&self) -> Vec<u64> {
        let all = self.notes.iter().filter(|(_, note)| note.outcome.is_some() && !note.is_reported);
        all.map(|(number, _)| *number).collect()
    }

    /// Records that a command begins, or the result of a command that is not executed. Durable on return.
    ///
    /// IMPORTANT: `now`, in microseconds since the Unix epoch, must come from the clock that judges tokens. Another clock that is
    /// ahead could forget an id while its token is still valid.
    pub(super) async fn begin(
        &mut self,
        begun: Begun<'_>,
        outcome: Option<CommandOutcome>,
        now: i64,
    ) -> Result<u64, BeginError> {
        // The unreadable entry may be of any command, so any change could be a repetition.
        if begun.is_change && self.unreadable.is_some() {
            return Err(BeginError::Unreadable);
        }
        let gone = self.outdated(now).ok_or(BeginError::Full)?;
        let ttl = i64::try_from(self.ttl.as_micros()).unwrap_or(i64::MAX);
        let expires = begun.expires.unwrap_or(0).saturating_mul(1_000_000);
        let note = CommandNote {
            command_id: begun.id.to_owned(),
            command_type: begun.kind.to_owned(),
            is_change: begun.is_change,
            begun_at: now,
            // IMPORTANT: at least as long as the token is valid: otherwise a forgotten command could be replayed.
            keep_until: now.saturating_add(ttl).max(expires),
            outcome,
            is_reported: false,
        };
        // An unreadable entry's number must not be reused.
        let last = self.notes.last_key_value().map_or(0, |(number, _)| *number);
        let last = last.max(self.unreadable.unwrap_or(0));
        let number = now.max(0).unsigned_abs().max(last + 1);
        self.outbox.note_command(Some((number, note.clone())), gone.clone()).await?;
        for number in gone {
            if let Some(note) = self.notes.remove(&number) {
                self.numbers.remove(&note.command_id);
            }
        }
        self.numbers.insert(note.command_id.clone(), number);
        self.notes.insert(number, note);
        Ok(number)
    }

    /// The entries to forget; `None` if the journal stays full even so.
    fn outdated(&self, now: i64) -> Option<Vec<u64>> {
        let is_over = |note: &CommandNote| note.keep_until < now;
        let done = self.notes.iter().filter(|(_, note)| is_over(note) && note.is_reported);
        let mut gone: Vec<u64> = done.map(|(number, _)| *number).collect();
        if self.notes.len() - gone.len() < MOST {
            return Some(gone);
        }
        // Forget commands that changed nothing first, reported ones before others.
        let expendable = self
            .notes
            .iter()
            .filter(|(number, note)| !gone.contains(number) && (!note.is_change || is_over(note)));
        let (_, oldest) = expendable.map(|(number, note)| (!note.is_reported, *number)).min()?;
        gone.push(oldest);
        Some(gone)
    }

    /// Records the result of a command. If writing fails, the result is known until the process ends.
    pub(super) async fn finish(&mut self, number: u64, outcome: CommandOutcome) {
        self.change(number, |note| note.outcome = Some(outcome)).await;
    }

    /// Marks the result as reported: it was accepted or given up.
    pub(super) async fn reported(&mut self, number: u64) {
        self.change(number, |note| note.is_reported = true).await;
    }

    /// Marks the result as unreported: the `ControlPlane` lacks it.
    pub(super) fn report_again(&mut self, number: u64) {
        if let Some(note) = self.notes.get_mut(&number) {
            note.is_reported = false;
        }
    }

    async fn change(&mut self, number: u64, change: impl FnOnce(&mut CommandNote)) {
        let Some(note) = self.notes.get_mut(&number) else { return };
        change(note);
        if let Err(error) = self.outbox.note_command(Some((number, note.clone())), Vec::new()).await {
            tracing::warn!(
                %error,
                command_id = note.command_id,
                "the result of a command could not be recorded"
            );
        }
    }
}
