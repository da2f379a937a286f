//! The audit log: who gave which order, and what it did. And the exports that were imported here, so that none is
//! imported twice unnoticed. Both are kept in the ledger because that is what survives a crash; both are bounded.

use super::codec::{Decode, Encode};
use super::ledger::{Entry, LedgerError};
use super::shared::Shared;
use super::{Outbox, ReadError};

/// So many orders are kept.
pub const AUDIT_KEPT: u64 = if cfg!(test) { 5 } else { 1000 };
/// So many imported exports are known.
pub(super) const IMPORTS_KEPT: usize = if cfg!(test) { 7 } else { 1000 };
/// So many numbers of dead letters are noted of one order, of the first ones.
pub const AUDIT_IDS: usize = 20;
/// The longest name of whoever gave an order, and the longest words about it, in bytes.
const WHO_BYTES: usize = 128;
const WORDS_BYTES: usize = 512;

/// An order, as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct AuditNote {
    /// When it was given, in microseconds since the Unix epoch.
    pub at: i64,
    /// Who gave it: an address, a command, or a local user.
    pub who: String,
    /// What was to be done.
    pub order: String,
    /// What it was to be done with.
    pub detail: String,
    /// How many dead letters or records it affected.
    pub count: Option<u64>,
    /// To which dead letters, the first of them.
    pub ids: Vec<u64>,
    /// What became of it.
    pub outcome: AuditOutcome,
}

/// What became of an order. The numbers are persisted: never renumber.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum AuditOutcome {
    /// It was begun, and nothing more is known.
    Begun,
    /// It was done.
    Done,
    /// It was not done, or not all of it.
    Failed(String),
}

/// What the ledger keeps of an export that was imported: its id.
pub type ExportId = u128;

impl AuditNote {
    /// The same with every text within its limit.
    fn limited(mut self) -> Self {
        let cut = |text: &mut String, most: usize| text.truncate(text.floor_char_boundary(most));
        cut(&mut self.who, WHO_BYTES);
        cut(&mut self.order, WHO_BYTES);
        cut(&mut self.detail, WORDS_BYTES);
        if let AuditOutcome::Failed(error) = &mut self.outcome {
            cut(error, WORDS_BYTES);
        }
        self.ids.truncate(AUDIT_IDS);
        self
    }
}

impl Outbox {
    /// Notes an order under the next number, or anew under the one that it has, unless that is forgotten; the oldest is
    /// forgotten. Gives the number when the note would survive a power cut.
    pub async fn note_order(&self, number: Option<u64>, note: AuditNote) -> Result<u64, LedgerError> {
        let note = note.limited();
        self.with_ledger(move |shared| {
            let last = shared.ledger.last_order()?.unwrap_or(0);
            let number = number.filter(|number| number + AUDIT_KEPT > last).unwrap_or(last + 1);
            let mut entry = Entry::default();
            entry.order(number, &note);
            if let Some(old) = number.checked_sub(AUDIT_KEPT) {
                entry.forget_order(old);
            }
            shared.write(entry)?;
            Ok(number)
        })
        .await
    }

    /// The orders that are kept, oldest first, each with its number.
    pub async fn orders(&self) -> Result<Vec<(u64, AuditNote)>, LedgerError> {
        self.with_ledger(|shared| shared.ledger.orders()).await
    }

    /// When one of these exports was imported here, if one was.
    pub async fn imported_before(&self, exports: Vec<ExportId>) -> Result<Option<i64>, LedgerError> {
        self.with_ledger(move |shared| {
            let known = shared.ledger.imports()?;
            Ok(known.into_iter().filter(|(id, _)| exports.contains(id)).map(|(_, at)| at).max())
        })
        .await
    }

    /// Notes that these exports were imported.
    pub async fn note_imported(&self, mut exports: Vec<ExportId>) -> Result<(), LedgerError> {
        self.with_ledger(move |shared| {
            let mut known = shared.ledger.imports()?;
            exports.truncate(IMPORTS_KEPT);
            let (mut entry, now) = (Entry::default(), crate::time::now().0);
            known.retain(|(id, _)| !exports.contains(id));
            known.sort_unstable_by_key(|(_, at)| *at);
            let beyond = (known.len() + exports.len()).saturating_sub(IMPORTS_KEPT);
            for (old, _) in known.iter().take(beyond) {
                entry.forget_import(*old);
            }
            for id in exports {
                entry.import(id, now);
            }
            shared.write(entry)
        })
        .await
    }

    async fn with_ledger<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Shared) -> Result<T, LedgerError> + Send + 'static,
    ) -> Result<T, LedgerError> {
        self.look(work).await.unwrap_or_else(|error| match error {
            ReadError::Database(error) => Err(error.into()),
            _ => Err(LedgerError::Closed),
        })
    }
}
