//! One attempt at one request: what is sent, and exactly what came back.

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};

use bytes::{Bytes, BytesMut};
use chrono::TimeDelta;
use reqwest::header::{
    AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, DATE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER,
};
use reqwest::{Method, Request, Url};
use uuid::Uuid;

use super::auth::Tokens;
use super::clock::Clock;
use super::credentials::{ClientError, Credentials};
use super::failure::{Failure, classify};
use super::retry_after::retry_after;
use super::settings::{SecretSource, Settings};
use super::target::Target;
use crate::expiry::Expiry;
use crate::record::Kind;

/// The most of an answer that is kept; a dead letter keeps 1 KiB of it, a quota answer has a few hundred bytes.
const ANSWER_MAX_BYTES: usize = 256 << 10;

/// The most of a batch's answer: this, and [`BATCH_ANSWER_BYTES_PER_RECORD`] for each record.
const BATCH_ANSWER_MAX_BYTES: usize = 1 << 20;
const BATCH_ANSWER_BYTES_PER_RECORD: usize = 1 << 10;

static CORRELATION_ID: HeaderName = HeaderName::from_static("x-correlation-id");
static IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// One record to deliver.
#[derive(Clone, Debug)]
pub struct Delivery<'a> {
    /// What it is; says which endpoint takes it.
    pub kind: Kind,
    /// Its session.
    pub session_id: &'a str,
    /// The request's body, sent as it is.
    pub body: Bytes,
    /// Its idempotency key.
    pub key: Uuid,
    /// Its `X-Correlation-ID`; one that no header can carry is replaced by the key.
    pub correlation_id: &'a str,
    /// Its W3C `traceparent`.
    pub traceparent: Option<&'a str>,
}

/// Usage records to deliver in one request.
#[derive(Clone, Debug)]
pub struct Batch<'a> {
    /// The request's body, `{"records":[…]}`, perhaps compressed.
    pub body: Bytes,
    /// Whether the body is compressed with gzip.
    pub gzip: bool,
    /// How many records are in it; the answer may be longer for more of them.
    pub records: usize,
    /// The idempotency key, made of those inside.
    pub key: Uuid,
    /// The request's `X-Correlation-ID`.
    pub correlation_id: &'a str,
}

/// What became of one attempt.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The answer, whatever its status, or why there is none.
    pub result: Result<Response, Failure>,
    /// From the start to the last byte that was read.
    pub elapsed: Duration,
}

/// What the peer said.
#[derive(Clone, PartialEq, Eq)]
pub struct Response {
    /// The HTTP status, also 3xx: no redirect is followed.
    pub status: u16,
    /// How long it asks us to stay away, at most an hour.
    pub retry_after: Option<Duration>,
    /// The body, as far as it was read.
    pub body: Bytes,
    /// Whether there was more of it than is kept.
    pub truncated: bool,
}

impl fmt::Debug for Response {
    // An answer may repeat the record that it is about; a body is never logged.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Response")
            .field("status", &self.status)
            .field("retry_after", &self.retry_after)
            .field("body_bytes", &self.body.len())
            .field("truncated", &self.truncated)
            .finish()
    }
}

/// A client for one `ControlPlane`. Cheap to use from many tasks at once.
pub struct Client {
    server_id: String,
    version: String,
    settings: RwLock<Settings>,
    target: Target,
    clock: Clock,
    credentials: RwLock<Arc<Credentials>>,
    reachable: AtomicBool,
    attempts: AtomicU64,
    last_attempt: Mutex<Instant>,
    observer: Observer,
}

/// Settings, secrets and certificates that can be used.
pub struct Fresh {
    settings: Settings,
    credentials: Arc<Credentials>,
}

/// Is told of every attempt: which endpoint it was for, and what became of it.
pub type Observer = Box<dyn Fn(&'static str, &Answer) + Send + Sync>;

/// A request before it has headers.
pub(super) struct Outgoing<'a> {
    /// Its name in metrics.
    pub(super) endpoint: &'static str,
    pub(super) method: Method,
    pub(super) url: String,
    pub(super) body: Option<Bytes>,
    pub(super) gzip: bool,
    pub(super) key: Option<Uuid>,
    pub(super) correlation_id: &'a str,
    pub(super) traceparent: Option<&'a str>,
    pub(super) answer_max_bytes: usize,
}

