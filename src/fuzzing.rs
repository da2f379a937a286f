//! Private functions that `crates/fuzzing` tests. Compiled with the feature `fuzzing` only.

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use crate::outbox::codec;
use crate::outbox::{CodecError, DeadLetter, Entry, Log};
use crate::{config, control_plane, outbox};

/// The values of a `.env` file's text.
pub fn dotenv_values(text: &str, environment: impl Fn(&str) -> Option<String>) -> BTreeMap<String, String> {
    config::dotenv_values(text, environment)
}

/// An answer's body without its encodings, and whether it is cut off.
pub fn decode(encoding: &[u8], raw: Bytes, truncated: bool, max: usize) -> (Bytes, bool) {
    control_plane::decode([encoding], raw, truncated, max)
}

/// How long a `Retry-After` asks to wait.
pub fn retry_after(value: &str, date: Option<SystemTime>, now: SystemTime) -> Option<Duration> {
    control_plane::retry_after(value, date, now)
}

/// The line that is exported for the record or dead letter of this line, if it is one.
pub fn import_line_again(line: &[u8]) -> Option<Vec<u8>> {
    outbox::import_line_again(line)
}

/// A pack as it is stored in that place.
pub fn pack(place: (Log, u64), entries: &[&Entry]) -> io::Result<Vec<u8>> {
    codec::pack(place, entries)
}

/// The entries of a stored pack.
pub fn unpack(place: (Log, u64), stored: &[u8]) -> Result<Vec<Entry>, CodecError> {
    codec::unpack(place, stored).map(|(_, entries)| entries)
}

/// A stored pack that holds these bytes, whatever they are.
pub fn seal(place: (Log, u64), raw: &[u8], count: u32) -> io::Result<Vec<u8>> {
    codec::seal(place, raw, count, 0)
}

/// A dead letter as it is stored.
pub fn encode_dead_letter(letter: &DeadLetter) -> io::Result<Vec<u8>> {
    codec::encode_dead_letter(letter)
}

/// A stored dead letter.
pub fn decode_dead_letter(id: u64, stored: &[u8]) -> Result<DeadLetter, CodecError> {
    codec::decode_dead_letter(id, stored)
}

/// A stored dead letter that holds these bytes, whatever they are.
pub fn seal_dead_letter(id: u64, raw: &[u8]) -> io::Result<Vec<u8>> {
    codec::seal_dead_letter(id, raw)
}
