//! Notes of executed commands, so that none is executed twice, whatever happens in between.
//!
//! The outbox stores them because it survives restarts; it does not interpret them.

use crate::outbox::format::codec::{Decode, Encode};

/// The longest command ID that can be noted, in bytes.
pub const COMMAND_ID_BYTES: usize = 128;
/// The longest name of a command type.
pub const COMMAND_TYPE_BYTES: usize = 64;
/// The longest result, as JSON.
pub const COMMAND_RESULT_BYTES: usize = 3 << 10;
/// The longest error message.
pub const COMMAND_ERROR_BYTES: usize = 512;

/// A command that was begun, and its result. With its texts within their limits it fits into one value of the database.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct CommandNote {
    /// Its ID.
    pub command_id: String,
    /// Its type.
    pub command_type: String,
    /// Whether it was authorised, and may have changed something.
    pub is_change: bool,
    /// When it was begun, in microseconds since the Unix epoch.
    pub begun_at: i64,
    /// It must not be forgotten before this time, in microseconds since the Unix epoch.
    pub keep_until: i64,
    /// Its result; `None`: it was begun, and nothing more is known.
    pub outcome: Option<CommandOutcome>,
    /// Whether its result needs no further reports.
    pub is_reported: bool,
}

/// The result of a command.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct CommandOutcome {
    /// Whether it was executed.
    pub success: bool,
    /// Its output as JSON.
    pub result: String,
    /// Why it was not executed.
    pub error: Option<String>,
    /// When, in microseconds since the Unix epoch.
    pub at: i64,
}

/// Notes with their numbers; `None` for a note that cannot be read.
pub type CommandNotes = Vec<(u64, Option<CommandNote>)>;

impl CommandNote {
    /// The same with every text within its limit.
    pub(crate) fn limited(mut self) -> Self {
        let cut = |text: &mut String, most: usize| text.truncate(text.floor_char_boundary(most));
        cut(&mut self.command_id, COMMAND_ID_BYTES);
        cut(&mut self.command_type, COMMAND_TYPE_BYTES);
        if let Some(outcome) = &mut self.outcome {
            // Truncated JSON is invalid.
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
