//! A connection that carries HTTP, and whether it may be used again.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use hyper::Request;
use hyper::client::conn::{http1, http2};
use hyper::http::response::Parts;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, timeout};

use super::connect::Connected;
use super::exchange::{Upload, read_body, while_progressing};
use super::socket::{Heard, TcpConnection};
use super::suspicion::Suspicion;
use crate::control_plane::failure::{Failure, classify};

/// Most bytes buffered per connection in each direction; an answer's headers must fit.
const BUFFER: usize = 64 << 10;

/// After its answer has been read, a connection is ready for the next request at once, or not at all.
const READY_WITHIN: Duration = Duration::from_millis(10);

/// Data that arrives unrequested this soon after an answer belongs to that answer. (Later it may be a balancer's 408.)
const BELONGS_WITHIN: Duration = Duration::from_secs(1);

/// Common to both kinds of connections. Dropping it closes the socket, whatever is in progress.
pub(super) struct ConnectionParts {
    pub(super) tcp: Arc<TcpConnection>,
    pub(super) opened_at: Instant,
    heard: Arc<AtomicU64>,
    task: AbortHandle,
}

impl Drop for ConnectionParts {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// HTTP/1.1: one request at a time.
pub(super) struct Http1 {
    pub(super) parts: ConnectionParts,
    sender: http1::SendRequest<Upload>,
    answered: Answered,
    pub(super) requests: u32,
}

/// HTTP/2: several requests at a time.
pub(super) struct Http2 {
    pub(super) parts: ConnectionParts,
    sender: http2::SendRequest<Upload>,
    pub(super) is_urgent: bool,
    pub(super) streams: AtomicUsize,
    pub(super) requests: AtomicUsize,
    is_retired: AtomicBool,
    /// Dropped with the connection, which ends the spawned tasks.
    _tasks: Tasks,
}

pub(super) enum Opened {
    Http1(Http1),
    Http2(Http2),
}

/// When the last answer was read.
#[derive(Clone, Default)]
struct Answered(Arc<Mutex<Option<Instant>>>);

impl Answered {
    fn now(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    fn is_recent(&self) -> bool {
        let at = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        at.is_some_and(|at| at.elapsed() < BELONGS_WITHIN)
    }
}

/// Starts HTTP on a stream.
pub(super) async fn begin(
    connected: Connected,
    is_urgent: bool,
    suspicion: &Arc<Suspicion>,
) -> Result<Opened, Failure> {
    let Connected { stream, tcp, is_http2 } = connected;
    let heard = Arc::new(AtomicU64::new(0));
    let stream = TokioIo::new(Heard::new(stream, Arc::clone(&heard)));
    let parts = |task| ConnectionParts { tcp, opened_at: Instant::now(), heard, task };
    if is_http2 {
        let tasks = Tasks::default();
        let (sender, connection) = http2::Builder::new(tasks.clone())
            .timer(TokioTimer::new())
            .max_send_buf_size(BUFFER)
            .max_header_list_size(BUFFER as u32)
            .handshake(stream)
            .await
            .map_err(|e| classify(&e))?;
        let task = tasks.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to the ControlPlane ended");
            }
        });
        return Ok(Opened::Http2(Http2 {
            parts: parts(task),
            sender,
            is_urgent,
            streams: AtomicUsize::new(0),
            requests: AtomicUsize::new(0),
            is_retired: AtomicBool::new(false),
            _tasks: tasks,
        }));
    }
    let (sender, connection) =
        http1::Builder::new().max_buf_size(BUFFER).handshake(stream).await.map_err(|e| classify(&e))?;
    let (answered, suspicion) = (Answered::default(), Arc::clone(suspicion));
    let last = answered.clone();
    let task = tokio::spawn(async move {
        if let Err(error) = connection.await {
            if is_unasked(&error) && last.is_recent() {
                suspicion.rouse();
            }
            tracing::debug!(%error, "a connection to the ControlPlane ended");
        }
    });
    Ok(Opened::Http1(Http1 { parts: parts(task.abort_handle()), sender, answered, requests: 0 }))
}

