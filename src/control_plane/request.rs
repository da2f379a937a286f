//! The requests that a client sends: what is delivered, and how.

use bytes::Bytes;
use hyper::Method;
use hyper::header::HeaderValue;
use uuid::Uuid;

use super::meaning::Asked;
use crate::record::Kind;

/// Maximum bytes kept of an answer; a dead letter keeps 1 KiB of it, a quota answer has a few hundred bytes.
const ANSWER_MAX_BYTES: usize = 256 << 10;

/// Maximum size of a batch's answer: this plus [`BATCH_ANSWER_BYTES_PER_RECORD`] for each record.
const BATCH_ANSWER_MAX_BYTES: usize = 1 << 20;
const BATCH_ANSWER_BYTES_PER_RECORD: usize = 1 << 10;

/// One record to deliver.
#[derive(Clone, Debug)]
pub struct Delivery<'a> {
    /// Its kind, which determines the endpoint.
    pub kind: Kind,
    /// Its session.
    pub session_id: &'a str,
    /// Its transaction: an answer that names another one is for another request.
    pub transaction_id: &'a str,
    /// The request's body, sent unchanged.
    pub body: Bytes,
    /// Its idempotency key.
    pub key: Uuid,
    /// Its `X-Correlation-ID`, replaced by the key if it is not a valid header value.
    pub correlation_id: &'a str,
    /// Its W3C `traceparent`.
    pub traceparent: Option<&'a str>,
    /// The connection to use.
    pub connection: ConnectionChoice,
}

/// Records to deliver in one request.
#[derive(Clone, Debug)]
pub struct BatchRequest<'a> {
    /// The request's body, `{"sessions":[…]}`, perhaps compressed.
    pub body: Bytes,
    /// The encoding of the body.
    pub encoding: Encoding,
    /// The number of records; it extends the limit of the answer.
    pub records: usize,
    /// The idempotency key, derived from those of the records.
    pub key: Uuid,
    /// The request's `X-Correlation-ID`.
    pub correlation_id: &'a str,
    /// The connection to use.
    pub connection: ConnectionChoice,
}

/// The encoding of a request's body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encoding {
    /// Not at all.
    #[default]
    Identity,
    /// `Content-Encoding: gzip`.
    Gzip,
    /// `Content-Encoding: zstd`.
    Zstd,
}

impl Encoding {
    /// Its name in `Content-Encoding`.
    pub(super) const fn header(self) -> Option<HeaderValue> {
        match self {
            Self::Identity => None,
            Self::Gzip => Some(HeaderValue::from_static("gzip")),
            Self::Zstd => Some(HeaderValue::from_static("zstd")),
        }
    }
}

/// The connection that a request uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ConnectionChoice {
    /// Any free connection.
    #[default]
    Any,
    /// A new one, to a freshly resolved address: for probes of a link that is down, and to confirm a refusal.
    New,
}

/// Whether a request may be delayed by others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// Subject to the bandwidth limit.
    Backlog,
    /// Never delayed; its bytes are deducted from the backlog's.
    Urgent,
}

/// A request without headers.
pub(super) struct Outgoing<'a> {
    /// The endpoint's name in metrics.
    pub(super) endpoint: &'static str,
    pub(super) method: Method,
    pub(super) url: String,
    pub(super) body: Option<Bytes>,
    pub(super) encoding: Encoding,
    pub(super) key: Option<Uuid>,
    /// The identifiers that an answer may name. A correlation id that is not a valid header value is replaced by the key.
    pub(super) asked: Asked<'a>,
    pub(super) traceparent: Option<&'a str>,
    pub(super) answer_max_bytes: usize,
    pub(super) connection: ConnectionChoice,
    pub(super) priority: Priority,
}

impl<'a> Outgoing<'a> {
    pub(super) fn record(url: String, delivery: Delivery<'a>) -> Self {
        Self {
            endpoint: match delivery.kind {
                Kind::Usage => "usage",
                Kind::Started => "started",
                Kind::Completed | Kind::Lifecycle => "completed",
                Kind::Quota => "refresh",
            },
            method: Method::POST,
            url,
            body: Some(delivery.body),
            encoding: Encoding::Identity,
            key: Some(delivery.key),
            asked: Asked {
                correlation_id: delivery.correlation_id,
                transaction_id: Some(delivery.transaction_id),
                api_session_id: Some(delivery.session_id),
                batch: None,
            },
            traceparent: delivery.traceparent,
            answer_max_bytes: ANSWER_MAX_BYTES,
            connection: delivery.connection,
            // A customer waits for the quota.
            priority: if delivery.kind == Kind::Quota { Priority::Urgent } else { Priority::Backlog },
        }
    }

    pub(super) fn batch(url: String, batch: BatchRequest<'a>) -> Self {
        let per_record = batch.records.saturating_mul(BATCH_ANSWER_BYTES_PER_RECORD);
        Self {
            endpoint: "batch",
            method: Method::POST,
            url,
            body: Some(batch.body),
            encoding: batch.encoding,
            key: Some(batch.key),
            asked: Asked { correlation_id: batch.correlation_id, batch: Some(batch.key), ..Asked::default() },
            traceparent: None,
            answer_max_bytes: BATCH_ANSWER_MAX_BYTES.saturating_add(per_record),
            connection: batch.connection,
            priority: Priority::Backlog,
        }
    }
}
