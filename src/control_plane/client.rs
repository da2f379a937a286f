//! Makes one attempt at a request, and returns the exact answer.

use std::fmt;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use chrono::TimeDelta;
use hyper::Uri;
use hyper::header::{AGE, AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HeaderName, HeaderValue};
use tokio::time::Instant;
use uuid::Uuid;

use super::clock::ClockSkew;
use super::credentials::{ClientError, Credentials};
use super::failure::Failure;
use super::heard::{Failing, Heard};
use super::meaning::Meaning;
use super::request::{BatchRequest, Delivery, Outgoing};
use super::response::{Answer, CORRELATION_ID, Response};
use super::settings::Settings;
use super::target::Target;
use super::transport::{Meter, Outbound, RequestOutcome};
use crate::secret::Secret;
use crate::secret::expiry::Expiry;

static IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

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

/// Checked settings, secrets and certificates.
pub struct PreparedSettings {
    settings: Settings,
    credentials: Arc<Credentials>,
}

/// Observes every attempt: its endpoint and result.
pub type Observer = Box<dyn Fn(&'static str, &Answer) + Send + Sync>;

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
        self.heard().is_reachable()
    }

    /// The failed requests since the last good answer, if so many in a row failed that the `ControlPlane` counts as away,
    /// even if no record shows it.
    pub fn unanswered(&self) -> Option<Failing> {
        self.heard().unanswered().cloned()
    }

    /// Whether the `ControlPlane` has ever answered, and does not count as away ([`Self::unanswered`]).
    pub fn is_connected(&self) -> bool {
        self.heard().is_connected()
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
        match self.target.record(delivery.kind, delivery.session_id) {
            Ok(url) => self.send(Outgoing::record(url, delivery)).await,
            Err(reason) => Answer::unsent(Failure::Unsendable(reason)),
        }
    }

    /// Sends a batch, once.
    pub async fn deliver_batch(&self, batch: BatchRequest<'_>) -> Answer {
        self.send(Outgoing::batch(self.target.path("/api/v1/records/batch"), batch)).await
    }

    pub(super) fn server(&self) -> (&str, &str) {
        (&self.server_id, &self.version)
    }

    pub(super) fn target(&self) -> &Target {
        &self.target
    }

    pub(super) async fn send(&self, outgoing: Outgoing<'_>) -> Answer {
        let (started, endpoint) = (Instant::now(), outgoing.endpoint);
        let mut answer = self.attempt(outgoing).await;
        self.heard().note(endpoint, &answer.result);
        self.attempts.fetch_add(1, Ordering::Relaxed);
        *self.last_attempt.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        answer.elapsed = started.elapsed();
        (self.observer)(endpoint, &answer);
        answer
    }

    async fn attempt(&self, outgoing: Outgoing<'_>) -> Answer {
        let credentials = self.credentials();
        let mut asked = outgoing.asked;
        let outbound = match self.outbound(outgoing, &credentials) {
            Ok(outbound) => outbound,
            Err(failure) => return Answer::unsent(failure),
        };
        let correlation_id = outbound.headers.get(&CORRELATION_ID).and_then(|id| id.to_str().ok());
        asked.correlation_id = correlation_id.unwrap_or_default();
        let (sent, begun) = (crate::time::wall_clock(), Instant::now());
        let RequestOutcome { result, upload, opening, wire_bytes } =
            credentials.transport.send(&outbound).await;
        // Not the wall clock: it may have been set meanwhile.
        let answered = sent + begun.elapsed();
        let result = result.map(|inbound| {
            let (response, date) = Response::read(&asked, inbound, outbound.answer_max_bytes, answered);
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
        Answer { result, elapsed: begun.elapsed(), upload, opening, wire_bytes }
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
