//! A ControlPlane that answers as the test says, for cases beyond the sandbox's weather.

use std::io::Read as _;
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

/// A request as received.
#[derive(Clone, Debug)]
pub(crate) struct Received {
    /// When it was complete.
    #[allow(dead_code, reason = "the benches measure with it")]
    pub(crate) at: Instant,
    #[allow(dead_code, reason = "one test looks at it, no bench does")]
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Received {
    /// Its body as JSON, decompressed.
    pub(crate) fn json(&self) -> Value {
        let is_gzip = self.headers.get("content-encoding").is_some_and(|encoding| encoding == "gzip");
        let mut plain = Vec::new();
        if is_gzip && flate2::read::GzDecoder::new(&*self.body).read_to_end(&mut plain).is_ok() {
            return serde_json::from_slice(&plain).unwrap_or(Value::Null);
        }
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    pub(crate) fn is_batch(&self) -> bool {
        self.path.ends_with("/records/batch")
    }

    /// A batch's sessions, each with its records' bodies in order.
    pub(crate) fn sessions(&self) -> Vec<(String, Vec<Value>)> {
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let body = |record: &Value| record["body"].clone();
        let session = |session: &Value| {
            let name = session["api_session_id"].as_str().unwrap_or_default().to_owned();
            (name, list(&session["records"]).iter().map(body).collect())
        };
        list(&self.json()["sessions"]).iter().map(session).collect()
    }

    /// The transactions of a batch's records, in order.
    pub(crate) fn transactions(&self) -> Vec<String> {
        let records = self.sessions().into_iter().flat_map(|(_, records)| records);
        records.map(|record| record["transaction_id"].as_str().unwrap_or_default().to_owned()).collect()
    }

    /// The status of each record of a batch, in order: its own, or 424 after a record of its session that was not taken.
    fn statuses(&self, status: impl Fn(&str) -> u16) -> Vec<(String, u16)> {
        let mut statuses = Vec::new();
        for (_, records) in self.sessions() {
            let mut is_stopped = false;
            for record in records {
                let id = record["transaction_id"].as_str().unwrap_or_default().to_owned();
                let status = if is_stopped { 424 } else { status(&id) };
                is_stopped |= matches!(status, 401 | 403 | 404 | 408 | 410 | 424 | 425 | 429 | 500..);
                statuses.push((id, status));
            }
        }
        statuses
    }

    /// The transactions accepted by [`Self::results`].
    pub(crate) fn taken(&self, status: impl Fn(&str) -> u16) -> Vec<String> {
        self.statuses(status).into_iter().filter(|(_, status)| *status == 200).map(|(id, _)| id).collect()
    }

    /// The answer to a batch whose records have these statuses, or 424 after one of their session that was not taken.
    pub(crate) fn results(&self, status: impl Fn(&str) -> u16) -> Response {
        let statuses = self.statuses(status);
        let exceptions: Vec<Value> = statuses
            .iter()
            .enumerate()
            .filter(|(_, (_, status))| *status != 200)
            .map(|(index, (_, status))| json!({"index": index, "status": status}))
            .collect();
        let batch = self.headers["idempotency-key"].to_str().unwrap_or_default();
        let data = json!({"batch": batch, "count": statuses.len(), "exceptions": exceptions});
        axum::Json(json!({"success": true, "data": data})).into_response()
    }
}

/// The answer to a record that was taken.
pub(crate) fn taken() -> Response {
    axum::Json(json!({"success": true})).into_response()
}

/// A TLS port. Failed handshakes are ignored.
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
    /// Answers records as `script` says; accepts registrations and heartbeats.
    pub(crate) async fn start(
        script: impl Fn(&Received) -> Response + Clone + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("its address"));
        Self::serve(listener, url, false, script)
    }

    /// Answers everything as `script` says, including calls about the server.
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
                    method: head.method.as_str().to_owned(),
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

    /// Every request that the script has answered.
    pub(crate) fn received(&self) -> Vec<Received> {
        self.received.lock().expect("no test panics here").clone()
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.task.abort();
    }
}
