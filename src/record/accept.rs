//! Turns a producer's message into a record, or says why it is invalid.

use super::json::{self, Token};
use super::layout::{Layout, Original, Span};
use super::schema::{FieldValues, Schema, Values};
use super::{Kind, Queue, Record, Rejection, Timestamp, lifecycle, quota, trace, usage};

/// Offsets into a record's buffer have 32 bits; the buffer holds up to twice the message, and a little more.
const LARGEST_RECORD: usize = 1 << 30;

/// The fields that this agent adds to every usage record, apart from the time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enrichment {
    /// `server_instance_id`: the server this agent runs beside (`SERVER_ID`).
    pub server_id: String,
    /// `api_server_region` (`SERVER_REGION`).
    pub region: String,
    /// `agent_version` (`APP_VERSION`).
    pub version: String,
}

/// How to treat fields that the contract does not define (`UNKNOWN_FIELDS`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum UnknownFields {
    /// Forward them unchanged.
    Forward,
    /// Drop them, like the previous agent.
    Drop,
}

/// Accepts messages. Built once from the configuration.
#[derive(Clone, Debug)]
pub struct Acceptor {
    /// The members added to a usage record, up to the time and after it.
    before_time: String,
    after_time: String,
    drop_unknown: bool,
    max_bytes: usize,
}

impl Acceptor {
    /// `record_max_bytes` is the longest message accepted (`RECORD_MAX_BYTES`), 1 GiB at most.
    pub fn new(enrichment: &Enrichment, unknown_fields: UnknownFields, record_max_bytes: usize) -> Self {
        let json = |text: &str| serde_json::Value::from(text).to_string();
        let [server, region, time, version] = usage::ENRICHMENT;
        Self {
            before_time: format!(
                r#","{server}":{},"{region}":{},"{time}":"#,
                json(&enrichment.server_id),
                json(&enrichment.region)
            ),
            after_time: format!(r#","{version}":{}}}"#, json(&enrichment.version)),
            drop_unknown: unknown_fields == UnknownFields::Drop,
            max_bytes: record_max_bytes.min(LARGEST_RECORD),
        }
    }

    /// The longest message accepted.
    pub fn max_bytes(&self) -> usize {
        self.max_bytes
    }

    /// Prepares to accept messages taken at this time.
    pub fn at(&self, accepted_at: Timestamp) -> Acceptance<'_> {
        let now = format!("\"{}\"", accepted_at.to_rfc3339());
        let enrichment = format!("{}{now}{}", self.before_time, self.after_time);
        Acceptance { acceptor: self, accepted_at, now, enrichment }
    }
}

/// Accepts the messages of one round, which share one time of acceptance.
#[derive(Clone, Debug)]
pub struct Acceptance<'a> {
    acceptor: &'a Acceptor,
    accepted_at: Timestamp,
    /// The time of acceptance, as JSON.
    pub(super) now: String,
    /// The end of a usage record's body.
    pub(super) enrichment: String,
}

