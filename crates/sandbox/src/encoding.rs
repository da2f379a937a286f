//! Content encodings, and what headers say of them.

use axum::http::{HeaderMap, header};
use serde::{Deserialize, Serialize};

/// A supported content encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Encoding {
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
}

impl Encoding {
    /// All encodings, the preferred one last.
    const ALL: [Self; 2] = [Self::Gzip, Self::Zstd];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }

    pub(super) fn parse(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|encoding| name.eq_ignore_ascii_case(encoding.name().as_bytes()))
    }

    /// The body's encoding according to the headers, if it is supported.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        Self::parse(headers.get(header::CONTENT_ENCODING)?.as_bytes())
    }

    /// What a client accepts in an answer (RFC 9110 §12.5.3), zstd before gzip.
    pub(super) fn accepted(headers: &HeaderMap) -> Option<Self> {
        let values = headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
        let wanted = values.flat_map(|value| value.split(',')).filter_map(|item| {
            let (name, weight) = item.split_once(';').unwrap_or((item, "q=1"));
            let weight: f64 = weight.trim().strip_prefix("q=")?.parse().ok()?;
            if weight > 0.0 { Self::parse(name.trim().as_bytes()) } else { None }
        });
        wanted.max_by_key(|encoding| *encoding as u8)
    }
}