impl Client {
    /// Makes a client; reads the files that the settings name, but contacts nobody.
    pub fn new(settings: Settings) -> Result<Self, ClientError> {
        let target = Target::new(settings.url.expose()).map_err(ClientError::Url)?;
        target.server(&settings.server_id, "").map_err(ClientError::ServerId)?;
        let credentials = RwLock::new(Arc::new(Credentials::load(&settings, &target)?));
        Ok(Self {
            server_id: settings.server_id.clone(),
            version: settings.version.clone(),
            settings: RwLock::new(settings),
            target,
            clock: Clock::default(),
            credentials,
            reachable: AtomicBool::new(false),
            attempts: AtomicU64::new(0),
            last_attempt: Mutex::new(Instant::now()),
            observer: Box::new(|_, _| {}),
        })
    }

    /// Tells `observer` of every attempt from now on.
    #[must_use]
    pub fn observed(self, observer: Observer) -> Self {
        Self { observer, ..self }
    }

    /// Reads secrets and certificates anew and uses them from the next request on. With an error, nothing has
    /// changed. Requests under way keep what they started with.
    ///
    /// It reads files: not for a thread that must not block.
    pub fn reload(&self) -> Result<(), ClientError> {
        self.adopt(self.prepare(self.settings())?);
        Ok(())
    }

    /// Reads secrets and certificates by other settings, and changes nothing yet. What these say of the URL, the server
    /// and the version is not looked at. It reads files.
    pub fn prepare(&self, settings: Settings) -> Result<Fresh, ClientError> {
        let credentials = Arc::new(Credentials::load(&settings, &self.target)?);
        Ok(Fresh { settings, credentials })
    }

    /// Uses what was prepared, from the next request on.
    pub fn adopt(&self, fresh: Fresh) {
        *self.settings.write().unwrap_or_else(PoisonError::into_inner) = fresh.settings;
        *self.credentials.write().unwrap_or_else(PoisonError::into_inner) = fresh.credentials;
    }

