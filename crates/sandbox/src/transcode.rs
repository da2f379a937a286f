//! Decodes requests, and encodes answers as far as the client accepts it.

use std::io::{self, Read, Write as _};

use axum::{
    body::{Body, HttpBody as _},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::Response,
};
use bytes::Bytes;
use flate2::{Compression, bufread::MultiGzDecoder, write::GzEncoder};

use super::{body, encoding::Encoding, weather::Weather};

/// Shorter answers are not compressed: they would grow.
const MIN_BYTES: usize = 1 << 10;
/// zstd's level: answers are not worth a higher one.
const LEVEL: i32 = 1;

impl Encoding {
    fn compress(self, plain: &[u8]) -> io::Result<Vec<u8>> {
        match self {
            Self::Gzip => {
                let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
                encoder.write_all(plain)?;
                encoder.finish()
            }
            Self::Zstd => zstd::bulk::compress(plain, LEVEL),
        }
    }

    fn decompress(self, sent: &[u8]) -> Result<Bytes, Response> {
        let decoded = match self {
            Self::Gzip => read_limited(MultiGzDecoder::new(sent), sent.len()),
            Self::Zstd => zstd::stream::read::Decoder::with_buffer(sent)
                .and_then(|decoder| read_limited(decoder, sent.len())),
        };
        match decoded {
            Ok(plain) if plain.len() > body::MAX_BYTES => {
                Err(body::error(StatusCode::PAYLOAD_TOO_LARGE, "too large decompressed"))
            }
            Ok(plain) => Ok(plain.into()),
            Err(problem) => {
                Err(body::error(StatusCode::BAD_REQUEST, format_args!("not {}: {problem}", self.name())))
            }
        }
    }
}

/// Reads at most one byte more than a body may have.
fn read_limited(decoder: impl Read, sent: usize) -> io::Result<Vec<u8>> {
    let mut plain = Vec::with_capacity(sent.saturating_mul(8).min(body::MAX_BYTES));
    decoder.take(body::MAX_BYTES as u64 + 1).read_to_end(&mut plain)?;
    Ok(plain)
}

/// A request's body without its `Content-Encoding`, or the answer to give instead.
pub(super) fn decode(headers: &HeaderMap, weather: &Weather, sent: Bytes) -> Result<Bytes, Response> {
    let Some(named) = headers.get(header::CONTENT_ENCODING) else { return Ok(sent) };
    match Encoding::of(headers) {
        Some(encoding) if !weather.refuse_encodings.contains(&encoding) => encoding.decompress(&sent),
        _ => Err(body::error(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            format_args!("Content-Encoding: {} is not taken", String::from_utf8_lossy(named.as_bytes())),
        )),
    }
}

/// Lists the accepted encodings, and encodes the answer as the client or the weather requires.
pub(super) async fn finish(mut answer: Response, accepted: Option<Encoding>, weather: &Weather) -> Response {
    if !weather.hide_encodings {
        answer.headers_mut().insert(header::ACCEPT_ENCODING, taken(weather));
    }
    match &weather.answer_encoding {
        None => match accepted {
            Some(encoding) if answer.body().size_hint().lower() >= MIN_BYTES as u64 => {
                encode(answer, encoding).await
            }
            _ => answer,
        },
        Some(name) => match Encoding::parse(name.as_bytes()) {
            Some(encoding) => encode(answer, encoding).await,
            None => {
                if let Ok(name) = HeaderValue::from_str(name) {
                    answer.headers_mut().insert(header::CONTENT_ENCODING, name);
                }
                answer
            }
        },
    }
}

/// The value of an answer's `Accept-Encoding`.
fn taken(weather: &Weather) -> HeaderValue {
    let refused = |encoding| weather.refuse_encodings.contains(&encoding);
    HeaderValue::from_static(match (refused(Encoding::Gzip), refused(Encoding::Zstd)) {
        (false, false) => "gzip, zstd",
        (false, true) => "gzip",
        (true, false) => "zstd",
        (true, true) => "identity",
    })
}

/// Encodes an answer whose body is complete in memory.
async fn encode(answer: Response, encoding: Encoding) -> Response {
    let (mut parts, plain) = answer.into_parts();
    if plain.size_hint().exact().is_none() {
        return Response::from_parts(parts, plain);
    }
    let plain = axum::body::to_bytes(plain, usize::MAX).await.map_err(io::Error::other);
    match plain.and_then(|plain| encoding.compress(&plain)) {
        Ok(encoded) => {
            parts.headers.remove(header::CONTENT_LENGTH);
            parts.headers.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
            parts.headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(encoding.name()));
            Response::from_parts(parts, Body::from(encoded))
        }
        Err(problem) => body::error(StatusCode::INTERNAL_SERVER_ERROR, problem),
    }
}
