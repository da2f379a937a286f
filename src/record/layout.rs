//! The positions of a record's parts in its buffer, and their validation.
//!
//! Layouts are persisted as they are, in the outbox (bincode) and in exports (JSON): fields and variants keep their order and
//! names.

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

use super::trace;

/// The position of a part in its record's buffer. In JSON: `[start, len]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Encode, Decode, Serialize, Deserialize)]
#[serde(from = "(u32, u32)", into = "(u32, u32)")]
pub struct Span {
    /// Offset of the first byte.
    pub start: u32,
    /// Length in bytes.
    pub len: u32,
}

impl From<(u32, u32)> for Span {
    fn from((start, len): (u32, u32)) -> Self {
        Self { start, len }
    }
}

impl From<Span> for (u32, u32) {
    fn from(Span { start, len }: Span) -> Self {
        (start, len)
    }
}

impl Span {
    /// Its bytes, if it lies within the buffer.
    pub(super) fn of(self, data: &[u8]) -> Option<&[u8]> {
        data.get(self.start as usize..)?.get(..self.len as usize)
    }

    /// Its text, if it lies within the buffer and is text.
    pub(super) fn text(self, data: &[u8]) -> Option<&str> {
        std::str::from_utf8(self.of(data)?).ok()
    }
}

/// The positions of a record's parts in its buffer. The body starts at 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub struct Layout {
    /// Length of the body.
    pub body: u32,
    /// `api_session_id`, unescaped. If it appears verbatim in the producer's own bytes, it lies there: within the body,
    /// unless the record was rewritten.
    pub session: Span,
    /// `transaction_id`, unescaped, in the same way.
    pub transaction: Span,
    /// The producer's own bytes.
    pub original: Original,
    /// The producer's `correlation_id`, if it is valid as a header.
    pub correlation: Option<Span>,
    /// The producer's W3C `traceparent`, if it is well-formed.
    pub traceparent: Option<Span>,
}

/// How to recover the producer's own bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Original {
    /// The first bytes of the body, this many, and a closing brace.
    Prefix(u32),
    /// Stored beside the rewritten body.
    Kept(Span),
}

/// A layout that does not fit its buffer: the storage it comes from is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the record's {0} is not at the position its layout gives")]
pub struct BadLayout(pub &'static str);

impl Layout {
    /// Checks everything that the record's accessors rely on.
    pub(super) fn validate(&self, data: &[u8]) -> Result<(), BadLayout> {
        let ensure = |holds: bool, part| if holds { Ok(()) } else { Err(BadLayout(part)) };
        let noticed = |span: Option<Span>, is_valid: fn(&str) -> bool| {
            span.is_none_or(|span| span.text(data).is_some_and(is_valid))
        };
        ensure(self.body as usize <= data.len(), "body")?;
        ensure(self.session.text(data).is_some(), "session")?;
        ensure(self.transaction.text(data).is_some(), "transaction")?;
        match self.original {
            Original::Prefix(len) => ensure(len <= self.body, "original")?,
            Original::Kept(span) => ensure(span.of(data).is_some(), "original")?,
        }
        ensure(noticed(self.correlation, trace::is_correlation_id), "correlation id")?;
        ensure(noticed(self.traceparent, trace::is_traceparent), "traceparent")
    }
}