    fn settings(&self) -> Settings {
        self.settings.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The files that [`Self::reload`] reads.
    pub fn secret_files(&self) -> Vec<PathBuf> {
        let Settings { api_key, jwt_key, ca_file, client_cert_file, client_key_file, .. } = &self.settings();
        let of = |source: &Option<SecretSource>| match source {
            Some(SecretSource::File(path)) => Some(path.clone()),
            _ => None,
        };
        let paths = [ca_file, client_cert_file, client_key_file].into_iter().flatten().cloned();
        of(api_key).into_iter().chain(of(jwt_key)).chain(paths).collect()
    }

    /// Forgets the current token, after a 401: the next request carries a new one.
    pub fn renew_token(&self) {
        if let Some(tokens) = &self.credentials().tokens {
            tokens.renew();
        }
    }

    /// By how much the `ControlPlane`'s clock is ahead of ours, by its last answer; zero up to five seconds.
    pub fn clock_skew(&self) -> TimeDelta {
        self.clock.skew()
    }

    /// When what proves who we are, or whom we trust, ends: what is in use now.
    pub fn expiries(&self) -> Vec<Expiry> {
        self.credentials().expiries.clone()
    }

    /// Whether the last request, of whatever kind, was answered by a `ControlPlane` that lets us in.
    pub fn is_reachable(&self) -> bool {
        self.reachable.load(Ordering::Relaxed)
    }

    /// How many requests were made so far, of whatever kind.
    pub fn attempts(&self) -> u64 {
        self.attempts.load(Ordering::Relaxed)
    }

    /// For how long no request has ended. What is said of the `ControlPlane` is so old.
    pub fn quiet_for(&self) -> Duration {
        self.last_attempt.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    /// Seconds since the Unix epoch on the `ControlPlane`'s clock, as far as it is known.
    pub fn unix_seconds(&self) -> i64 {
        self.clock.corrected_unix_seconds()
    }

    /// The same in microseconds.
    pub fn unix_micros(&self) -> i64 {
        self.clock.corrected_unix_micros()
    }

    /// The time that the `ControlPlane`'s answers have confirmed in this run, in microseconds since the Unix epoch. `None`
    /// before any of them bore a date.
    pub fn confirmed_unix_micros(&self) -> Option<i64> {
        self.clock.confirmed_unix_micros()
    }

    /// Sends one record, once.
    pub async fn deliver(&self, delivery: Delivery<'_>) -> Answer {
        let url = match self.target.record(delivery.kind, delivery.session_id) {
            Ok(url) => url,
            Err(reason) => {
                return Answer { result: Err(Failure::Unsendable(reason)), elapsed: Duration::ZERO };
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
            gzip: false,
            key: Some(delivery.key),
            correlation_id: delivery.correlation_id,
            traceparent: delivery.traceparent,
            answer_max_bytes: ANSWER_MAX_BYTES,
        })
        .await
    }

    /// Sends usage records together, once.
    pub async fn deliver_batch(&self, batch: Batch<'_>) -> Answer {
        let per_record = batch.records.saturating_mul(BATCH_ANSWER_BYTES_PER_RECORD);
        self.send(Outgoing {
            endpoint: "batch",
            method: Method::POST,
            url: self.target.path("/api/v1/usage-records/batch"),
            body: Some(batch.body),
            gzip: batch.gzip,
            key: Some(batch.key),
            correlation_id: batch.correlation_id,
            traceparent: None,
            answer_max_bytes: BATCH_ANSWER_MAX_BYTES.saturating_add(per_record),
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
        let result = self.attempt(outgoing).await;
        let served = |response: &Response| matches!(response.status, 200..=299 | 400 | 402 | 404..=499);
        self.reachable.store(result.as_ref().is_ok_and(served), Ordering::Relaxed);
        self.attempts.fetch_add(1, Ordering::Relaxed);
        *self.last_attempt.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        let answer = Answer { result, elapsed: started.elapsed() };
        (self.observer)(endpoint, &answer);
        answer
    }

    async fn attempt(&self, outgoing: Outgoing<'_>) -> Result<Response, Failure> {
        let credentials = self.credentials();
        let answer_max_bytes = outgoing.answer_max_bytes;
        let request = self.request(outgoing, credentials.tokens.as_ref())?;
        let sent = SystemTime::now();
        let mut response = credentials.http.execute(request).await.map_err(|e| classify(&e, false))?;
        let answered = SystemTime::now();
        let date = http_date(response.headers());
        if let Some(date) = date {
            self.clock.observe(date, sent, answered);
        }
        let retry_after = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| retry_after(value, date, answered));
        let (body, truncated) = read_body(&mut response, answer_max_bytes).await?;
        Ok(Response { status: response.status().as_u16(), retry_after, body, truncated })
    }

    fn request(&self, outgoing: Outgoing<'_>, tokens: Option<&Tokens>) -> Result<Request, Failure> {
        let url = Url::parse(&outgoing.url).map_err(|_| Failure::Unsendable("its URL is not one"))?;
        let mut headers = HeaderMap::with_capacity(8);
        if outgoing.body.is_some() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        if outgoing.gzip {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        let key = outgoing.key.and_then(|key| {
            HeaderValue::from_str(key.hyphenated().encode_lower(&mut Uuid::encode_buffer())).ok()
        });
        if let Some(id) = HeaderValue::from_str(outgoing.correlation_id).ok().or_else(|| key.clone()) {
            headers.insert(&CORRELATION_ID, id);
        }
        if let Some(key) = key {
            headers.insert(&IDEMPOTENCY_KEY, key);
        }
        if let Some(parent) = outgoing.traceparent.and_then(|parent| HeaderValue::from_str(parent).ok()) {
            headers.insert(&TRACEPARENT, parent);
        }
        if let Some(tokens) = tokens {
            headers.insert(AUTHORIZATION, tokens.authorization(&self.clock).map_err(Failure::Token)?);
        }
        let mut request = Request::new(outgoing.method, url);
        *request.headers_mut() = headers;
        *request.body_mut() = outgoing.body.map(Into::into);
        Ok(request)
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

fn http_date(headers: &HeaderMap) -> Option<SystemTime> {
    httpdate::parse_http_date(headers.get(DATE)?.to_str().ok()?).ok()
}

/// Reads the body up to the limit. The rest is not read: dropping the response closes the connection.
async fn read_body(response: &mut reqwest::Response, max: usize) -> Result<(Bytes, bool), Failure> {
    let mut next = async || response.chunk().await.map_err(|e| classify(&e, true));
    let Some(mut first) = next().await? else { return Ok((Bytes::new(), false)) };
    if first.len() > max {
        first.truncate(max);
        return Ok((first, true));
    }
    // Nearly every answer is one chunk, which is then given on without a copy.
    let Some(mut more) = next().await? else { return Ok((first, false)) };
    let mut body = BytesMut::from(first);
    loop {
        let room = max - body.len();
        body.extend_from_slice(&more[..more.len().min(room)]);
        if more.len() > room {
            return Ok((body.freeze(), true));
        }
        match next().await? {
            Some(chunk) => more = chunk,
            None => return Ok((body.freeze(), false)),
        }
    }
}
