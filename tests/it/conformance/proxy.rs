//! A ControlPlane that breaks one rule: the sandbox behind a proxy that changes a request or an answer.

use std::io::Read as _;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::Request;
use axum::http::header::{
    ACCEPT_ENCODING, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HOST, RETRY_AFTER,
    TRANSFER_ENCODING,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// A request on its way to the sandbox.
pub(super) struct Asked {
    pub(super) method: Method,
    /// With its query, as sent.
    pub(super) path: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Asked {
    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    pub(super) fn set(&mut self, name: &'static str, value: &str) {
        let value = HeaderValue::from_str(value).expect("the value of a header");
        self.headers.insert(HeaderName::from_static(name), value);
    }

    pub(super) fn is_batch(&self) -> bool {
        self.path.ends_with("/records/batch")
    }

    /// Whether it is a single record of a session whose ID contains this.
    pub(super) fn is_single(&self, what: &str, session: &str) -> bool {
        self.path.ends_with(what) && self.path.contains("/sessions/") && self.path.contains(session)
    }

    /// Whether it is a batch with a session of this purpose.
    pub(super) fn is_batch_of(&self, purpose: &str) -> bool {
        self.is_batch() && self.text().contains(&format!("-{purpose}\",\"records\""))
    }

    /// Its body, decompressed.
    pub(super) fn text(&self) -> String {
        let mut plain = Vec::new();
        match self.header("content-encoding") {
            "gzip" => drop(flate2::read::GzDecoder::new(&*self.body).read_to_end(&mut plain).expect("gzip")),
            "zstd" => plain = zstd::decode_all(&*self.body).expect("zstd"),
            _ => plain = self.body.to_vec(),
        }
        String::from_utf8(plain).expect("UTF-8")
    }

    /// Replaces the body, uncompressed.
    pub(super) fn replace(&mut self, text: String) {
        self.headers.remove(CONTENT_ENCODING);
        self.body = text.into();
    }
}

/// An answer on its way back.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Answer {
    pub(super) fn of(status: u16, body: &Value) -> Self {
        let mut answer = Self { status, headers: HeaderMap::new(), body: Bytes::new() };
        answer.say(status, body);
        answer
    }

    /// Never answers.
    pub(super) fn never() -> Self {
        Self::of(0, &Value::Null)
    }

    pub(super) fn failure(status: u16) -> Self {
        Self::of(status, &json!({"success": false, "error": "broken on purpose"}))
    }

    pub(super) fn say(&mut self, status: u16, body: &Value) {
        self.status = status;
        self.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        self.body = body.to_string().into();
    }

    pub(super) fn fail(&mut self, status: u16) {
        *self = Self::failure(status);
    }

    pub(super) fn html(&mut self, status: u16) {
        self.status = status;
        self.headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/html"));
        self.body = "<html>\u{1b}[2J<body>nginx</body></html>".into();
    }

    pub(super) fn retry_after(&mut self, value: &'static str) {
        self.headers.insert(RETRY_AFTER, HeaderValue::from_static(value));
    }

    pub(super) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }

    /// Changes its content.
    pub(super) fn change(&mut self, change: impl FnOnce(&mut Value)) {
        let mut body = self.json();
        change(&mut body);
        self.say(self.status, &body);
    }

    /// Changes a batch's exceptions.
    pub(super) fn exceptions(&mut self, change: impl FnOnce(&mut Vec<Value>)) {
        self.change(|body| change(body["data"]["exceptions"].as_array_mut().expect("exceptions")));
    }

    /// Replaces one status by another in the exceptions.
    pub(super) fn restatus(&mut self, from: u16, to: u16) {
        self.exceptions(|exceptions| {
            for exception in exceptions.iter_mut().filter(|exception| exception["status"] == from) {
                exception["status"] = to.into();
            }
        });
    }
}

type Before = dyn Fn(&mut Asked) -> Option<Answer> + Send + Sync;
type After = dyn Fn(&Asked, &mut Answer) + Send + Sync;

/// What a proxy changes.
#[derive(Clone)]
pub(super) struct Twist {
    before: Arc<Before>,
    after: Arc<After>,
}

impl Twist {
    /// Changes requests, or answers them itself.
    pub(super) fn before(before: impl Fn(&mut Asked) -> Option<Answer> + Send + Sync + 'static) -> Self {
        Self { before: Arc::new(before), after: Arc::new(|_, _| {}) }
    }

    /// Changes answers.
    pub(super) fn after(after: impl Fn(&Asked, &mut Answer) + Send + Sync + 'static) -> Self {
        Self { before: Arc::new(|_| None), after: Arc::new(after) }
    }

    pub(super) fn and_after(self, after: impl Fn(&Asked, &mut Answer) + Send + Sync + 'static) -> Self {
        Self { after: Arc::new(after), ..self }
    }
}

/// The proxy, until it is dropped.
pub(super) struct Proxy {
    pub(super) url: String,
    task: JoinHandle<()>,
}

impl Proxy {
    pub(super) async fn start(behind: &str, twist: Twist) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("its address"));
        let client = reqwest::Client::builder().no_proxy().build().expect("an HTTP client");
        let behind = behind.to_owned();
        let answer = move |request: Request| pass(client.clone(), behind.clone(), twist.clone(), request);
        let app = Router::new().fallback(answer);
        let task = tokio::spawn(async move { axum::serve(listener, app).await.expect("it serves") });
        Self { url, task }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(client: reqwest::Client, behind: String, twist: Twist, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap_or_default();
    let path = head.uri.path_and_query().map_or_else(String::new, ToString::to_string);
    let mut asked = Asked { method: head.method, path, headers: head.headers, body };
    let mut answer = match (twist.before)(&mut asked) {
        Some(answer) => answer,
        None => forward(&client, &behind, &asked).await,
    };
    (twist.after)(&asked, &mut answer);
    if answer.status == 0 {
        return std::future::pending().await;
    }
    let status = StatusCode::from_u16(answer.status).expect("a status");
    (status, answer.headers, answer.body).into_response()
}

async fn forward(client: &reqwest::Client, behind: &str, asked: &Asked) -> Answer {
    let mut headers = asked.headers.clone();
    // Answers must be readable here.
    for name in [HOST, CONTENT_LENGTH, TRANSFER_ENCODING, CONNECTION, ACCEPT_ENCODING] {
        headers.remove(name);
    }
    let request = client.request(asked.method.clone(), format!("{behind}{}", asked.path)).headers(headers);
    let answer = request.body(asked.body.clone()).send().await.expect("the sandbox answers");
    let (status, mut headers) = (answer.status().as_u16(), answer.headers().clone());
    for name in [CONTENT_LENGTH, TRANSFER_ENCODING, CONNECTION] {
        headers.remove(name);
    }
    Answer { status, headers, body: answer.bytes().await.expect("the whole answer") }
}
