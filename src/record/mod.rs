//! Records: their kinds, bytes and identity.
//!
//! Everything here is pure: no clock, no I/O. A producer's bytes become a [`Record`], which is sent unchanged on every
//! attempt, or a [`Rejection`] that says what is wrong with them.
//!
//! ```text
//!  bytes ─▶ accept ─▶ json: tokens ─▶ schema: fields; number and time: values
//!                        └─▶ usage, quota: the producer's bytes and added fields     ─▶ Record
//!                        └─▶ lifecycle: rewritten with exactly the contract's fields ─▶ Record
//! ```
//!
//! Decisions that the contract leaves open:
//!
//! * If a known field is given twice, the last value counts, as in Python and JavaScript.
//! * `null` means absence if a field is optional, and is a wrong type otherwise.
//! * Half a surrogate pair (`"\ud800"`) is JSON but not text: an identifier containing one is rejected; in fields
//!   forwarded unread it stays as it is.
//! * A leap second is accepted, and lies between its neighbouring seconds.
//! * A lifecycle event's usage summary is sent with the contract's fields only.

use std::borrow::Cow;

use uuid::Uuid;

mod accept;
mod draft;
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

pub use accept::{Acceptor, Enrichment, UnknownFields};
pub use draft::Acceptance;
pub use kind::{Kind, Queue};
pub use layout::{BadLayout, Layout, Original, Span};
pub use time::Timestamp;

/// The namespace of idempotency keys: the `UUIDv5` of `dataplane-agent` in the DNS namespace. It must never change, because
/// a record must keep its key across updates.
pub const KEY_NAMESPACE: Uuid = Uuid::from_u128(0x7a1b_3741_a713_569c_ae9b_a8cf_bb86_aeab);

/// An accepted record: the body to send on every attempt, and what is needed to send it.
///
/// One allocation holds everything; the parts are offsets into it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    kind: Kind,
    accepted_at: Timestamp,
    data: Box<[u8]>,
    layout: Layout,
}

impl Record {
    /// Restores a record from the result of [`into_parts`](Record::into_parts). Checks the layout against the data: damaged
    /// storage causes an error here and a panic nowhere.
    pub fn from_parts(
        kind: Kind,
        accepted_at: Timestamp,
        data: Box<[u8]>,
        layout: Layout,
    ) -> Result<Self, BadLayout> {
        layout.validate(&data)?;
        Ok(Self { kind, accepted_at, data, layout })
    }

    /// Takes the record apart: kind, time of acceptance, buffer, and layout of the buffer.
    pub fn into_parts(self) -> (Kind, Timestamp, Box<[u8]>, Layout) {
        (self.kind, self.accepted_at, self.data, self.layout)
    }

    /// Its kind.
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

    /// The exact bytes that the producer pushed.
    pub fn original(&self) -> Cow<'_, [u8]> {
        match self.layout.original {
            Original::Prefix(len) => Cow::Owned([&self.data[..len as usize], b"}"].concat()),
            Original::Kept(span) => Cow::Borrowed(span.of(&self.data).unwrap_or_default()),
        }
    }

    /// The producer's `correlation_id`, if it is valid as a header.
    pub fn correlation(&self) -> Option<&str> {
        self.layout.correlation.map(|span| self.text(span))
    }

    /// The ID in its requests and log lines: the producer's `correlation_id`, or else the idempotency key.
    pub fn correlation_id(&self) -> Cow<'_, str> {
        self.correlation().map_or_else(|| self.key().to_string().into(), Cow::Borrowed)
    }

    /// The producer's W3C `traceparent`, if it is well-formed.
    pub fn traceparent(&self) -> Option<&str> {
        self.layout.traceparent.map(|span| self.text(span))
    }

    /// Its idempotency key, the same for this record always and everywhere: the `UUIDv5` of `<kind's
    /// name>:<transaction_id>` in the [`KEY_NAMESPACE`].
    pub fn key(&self) -> Uuid {
        let name = [self.kind.name(), ":", self.transaction()].concat();
        Uuid::new_v5(&KEY_NAMESPACE, name.as_bytes())
    }

    /// The buffer.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// The positions of the parts in the buffer.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// A string in the buffer. Both constructors ensure that it exists.
    fn text(&self, span: Span) -> &str {
        span.text(&self.data).unwrap_or_default()
    }
}

/// Why a message is not a valid record, in terms an operator understands, without customers' data.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct Rejection {
    /// The kind that the message would have had, as far as known.
    pub kind: Kind,
    /// The field and what is wrong with it, or what is wrong with the message as a whole.
    pub detail: String,
}
