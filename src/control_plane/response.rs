//! The answer to a request: what it says, and what becomes of its connection.

use std::borrow::Cow;
use std::fmt;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use hyper::header::{
    ACCEPT_ENCODING, CONTENT_ENCODING, DATE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER,
};

use super::accepts::Accepts;
use super::answers::knows_no_session;
use super::decode::decode;
use super::failure::Failure;
use super::meaning::{Asked, Meaning, Said, is_another_correlation_id, meaning_and_name};
use super::retry_after::retry_after as retry_after_of;
use super::transport::{Inbound, Opening};

pub(super) static CORRELATION_ID: HeaderName = HeaderName::from_static("x-correlation-id");

/// The result of one attempt.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The answer, whatever its status, or the failure.
    pub result: Result<Response, Failure>,
    /// From the start to the last byte read.
    pub elapsed: Duration,
    /// Time until the kernel had taken the request's last byte; zero if unknown.
    pub upload: Duration,
    /// The part of that time until there was a connection.
    pub opening: Opening,
    /// The request's bytes as sent, headers and body.
    pub wire_bytes: u64,
}

/// The answer.
#[derive(Clone, PartialEq, Eq)]
pub struct Response {
    /// The HTTP status, including 3xx: redirects are not followed.
    pub status: u16,
    /// Its `Retry-After`, at most an hour.
    pub retry_after: Option<Duration>,
    /// What it means.
    pub meaning: Meaning,
    /// The decoded body as far as it was read, without a byte order mark.
    pub body: Bytes,
    /// Whether it was longer than the limit.
    pub truncated: bool,
    /// The request encodings that the peer accepts, if it says so.
    pub accepts: Option<Accepts>,
    /// Its headers, unchanged.
    pub headers: HeaderMap,
}

impl fmt::Debug for Response {
    // An answer may quote its record; bodies are never logged.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Response")
            .field("status", &self.status)
            .field("meaning", &self.meaning)
            .field("retry_after", &self.retry_after)
            .field("body_bytes", &self.body.len())
            .field("truncated", &self.truncated)
            .field("accepts", &self.accepts)
            .finish_non_exhaustive()
    }
}

impl Answer {
    /// How the attempt ended, for metrics: the status of the `ControlPlane`'s own answer, or what came in its place. Only
    /// what it did accept counts as 2xx or 409.
    pub fn code(&self) -> Cow<'static, str> {
        match &self.result {
            Ok(Response { meaning: Meaning::Foreign, .. }) => "foreign_answer".into(),
            Ok(Response { meaning: Meaning::Mismatched, .. }) => "mismatched_answer".into(),
            Ok(Response { meaning: Meaning::Failing, status: 200..=299 | 409, .. }) => "not_accepted".into(),
            Ok(response) => response.status.to_string().into(),
            Err(failure) => failure.label().into(),
        }
    }

    /// Nothing was sent.
    pub(super) fn unsent(failure: Failure) -> Self {
        Self {
            result: Err(failure),
            elapsed: Duration::ZERO,
            upload: Duration::ZERO,
            opening: Opening::default(),
            wire_bytes: 0,
        }
    }
}

impl Response {
    /// Whether a healthy `ControlPlane` that accepts our credentials answered, even if only with 429.
    pub(super) fn is_served(&self) -> bool {
        self.meaning.is_served() || self.meaning == Meaning::Overloaded && self.status < 500
    }

    /// The answer for callers, and its `Date`. The connection is returned to the pool, unless the answer is for another
    /// request or reports an unknown session or route: a backend behind another connection may know it.
    pub(super) fn read(
        asked: &Asked<'_>,
        inbound: Inbound,
        max: usize,
        answered: SystemTime,
    ) -> (Self, Option<SystemTime>) {
        let Inbound { status, headers, body, truncated, checkout } = inbound;
        let values = |name: &HeaderName| headers.get_all(name).iter().map(HeaderValue::as_bytes);
        let (body, truncated) = decode(values(&CONTENT_ENCODING), body, truncated, max);
        let mut ids = values(&CORRELATION_ID);
        let has_foreign_id = ids.any(|id| is_another_correlation_id(asked.correlation_id, id));
        let said = Said {
            status,
            has_retry_after: headers.contains_key(RETRY_AFTER),
            has_foreign_id,
            body: &body,
            truncated,
        };
        let (meaning, is_named) = meaning_and_name(asked, &said);
        let date = http_date(&headers);
        let retry_after = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        let retry_after = retry_after.and_then(|value| retry_after_of(value, date, answered));
        let accepts = Accepts::read(values(&ACCEPT_ENCODING));
        let is_named = is_named || values(&CORRELATION_ID).any(|id| !id.trim_ascii().is_empty());
        let response = Self { status, retry_after, meaning, body, truncated, accepts, headers };
        let is_unknown = match meaning {
            Meaning::NotFound => true,
            Meaning::Delivered => asked.batch.is_some() && knows_no_session(&response.body),
            _ => false,
        };
        if let Some(checkout) = checkout.filter(|_| meaning != Meaning::Mismatched) {
            if is_unknown {
                checkout.close();
            } else {
                checkout.give_back(is_named, response.is_served());
            }
        }
        (response, date)
    }
}

fn http_date(headers: &HeaderMap) -> Option<SystemTime> {
    httpdate::parse_http_date(headers.get(DATE)?.to_str().ok()?).ok()
}