impl Acceptance<'_> {
    /// Turns a message from a queue into a record. Never panics, and takes time proportional to the message's length,
    /// whatever its content.
    pub fn accept(&self, queue: Queue, raw: &[u8]) -> Result<Record, Rejection> {
        let kind = match queue {
            Queue::Usage => Kind::Usage,
            Queue::Lifecycle => Kind::Lifecycle,
            Queue::Quota => Kind::Quota,
        };
        let text = self.text(raw).map_err(|detail| Rejection { kind, detail })?;
        let draft = match queue {
            Queue::Usage => usage::draft(self, text).map_err(|detail| Rejection { kind, detail })?,
            Queue::Quota => quota::draft(self, text).map_err(|detail| Rejection { kind, detail })?,
            Queue::Lifecycle => lifecycle::draft(self, text)?,
        };
        Ok(draft.seal(self.accepted_at, text))
    }

    fn text<'a>(&self, raw: &'a [u8]) -> Result<&'a str, String> {
        let limit = self.acceptor.max_bytes;
        if raw.len() > limit {
            return Err(format!("too large: {} bytes, the limit is {limit}", raw.len()));
        }
        let text = std::str::from_utf8(raw)
            .map_err(|error| format!("not UTF-8: invalid byte at {}", error.valid_up_to()))?;
        if text.starts_with('\u{feff}') {
            return Err("not JSON: starts with a byte order mark".to_owned());
        }
        Ok(text)
    }

    /// The body of a message: it continues the producer's own bytes if possible, with `ending` after them.
    pub(super) fn forward<const N: usize>(
        &self,
        schema: &Schema<N>,
        text: &str,
        found: &FieldValues<'_, N>,
        values: &Values<'_, N>,
        ending: &str,
    ) -> Result<RecordBody, String> {
        let drop_unknown = self.acceptor.drop_unknown;
        let object = text.trim_matches(json::SPACE);
        let open = &object[..object.len() - 1];
        // `,"name":value`
        let defaults: usize =
            schema.defaults(found, values).map(|(name, value)| name.len() + value.len() + 4).sum();
        let stands = found.stands(values, drop_unknown);
        let verbatim = stands && object.len() == text.len();
        // Exact for messages sent verbatim, so the buffer neither grows nor shrinks.
        let beside = if verbatim { 0 } else { text.len() };
        let mut bytes = Vec::with_capacity(open.len() + defaults + ending.len() + beside);
        if stands {
            bytes.extend_from_slice(open.as_bytes());
        } else {
            schema
                .rewrite(text, found, values, drop_unknown, &mut bytes)
                .map_err(|error| error.to_string())?;
        }
        for (name, value) in schema.defaults(found, values) {
            json::write_member(&mut bytes, name, value);
        }
        bytes.extend_from_slice(ending.as_bytes());
        Ok(RecordBody { bytes, verbatim: verbatim.then_some(open.len()) })
    }
}

/// The body to be sent.
pub(super) struct RecordBody {
    pub(super) bytes: Vec<u8>,
    /// The number of bytes shared with the message, if that is everything except the closing brace.
    pub(super) verbatim: Option<usize>,
}

/// An accepted message before it is assembled in one buffer.
pub(super) struct Draft<'a> {
    pub(super) kind: Kind,
    pub(super) body: RecordBody,
    pub(super) session: Token<'a>,
    pub(super) transaction: Token<'a>,
    pub(super) correlation: Option<Token<'a>>,
    pub(super) traceparent: Option<Token<'a>>,
}

impl Draft<'_> {
    fn seal(self, accepted_at: Timestamp, text: &str) -> Record {
        let RecordBody { bytes: mut data, verbatim } = self.body;
        let body = data.len() as u32;
        // The offset of the message's own bytes in the buffer, where strings are found.
        let (original, base) = match verbatim {
            Some(len) => (Original::Prefix(len as u32), 0),
            None => (Original::Kept(Span { start: body, len: text.len() as u32 }), data.len()),
        };
        if verbatim.is_none() {
            data.extend_from_slice(text.as_bytes());
        }
        let session = place(&mut data, base, self.session, |_| true).unwrap_or_default();
        let transaction = place(&mut data, base, self.transaction, |_| true).unwrap_or_default();
        let correlation =
            self.correlation.and_then(|token| place(&mut data, base, token, trace::is_correlation_id));
        let traceparent =
            self.traceparent.and_then(|token| place(&mut data, base, token, trace::is_traceparent));
        let layout = Layout { body, session, transaction, original, correlation, traceparent };
        Record { kind: self.kind, accepted_at, data: data.into_boxed_slice(), layout }
    }
}

/// The position of a token's string in the buffer, if it is a string of the wanted form. A string with escapes is appended
/// to the buffer, unescaped.
fn place(data: &mut Vec<u8>, base: usize, token: Token<'_>, wanted: fn(&str) -> bool) -> Option<Span> {
    let text = token.string().ok().filter(|text| wanted(text))?;
    let start = if token.escaped {
        data.extend_from_slice(text.as_bytes());
        data.len() - text.len()
    } else {
        base + token.at + 1
    };
    Some(Span { start: start as u32, len: text.len() as u32 })
}
