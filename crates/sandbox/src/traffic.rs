//! The traffic, whatever its outcome: requests, answers, headers, bytes.

use std::collections::BTreeMap;

use axum::http::{HeaderMap, Method, StatusCode, header};
use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Serialize, Serializer};

use super::encoding::Encoding;
use super::headers::{API_KEY, CORRELATION_ID, IDEMPOTENCY_KEY};

/// The routes of a `ControlPlane`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Endpoint {
    Usage,
    Batch,
    Started,
    Completed,
    Refresh,
    Register,
    Heartbeat,
    Shutdown,
    Commands,
    CommandResults,
    PublicKeys,
    Health,
    /// Any other path.
    Unknown,
}

/// The outcome of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Outcome {
    /// With this status.
    Answered(StatusCode),
    /// The request was processed, but the connection was closed instead of an answer.
    LostAnswer,
    /// The connection was closed and nothing was processed.
    Reset,
    /// The request was left unanswered until the client disconnected.
    Hung,
    /// The client disconnected, or was cut off, before the answer.
    Abandoned,
}

impl Outcome {
    fn label(self) -> String {
        match self {
            Self::Answered(status) => status.as_u16().to_string(),
            Self::LostAnswer => "lost_answer".to_owned(),
            Self::Reset => "reset".to_owned(),
            Self::Hung => "hang".to_owned(),
            Self::Abandoned => "abandoned".to_owned(),
        }
    }
}

/// Counters of everything that arrived.
#[derive(Default)]
pub(super) struct Traffic {
    ended: BTreeMap<(Endpoint, Outcome), u64>,
    seen: Seen,
}

/// The counters shown unchanged.
#[derive(Clone, Default, Serialize)]
struct Seen {
    connections: u64,
    in_flight: u64,
    max_in_flight: u64,
    /// As sent, before decompression.
    bytes: u64,
    gzip_bodies: u64,
    zstd_bodies: u64,
    batches: u64,
    largest_batch: usize,
    #[serde(serialize_with = "rfc3339")]
    first_at: Option<DateTime<Utc>>,
    #[serde(serialize_with = "rfc3339")]
    last_at: Option<DateTime<Utc>>,
    first_user_agent: Option<String>,
    last_user_agent: Option<String>,
    missing: Missing,
}

/// Requests that lack a required header.
#[derive(Clone, Default, Serialize)]
struct Missing {
    idempotency_key: u64,
    correlation_id: u64,
    credentials: u64,
}

impl Traffic {
    pub(super) fn connected(&mut self) {
        self.seen.connections += 1;
    }

    /// Counts a request whose head has arrived.
    pub(super) fn begin(&mut self, method: &Method, headers: &HeaderMap) {
        let seen = &mut self.seen;
        let now = Utc::now();
        seen.first_at.get_or_insert(now);
        seen.last_at = Some(now);
        seen.in_flight += 1;
        seen.max_in_flight = seen.max_in_flight.max(seen.in_flight);
        seen.missing.idempotency_key +=
            u64::from(method != Method::GET && !headers.contains_key(IDEMPOTENCY_KEY));
        seen.missing.correlation_id += u64::from(!headers.contains_key(CORRELATION_ID));
        let credentials = headers.contains_key(API_KEY) || headers.contains_key(header::AUTHORIZATION);
        seen.missing.credentials += u64::from(!credentials);
        let user_agent = headers.get(header::USER_AGENT).and_then(|value| value.to_str().ok());
        if user_agent != seen.last_user_agent.as_deref() {
            seen.last_user_agent = user_agent.map(str::to_owned);
        }
        if seen.first_user_agent.is_none() {
            seen.first_user_agent.clone_from(&seen.last_user_agent);
        }
    }

    /// Counts a body that has arrived.
    pub(super) fn body(&mut self, bytes: usize, encoding: Option<Encoding>) {
        self.seen.bytes += bytes as u64;
        self.seen.gzip_bodies += u64::from(encoding == Some(Encoding::Gzip));
        self.seen.zstd_bodies += u64::from(encoding == Some(Encoding::Zstd));
    }

    /// Counts a batch of this many records.
    pub(super) fn batch(&mut self, records: usize) {
        self.seen.batches += 1;
        self.seen.largest_batch = self.seen.largest_batch.max(records);
    }

    pub(super) fn end(&mut self, endpoint: Endpoint, outcome: Outcome) {
        self.seen.in_flight = self.seen.in_flight.saturating_sub(1);
        *self.ended.entry((endpoint, outcome)).or_default() += 1;
    }

    /// Resets everything except the current state.
    pub(super) fn reset(&mut self) {
        let in_flight = self.seen.in_flight;
        *self =
            Self { seen: Seen { in_flight, max_in_flight: in_flight, ..Seen::default() }, ..Self::default() };
    }

    pub(super) fn report(&self) -> impl Serialize + use<> {
        #[derive(Serialize)]
        struct Report {
            requests: BTreeMap<Endpoint, BTreeMap<String, u64>>,
            #[serde(flatten)]
            seen: Seen,
        }
        let mut requests: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
        for (&(endpoint, outcome), &count) in &self.ended {
            requests.entry(endpoint).or_default().insert(outcome.label(), count);
        }
        Report { requests, seen: self.seen.clone() }
    }
}

#[expect(clippy::ref_option, reason = "serde passes a field by reference")]
fn rfc3339<S: Serializer>(at: &Option<DateTime<Utc>>, serializer: S) -> Result<S::Ok, S::Error> {
    at.map(|at| at.to_rfc3339_opts(SecondsFormat::Micros, true)).serialize(serializer)
}
