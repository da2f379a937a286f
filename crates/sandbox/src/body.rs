//! Reads requests' bodies within limits, and writes or corrupts answers' bodies.

use std::{convert::Infallible, fmt::Display, iter, time::Duration};

use axum::{
    Json,
    body::Body,
    extract::{DefaultBodyLimit, FromRequest, Request},
    http::{HeaderName, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::stream;
use serde::Serialize;
use utoipa::ToSchema;

use super::weather::BadBody;

/// The largest request body, as sent and decompressed, in bytes.
pub(super) const MAX_BYTES: usize = 64 << 20;
/// Maximum time for a client to send a body.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// Pause between two chunks of an endless answer: it must outlast the client's patience without using much CPU.
const ENDLESS_PACE: Duration = Duration::from_millis(10);

static CHUNK: [u8; 1 << 16] = [b'a'; 1 << 16];
const HUGE_CHUNKS: usize = (256 << 20) / CHUNK.len();

const JSON: (HeaderName, &str) = (header::CONTENT_TYPE, "application/json");
const HTML: (HeaderName, &str) = (header::CONTENT_TYPE, "text/html");

/// An error answer.
#[derive(Serialize, ToSchema)]
pub(super) struct Failure {
    /// False.
    success: bool,
    /// Why.
    error: String,
}

/// A good answer.
#[derive(Serialize, ToSchema)]
pub(super) struct Success<T> {
    /// True.
    success: bool,
    data: T,
}

/// A good answer without data.
#[derive(Serialize, ToSchema)]
pub(super) struct Done {
    /// True.
    success: bool,
}

pub(super) fn error(status: StatusCode, why: impl Display) -> Response {
    (status, Json(Failure { success: false, error: why.to_string() })).into_response()
}

/// An answer with `data`.
pub(super) fn success(data: impl Serialize) -> Response {
    Json(Success { success: true, data }).into_response()
}

/// A success without data.
pub(super) fn done() -> Response {
    Json(Done { success: true }).into_response()
}

/// Reads a body to its end, or returns the answer to give instead.
pub(super) async fn read(body: Body) -> Result<Bytes, Response> {
    let mut request = Request::new(body);
    DefaultBodyLimit::max(MAX_BYTES).apply(&mut request);
    match tokio::time::timeout(READ_TIMEOUT, Bytes::from_request(request, &())).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(rejection)) => Err(error(rejection.status(), rejection.body_text())),
        Err(_) => Err(error(StatusCode::REQUEST_TIMEOUT, "the body took too long")),
    }
}

/// A 2xx that reports failure: nothing was processed.
pub(super) fn success_false() -> Response {
    error(StatusCode::OK, "the weather")
}

/// An answer with this status and a body that does not belong to it.
pub(super) fn spoilt(status: StatusCode, kind: BadBody) -> Response {
    let content_type = if kind == BadBody::NotJson { HTML } else { JSON };
    let body = match kind {
        BadBody::Empty => Body::empty(),
        BadBody::NotJson => Body::from("<html><body>It works!</body></html>"),
        BadBody::Huge => Body::from_stream(stream::iter(huge().map(Ok::<_, Infallible>))),
        BadBody::Endless => Body::from_stream(stream::unfold((), |()| async {
            tokio::time::sleep(ENDLESS_PACE).await;
            Some((Ok::<_, Infallible>(Bytes::from_static(&CHUNK)), ()))
        })),
    };
    (status, [content_type], body).into_response()
}

fn huge() -> impl Iterator<Item = Bytes> {
    let text = iter::repeat_n(Bytes::from_static(&CHUNK), HUGE_CHUNKS);
    let (open, close) = (Bytes::from_static(br#"{"success":true,"data":""#), Bytes::from_static(br#""}"#));
    iter::once(open).chain(text).chain(iter::once(close))
}
