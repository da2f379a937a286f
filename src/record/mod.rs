//! What a record is: its kinds, its bytes, its identity.
//!
//! Everything here is pure: no clock, no I/O. A producer's bytes come in, a [`Record`] that will be
//! sent unchanged on every attempt comes out, or a [`Rejection`] that says what is wrong with them.

use uuid::Uuid;

/// One of the three input queues. Its [`label`](Queue::label) is the `kind` of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Queue {
    /// Usage records: customers' bills.
    Usage,
    /// Session started and completed.
    Lifecycle,
    /// Quota refresh requests.
    Quota,
}

impl Queue {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 3] = [Self::Usage, Self::Lifecycle, Self::Quota];

    /// The name in metrics, logs and the command line.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Usage => "usage",
            Self::Lifecycle => "lifecycle",
            Self::Quota => "quota",
        }
    }
}

/// What a record is. The numbers are persisted: never renumber.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    /// A usage record.
    Usage = 1,
    /// A session-started event.
    Started = 2,
    /// A session-completed event.
    Completed = 3,
    /// A quota refresh request.
    Quota = 4,
    /// A lifecycle message whose event type could not be told. Only ever a dead letter.
    Lifecycle = 5,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Usage, Self::Started, Self::Completed, Self::Quota, Self::Lifecycle];

    /// The kind with this persisted number.
    pub const fn from_u8(n: u8) -> Option<Self> {
        match n {
            1 => Some(Self::Usage),
            2 => Some(Self::Started),
            3 => Some(Self::Completed),
            4 => Some(Self::Quota),
            5 => Some(Self::Lifecycle),
            _ => None,
        }
    }

    /// The queue that such a record comes from.
    pub const fn queue(self) -> Queue {
        match self {
            Self::Usage => Queue::Usage,
            Self::Started | Self::Completed | Self::Lifecycle => Queue::Lifecycle,
            Self::Quota => Queue::Quota,
        }
    }

    /// The name that goes into the idempotency key. Fixed for ever.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Usage => "usage_record",
            Self::Started => "session_started",
            Self::Completed => "session_completed",
            Self::Quota => "quota_refresh",
            Self::Lifecycle => "session_lifecycle",
        }
    }
}

/// Microseconds since the Unix epoch, UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(pub i64);

/// Where a part of a record lies in its buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Span {
    /// Offset of the first byte.
    pub start: u32,
    /// Length in bytes.
    pub len: u32,
}

/// Where the parts of a record lie in its one buffer. The body starts at 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Length of the body: what is sent.
    pub body: u32,
    /// `api_session_id`, unescaped. Within the body where it stands there verbatim.
    pub session: Span,
    /// `transaction_id`, unescaped. Likewise.
    pub transaction: Span,
    /// The producer's own bytes.
    pub original: Original,
    /// The producer's `correlation_id`, if it sent one that can be a header value.
    pub correlation: Option<Span>,
    /// The producer's W3C `traceparent`, if it sent a well-formed one.
    pub traceparent: Option<Span>,
}

/// How the producer's own bytes are found again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Original {
    /// The first so many bytes of the body, and a closing brace.
    Prefix(u32),
    /// Kept beside the body, which was written anew.
    Kept(Span),
}

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

    /// Its idempotency key: the same for the same record for ever, everywhere.
    pub fn key(&self) -> Uuid {
        todo!()
    }
}

/// Why a message is no record, in an operator's words, without the customer's data.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Rejection(pub String);
