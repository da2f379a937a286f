//! The JSON of a batch, and how many bytes a record adds to it.

use crate::record::Record;

/// Bytes of a batch without sessions.
pub(in crate::drain) const EMPTY: usize = BEGIN.len() + END.len();
pub(super) const BEGIN: &[u8] = br#"{"sessions":["#;
pub(super) const END: &[u8] = b"]}";
pub(super) const SESSION: &[u8] = br#"{"api_session_id":"#;
pub(super) const RECORDS: &[u8] = br#","records":["#;
pub(super) const KIND: &[u8] = br#"{"kind":""#;
pub(super) const BODY: &[u8] = br#"","body":"#;

/// Bytes that a record adds to a batch: body, kind, and the JSON around them.
pub(in crate::drain) fn size(record: &Record) -> usize {
    record.body().len() + record.kind().name().len() + KIND.len() + BODY.len() + 2
}

/// Maximum bytes that its session adds: each character of the name may take six.
pub(in crate::drain) fn group_size(record: &Record) -> usize {
    SESSION.len() + RECORDS.len() + 6 * record.session().len() + 5
}
