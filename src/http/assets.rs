//! The pages' files. They are embedded in the binary, large ones compressed, and only the parts being read are in memory.
//!
//! Swagger UI and Redoc are third-party releases (`vendored/*/LICENSE`); `make vendor-pages` fetches them again.

use std::io::Read as _;

use axum::body::Body;
use axum::extract::Path;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use flate2::read::GzDecoder;
use futures_util::stream;

/// An embedded file.
struct Asset {
    name: &'static str,
    media: &'static str,
    content: Content,
}

enum Content {
    Plain(&'static [u8]),
    Gzip(&'static [u8]),
}

/// Bytes unpacked at once.
const PIECE: usize = 16 << 10;

const CSS: &str = "text/css; charset=utf-8";
const JS: &str = "text/javascript; charset=utf-8";

static ASSETS: [Asset; 9] = [
    Asset { name: "page.css", media: CSS, content: Content::Plain(include_bytes!("pages/page.css")) },
    Asset { name: "page.js", media: JS, content: Content::Plain(include_bytes!("pages/page.js")) },
    Asset { name: "letters.js", media: JS, content: Content::Plain(include_bytes!("pages/letters.js")) },
    Asset { name: "chart.js", media: JS, content: Content::Plain(include_bytes!("pages/chart.js")) },
    Asset { name: "docs.js", media: JS, content: Content::Plain(include_bytes!("pages/docs.js")) },
    Asset { name: "redoc.js", media: JS, content: Content::Plain(include_bytes!("pages/redoc.js")) },
    Asset {
        name: "swagger-ui.css",
        media: CSS,
        content: Content::Gzip(include_bytes!("vendored/swagger-ui/swagger-ui.css.gz")),
    },
    Asset {
        name: "swagger-ui-bundle.js",
        media: JS,
        content: Content::Gzip(include_bytes!("vendored/swagger-ui/swagger-ui-bundle.js.gz")),
    },
    Asset {
        name: "redoc.standalone.js",
        media: JS,
        content: Content::Gzip(include_bytes!("vendored/redoc/redoc.standalone.js.gz")),
    },
];

/// A file of the pages.
#[utoipa::path(
    get,
    path = "/assets/{name}",
    tag = "page",
    params(("name" = String, Path, description = "File name")),
    responses(
        (status = 200, description = "The file", content((String = "text/css"), (String = "text/javascript"))),
        (status = 304, description = "Not modified"),
        (status = 404, description = "No such file"),
    )
)]
pub(super) async fn asset(Path(name): Path<String>, headers: HeaderMap) -> Response {
    let Some(asset) = ASSETS.iter().find(|asset| asset.name == name) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let stored = match asset.content {
        Content::Plain(bytes) | Content::Gzip(bytes) => bytes,
    };
    let Ok(tag) = HeaderValue::from_str(&format!("\"{:016x}\"", xxhash_rust::xxh3::xxh3_64(stored))) else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    // Browsers revalidate each time: after an update they must not mix old and new files.
    let common = [(header::CACHE_CONTROL, HeaderValue::from_static("no-cache")), (header::ETAG, tag.clone())];
    if headers.get(header::IF_NONE_MATCH) == Some(&tag) {
        return (StatusCode::NOT_MODIFIED, common).into_response();
    }
    let media = [(header::CONTENT_TYPE, asset.media), (header::VARY, "accept-encoding")];
    match asset.content {
        Content::Plain(bytes) => (common, media, bytes).into_response(),
        Content::Gzip(bytes) if takes_gzip(&headers) => {
            (common, media, [(header::CONTENT_ENCODING, "gzip")], bytes).into_response()
        }
        Content::Gzip(bytes) => (common, media, unpacked(bytes)).into_response(),
    }
}

/// Unpacks the file piece by piece: a slow reader does not keep a large file in memory.
fn unpacked(bytes: &'static [u8]) -> Body {
    let pieces = stream::unfold(GzDecoder::new(bytes), |mut file| async {
        let mut piece = vec![0; PIECE];
        match file.read(&mut piece) {
            Ok(0) => None,
            Ok(length) => {
                piece.truncate(length);
                Some((Ok(piece), file))
            }
            Err(error) => Some((Err(error), file)),
        }
    });
    Body::from_stream(pieces)
}

fn takes_gzip(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    accepted.flat_map(|value| value.split(',')).any(|coding| {
        let (name, parameters) = coding.split_once(';').unwrap_or((coding, ""));
        name.trim().eq_ignore_ascii_case("gzip") && !matches!(parameters.trim(), "q=0" | "q=0.0")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_compressed_can_be_read() {
        for asset in &ASSETS {
            let mut plain = Vec::new();
            match asset.content {
                Content::Plain(bytes) => plain.extend_from_slice(bytes),
                Content::Gzip(bytes) => _ = GzDecoder::new(bytes).read_to_end(&mut plain).unwrap(),
            }
            assert!(std::str::from_utf8(&plain).unwrap().len() > 100, "{}", asset.name);
        }
    }

    #[test]
    fn gzip_is_sent_only_to_clients_that_accept_it() {
        let takes = |value: &'static str| {
            takes_gzip(&HeaderMap::from_iter([(header::ACCEPT_ENCODING, HeaderValue::from_static(value))]))
        };
        assert!(takes("gzip") && takes("br, GZIP;q=0.5") && takes("deflate,gzip"));
        assert!(!takes("br") && !takes("gzip;q=0") && !takes("identity") && !takes_gzip(&HeaderMap::new()));
    }
}
