//! Decodes an answer's `Content-Encoding`, requested or not, and removes a byte order mark.

use std::io::Read;

use bytes::Bytes;

/// The `Accept-Encoding` of requests.
pub(super) const ACCEPTED: &str = "gzip, zstd";

/// Maximum nested encodings.
const LAYERS_MOST: usize = 3;

/// The limit of RFC 9659 for HTTP: 8 MiB. zstd's own limit is 128 MiB.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Decodes a body up to `max` bytes, and says whether there is more. A body that cannot be decoded is returned unchanged;
/// it is then not valid JSON.
///
/// `raw` has at most `max` bytes; `truncated` says whether more were sent.
pub(crate) fn decode<'a>(
    encodings: impl IntoIterator<Item = &'a [u8]>,
    raw: Bytes,
    truncated: bool,
    max: usize,
) -> (Bytes, bool) {
    let mut layers = Vec::new();
    for encoding in encodings.into_iter().flat_map(|value| value.split(|byte| *byte == b',')) {
        let name = encoding.trim_ascii();
        match () {
            () if name.is_empty() || name.eq_ignore_ascii_case(b"identity") => {}
            () if name.eq_ignore_ascii_case(b"gzip") || name.eq_ignore_ascii_case(b"x-gzip") => {
                layers.push(Layer::Gzip);
            }
            () if name.eq_ignore_ascii_case(b"zstd") => layers.push(Layer::Zstd),
            () => return (raw, truncated),
        }
    }
    if raw.is_empty() || layers.len() > LAYERS_MOST {
        return (raw, truncated);
    }
    let (mut body, mut truncated) = (raw, truncated);
    for layer in layers.into_iter().rev() {
        let Ok((decoded, is_more)) = layer.undo(&body, max, truncated) else { return (body, truncated) };
        (body, truncated) = (decoded, truncated || is_more);
    }
    (without_mark(body), truncated)
}

fn without_mark(body: Bytes) -> Bytes {
    if body.starts_with(BYTE_ORDER_MARK) { body.slice(BYTE_ORDER_MARK.len()..) } else { body }
}

#[derive(Clone, Copy)]
enum Layer {
    Gzip,
    Zstd,
}

impl Layer {
    /// Decodes as much as possible of a body that was cut off.
    fn undo(self, encoded: &[u8], max: usize, is_cut: bool) -> std::io::Result<(Bytes, bool)> {
        let mut plain = Vec::new();
        let limit = (max as u64).saturating_add(1);
        let read = match self {
            Self::Gzip => flate2::read::MultiGzDecoder::new(encoded).take(limit).read_to_end(&mut plain),
            Self::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(encoded)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
                decoder.take(limit).read_to_end(&mut plain)
            }
        };
        match read {
            Err(error) if !is_cut => return Err(error),
            _ => {}
        }
        let is_more = plain.len() > max;
        plain.truncate(max);
        Ok((plain.into(), is_more))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn gzip(plain: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(plain: &[u8]) -> Vec<u8> {
        zstd::encode_all(plain, 1).unwrap()
    }

    fn decoded(encodings: &[&str], raw: impl Into<Bytes>, max: usize) -> (Bytes, bool) {
        decode(encodings.iter().map(|value| value.as_bytes()), raw.into(), false, max)
    }

    #[test]
    fn encoded_bodies_round_trip() {
        let whole = (Bytes::from_static(b"{}"), false);
        for (encodings, raw) in [
            (&[][..], b"{}".to_vec()),
            (&[], b"\xef\xbb\xbf{}".to_vec()),
            (&["identity", ""], b"{}".to_vec()),
            (&["GZip"], gzip(b"{}")),
            (&["x-gzip"], gzip(b"\xef\xbb\xbf{}")),
            (&["zstd"], zstd(b"{}")),
            (&["gzip, zstd"], zstd(&gzip(b"{}"))),
            (&["zstd", "gzip"], gzip(&zstd(b"{}"))),
            (&["gzip"], [gzip(b"{"), gzip(b"}")].concat()),
        ] {
            assert_eq!(decoded(encodings, raw, 100), whole, "{encodings:?}");
        }
        assert_eq!(decoded(&["gzip"], "", 100), (Bytes::new(), false));
    }

    #[test]
    fn an_undecodable_body_is_kept_unchanged() {
        let cut = gzip(b"{}")[..12].to_vec();
        for (encoding, raw) in
            [("br", b"{}".to_vec()), ("gzip", b"{}".to_vec()), ("gzip", cut), ("zstd", b"{}".to_vec())]
        {
            assert_eq!(decoded(&[encoding], raw.clone(), 100), (raw.into(), false), "{encoding}");
        }
        let deep = (0..LAYERS_MOST + 2).fold(b"{}".to_vec(), |body, _| gzip(&body));
        assert_eq!(decoded(&["gzip,gzip,gzip,gzip,gzip"], deep.clone(), 100), (deep.into(), false));
    }

    #[test]
    fn a_bomb_ends_at_the_limit() {
        let plain = vec![b' '; 64 << 20];
        for (encoding, raw) in [("gzip", gzip(&plain)), ("zstd", zstd(&plain))] {
            let (body, truncated) = decoded(&[encoding], raw, 1000);
            assert_eq!((body.len(), truncated), (1000, true), "{encoding}");
        }
        assert_eq!(decoded(&["gzip"], gzip(&plain[..1000]), 1000), (plain[..1000].to_vec().into(), false));
    }
}
