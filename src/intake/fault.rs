//! What can go wrong between Redis and the outbox, and what is said of it.

use redis::{ErrorKind, RedisError, ServerErrorKind};

use crate::outbox::AppendError;

/// What ended a conversation with Redis.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// Redis is away or said no.
    #[error("{0}")]
    Redis(#[from] RedisError),
    /// Redis is too old.
    #[error("Redis {0} is too old: this agent needs 6.2 or newer")]
    TooOld(String),
    /// The answer is not what was asked for.
    #[error("Redis answered what was not asked: {0}")]
    Answer(&'static str),
    /// Somebody else works under this name.
    #[error(
        "another agent, with the outbox {holder}, runs with the SERVER_ID {server_id}: every agent needs one of its own"
    )]
    Held {
        /// The name.
        server_id: String,
        /// The id of the other one's outbox.
        holder: String,
    },
    /// The outbox takes nothing at present.
    #[error(transparent)]
    Append(#[from] AppendError),
}

impl SourceError {
    /// The kind of it, as the metric has it. A change of it is worth a line in the log.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::TooOld(_) => "too_old",
            Self::Answer(_) => "answer",
            Self::Held { .. } => "held",
            Self::Append(_) => "outbox",
            Self::Redis(error) => reason_of(error),
        }
    }

    /// Redis is there, whatever else is wrong.
    pub(super) fn is_connected(&self) -> bool {
        matches!(self, Self::Append(_) | Self::Held { .. })
    }
}

/// The kind of what Redis, or the way to it, has against us.
pub(super) fn reason_of(error: &RedisError) -> &'static str {
    match error.code() {
        Some("OOM") => return "out_of_memory",
        Some("FENCED") => return "lease_lost",
        Some("WRONGTYPE") => return "wrong_type",
        Some("NOAUTH" | "WRONGPASS") => return "authentication",
        _ => {}
    }
    match error.kind() {
        ErrorKind::Io if error.is_timeout() => "timeout",
        ErrorKind::Io => "unreachable",
        ErrorKind::AuthenticationFailed => "authentication",
        ErrorKind::Server(ServerErrorKind::NoPerm) => "no_permission",
        ErrorKind::Server(ServerErrorKind::BusyLoading) => "loading",
        ErrorKind::Server(ServerErrorKind::ReadOnly) => "read_only",
        ErrorKind::Server(ServerErrorKind::MasterDown) => "master_down",
        ErrorKind::Server(
            ServerErrorKind::Moved
            | ServerErrorKind::Ask
            | ServerErrorKind::ClusterDown
            | ServerErrorKind::CrossSlot,
        ) => "cluster",
        _ => "other",
    }
}

/// Whether Redis itself said no, on a connection that is as good as before.
pub(super) fn is_refusal(error: &RedisError) -> bool {
    matches!(error.kind(), ErrorKind::Server(_) | ErrorKind::Extension)
}
