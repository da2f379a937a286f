//! HTTP/2 over several connections if the host supports it, and TLS session resumption.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::HandshakeKind;

use super::tls::Authority;
use super::*;

#[derive(Default)]
struct Seen {
    connections: AtomicUsize,
    resumed: AtomicUsize,
    under_way: AtomicUsize,
    most: AtomicUsize,
    /// How many requests must be in flight before any is answered.
    together: AtomicUsize,
}

/// A host that offers these protocols, and answers with the one used.
async fn host(authority: &Authority, protocols: &[&[u8]], seen: &Arc<Seen>) -> String {
    let mut config = Authority::server_config(&authority.good(), None);
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    let (acceptor, seen) = (TlsAcceptor::from(Arc::new(config)), Arc::clone(seen));
    let url = peer(move |stream| {
        let (acceptor, seen) = (acceptor.clone(), Arc::clone(&seen));
        async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let tls = stream.get_ref().1;
            seen.connections.fetch_add(1, Ordering::SeqCst);
            seen.resumed.fetch_add(
                usize::from(tls.handshake_kind() == Some(HandshakeKind::Resumed)),
                Ordering::SeqCst,
            );
            let is_http2 = tls.alpn_protocol() == Some(b"h2");
            serve(TokioIo::new(stream), is_http2, seen).await;
        }
    })
    .await;
    url.replace("http://", "https://")
}

async fn serve<S>(stream: S, is_http2: bool, seen: Arc<Seen>)
where
    S: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let seen = Arc::clone(&seen);
        async move {
            assert_eq!(request.headers()["x-api-key"], "hunter2");
            let now = seen.under_way.fetch_add(1, Ordering::SeqCst) + 1;
            seen.most.fetch_max(now, Ordering::SeqCst);
            while seen.most.load(Ordering::SeqCst) < seen.together.load(Ordering::SeqCst) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            seen.under_way.fetch_sub(1, Ordering::SeqCst);
            let status = if request.version() == Version::HTTP_2 { 201 } else { 200 };
            let id = request.headers()["x-correlation-id"].clone();
            // A host that answers before the body has arrived may never see all of it.
            let body = axum::body::Body::new(request.into_body());
            axum::body::to_bytes(body, usize::MAX).await.unwrap();
            let answer = axum::response::Response::builder().status(status).header("x-correlation-id", id);
            Ok::<_, std::convert::Infallible>(answer.body(axum::body::Body::from("{}")).unwrap())
        }
    });
    if is_http2 {
        let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .serve_connection(stream, service)
            .await;
    } else {
        let _ = hyper::server::conn::http1::Builder::new().serve_connection(stream, service).await;
    }
}

#[tokio::test]
async fn the_host_chooses_the_protocol_unless_one_is_configured() {
    let authority = Authority::new();
    let both: &[&[u8]] = &[b"h2", b"http/1.1"];
    for (http, protocols, status) in [
        (HttpVersion::Auto, both, 201),
        (HttpVersion::Auto, &both[1..], 200),
        (HttpVersion::Auto, &[], 200),
        (HttpVersion::Http1, both, 200),
        (HttpVersion::Http2, both, 201),
    ] {
        let seen = Arc::default();
        let url = host(&authority, protocols, &seen).await;
        let client = Client::new(Settings { http, ..authority.settings(&url) }).unwrap();
        for _ in 0..3 {
            assert_eq!(client.deliver(delivery("s")).await.result.unwrap().status, status);
        }
        assert_eq!(seen.connections.load(Ordering::SeqCst), 1);
    }
}

#[tokio::test]
async fn http2_is_spoken_without_tls_where_it_is_configured() {
    let seen = Arc::<Seen>::default();
    let url = peer(move |stream| serve(TokioIo::new(stream), true, Arc::clone(&seen))).await;
    let client = Client::new(Settings { http: HttpVersion::Http2, ..settings(&url) }).unwrap();
    assert_eq!(client.deliver(delivery("s")).await.result.unwrap().status, 201);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_requests_share_several_connections_and_never_one() {
    let authority = Authority::new();
    let seen = Arc::<Seen>::default();
    let url = host(&authority, &[b"h2"], &seen).await;
    let client = Client::new(Settings { max_idle_connections: 32, ..authority.settings(&url) }).unwrap();
    let client = Arc::new(client);
    for (requests, connections) in [(1, 1), (4, 4), (8, 8), (32, 8), (40, 10)] {
        seen.most.store(0, Ordering::SeqCst);
        seen.together.store(requests, Ordering::SeqCst);
        let sent = (0..requests).map(|_| {
            let client = Arc::clone(&client);
            tokio::spawn(async move { client.deliver(delivery("s")).await.result.unwrap().status })
        });
        for status in sent.collect::<Vec<_>>() {
            assert_eq!(status.await.unwrap(), 201);
        }
        assert_eq!(seen.connections.load(Ordering::SeqCst), connections, "for {requests} requests");
    }
}

#[tokio::test]
async fn a_session_is_resumed_on_the_next_connection() {
    let authority = Authority::new();
    for http in [HttpVersion::Http1, HttpVersion::Http2] {
        let seen = Arc::<Seen>::default();
        let url = host(&authority, &[b"h2", b"http/1.1"], &seen).await;
        let client = Client::new(Settings { http, ..authority.settings(&url) }).unwrap();
        for _ in 0..3 {
            let fresh = Delivery { connection: ConnectionChoice::New, ..delivery("s") };
            assert!(client.deliver(fresh).await.result.is_ok());
        }
        assert_eq!(seen.connections.load(Ordering::SeqCst), 3);
        assert_eq!(seen.resumed.load(Ordering::SeqCst), 2, "{http:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_body_goes_over_http2_and_is_counted() {
    let seen = Arc::<Seen>::default();
    let url = peer(move |stream| serve(TokioIo::new(stream), true, Arc::clone(&seen))).await;
    let client = Client::new(Settings { http: HttpVersion::Http2, ..settings(&url) }).unwrap();
    let answer = client.deliver_batch(batch(Bytes::from(vec![b'x'; 60_000]), 1)).await;
    assert_eq!(answer.result.unwrap().status, 201);
    assert!(answer.upload <= answer.elapsed && answer.wire_bytes > 60_000);
    assert!(client.wire_totals().0 > 60_000);
}
