//! Makes one attempt at a request, and returns the exact answer.

use std::borrow::Cow;
use std::fmt;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use chrono::TimeDelta;
use hyper::header::{
    ACCEPT_ENCODING, AGE, AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, DATE, HeaderMap, HeaderName,
    HeaderValue, RETRY_AFTER,
};
use hyper::{Method, Uri};
use tokio::time::Instant;
use uuid::Uuid;

use super::accepts::Accepts;
use super::answers::knows_no_session;
use super::clock::ClockSkew;
use super::credentials::{ClientError, Credentials};
use super::decode::decode;
use super::failure::Failure;
use super::meaning::{Asked, Meaning, Said, is_another_correlation_id, meaning_and_name};
use super::retry_after::retry_after as retry_after_of;
use super::settings::Settings;
use super::target::Target;
use super::transport::{Inbound, Meter, Opening, Outbound, Priority, RequestOutcome};
use crate::record::Kind;
use crate::secret::Secret;
use crate::secret::expiry::Expiry;

/// Failed requests in a row, of any kind, after which the `ControlPlane` counts as away although no record shows it.
const UNANSWERED: u64 = 5;

/// The name of the health check among the endpoints.
pub(super) const HEALTH: &str = "health";

/// Maximum bytes kept of an answer; a dead letter keeps 1 KiB of it, a quota answer has a few hundred bytes.
const ANSWER_MAX_BYTES: usize = 256 << 10;

/// Maximum size of a batch's answer: this plus [`BATCH_ANSWER_BYTES_PER_RECORD`] for each record.
const BATCH_ANSWER_MAX_BYTES: usize = 1 << 20;
const BATCH_ANSWER_BYTES_PER_RECORD: usize = 1 << 10;

