//! The client against real sockets: a peer sends exactly the bytes that a test specifies.

mod calls;
mod connections;
mod http2;
mod progress;
mod proxies;
mod tls;
mod tokens;
mod wire;

use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use uuid::Uuid;

use super::*;
use crate::record::Kind;
use crate::secret::Secret;

/// Long enough for a slow machine; only a failing test waits this long.
const PATIENCE: Duration = Duration::from_secs(20);

fn settings(url: &str) -> Settings {
    Settings {
        url: Secret::new(url),
        timeout: PATIENCE,
        max_idle_connections: 4,
        server_id: "edge-1".into(),
        version: "1.2.3".into(),
        auth: Auth::ApiKey,
        api_key_header: "X-API-Key".into(),
        api_key: Some(Secret::new("hunter2")),
        jwt_key: None,
        jwt_algorithm: None,
        jwt_key_id: None,
        ca_file: None,
        client_cert_file: None,
        client_key_file: None,
        http: HttpVersion::Auto,
        dscp: None,
        proxy: None,
    }
}

fn delivery(session_id: &str) -> Delivery<'_> {
    Delivery {
        kind: Kind::Usage,
        session_id,
        transaction_id: "t-1",
        body: Bytes::from_static(b"{\"a\":1}"),
        key: Uuid::from_u128(7),
        correlation_id: "corr-1",
        traceparent: None,
        connection: ConnectionChoice::Any,
    }
}

fn batch(body: Bytes, records: usize) -> BatchRequest<'static> {
    BatchRequest {
        body,
        encoding: Encoding::Identity,
        records,
        key: Uuid::from_u128(9),
        correlation_id: "corr-2",
        connection: ConnectionChoice::Any,
    }
}

/// A request as received.
#[derive(Debug)]
struct Received {
    head: String,
    body: Vec<u8>,
}

impl Received {
    fn line(&self) -> &str {
        self.head.lines().next().unwrap()
    }

    fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        headers.find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }
}

/// Reads one request according to its `Content-Length`; `None` at the end of the connection.
async fn receive(stream: &mut (impl AsyncReadExt + Unpin)) -> Option<Received> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            break end;
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let mut request = Received {
        head: String::from_utf8_lossy(&bytes[..end]).into_owned(),
        body: bytes.split_off(end + 4),
    };
    let length = request.header("content-length").map_or(0, |n| n.parse().unwrap());
    while request.body.len() < length {
        if stream.read_buf(&mut request.body).await.ok()? == 0 {
            return None;
        }
    }
    Some(request)
}

/// Starts a peer whose connections are handled by `handle`; returns its URL.
async fn peer<F>(handle: impl Fn(TcpStream) -> F + Send + 'static) -> String
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(handle(stream));
        }
    });
    url
}

/// Starts a peer that answers every request with these bytes, and reports what it received.
async fn answering(answer: impl Into<Vec<u8>>) -> (String, tokio::sync::mpsc::UnboundedReceiver<Received>) {
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    let answer = answer.into();
    let url = peer(move |mut stream| {
        let (sender, answer) = (sender.clone(), answer.clone());
        async move {
            while let Some(request) = receive(&mut stream).await {
                let _ = sender.send(request);
                if stream.write_all(&answer).await.is_err() {
                    break;
                }
            }
        }
    })
    .await;
    (url, receiver)
}

/// A complete answer with this status line, headers and body.
fn http(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n{headers}\r\n{body}", body.len())
}
