//! A message that is accepted, before it is a record: its body, and where its parts are.

use super::json::{self, Token};
use super::layout::{Layout, Original, Span};
use super::schema::{FieldValues, Schema, Values};
use super::{Kind, Record, Timestamp, trace};

/// Accepts the messages of one round, which share one time of acceptance.
#[derive(Clone, Debug)]
pub struct Acceptance {
    pub(super) accepted_at: Timestamp,
    pub(super) drop_unknown: bool,
    pub(super) max_bytes: usize,
    /// The time of acceptance, as JSON.
    pub(super) now: String,
    /// The end of a usage record's body.
    pub(super) enrichment: String,
}

impl Acceptance {
    /// The body of a message: it continues the producer's own bytes if possible, with `ending` after them.
    pub(super) fn forward<const N: usize>(
        &self,
        schema: &Schema<N>,
        text: &str,
        found: &FieldValues<'_, N>,
        values: &Values<'_, N>,
        ending: &str,
    ) -> Result<RecordBody, String> {
        let drop_unknown = self.drop_unknown;
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
    pub(super) fn seal(self, accepted_at: Timestamp, text: &str) -> Record {
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
