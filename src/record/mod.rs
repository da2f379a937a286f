//! Records: their kinds, bytes and identity.
//!
//! Everything here is pure: no clock, no I/O. A producer's bytes come in, a [`Record`] that will be
//! sent unchanged on every attempt comes out, or a [`Rejection`] that says what is wrong with them.
//!
//! ```text
//!  bytes ─▶ accept ─▶ json: tokens ─▶ schema: which field is which, number and time: is it right?
//!                        └─▶ usage, quota: the producer's bytes + what is added    ─▶ Record
//!                        └─▶ lifecycle: exactly the contract's fields, written anew ─▶ Record
//! ```
//!
//! Decisions that the contract leaves open:
//!
//! * Of a known field given twice the last value counts, as it does in Python and JavaScript.
//! * `null` is absence where a field is optional, and a wrong type everywhere else.
//! * Half a surrogate pair (`"\ud800"`) is JSON but no text: an identifier with one is rejected, in fields
//!   that are passed on unread it stays as it is.
//! * A leap second is accepted, and lies between the seconds around it.
//! * A lifecycle event's usage summary is sent with the fields that the contract names, and no others.

use std::borrow::Cow;

use uuid::Uuid;

mod accept;
mod json;
mod kind;
mod layout;
mod lifecycle;
mod number;
mod quota;
mod schema;
mod time;
mod trace;
mod usage;

#[cfg(test)]
mod tests;

pub(crate) use json::MAX_DEPTH;

pub use accept::{Acceptance, Acceptor, Enrichment, UnknownFields};
pub use kind::{Kind, Queue};
pub use layout::{BadLayout, Layout, Original, Span};
pub use time::Timestamp;

/// The namespace of idempotency keys: the `UUIDv5` of `dataplane-agent` in the DNS namespace. Fixed for ever,
/// since a record must have the same key after every update.
pub const KEY_NAMESPACE: Uuid = Uuid::from_u128(0x7a1b_3741_a713_569c_ae9b_a8cf_bb86_aeab);

/// A record that was accepted: the body that is sent on every attempt, and what is needed to send it.
///
/// One allocation holds everything; the rest are offsets into it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    kind: Kind,
    accepted_at: Timestamp,
    data: Box<[u8]>,
    layout: Layout,
}

impl Record {
    /// Puts a record together again from what [`into_parts`](Record::into_parts) gave. Checks the layout
    /// against the data, so that damaged storage is an error here and a panic nowhere.
    pub fn from_parts(
        kind: Kind,
        accepted_at: Timestamp,
        data: Box<[u8]>,
        layout: Layout,
    ) -> Result<Self, BadLayout> {
        layout.validate(&data)?;
        Ok(Self { kind, accepted_at, data, layout })
    }

    /// Takes it apart: kind, time of acceptance, buffer, and where things lie in the buffer.
    pub fn into_parts(self) -> (Kind, Timestamp, Box<[u8]>, Layout) {
        (self.kind, self.accepted_at, self.data, self.layout)
    }

    /// What it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// When this agent accepted it.
    pub fn accepted_at(&self) -> Timestamp {
        self.accepted_at
    }

    /// The body of its request: the same bytes on every attempt.
    pub fn body(&self) -> &[u8] {
        &self.data[..self.layout.body as usize]
    }

    /// Its `api_session_id`, unescaped.
    pub fn session(&self) -> &str {
        self.text(self.layout.session)
    }

    /// Its `transaction_id`, unescaped.
    pub fn transaction(&self) -> &str {
        self.text(self.layout.transaction)
    }

    /// Exactly the bytes that the producer pushed.
    pub fn original(&self) -> Cow<'_, [u8]> {
        match self.layout.original {
            Original::Prefix(len) => Cow::Owned([&self.data[..len as usize], b"}"].concat()),
            Original::Kept(span) => Cow::Borrowed(span.of(&self.data).unwrap_or_default()),
        }
    }

    /// The producer's `correlation_id`, if it sent one that can be a header value.
    pub fn correlation(&self) -> Option<&str> {
        self.layout.correlation.map(|span| self.text(span))
    }

    /// What its request and its log lines carry: the producer's `correlation_id`, or else its idempotency key.
    pub fn correlation_id(&self) -> Cow<'_, str> {
        self.correlation().map_or_else(|| self.key().to_string().into(), Cow::Borrowed)
    }

    /// The producer's W3C `traceparent`, if it sent a well-formed one.
    pub fn traceparent(&self) -> Option<&str> {
        self.layout.traceparent.map(|span| self.text(span))
    }

    /// Its idempotency key: the same for the same record for ever, everywhere. The `UUIDv5` of
    /// `<kind's name>:<transaction_id>` in the [`KEY_NAMESPACE`].
    pub fn key(&self) -> Uuid {
        let name = [self.kind.name(), ":", self.transaction()].concat();
        Uuid::new_v5(&KEY_NAMESPACE, name.as_bytes())
    }

    /// The buffer that holds everything.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// Where things lie in the buffer.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// A string in the buffer. Both ways to make a record see to it that it is there.
    fn text(&self, span: Span) -> &str {
        span.text(&self.data).unwrap_or_default()
    }
}

/// Why a message is no record, in an operator's words, without the customer's data.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct Rejection {
    /// What the message would have been, as far as that could be told.
    pub kind: Kind,
    /// The field and what is wrong with it, or what is wrong with the message as a whole.
    pub detail: String,
}
