//! Bodies: requests' read and decompressed within limits, answers' written or spoilt.

use std::{convert::Infallible, fmt::Display, io::Read, iter, time::Duration};

use axum::{
    Json,
    body::Body,
    extract::{DefaultBodyLimit, FromRequest, Request},
    http::{HeaderMap, HeaderName, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use flate2::bufread::MultiGzDecoder;
use futures_util::stream;
use serde_json::json;

use super::weather::BadBody;

/// The largest request body, as sent and decompressed, in bytes.
const MAX_BYTES: usize = 64 << 20;
/// How long a client may take to send one.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// Between two chunks of an endless answer: it is to outlast the client's patience, not to heat the room.
const ENDLESS_PACE: Duration = Duration::from_millis(10);

static CHUNK: [u8; 1 << 16] = [b'a'; 1 << 16];
const HUGE_CHUNKS: usize = (256 << 20) / CHUNK.len();

const JSON: (HeaderName, &str) = (header::CONTENT_TYPE, "application/json");

/// An answer that says what is wrong.
pub(super) fn error(status: StatusCode, why: impl Display) -> Response {
    (status, Json(json!({"success": false, "error": why.to_string()}))).into_response()
}

/// An answer that carries `data`.
pub(super) fn success(data: impl serde::Serialize) -> Response {
    #[derive(serde::Serialize)]
    struct Success<T> {
        success: bool,
        data: T,
    }
    Json(Success { success: true, data }).into_response()
}

/// The whole body as it was sent, or the answer to give instead.
pub(super) async fn read(body: Body) -> Result<Bytes, Response> {
    let mut request = Request::new(body);
    DefaultBodyLimit::max(MAX_BYTES).apply(&mut request);
    match tokio::time::timeout(READ_TIMEOUT, Bytes::from_request(request, &())).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(rejection)) => Err(error(rejection.status(), rejection.body_text())),
        Err(_) => Err(error(StatusCode::REQUEST_TIMEOUT, "the body took too long")),
    }
}

/// Whether the headers say that the body is compressed with gzip.
pub(super) fn is_gzip(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_ENCODING)
        .is_some_and(|coding| coding.as_bytes().eq_ignore_ascii_case(b"gzip"))
}

/// The body as it was before its `Content-Encoding`, or the answer to give instead.
pub(super) fn decode(headers: &HeaderMap, body: Bytes) -> Result<Bytes, Response> {
    match headers.get(header::CONTENT_ENCODING) {
        None => Ok(body),
        Some(_) if is_gzip(headers) => gunzip(&body),
        Some(_) => {
            Err(error(StatusCode::UNSUPPORTED_MEDIA_TYPE, "Content-Encoding: only gzip is understood"))
        }
    }
}

fn gunzip(body: &[u8]) -> Result<Bytes, Response> {
    let mut plain = Vec::with_capacity(body.len().saturating_mul(8).min(MAX_BYTES));
    let decoder = MultiGzDecoder::new(body);
    match decoder.take(MAX_BYTES as u64 + 1).read_to_end(&mut plain) {
        Ok(length) if length > MAX_BYTES => {
            Err(error(StatusCode::PAYLOAD_TOO_LARGE, "too large decompressed"))
        }
        Ok(_) => Ok(plain.into()),
        Err(problem) => Err(error(StatusCode::BAD_REQUEST, format_args!("not gzip: {problem}"))),
    }
}

/// An answer with the status of a good one and a body that is not.
pub(super) fn spoilt(status: StatusCode, kind: BadBody) -> Response {
    let body = match kind {
        BadBody::Empty => Body::empty(),
        BadBody::NotJson => Body::from("<html><body>It works!</body></html>"),
        BadBody::Huge => Body::from_stream(stream::iter(huge().map(Ok::<_, Infallible>))),
        BadBody::Endless => Body::from_stream(stream::unfold((), |()| async {
            tokio::time::sleep(ENDLESS_PACE).await;
            Some((Ok::<_, Infallible>(Bytes::from_static(&CHUNK)), ()))
        })),
    };
    (status, [JSON], body).into_response()
}

fn huge() -> impl Iterator<Item = Bytes> {
    let text = iter::repeat_n(Bytes::from_static(&CHUNK), HUGE_CHUNKS);
    let (open, close) = (Bytes::from_static(br#"{"success":true,"data":""#), Bytes::from_static(br#""}"#));
    iter::once(open).chain(text).chain(iter::once(close))
}
