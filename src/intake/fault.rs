//! Failures between Redis and the outbox, and their descriptions.

use redis::{ErrorKind, RedisError};

use super::allowance::Allowance;
use crate::outbox::AppendError;

/// Every [`SourceError::reason`].
pub(super) const REASONS: [&str; 17] = [
    "answer",
    "answer_cut",
    "authentication",
    "cluster",
    "held",
    "lease_lost",
    "loading",
    "master_down",
    "no_permission",
    "other",
    "out_of_memory",
    "outbox",
    "read_only",
    "timeout",
    "too_old",
    "unreachable",
    "wrong_type",
];

/// What ended a session with Redis.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// Redis is unreachable or returned an error.
    #[error("{}", said(.0))]
    Redis(#[from] RedisError),
    /// Redis is too old.
    #[error("Redis {0} is too old: this agent needs 6.2 or newer")]
    TooOld(String),
    /// Unexpected answer.
    #[error("unexpected answer from Redis: {0}")]
    Answer(&'static str),
    /// Redis closed the connection instead of returning messages.
    #[error(
        "Redis closed the connection instead of answering a request {0}: its client-output-buffer-limit for normal clients may be too small, or Redis stopped"
    )]
    Cut(Allowance),
    /// Another agent uses this ID.
    #[error(
        "another agent, with outbox {holder}, uses SERVER_ID {server_id}: give each agent its own SERVER_ID"
    )]
    Held {
        /// The shared ID.
        server_id: String,
        /// The ID of the other agent's outbox.
        holder: String,
    },
    /// The outbox does not accept records now.
    #[error(transparent)]
    Append(#[from] AppendError),
}

impl SourceError {
    /// The reason, as in the metric. A change is logged.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::TooOld(_) => "too_old",
            Self::Answer(_) => "answer",
            Self::Cut(_) => "answer_cut",
            Self::Held { .. } => "held",
            Self::Append(_) => "outbox",
            Self::Redis(error) => reason_of(error),
        }
    }

    /// Whether Redis is reachable despite the error.
    pub(super) fn is_connected(&self) -> bool {
        matches!(self, Self::Append(_) | Self::Held { .. })
    }
}

/// An error of Redis or the connection as text, on one line.
pub(super) fn said(error: &RedisError) -> String {
    match error.kind() {
        ErrorKind::Parse => "the answer is not Redis': another service listens there".to_owned(),
        _ => error.to_string().replace(char::is_control, " "),
    }
}

/// The reason of an error of Redis or the connection.
pub(super) fn reason_of(error: &RedisError) -> &'static str {
    // In a pipeline, the first command that was refused.
    if error.code().is_none()
        && let Some([(_, first), ..]) = error.clone().into_server_errors().as_deref()
    {
        return reason_of(&first.clone().into());
    }
    match word(error) {
        Some("OOM") => return "out_of_memory",
        Some("FENCED") => return "lease_lost",
        Some("WRONGTYPE") => return "wrong_type",
        Some("NOAUTH" | "WRONGPASS") => return "authentication",
        Some("NOPERM") => return "no_permission",
        Some("LOADING") => return "loading",
        Some("READONLY") => return "read_only",
        Some("MASTERDOWN") => return "master_down",
        Some("MOVED" | "ASK" | "TRYAGAIN" | "CLUSTERDOWN" | "CROSSSLOT") => return "cluster",
        _ => {}
    }
    match error.kind() {
        ErrorKind::Io if error.is_timeout() => "timeout",
        ErrorKind::Io | ErrorKind::ClusterConnectionNotFound => "unreachable",
        ErrorKind::AuthenticationFailed => "authentication",
        _ => "other",
    }
}

/// The first word of a Redis error. For a command inside a script, Redis before 7 puts it after the position.
fn word(error: &RedisError) -> Option<&str> {
    match error.code() {
        Some("ERR") => error.detail()?.rsplit_once(": -")?.1.split(' ').next(),
        code => code,
    }
}

/// Why Redis refuses some commands, while the rest works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RedisRefusal {
    /// One of [`REASONS`].
    pub reason: &'static str,
    text: String,
}

impl RedisRefusal {
    /// A refusal by Redis.
    pub(super) fn of(error: &RedisError) -> Self {
        Self { reason: reason_of(error), text: error.to_string() }
    }

    /// The refusal of a queue whose key has the wrong type, found by a round's script, which checks nothing else.
    pub(super) fn found(text: String) -> Option<Self> {
        (!text.is_empty()).then_some(Self { reason: "wrong_type", text })
    }
}

impl std::fmt::Display for RedisRefusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

/// Whether Redis itself refused, over a working connection.
pub(super) fn is_refusal(error: &RedisError) -> bool {
    matches!(error.kind(), ErrorKind::Server(_) | ErrorKind::Extension)
}

/// Whether Redis lacks or denies this command, as opposed to an error inside a script.
pub(super) fn refuses(error: &RedisError, command: &str) -> bool {
    let is_said = |text: &str| text.to_ascii_uppercase().contains(command);
    is_refusal(error) && error.detail().is_some_and(is_said)
}

/// Whether the connection broke while waiting for an answer.
pub(super) fn is_broken_off(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Io && error.is_connection_dropped() && !error.is_connection_refusal()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(answer: &[u8]) -> &'static str {
        let value = redis::parse_redis_value(answer).unwrap();
        reason_of(&value.extract_error().unwrap_err())
    }

    #[test]
    fn a_command_that_is_renamed_or_forbidden_is_told_from_what_a_script_met() {
        let table: [(&[u8], bool); 5] = [
            (b"-ERR unknown command 'EVALSHA', with args beginning with: 'f00' '0' \r\n", true),
            (
                b"-NOPERM this user has no permissions to run the 'evalsha' command or its subcommand\r\n",
                true,
            ),
            (b"-NOPERM User agent has no permissions to run the 'lmove' command script: f_bd6f\r\n", false),
            (b"-NOAUTH Authentication required.\r\n", false),
            (b"-LOADING Redis is loading the dataset in memory\r\n", false),
        ];
        for (answer, expected) in table {
            let error = redis::parse_redis_value(answer).unwrap().extract_error().unwrap_err();
            assert_eq!(refuses(&error, "EVALSHA"), expected, "{error}");
        }
    }

    #[test]
    fn an_error_is_named_by_its_word_also_within_a_script_of_redis_6() {
        let table: [(&[u8], _); 7] = [
            (b"-READONLY You can't write against a read only replica.\r\n", "read_only"),
            (
                b"-ERR Error running script (call to f_6c74): @user_script:1: @user_script: 1: -READONLY You can't \
                  write against a read only replica.\r\n",
                "read_only",
            ),
            (b"-ERR Error running script (call to f_bd6f): @user_script:1: -OOM command not allowed\r\n", "out_of_memory"),
            (b"-MOVED 1 127.0.0.1:1\r\n", "cluster"),
            (b"-LOADING Redis is loading the dataset in memory\r\n", "loading"),
            (b"-FENCED the lease of this SERVER_ID is held otherwise\r\n", "lease_lost"),
            (b"-ERR unknown command\r\n", "other"),
        ];
        for (answer, expected) in table {
            assert_eq!(reason(answer), expected, "{}", String::from_utf8_lossy(answer));
        }
    }
}
