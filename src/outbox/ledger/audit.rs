//! The audit log: who gave which order, and what it did. And the exports that were imported here, so that none is
//! imported twice unnoticed. Both are kept in the ledger because that is what survives a crash; both are bounded.

use crate::outbox::format::codec::{Decode, Encode};

/// So many orders are kept.
pub const AUDIT_KEPT: u64 = if cfg!(test) { 5 } else { 1000 };
/// So many imported exports are known.
pub(crate) const IMPORTS_KEPT: usize = if cfg!(test) { 7 } else { 1000 };
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
    pub(crate) fn limited(mut self) -> Self {
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
