//! What an operator sees of an agent and may do to it: the forms that the HTTP surface and the command line share, and
//! the work itself on an open outbox, be it a running agent's or a stopped one's.

mod dead_letters;
mod export;
mod jobs;
mod operator;
mod outbox;

use serde::{Deserialize, Serialize};

pub use dead_letters::{
    DeadLetterDetail, DeadLetterLine, DeadLetterPage, Dropped, LetterFilter, Replayed, Selection,
    drop_selected, find_dead_letter, list_dead_letters, replay_selected,
};
pub use export::{Confirmed, ExportAsked, ExportError, ExportState, Exports, Page, PageNumber};
pub use jobs::{Imported, JobLine, salvage, verify};
pub use operator::{DrainState, Operator};
pub use outbox::{
    KindCounts, OutboxStats, WaitingDetail, WaitingFilter, WaitingLine, WaitingPage, find_waiting,
    list_waiting,
};

/// Why an operator's wish could not be fulfilled.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The dead letters.
    #[error("the dead letters")]
    Letters(#[from] crate::outbox::LedgerError),
    /// Replaying.
    #[error("replaying")]
    Replay(#[from] crate::outbox::ReplayError),
    /// Reading what waits.
    #[error("what waits")]
    Read(#[from] crate::outbox::ReadError),
}

/// The bytes of a message: text where they are text, else the bytes as numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(untagged)]
pub enum Message {
    /// UTF-8.
    Text(String),
    /// Anything else.
    Bytes(Vec<u8>),
}

impl From<&[u8]> for Message {
    fn from(bytes: &[u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) => Self::Text(text.to_owned()),
            Err(_) => Self::Bytes(bytes.to_vec()),
        }
    }
}
