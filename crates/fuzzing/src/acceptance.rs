//! What every target accepts messages with.

use dataplane_agent::record::{Acceptor, Enrichment, Timestamp, UnknownFields};

/// 2026-01-31T12:00:00.000001Z.
pub(super) const ACCEPTED: Timestamp = Timestamp::from_unix_micros(1_769_860_800_000_001);

pub(super) fn acceptor(unknown: UnknownFields, max_bytes: usize) -> Acceptor {
    let enrichment =
        Enrichment { server_id: "edge-1".into(), region: r#"eu "1""#.into(), version: "1.2.3".into() };
    Acceptor::new(&enrichment, unknown, max_bytes)
}

pub(super) fn text(bytes: &[u8]) -> &str {
    match str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => panic!("{error}"),
    }
}
