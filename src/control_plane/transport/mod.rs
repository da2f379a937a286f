//! Connections to the `ControlPlane`: opened, pooled, measured, and never reused when in doubt.
//!
//! Guarantees:
//!
//! * A connection is closed after a time-out, a cut-off answer or an answer to another request, and if anything arrived
//!   unrequested. Before a request uses an existing connection, no unread data may be waiting on it.
//! * A time-out means no progress. Any byte that the kernel takes is progress, and once the body is sent the answer has the
//!   whole time-out. Opening a connection has its own time-out.
//! * A request that dies on a used connection without a byte of an answer is repeated at once on a new one, once. Its
//!   idempotency key makes that safe.
//! * [`Priority::Urgent`] requests never wait for the bandwidth limit or behind the backlog's bytes: a connection carries
//!   one or the other, and the kernel holds little unsent data.
//! * HTTP/2 never uses a single connection for everything.
//!
//! `connect` opens a stream (name, addresses, `proxy`, `tls`), `connection` runs HTTP on it, `exchange` is one request in
//! progress, `pool` hands out connections, `socket` counts bytes and applies `bandwidth`.

mod bandwidth;
mod connect;
mod connection;
mod exchange;
mod pool;
mod proxy;
mod socket;
mod suspicion;
mod tls;
#[cfg(feature = "simulation")]
mod wire;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::header::{HOST, HeaderMap, HeaderName, HeaderValue};
use hyper::http::uri::PathAndQuery;
use hyper::{Method, Request, Uri};
use tokio::time::Instant;

pub(super) use pool::Checkout;
pub(super) use proxy::basic;
pub(super) use socket::Meter;
pub(super) use tls::Tls;
#[cfg(feature = "simulation")]
pub use wire::{ExchangeFuture, Wire, WireAnswer, WireRequest};

use super::credentials::ClientError;
use super::failure::Failure;
use super::request::{ConnectionChoice, Priority};
use super::settings::Settings;
use connect::Connector;
use connection::Heeded;
use exchange::Upload;
use pool::Pool;

static PROXY_AUTHORIZATION: HeaderName = HeaderName::from_static("proxy-authorization");

/// Approximate bytes of HTTP/2 headers, which cannot be measured among those of other requests.
const HTTP2_HEAD_BYTES: u64 = 100;

/// A request ready to be sent.
pub(super) struct Outbound {
    pub(super) method: Method,
    pub(super) uri: Uri,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    pub(super) connection: ConnectionChoice,
    pub(super) priority: Priority,
    pub(super) answer_max_bytes: usize,
}

/// An answer as received. Its connection is closed unless it is returned.
pub(super) struct Inbound {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    pub(super) truncated: bool,
    /// The connection, if it can be returned.
    pub(super) checkout: Option<Checkout>,
}

/// How a request got its connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Opening {
    /// Time spent waiting for it.
    pub took: Duration,
    /// Whether the request is the first on it, which makes it slower.
    pub is_first: bool,
}

/// The outcome of a request.
pub(super) struct RequestOutcome {
    pub(super) result: Result<Inbound, Failure>,
    /// Time until the kernel had taken its last byte.
    pub(super) upload: Duration,
    pub(super) opening: Opening,
    pub(super) wire_bytes: u64,
}

/// Sends requests to one host.
pub(super) struct Transport {
    pool: Arc<Pool>,
    timeout: Duration,
    /// Replaces the connections.
    #[cfg(feature = "simulation")]
    pub(in crate::control_plane) wire: Option<Arc<dyn Wire>>,
}

impl Transport {
    pub(super) fn new(
        settings: &Settings,
        target: &Uri,
        tls: Option<&Tls>,
        meter: Arc<Meter>,
    ) -> Result<Self, ClientError> {
        let connector = Connector::new(settings, target, tls, meter)?;
        let pool = Arc::new(Pool::new(connector, settings.max_idle_connections));
        Ok(Self {
            pool,
            timeout: settings.timeout,
            #[cfg(feature = "simulation")]
            wire: None,
        })
    }

    pub(super) async fn send(&self, outbound: &Outbound) -> RequestOutcome {
        #[cfg(feature = "simulation")]
        if let Some(wire) = &self.wire {
            return self.over(&**wire, outbound).await;
        }
        let started = Instant::now();
        let is_urgent = outbound.priority == Priority::Urgent;
        let checked_out = match outbound.connection {
            ConnectionChoice::Any => self.pool.check_out(is_urgent).await,
            ConnectionChoice::New => self.pool.open(is_urgent, true).await,
        };
        let (sent, may_repeat) = match checked_out {
            Ok(checkout) => self.attempt(outbound, checkout, started).await,
            Err(failure) => return RequestOutcome::unsent(failure),
        };
        if !may_repeat {
            return sent;
        }
        match self.pool.open(is_urgent, false).await {
            Ok(checkout) => self.attempt(outbound, checkout, started).await.0,
            Err(failure) => RequestOutcome::unsent(failure),
        }
    }

    /// Also says whether to try again: if nothing was received on a connection that had served others.
    async fn attempt(
        &self,
        outbound: &Outbound,
        mut checkout: Checkout,
        started: Instant,
    ) -> (RequestOutcome, bool) {
        let is_urgent = outbound.priority == Priority::Urgent;
        let (is_used, is_http2) = (checkout.is_used(), checkout.is_http2());
        let opening = Opening { took: started.elapsed(), is_first: !is_used };
        let request = self.request(outbound, is_http2);
        let progress = request.body().progress();
        let tcp = checkout.tcp().cloned();
        let sent_before = tcp.as_ref().map_or(0, |tcp| tcp.sent());
        let heeded = checkout.exchange(request, outbound.answer_max_bytes, self.timeout, is_urgent).await;
        let (uploaded_at, wire_bytes) = match tcp {
            Some(tcp) if !is_http2 => (tcp.progressed_at(), tcp.sent() - sent_before),
            _ => (progress.at(), outbound.body.len() as u64 + HTTP2_HEAD_BYTES),
        };
        let upload = uploaded_at.saturating_duration_since(started);
        let (result, may_repeat) = match heeded {
            Ok(Heeded { head, body, truncated, .. }) => {
                let (status, headers) = (head.status.as_u16(), head.headers);
                (Ok(Inbound { status, headers, body, truncated, checkout: Some(checkout) }), false)
            }
            Err(broken) => (Err(broken.failure), broken.is_unanswered && is_used),
        };
        (RequestOutcome { result, upload, opening, wire_bytes }, may_repeat)
    }

    fn request(&self, outbound: &Outbound, is_http2: bool) -> Request<Upload> {
        let mut request = Request::new(Upload::new(outbound.body.clone()));
        *request.method_mut() = outbound.method.clone();
        let mut headers = outbound.headers.clone();
        let connector = self.pool.connector();
        if let Some(basic) = connector.proxy_authorization() {
            headers.insert(&PROXY_AUTHORIZATION, basic.clone());
        }
        *request.uri_mut() = if is_http2 || connector.is_forwarded() {
            outbound.uri.clone()
        } else {
            outbound.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/")).into()
        };
        if !is_http2
            && let Some(authority) = outbound.uri.authority()
            && let Ok(host) = HeaderValue::from_str(authority.as_str())
        {
            headers.insert(HOST, host);
        }
        *request.headers_mut() = headers;
        request
    }
}

impl RequestOutcome {
    fn unsent(failure: Failure) -> Self {
        Self { result: Err(failure), upload: Duration::ZERO, opening: Opening::default(), wire_bytes: 0 }
    }
}
