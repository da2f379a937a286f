//! The audit log: who gave which order, and its result. And the list of exports imported here, which prevents importing one
//! twice unnoticed. Both are in the ledger because it survives crashes; both are bounded.

use crate::outbox::format::codec::{Decode, Encode};

/// Orders kept.
pub const AUDIT_KEPT: u64 = if cfg!(test) { 5 } else { 1000 };
/// Imported exports remembered.
pub(crate) const IMPORTS_KEPT: usize = if cfg!(test) { 7 } else { 1000 };
/// Numbers of dead letters noted per order: the first ones.
pub const AUDIT_IDS: usize = 20;
/// The longest name of an actor, and the longest text about an order, in bytes.
const WHO_BYTES: usize = 128;
const WORDS_BYTES: usize = 512;

/// A stored order.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct AuditNote {
    /// When it was given, in microseconds since the Unix epoch.
    pub at: i64,
    /// Who gave it: an address, a command, or a local user.
    pub who: String,
    /// The action.
    pub order: String,
    /// Its target.
    pub detail: String,
    /// How many dead letters or records it affected.
    pub count: Option<u64>,
    /// The numbers of the first affected dead letters.
    pub ids: Vec<u64>,
    /// Its outcome.
    pub outcome: AuditOutcome,
}

/// The outcome of an order. The numbers are persisted: never renumber.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum AuditOutcome {
    /// It was begun; nothing more is known.
    Begun,
    /// It was done.
    Done,
    /// It was not done, or not completely.
    Failed(String),
}

/// The id of an imported export, as stored in the ledger.
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