static CORRELATION_ID: HeaderName = HeaderName::from_static("x-correlation-id");
static IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

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
    const fn header(self) -> Option<HeaderValue> {
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

/// A client for one `ControlPlane`. Cheap to use from many tasks at once.
pub struct Client {
    server_id: String,
    version: String,
    settings: RwLock<Settings>,
    target: Target,
    clock: ClockSkew,
    meter: Arc<Meter>,
    credentials: RwLock<Arc<Credentials>>,
    heard: Mutex<Heard>,
    attempts: AtomicU64,
    last_attempt: Mutex<Instant>,
    observer: Observer,
}

/// What the answers so far say about the `ControlPlane`.
#[derive(Debug, Default)]
struct Heard {
    /// Whether one that accepts our credentials has ever answered.
    has_served: bool,
    /// The failed requests since it last did.
    failing: Option<Failing>,
    /// Whether its health check, too, has refused our credentials: if not, its success says nothing about them.
    guards_health: bool,
}

/// The failed requests since a `ControlPlane` that accepts our credentials last answered.
#[derive(Clone, Debug)]
pub struct Failing {
    /// Their number.
    pub requests: u64,
    /// Why the last one failed, as text.
    pub cause: String,
    /// The same as a type: the meaning and the status of its answer, or why it got none.
    pub last: Result<(Meaning, u16), Failure>,
}

/// Checked settings, secrets and certificates.
pub struct PreparedSettings {
    settings: Settings,
    credentials: Arc<Credentials>,
}

/// Observes every attempt: its endpoint and result.
pub type Observer = Box<dyn Fn(&'static str, &Answer) + Send + Sync>;

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

/// The result of an attempt on the wire.
struct Attempt {
    result: Result<Response, Failure>,
    upload: Duration,
    opening: Opening,
    wire_bytes: u64,
}

impl Client {
    /// Creates a client. Reads the files named in the settings, but opens no connection.
    pub fn new(settings: Settings) -> Result<Self, ClientError> {
        let target = Target::new(settings.url.expose()).map_err(ClientError::Url)?;
        target.server(&settings.server_id, "").map_err(ClientError::ServerId)?;
        let meter = Arc::<Meter>::default();
        let credentials = Credentials::load(&settings, &target, Arc::clone(&meter))?;
        Ok(Self {
            server_id: settings.server_id.clone(),
            version: settings.version.clone(),
            settings: RwLock::new(settings),
            target,
            clock: ClockSkew::default(),
            meter,
            credentials: RwLock::new(Arc::new(credentials)),
            heard: Mutex::default(),
            attempts: AtomicU64::new(0),
            last_attempt: Mutex::new(Instant::now()),
            observer: Box::new(|_, _| {}),
        })
    }

    /// Creates a client without sockets.
    #[cfg(feature = "simulation")]
    pub fn over(settings: Settings, wire: Arc<dyn super::Wire>) -> Result<Self, ClientError> {
        let mut client = Self::new(settings)?;
        let credentials = client.credentials.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(credentials) = Arc::get_mut(credentials) {
            credentials.transport.wire = Some(wire);
        }
        Ok(client)
    }

    /// Reports every attempt to `observer` from now on.
    #[must_use]
    pub fn observed(self, observer: Observer) -> Self {
        Self { observer, ..self }
    }

    /// Reloads secrets and certificates, and uses them from the next request on. On an error nothing changes. Requests in
    /// flight keep the old ones.
    ///
    /// Reads files: do not call it on a thread that must not block.
    pub fn reload(&self) -> Result<(), ClientError> {
        self.adopt(self.prepare(self.settings())?);
        Ok(())
    }

    /// Reads secrets and certificates according to other settings, without using them yet. The URL, server and version in
    /// these settings are ignored. Reads files.
    pub fn prepare(&self, settings: Settings) -> Result<PreparedSettings, ClientError> {
        let credentials = Arc::new(Credentials::load(&settings, &self.target, Arc::clone(&self.meter))?);
        Ok(PreparedSettings { settings, credentials })
    }

    /// Uses the prepared settings from the next request on.
    pub fn adopt(&self, prepared: PreparedSettings) {
        *self.settings.write().unwrap_or_else(PoisonError::into_inner) = prepared.settings;
        *self.credentials.write().unwrap_or_else(PoisonError::into_inner) = prepared.credentials;
    }

    fn settings(&self) -> Settings {
        self.settings.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The files that [`Self::reload`] reads.
    pub fn secret_files(&self) -> Vec<PathBuf> {
        let Settings { api_key, jwt_key, ca_file, client_cert_file, client_key_file, .. } = &self.settings();
        let of = |secret: &Option<Secret>| secret.as_ref().and_then(Secret::file).map(PathBuf::from);
        let paths = [ca_file, client_cert_file, client_key_file].into_iter().flatten().cloned();
        of(api_key).into_iter().chain(of(jwt_key)).chain(paths).collect()
    }

    /// Discards the current token after a 401: the next request carries a new one.
    pub fn renew_token(&self) {
        if let Some(tokens) = &self.credentials().tokens {
            tokens.renew();
        }
    }

    /// How far the `ControlPlane`'s clock is ahead of ours according to its last answer; zero up to five seconds.
    pub fn clock_skew(&self) -> TimeDelta {
        self.clock.skew()
    }

    /// When the credentials and authorities in use expire.
    pub fn expiries(&self) -> Vec<Expiry> {
        self.credentials().expiries.clone()
    }

    /// Whether the last request of any kind was answered by a `ControlPlane` that accepts our credentials.
    pub fn is_reachable(&self) -> bool {
        let heard = self.heard();
        heard.has_served && heard.failing.is_none()
    }

    /// The failed requests since the last good answer, if so many in a row failed that the `ControlPlane` counts as away,
    /// even if no record shows it.
    pub fn unanswered(&self) -> Option<Failing> {
        self.heard().failing.clone().filter(|failing| failing.requests >= UNANSWERED)
    }

    /// Whether the `ControlPlane` has ever answered, and does not count as away ([`Self::unanswered`]).
    pub fn is_connected(&self) -> bool {
        self.heard().has_served && self.unanswered().is_none()
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Number of requests so far, of any kind.
    pub fn attempts(&self) -> u64 {
        self.attempts.load(Ordering::Relaxed)
    }

    /// Sets or removes the limit on bytes sent per second (`DRAIN_BANDWIDTH`), shared by all connections. Urgent requests
    /// do not wait for it; their bytes are deducted from the backlog's.
    pub fn set_bandwidth(&self, bytes_per_second: Option<NonZeroU64>) {
        self.meter.set_bandwidth(bytes_per_second);
    }

    /// Bytes sent and received on sockets since the start.
    pub fn wire_totals(&self) -> (u64, u64) {
        self.meter.totals()
    }

    /// The ControlPlane's scheme, host and port.
    pub fn origin(&self) -> &str {
        &self.target.origin
    }

    /// The proxy, without its user info.
    pub fn proxy(&self) -> Option<String> {
        self.settings.read().unwrap_or_else(PoisonError::into_inner).proxy.as_ref().map(ToString::to_string)
    }

    /// Time since the last request ended: the age of our knowledge about the `ControlPlane`.
    pub fn quiet_for(&self) -> Duration {
        self.last_attempt.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    /// Seconds since the Unix epoch on the `ControlPlane`'s clock, as far as known.
    pub fn unix_seconds(&self) -> i64 {
        self.clock.corrected_unix_seconds()
    }

    /// The same in microseconds.
    pub fn unix_micros(&self) -> i64 {
        self.clock.corrected_unix_micros()
    }

    /// The time confirmed by the `ControlPlane`'s answers in this run, in microseconds since the Unix epoch. `None` before
    /// the first answer with a date.
    pub fn confirmed_unix_micros(&self) -> Option<i64> {
        self.clock.confirmed_unix_micros()
    }

    /// Sends one record, once.
    pub async fn deliver(&self, delivery: Delivery<'_>) -> Answer {
        let url = match self.target.record(delivery.kind, delivery.session_id) {
            Ok(url) => url,
            Err(reason) => {
                let result = Err(Failure::Unsendable(reason));
                return Answer {
                    result,
                    elapsed: Duration::ZERO,
                    upload: Duration::ZERO,
                    opening: Opening::default(),
                    wire_bytes: 0,
                };
            }
        };
        self.send(Outgoing {
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
        })
        .await
    }

    /// Sends a batch, once.
    pub async fn deliver_batch(&self, batch: BatchRequest<'_>) -> Answer {
        let per_record = batch.records.saturating_mul(BATCH_ANSWER_BYTES_PER_RECORD);
        self.send(Outgoing {
            endpoint: "batch",
            method: Method::POST,
            url: self.target.path("/api/v1/records/batch"),
            body: Some(batch.body),
            encoding: batch.encoding,
            key: Some(batch.key),
            asked: Asked { correlation_id: batch.correlation_id, batch: Some(batch.key), ..Asked::default() },
            traceparent: None,
            answer_max_bytes: BATCH_ANSWER_MAX_BYTES.saturating_add(per_record),
            connection: batch.connection,
            priority: Priority::Backlog,
        })
        .await
    }

    pub(super) fn server(&self) -> (&str, &str) {
        (&self.server_id, &self.version)
    }

    pub(super) fn target(&self) -> &Target {
        &self.target
    }

    pub(super) async fn send(&self, outgoing: Outgoing<'_>) -> Answer {
        let (started, endpoint) = (Instant::now(), outgoing.endpoint);
        let Attempt { result, upload, opening, wire_bytes } = self.attempt(outgoing).await;
        self.note(endpoint, &result);
        self.attempts.fetch_add(1, Ordering::Relaxed);
        *self.last_attempt.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        let answer = Answer { result, elapsed: started.elapsed(), upload, opening, wire_bytes };
        (self.observer)(endpoint, &answer);
        answer
    }

    /// Notes whether the `ControlPlane` accepted the request.
    fn note(&self, endpoint: &str, result: &Result<Response, Failure>) {
        let mut heard = self.heard();
        let before = heard.failing.take();
        let is_refused = |failing: &Failing| matches!(failing.last, Ok((Meaning::Credentials, _)));
        let (cause, last) = match result {
            Ok(response) if is_served(response) && endpoint == HEALTH && !heard.guards_health => {
                heard.failing = before.filter(is_refused);
                heard.has_served |= heard.failing.is_none();
                return;
            }
            Ok(response) if is_served(response) => {
                heard.has_served = true;
                return;
            }
            // It was never sent.
            Err(Failure::Unsendable(_)) => {
                heard.failing = before;
                return;
            }
            Ok(response) => {
                heard.guards_health |= endpoint == HEALTH && response.meaning == Meaning::Credentials;
                let cause = format!("status {}{}", response.status, response.meaning.remark());
                (cause, Ok((response.meaning, response.status)))
            }
            Err(failure) => (failure.to_string(), Err(failure.clone())),
        };
        let requests = before.map_or(1, |before| before.requests + 1);
        heard.failing = Some(Failing { requests, cause, last });
    }

    async fn attempt(&self, outgoing: Outgoing<'_>) -> Attempt {
        let credentials = self.credentials();
        let mut asked = outgoing.asked;
        let outbound = match self.outbound(outgoing, &credentials) {
            Ok(outbound) => outbound,
            Err(failure) => {
                return Attempt {
                    result: Err(failure),
                    upload: Duration::ZERO,
                    opening: Opening::default(),
                    wire_bytes: 0,
                };
            }
        };
        let correlation_id = outbound.headers.get(&CORRELATION_ID).and_then(|id| id.to_str().ok());
        asked.correlation_id = correlation_id.unwrap_or_default();
        let (sent, begun) = (crate::time::wall_clock(), Instant::now());
        let RequestOutcome { result, upload, opening, wire_bytes } =
            credentials.transport.send(&outbound).await;
        // Not the wall clock: it may have been set meanwhile.
        let answered = sent + begun.elapsed();
        let result = result.map(|inbound| {
            let (response, date) = understood(&asked, inbound, outbound.answer_max_bytes, answered);
            // IMPORTANT: a middlebox's clock is not the ControlPlane's, whatever its answer. Dead letters are deleted by
            // dates that only the ControlPlane can have given. A refused token may well be due to a wrong date, so such
            // dates still count for tokens.
            let is_its_own = matches!(response.meaning, Meaning::Delivered | Meaning::Duplicate);
            // A cache answers with an old date.
            if let Some(date) = date.filter(|_| !response.headers.contains_key(AGE)) {
                if is_its_own {
                    self.clock.confirm(date);
                }
                if is_its_own || response.meaning == Meaning::Credentials {
                    self.clock.observe(date, sent, answered);
                }
            }
            response
        });
        Attempt { result, upload, opening, wire_bytes }
    }

    fn outbound(&self, outgoing: Outgoing<'_>, credentials: &Credentials) -> Result<Outbound, Failure> {
        let uri: Uri = outgoing.url.parse().map_err(|_| Failure::Unsendable("its URL is too long"))?;
        let mut headers = credentials.headers.clone();
        if outgoing.body.is_some() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        if let Some(encoding) = outgoing.encoding.header() {
            headers.insert(CONTENT_ENCODING, encoding);
        }
        let key = outgoing.key.and_then(|key| {
            HeaderValue::from_str(key.hyphenated().encode_lower(&mut Uuid::encode_buffer())).ok()
        });
        if let Some(id) = HeaderValue::from_str(outgoing.asked.correlation_id).ok().or_else(|| key.clone()) {
            headers.insert(&CORRELATION_ID, id);
        }
        if let Some(key) = key {
            headers.insert(&IDEMPOTENCY_KEY, key);
        }
        if let Some(parent) = outgoing.traceparent.and_then(|parent| HeaderValue::from_str(parent).ok()) {
            headers.insert(&TRACEPARENT, parent);
        }
        if let Some(tokens) = &credentials.tokens {
            headers.insert(AUTHORIZATION, tokens.authorization(&self.clock).map_err(Failure::Token)?);
        }
        let Outgoing { method, body, connection, priority, answer_max_bytes, .. } = outgoing;
        let body = body.unwrap_or_default();
        Ok(Outbound { method, uri, headers, body, connection, priority, answer_max_bytes })
    }

    fn credentials(&self) -> Arc<Credentials> {
        Arc::clone(&self.credentials.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// Whether a healthy `ControlPlane` that accepts our credentials answered, even if only with 429.
fn is_served(response: &Response) -> bool {
    response.meaning.is_served() || response.meaning == Meaning::Overloaded && response.status < 500
}

fn http_date(headers: &HeaderMap) -> Option<SystemTime> {
    httpdate::parse_http_date(headers.get(DATE)?.to_str().ok()?).ok()
}

/// The answer for callers, and its `Date`. The connection is returned to the pool, unless the answer is for another request
/// or reports an unknown session or route: a backend behind another connection may know it.
fn understood(
    asked: &Asked<'_>,
    inbound: Inbound,
    max: usize,
    answered: SystemTime,
) -> (Response, Option<SystemTime>) {
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
    let response = Response { status, retry_after, meaning, body, truncated, accepts, headers };
    let is_unknown = match meaning {
        Meaning::NotFound => true,
        Meaning::Delivered => asked.batch.is_some() && knows_no_session(&response.body),
        _ => false,
    };
    if let Some(checkout) = checkout.filter(|_| meaning != Meaning::Mismatched) {
        if is_unknown {
            checkout.close();
        } else {
            checkout.give_back(is_named, is_served(&response));
        }
    }
    (response, date)
}
