//! Pure parsers of answer bodies, safe on any bytes. The caller bounds the size.

mod batch;
mod commands;
mod keys;
mod quota;

use serde::Deserialize;
use serde_json::value::RawValue;

pub(super) use batch::knows_no_session;
pub use batch::{BatchException, parse_batch_answer};
pub use commands::{Command, Commands, parse_commands};
pub use keys::parse_key_set;
pub use quota::{QuotaAnswer, parse_quota_answer};

/// Why an answer is invalid. Errors never quote the answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadAnswer {
    /// Not JSON, or JSON of another shape.
    #[error("unexpected JSON ({kind:?} at line {line}, column {column})")]
    Json {
        /// Whether the syntax, the data or the end is at fault.
        kind: serde_json::error::Category,
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
    },
    /// `success` is not true.
    #[error("\"success\" is not true")]
    Unsuccessful,
    /// A field has the wrong type.
    #[error("{0} has the wrong type")]
    WrongType(&'static str),
    /// The answer is for another batch.
    #[error("it is for another batch")]
    AnotherBatch,
    /// The answer counts another number of records than were sent.
    #[error("it counts {found} records, but {expected} were sent")]
    Count {
        /// How many records were sent.
        expected: usize,
        /// How many the answer counts.
        found: usize,
    },
    /// An exception for a position outside the batch, or given twice.
    #[error("position {index} is outside the batch or given twice")]
    Position {
        /// From 0.
        index: usize,
    },
    /// An exception with a status that is not an error.
    #[error("position {index} has a status that is not an error")]
    Status {
        /// From 0.
        index: usize,
    },
    /// Longer than any expected answer.
    #[error("too long")]
    TooLong,
}

impl From<serde_json::Error> for BadAnswer {
    fn from(e: serde_json::Error) -> Self {
        Self::Json { kind: e.classify(), line: e.line(), column: e.column() }
    }
}

#[derive(Deserialize)]
struct Envelope<'a> {
    success: bool,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

fn data(body: &[u8]) -> Result<&RawValue, BadAnswer> {
    let Envelope { success, data } = serde_json::from_slice(body)?;
    data.filter(|_| success).ok_or(BadAnswer::Unsuccessful)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    proptest! {
        #[test]
        fn no_bytes_make_a_parser_panic(body in proptest::collection::vec(any::<u8>(), 0..200), json in "[\\[\\]{}:,\"a-z0-9 ]{0,80}") {
            for bytes in [body.as_slice(), json.as_bytes()] {
                let _ = parse_quota_answer(bytes);
                let _ = parse_batch_answer(bytes, Uuid::from_u128(7), 3);
                let _ = parse_commands(bytes);
                let _ = parse_key_set(bytes);
            }
        }
    }
}
