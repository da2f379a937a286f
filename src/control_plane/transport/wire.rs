//! Replaces sockets to the `ControlPlane` in a simulation.

use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;
use hyper::header::HeaderMap;
use hyper::{Method, Uri};
use tokio::time::Instant;

use super::{ConnectionChoice, Inbound, Opening, Outbound, RequestOutcome, Transport};
use crate::control_plane::failure::Failure;

/// A request to be sent.
#[derive(Clone, Debug)]
pub struct WireRequest {
    /// Its method.
    pub method: Method,
    /// Its URL.
    pub uri: Uri,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body, possibly compressed.
    pub body: Bytes,
    /// The connection to use.
    pub connection: ConnectionChoice,
}

/// An answer as received.
#[derive(Clone, Debug)]
pub struct WireAnswer {
    /// Its status.
    pub status: u16,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

/// Carries requests and answers.
pub trait Wire: Send + Sync {
    /// Exchanges one request for its answer, or fails. The future is dropped at the time-out.
    fn exchange(&self, request: WireRequest) -> ExchangeFuture<'_>;
}

/// A request in flight.
pub type ExchangeFuture<'a> = Pin<Box<dyn Future<Output = Result<WireAnswer, Failure>> + Send + 'a>>;

impl Transport {
    pub(super) async fn over(&self, wire: &dyn Wire, outbound: &Outbound) -> RequestOutcome {
        let started = Instant::now();
        let exchange = wire.exchange(WireRequest {
            method: outbound.method.clone(),
            uri: outbound.uri.clone(),
            headers: outbound.headers.clone(),
            body: outbound.body.clone(),
            connection: outbound.connection,
        });
        let answer = tokio::time::timeout(self.timeout, exchange).await;
        let result = answer.unwrap_or(Err(Failure::Timeout { connected: true })).map(|mut answer| {
            let truncated = answer.body.len() > outbound.answer_max_bytes;
            answer.body.truncate(outbound.answer_max_bytes);
            let WireAnswer { status, headers, body } = answer;
            Inbound { status, headers, body, truncated, checkout: None }
        });
        let upload = started.elapsed() / 2;
        RequestOutcome { result, upload, opening: Opening::default(), wire_bytes: outbound.body.len() as u64 }
    }
}
