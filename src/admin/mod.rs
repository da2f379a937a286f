//! The operator's view and actions: the types shared by the admin API and the command line, and the work on an open outbox,
//! of a running or a stopped agent.

mod audit;
mod dead_letters;
mod export;
mod import;
mod jobs;
mod letters;
mod operator;
mod orders;
mod outbox;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

pub use audit::{Actor, Audit, AuditFilter, AuditLine, AuditPage, Effect, list_orders};
pub use dead_letters::{
    DeadLetterDetail, DeadLetterLine, DeadLetterPage, Dropped, LetterFilter, Replayed, Selection,
    find_dead_letter, list_dead_letters,
};
pub use export::{Confirmed, ExportAsked, ExportError, ExportState, Exports, NextPage, PageNumber};
pub use import::{ImportPart, Imports};
pub use jobs::{Imported, JobLine, SalvageAsked, salvage_detail, verify};
pub use letters::{LetterWork, Letters, letters};
pub use operator::{DrainState, Operator, Reload, ReloadError};
pub use orders::{LogLevelBody, NewBandwidth, NewRateLimit};
pub use outbox::{
    KindCounts, OutboxStats, WaitingDetail, WaitingFilter, WaitingLine, WaitingPage, find_waiting,
    list_waiting,
};

/// Why jobs that were open at shutdown ended.
const STOPPED: &str = "the agent stopped";

/// Why an operator's request failed.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The dead letters cannot be read.
    #[error("cannot read the dead letters")]
    Letters(#[from] crate::outbox::LedgerError),
    /// The agent is stopping and no longer does such work.
    #[error("the agent is stopping")]
    Stopping,
    /// The cursor is invalid.
    #[error("cursor: not a value that a page returned")]
    Cursor,
    /// The backlog cannot be read.
    #[error("cannot read the backlog")]
    Read(#[from] crate::outbox::ReadError),
}

/// The bytes of a message: text if they are UTF-8, else numbers.
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

/// An error with its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let chain = std::iter::successors(Some(error), |error| error.source());
    chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
