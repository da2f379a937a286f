//! The meaning of an answer: a pure, total function of request and answer (`docs/contract/answers.md`).
//!
//! Captive portals, proxies and load balancers answer too. Only answers the `ControlPlane` can have given settle or refuse a
//! record; in doubt the record is kept, because a repetition is recognisable and a loss is not.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;
use uuid::Uuid;

/// What an answer means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// 200, 201, 202 with a JSON object whose `success` is not `false`; 204.
    Delivered,
    /// 409 with a JSON object or without a body, and without `Retry-After`.
    Duplicate,
    /// 409 with `Retry-After`: the first attempt is still in progress.
    InProgress,
    /// 400, 413, 414, 415, 422, each without a body or with a JSON object (413: with any body).
    Refused,
    /// 404, 410.
    NotFound,
    /// 401, 403.
    Credentials,
    /// 408, 425, 429, 503.
    Overloaded,
    /// Other 5xx; 2xx with `success: false`; a refusal or a 409 whose body is a middlebox's page.
    Failing,
    /// 3xx, 1xx as the final answer, and every other 4xx.
    Misconfigured,
    /// 2xx with anything else (HTML, text, no body, cut-off JSON, a body longer than the limit), and every other 2xx.
    Foreign,
    /// It names another request than was asked, whatever its status.
    Mismatched,
}

impl Meaning {
    /// Whether a `ControlPlane` that accepts our credentials has answered this request.
    pub fn is_served(self) -> bool {
        matches!(self, Self::Delivered | Self::Duplicate | Self::InProgress | Self::Refused | Self::NotFound)
    }

    /// What is wrong with an answer of this meaning, as text that follows "answered 200".
    pub(crate) fn remark(self) -> &'static str {
        match self {
            Self::Foreign => ", but not by a ControlPlane: another service answers there",
            Self::Mismatched => ", but for another request",
            Self::InProgress => ": the first attempt is still in progress",
            _ => "",
        }
    }
}

/// The request's identifiers that an answer may name. An answer that names an identifier the request lacks is for another
/// request too.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asked<'a> {
    /// The `X-Correlation-ID` that was sent.
    pub correlation_id: &'a str,
    /// The record's transaction, in a request for one record.
    pub transaction_id: Option<&'a str>,
    /// Its session.
    pub api_session_id: Option<&'a str>,
    /// The idempotency key of a batch.
    pub batch: Option<Uuid>,
}

/// The parts of an answer that determine its meaning.
#[derive(Clone, Copy, Debug)]
pub struct Said<'a> {
    /// The HTTP status.
    pub status: u16,
    /// Whether there is a `Retry-After`, readable or not.
    pub has_retry_after: bool,
    /// Whether one of its `X-Correlation-ID`s differs from the one sent.
    pub has_foreign_id: bool,
    /// The decoded body, without a byte order mark.
    pub body: &'a [u8],
    /// Whether it was longer than the limit.
    pub truncated: bool,
}

/// What an answer means.
pub fn meaning(asked: &Asked<'_>, said: &Said<'_>) -> Meaning {
    by_body(asked, said, &ParsedBody::read(said))
}

/// The meaning, and whether the body names the request, in which case another request's answer would be detected.
pub(super) fn meaning_and_name(asked: &Asked<'_>, said: &Said<'_>) -> (Meaning, bool) {
    let body = ParsedBody::read(said);
    let is_named = matches!(&body, ParsedBody::Object(envelope) if envelope.names(asked));
    (by_body(asked, said, &body), is_named)
}

fn by_body(asked: &Asked<'_>, said: &Said<'_>, body: &ParsedBody<'_>) -> Meaning {
    if said.has_foreign_id || matches!(body, ParsedBody::Object(envelope) if envelope.is_for_another(asked)) {
        return Meaning::Mismatched;
    }
    let may_be_its_own = matches!(body, ParsedBody::None | ParsedBody::Object(_));
    match said.status {
        204 => Meaning::Delivered,
        200..=299 if matches!(body, ParsedBody::Object(envelope) if envelope.is_failure()) => {
            Meaning::Failing
        }
        200..=202 if matches!(body, ParsedBody::Object(_)) => Meaning::Delivered,
        200..=299 => Meaning::Foreign,
        409 if said.has_retry_after => Meaning::InProgress,
        409 if may_be_its_own => Meaning::Duplicate,
        413 => Meaning::Refused,
        400 | 414 | 415 | 422 if may_be_its_own => Meaning::Refused,
        404 | 410 => Meaning::NotFound,
        401 | 403 => Meaning::Credentials,
        408 | 425 | 429 | 503 => Meaning::Overloaded,
        // The first five, if the body is a middlebox's page.
        400 | 409 | 414 | 415 | 422 | 500..=599 => Meaning::Failing,
        _ => Meaning::Misconfigured,
    }
}

