//! Serves a router within limits: connections and descriptors, the time to receive a request's head, the time a peer takes
//! to read its answer, and the time to stop.

use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{ConnectInfo, Request};
use futures_util::FutureExt as _;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpSocket, TcpStream, lookup_host};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::connection_limit::{ConnectionLimit, ConnectionPermit};
use super::hosts::LocalAddress;
use super::reserve::{RESERVE, is_out_of_descriptors};
use super::socket::TimeoutSocket;

/// Maximum connections. Scrapers need a few; at the limit, a new connection displaces one that waits for its peer.
const CONNECTIONS: usize = 256;
/// Maximum time for a request's head, and for a kept-alive connection to send the next request.
const HEAD_WITHIN: Duration = Duration::from_secs(10);
/// Maximum size of a request's head, and maximum number of its headers.
const HEAD_BYTES: usize = 16 << 10;
const HEADERS: usize = 64;
/// Unread bytes of an answer in the kernel; Linux doubles the figure.
const UNREAD_BYTES: u32 = 64 << 10;
/// Connections waiting to be accepted. One more has to retry after a second.
const KNOCKING: u32 = 1024;
/// Pause after a failed accept: a connection must end first.
const PAUSE: Duration = Duration::from_millis(100);
/// How often the reserve is refilled while it is incomplete.
const REFILL_EVERY: Duration = Duration::from_secs(1);
/// Time for requests in progress at a stop.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// Listens on the first usable address of `host`.
pub async fn listen(host: &str, port: u16) -> io::Result<TcpListener> {
    let mut fault = io::Error::new(io::ErrorKind::NotFound, "the host name has no address");
    for address in lookup_host((host, port)).await.map_err(unknown_host)? {
        match listen_on(address) {
            Ok(listener) => return Ok(listener),
            Err(error) => fault = error,
        }
    }
    Err(fault)
}

/// Maps a failed lookup to `NotFound`, unless the resolver could not be reached: that passes by itself.
fn unknown_host(error: io::Error) -> io::Error {
    let text = error.to_string();
    // The error contains only the resolver's text: glibc's and musl's phrases.
    let is_for_now =
        ["Temporary failure", "Try again", "System error"].iter().any(|for_now| text.contains(for_now));
    let is_lookup = error.kind() != io::ErrorKind::InvalidInput && error.raw_os_error().is_none();
    if is_lookup && !is_for_now { io::Error::new(io::ErrorKind::NotFound, error) } else { error }
}

fn listen_on(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // Connections of the previous process that linger must not delay a restart.
    socket.set_reuseaddr(true)?;
    // Accepted sockets inherit it.
    socket.set_send_buffer_size(UNREAD_BYTES)?;
    socket.bind(address)?;
    socket.listen(KNOCKING)
}

/// Serves until `stop` is true; then requests in progress are finished, and all other connections are closed.
pub(super) async fn serve(listener: TcpListener, router: Router, mut stop: watch::Receiver<bool>) {
    let limit = ConnectionLimit::new(CONNECTIONS);
    let service = TowerToHyperService::new(router);
    let mut connections = JoinSet::new();
    let told = stop.clone();
    // A connection is accepted before it gets a permit: only a real connection may displace another.
    let mut knocking = None;
    loop {
        let accepted = async {
            if knocking.is_none() {
                knocking = Some(accept(&listener, &limit).await?);
            }
            let permit = limit.take().await;
            knocking.take().map(|(stream, peer)| (permit, stream, peer))
        };
        tokio::select! {
            () = until_true(&mut stop) => break,
            Some(ended) = connections.join_next() => {
                if let Err(error) = ended && error.is_panic() {
                    tracing::error!(%error, "an HTTP request handler panicked; its connection is closed. Please report this bug");
                }
            }
            accepted = accepted => {
                let Some((permit, stream, peer)) = accepted else { continue };
                let conversation = converse(stream, peer, Arc::new(permit), service.clone(), told.clone());
                connections.spawn(async {
                    conversation.await;
                    // Before anything else takes the descriptor of the closed connection.
                    RESERVE.refill();
                });
            }
        }
    }
    drop((listener, knocking));
    let all = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(LAST_ANSWERS, all).await.is_err() {
        connections.shutdown().await;
    }
}

/// Accepts the next connection; `None` if there is none yet or accepting failed.
async fn accept(listener: &TcpListener, limit: &ConnectionLimit) -> Option<(TcpStream, SocketAddr)> {
    let is_full = RESERVE.refill();
    let accepted = if is_full {
        listener.accept().await
    } else {
        tokio::time::timeout(REFILL_EVERY, listener.accept()).await.ok()?
    };
    let error = match accepted {
        Ok(accepted) => return Some(accepted),
        Err(error) => error,
    };
    if is_out_of_descriptors(&error) {
        if RESERVE.release() {
            // Accept immediately: nothing else on this thread can take the descriptor in between.
            return listener.accept().now_or_never()?.ok();
        }
        // The reserve is used up: the connection that waits longest for its peer gives its descriptor back.
        let _ = tokio::time::timeout(PAUSE, limit.make_room()).await;
    }
    tracing::debug!(%error, "cannot accept a connection");
    tokio::time::sleep(PAUSE).await;
    None
}

/// Serves one connection until either side closes it.
async fn converse(
    stream: TcpStream,
    peer: SocketAddr,
    permit: Arc<ConnectionPermit>,
    service: TowerToHyperService<Router>,
    mut stop: watch::Receiver<bool>,
) {
    // An answer of several writes must not wait for an acknowledgement of the first. If this fails, it waits.
    let _ = stream.set_nodelay(true);
    let local = stream.local_addr().ok();
    let place = Arc::clone(&permit);
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let at_work = AtWork::new(&place);
        let mut request: Request =
            request.map(|body| Body::new(Question { body, permit: Arc::clone(&place) }));
        request.extensions_mut().insert(ConnectInfo(peer));
        if let Some(local) = local {
            request.extensions_mut().insert(LocalAddress(local));
        }
        let answer = hyper::service::Service::call(&service, request);
        async move { answer.await.map(|answer| answer.map(|body| ResponseBody { body, _at_work: at_work })) }
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_WITHIN)
            .max_buf_size(HEAD_BYTES)
            .max_headers(HEADERS)
            .serve_connection(TokioIo::new(TimeoutSocket::new(stream, Arc::clone(&permit))), service)
    );
    tokio::select! {
        biased;
        () = permit.wanted() => return,
        // It does not matter how a client disconnects.
        _ = connection.as_mut() => return,
        () = until_true(&mut stop) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = connection.await;
}

/// Marks a connection as busy while a request is being answered.
struct AtWork(Arc<ConnectionPermit>);

impl AtWork {
    fn new(permit: &Arc<ConnectionPermit>) -> Self {
        permit.answering(true);
        Self(Arc::clone(permit))
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        self.0.answering(false);
    }
}

/// A request's body. While the peer sends nothing, the connection counts as waiting.
struct Question {
    body: Incoming,
    permit: Arc<ConnectionPermit>,
}

impl HttpBody for Question {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        self.permit.starved(polled.is_pending());
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        self.permit.starved(false);
    }
}

/// An answer's body. When it has been sent, the connection is idle.
struct ResponseBody {
    body: Body,
    _at_work: AtWork,
}

impl HttpBody for ResponseBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

async fn until_true(stop: &mut watch::Receiver<bool>) {
    // A dropped sender also means stop.
    let _ = stop.wait_for(|stop| *stop).await;
}