/// Whether a connection ended because of unrequested bytes, for which hyper has no predicate.
fn is_unasked(error: &hyper::Error) -> bool {
    std::error::Error::source(error).is_none()
        && !(error.is_parse()
            || error.is_canceled()
            || error.is_closed()
            || error.is_incomplete_message()
            || error.is_body_write_aborted()
            || error.is_timeout()
            || error.is_shutdown()
            || error.is_user())
}

/// An answer received over a connection.
pub(super) struct Heeded {
    pub(super) head: Parts,
    pub(super) body: Bytes,
    pub(super) truncated: bool,
    /// Whether the connection may be used again.
    pub(super) is_reusable: bool,
}

/// Why there is no answer.
pub(super) struct ExchangeError {
    pub(super) failure: Failure,
    /// Whether not a single byte of an answer arrived, for another reason than a timeout.
    pub(super) is_unanswered: bool,
}

impl Http1 {
    /// Whether it can take a request at once: it is open, and nothing unrequested has arrived.
    pub(super) fn is_ready(&self) -> bool {
        self.sender.is_ready() && self.parts.tcp.is_quiet()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    pub(super) async fn exchange(
        &mut self,
        request: Request<Upload>,
        max: usize,
        patience: Duration,
    ) -> Result<Heeded, ExchangeError> {
        let (begun, before) = (Instant::now(), self.parts.heard());
        self.requests += 1;
        let tcp = &self.parts.tcp;
        let sending = self.sender.send_request(request);
        let response = while_progressing(sending, || tcp.progressed_at().max(begun), patience).await;
        let (head, body) = self.parts.head(response, before)?;
        let (body, truncated) = read_body(body, max, patience).await.map_err(ExchangeError::answered)?;
        self.answered.now();
        let is_reusable =
            !truncated && matches!(timeout(READY_WITHIN, self.sender.ready()).await, Ok(Ok(())));
        Ok(Heeded { head, body, truncated, is_reusable })
    }
}

impl Http2 {
    pub(super) fn is_closed(&self) -> bool {
        self.sender.is_closed() || self.is_retired.load(Ordering::Relaxed)
    }

    /// Stops taking requests.
    pub(super) fn retire(&self) {
        self.is_retired.store(true, Ordering::Relaxed);
    }

    pub(super) async fn exchange(
        &self,
        request: Request<Upload>,
        max: usize,
        patience: Duration,
    ) -> Result<Heeded, ExchangeError> {
        let (begun, progress) = (Instant::now(), request.body().progress());
        self.requests.fetch_add(1, Ordering::Relaxed);
        let sending = self.sender.clone().send_request(request);
        let response = while_progressing(sending, || progress.at().max(begun), patience).await;
        // Data for other requests proves nothing here: an error means that this answer never began.
        let (head, body) = self.parts.head(response, self.parts.heard())?;
        let (body, truncated) = read_body(body, max, patience).await.map_err(ExchangeError::answered)?;
        Ok(Heeded { head, body, truncated, is_reusable: true })
    }
}

impl ConnectionParts {
    fn heard(&self) -> u64 {
        self.heard.load(Ordering::Relaxed)
    }

    fn head(
        &self,
        response: Option<hyper::Result<hyper::Response<hyper::body::Incoming>>>,
        before: u64,
    ) -> Result<(Parts, hyper::body::Incoming), ExchangeError> {
        match response {
            Some(Ok(response)) => Ok(response.into_parts()),
            Some(Err(error)) => {
                let is_unanswered = error.is_canceled() || self.heard() == before;
                Err(ExchangeError { failure: classify(&error), is_unanswered })
            }
            None => Err(ExchangeError::answered(Failure::Timeout { connected: true })),
        }
    }
}

impl ExchangeError {
    fn answered(failure: Failure) -> Self {
        Self { failure, is_unanswered: false }
    }
}

/// The tasks of an HTTP/2 connection: its own, and one for each body. They end with the connection.
#[derive(Clone, Default)]
struct Tasks(Arc<Mutex<JoinSet<()>>>);

impl Tasks {
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
        let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task)
    }
}

impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, task: F) {
        self.spawn(async move {
            task.await;
        });
    }
}