enum ParsedBody<'a> {
    None,
    Object(ParsedEnvelope<'a>),
    Other,
}

impl<'a> ParsedBody<'a> {
    fn read(said: &Said<'a>) -> Self {
        if said.body.is_empty() {
            return Self::None;
        }
        let text = std::str::from_utf8(said.body).ok().filter(|_| !said.truncated);
        text.and_then(ParsedEnvelope::read).map_or(Self::Other, Self::Object)
    }
}

/// The members of a JSON object that matter: those of the answer, and those of its `data`. An answer with a repeated member
/// is invalid.
#[derive(Deserialize)]
struct AnswerMembers<'a> {
    #[serde(borrow)]
    success: Option<&'a RawValue>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    #[serde(borrow)]
    transaction_id: Option<&'a RawValue>,
    #[serde(borrow)]
    api_session_id: Option<&'a RawValue>,
    #[serde(borrow)]
    batch: Option<&'a RawValue>,
}

impl<'a> AnswerMembers<'a> {
    /// `None` for anything but an object; serde would accept an array too.
    fn read(text: &'a str) -> Option<Self> {
        let is_object = text.trim_start_matches([' ', '\t', '\n', '\r']).starts_with('{');
        is_object.then(|| serde_json::from_str(text).ok()).flatten()
    }

    fn names_another(&self, asked: &Asked<'_>) -> bool {
        is_another(asked.transaction_id, self.transaction_id)
            || is_another(asked.api_session_id, self.api_session_id)
            || is_another_batch(asked.batch, self.batch)
    }
}

struct ParsedEnvelope<'a> {
    top: AnswerMembers<'a>,
    data: Option<AnswerMembers<'a>>,
}

impl<'a> ParsedEnvelope<'a> {
    fn read(text: &'a str) -> Option<Self> {
        let top = AnswerMembers::read(text)?;
        let data = match top.data {
            Some(data) if data.get().starts_with('{') => Some(AnswerMembers::read(data.get())?),
            _ => None,
        };
        Some(Self { top, data })
    }

    fn names(&self, asked: &Asked<'_>) -> bool {
        [Some(&self.top), self.data.as_ref()].into_iter().flatten().any(|members| {
            (asked.transaction_id.is_some() && members.transaction_id.is_some())
                || (asked.batch.is_some() && members.batch.is_some())
        })
    }

    fn is_failure(&self) -> bool {
        self.top.success.is_some_and(|success| success.get() == "false")
    }

    fn is_for_another(&self, asked: &Asked<'_>) -> bool {
        self.top.names_another(asked) || self.data.as_ref().is_some_and(|data| data.names_another(asked))
    }
}

/// The name in a value: a string's text or a number's digits. Null and the empty string name nothing.
fn name(value: Option<&RawValue>) -> Option<Cow<'_, str>> {
    let raw = value?.get();
    let text = if raw.starts_with('"') {
        serde_json::from_str(raw).map_or(Cow::Borrowed(raw), Cow::Owned)
    } else {
        Cow::Borrowed(raw)
    };
    Some(text).filter(|text: &Cow<'_, str>| !text.is_empty())
}

fn is_another(asked: Option<&str>, named: Option<&RawValue>) -> bool {
    name(named).is_some_and(|named| asked != Some(&named))
}

/// If the request was not a batch, a UUID still names one; any other value may mean something else.
fn is_another_batch(asked: Option<Uuid>, named: Option<&RawValue>) -> bool {
    let Some(named) = name(named) else { return false };
    match (Uuid::parse_str(&named), asked) {
        (Ok(named), asked) => asked != Some(named),
        (Err(_), asked) => asked.is_some(),
    }
}

/// Whether an answer's `X-Correlation-ID` differs from the one sent.
pub(super) fn is_another_correlation_id(asked: &str, named: &[u8]) -> bool {
    let (asked, named) = (asked.trim(), named.trim_ascii());
    let same_uuid = || match (Uuid::parse_str(asked), Uuid::try_parse_ascii(named)) {
        (Ok(asked), Ok(named)) => asked == named,
        _ => false,
    };
    !named.is_empty() && named != asked.as_bytes() && !same_uuid()
}

#[cfg(test)]
mod tests;
