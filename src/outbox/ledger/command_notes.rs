//! Notes of the commands that were carried out, so that none is carried out twice, whatever happens in between.
//!
//! The outbox keeps them because it is what survives; it knows nothing of what they say.

use crate::outbox::format::codec::{Decode, Encode};

/// The longest id of a command that can be noted, in bytes.
pub const COMMAND_ID_BYTES: usize = 128;
/// The longest name of a command's type.
pub const COMMAND_TYPE_BYTES: usize = 64;
/// The longest result, as JSON.
pub const COMMAND_RESULT_BYTES: usize = 3 << 10;
/// The longest message of what went wrong.
pub const COMMAND_ERROR_BYTES: usize = 512;

/// That a command was begun, and what became of it. With its texts within their limits it is one value of the database.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct CommandNote {
    /// Its id.
    pub command_id: String,
    /// What was to be done.
    pub command_type: String,
    /// Whether it was authorised, and may have changed something.
    pub is_change: bool,
    /// When it was begun, in microseconds since the Unix epoch.
    pub begun_at: i64,
    /// Until then it must not be forgotten, in microseconds since the Unix epoch.
    pub keep_until: i64,
    /// What became of it; none: it was begun, and nothing more is known.
    pub outcome: Option<CommandOutcome>,
    /// Nobody has to be told any more.
    pub is_reported: bool,
}

/// What became of a command.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct CommandOutcome {
    /// Whether it was done.
    pub success: bool,
    /// What came of it, as JSON.
    pub result: String,
    /// Why it was not done.
    pub error: Option<String>,
    /// When, in microseconds since the Unix epoch.
    pub at: i64,
}

/// Notes with their numbers; none in the place of one that cannot be read.
pub type CommandNotes = Vec<(u64, Option<CommandNote>)>;

impl CommandNote {
    /// The same with every text within its limit.
    pub(crate) fn limited(mut self) -> Self {
        let cut = |text: &mut String, most: usize| text.truncate(text.floor_char_boundary(most));
        cut(&mut self.command_id, COMMAND_ID_BYTES);
        cut(&mut self.command_type, COMMAND_TYPE_BYTES);
        if let Some(outcome) = &mut self.outcome {
            // A part of some JSON is none.
            if outcome.result.len() > COMMAND_RESULT_BYTES {
                outcome.result = "null".into();
            }
            if let Some(error) = &mut outcome.error {
                cut(error, COMMAND_ERROR_BYTES);
            }
        }
        self
    }
}
