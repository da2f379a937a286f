//! A ControlPlane that answers as the test says, for what the sandbox has no weather for.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use axum::Router;
use axum::body::Bytes;
use axum::extract::Request;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::server::TlsStream;

/// One request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Received {
    /// When all of it had come.
    #[allow(dead_code, reason = "the benches measure with it")]
    pub(crate) at: Instant,
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Received {
    /// Its body as JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    pub(crate) fn is_batch(&self) -> bool {
        self.path.ends_with("/usage-records/batch")
    }

    /// The transactions of a batch's records, in order.
    pub(crate) fn transactions(&self) -> Vec<String> {
        let records = self.json()["records"].as_array().cloned().unwrap_or_default();
        records
            .iter()
            .map(|record| record["transaction_id"].as_str().unwrap_or_default().to_owned())
            .collect()
    }

    /// The answer to a batch in which each record has this status.
    pub(crate) fn results(&self, status: impl Fn(&str) -> u16) -> Response {
        let results: Vec<Value> = self
            .transactions()
            .iter()
            .map(|id| json!({"transaction_id": id, "status": status(id)}))
            .collect();
        axum::Json(json!({"success": true, "data": {"results": results}})).into_response()
    }
}

/// A port that speaks TLS. Whoever fails at the handshake is gone.
struct Secured {
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl axum::serve::Listener for Secured {
    type Io = TlsStream<TcpStream>;
    type Addr = std::net::SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (stream, address) = self.listener.accept().await.expect("a connection");
            if let Ok(stream) = self.acceptor.accept(stream).await {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

/// The server, until it is dropped.
pub(crate) struct Scripted {
    pub(crate) url: String,
    received: Arc<Mutex<Vec<Received>>>,
    task: JoinHandle<()>,
}

impl Scripted {
    /// Answers records as `script` says; registrations and heartbeats are welcome.
    pub(crate) async fn start(
        script: impl Fn(&Received) -> Response + Clone + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("its address"));
        Self::serve(listener, url, false, script)
    }

    /// Answers everything as `script` says, also what is about the server.
    pub(crate) async fn start_all(
        script: impl Fn(&Received) -> Response + Clone + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("its address"));
        Self::serve(listener, url, true, script)
    }

    /// The same over TLS.
    pub(crate) async fn start_tls(
        config: Arc<ServerConfig>,
        script: impl Fn(&Received) -> Response + Clone + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let url = format!("https://{}", listener.local_addr().expect("its address"));
        Self::serve(Secured { listener, acceptor: config.into() }, url, false, script)
    }

    fn serve(
        listener: impl axum::serve::Listener<Addr: std::fmt::Debug>,
        url: String,
        all: bool,
        script: impl Fn(&Received) -> Response + Clone + Send + Sync + 'static,
    ) -> Self {
        let received = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&received);
        let answer = move |request: Request| {
            let (script, log) = (script.clone(), Arc::clone(&log));
            async move {
                let (head, body) = request.into_parts();
                let body = axum::body::to_bytes(body, usize::MAX).await.unwrap_or_default();
                let received = Received {
                    path: head.uri.path().to_owned(),
                    headers: head.headers,
                    body,
                    at: Instant::now(),
                };
                if !all && received.path.contains("/servers/") {
                    return axum::Json(json!({"success": true})).into_response();
                }
                let answer = script(&received);
                log.lock().expect("no test panics here").push(received);
                answer
            }
        };
        let app = Router::new().fallback(answer);
        let task = tokio::spawn(async move { axum::serve(listener, app).await.expect("it serves") });
        Self { url, received, task }
    }

    /// Every request that the script answered so far.
    pub(crate) fn received(&self) -> Vec<Received> {
        self.received.lock().expect("no test panics here").clone()
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.task.abort();
    }
}
