//! Serves a router within limits: of connections, of the time a request's head may take, and of the time to stop.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Request};

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

/// Connections at a time; more wait until one ends. Scrapers need a few.
const CONNECTIONS: usize = 256;
/// The head of a request takes no longer; neither does a kept-alive connection wait longer for the next one.
const HEAD_WITHIN: Duration = Duration::from_secs(10);
/// A request's head is at most so large, and has so many headers at most.
const HEAD_BYTES: usize = 16 << 10;
const HEADERS: usize = 64;
/// After an accept that failed: descriptors are short, and somebody must end first.
const PAUSE: Duration = Duration::from_millis(100);
/// What is being answered at a stop has so long.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// Serves until `stop` is true; then what is being answered is answered, and everything else is cut.
pub(super) async fn serve(listener: TcpListener, router: Router, mut stop: watch::Receiver<bool>) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    let service = TowerToHyperService::new(router);
    let mut connections = JoinSet::new();
    let told = stop.clone();
    loop {
        let accepted = async {
            // The semaphore is never closed.
            let slot = Arc::clone(&slots).acquire_owned().await;
            match listener.accept().await {
                Ok((stream, peer)) => Some((slot, stream, peer)),
                Err(error) => {
                    tracing::debug!(%error, "a connection could not be accepted");
                    tokio::time::sleep(PAUSE).await;
                    None
                }
            }
        };
        tokio::select! {
            () = until_true(&mut stop) => break,
            Some(_) = connections.join_next() => {}
            accepted = accepted => {
                let Some((slot, stream, peer)) = accepted else { continue };
                let (service, stop) = (service.clone(), told.clone());
                connections.spawn(async move {
                    converse(stream, peer, service, stop).await;
                    drop(slot);
                });
            }
        }
    }
    drop(listener);
    let all = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(LAST_ANSWERS, all).await.is_err() {
        connections.shutdown().await;
    }
}

/// One connection, until either side ends it.
async fn converse(
    stream: TcpStream,
    peer: SocketAddr,
    service: TowerToHyperService<Router>,
    mut stop: watch::Receiver<bool>,
) {
    let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let mut request: Request = request.map(Body::new);
        request.extensions_mut().insert(ConnectInfo(peer));
        hyper::service::Service::call(&service, request)
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_WITHIN)
            .max_buf_size(HEAD_BYTES)
            .max_headers(HEADERS)
            .serve_connection(TokioIo::new(stream), service)
    );
    tokio::select! {
        // How a client leaves is its own affair.
        _ = connection.as_mut() => return,
        () = until_true(&mut stop) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = connection.await;
}

async fn until_true(stop: &mut watch::Receiver<bool>) {
    // A sender that is gone means the same.
    let _ = stop.wait_for(|stop| *stop).await;
}
