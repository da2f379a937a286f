//! Reads and writes every byte that the outbox persists. Of other files, only [`Layout`]'s names bincode.
//!
//! A value is a version byte followed by bincode 2 (`standard()`: little endian, varints). An unknown version is an error
//! that names both versions. The numbers of enums are frozen: never renumber.

pub(crate) use bincode::{Decode, Encode};

use super::compression;
use super::dead_letter::{DeadLetter, Payload, Reason};
use super::log::Log;
use crate::record::{Kind, Layout, Record, Timestamp};

/// The version before each value.
pub(crate) const VERSION: u8 = 1;

/// Limits the allocation of decoding: more than the largest pack or dead letter, less than a flipped bit may ask for.
const DECODE_LIMIT: usize = 64 << 20;

/// The longest entry that is stored, in bytes. In a pack, and as a dead letter with its details, it stays below the
/// decoding limit.
pub(crate) const ENTRY_BYTES: usize = DECODE_LIMIT - (2 << 20);
/// The longest stored detail of a dead letter; the rest is cut off.
pub(crate) const DETAIL_BYTES: usize = 64 << 10;

/// Why stored bytes cannot be decoded.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// Written by a newer (or unknown) release.
    #[error("format version {found} found, this release reads {VERSION}")]
    Version {
        /// The version byte found.
        found: u8,
    },
    /// The bytes are inconsistent.
    #[error("damaged value: {0}")]
    Damaged(String),
}

#[expect(clippy::needless_pass_by_value, reason = "it is what map_err hands over")]
fn damaged(what: impl ToString) -> CodecError {
    CodecError::Damaged(what.to_string())
}

/// Encodes `value` after a version byte.
pub(crate) fn encode<T: Encode>(value: &T) -> Vec<u8> {
    let mut out = vec![VERSION];
    #[expect(
        clippy::expect_used,
        reason = "writing to a Vec cannot fail, and no type here has a failing Encode"
    )]
    bincode::encode_into_std_write(value, &mut out, bincode::config::standard()).expect("encoding to memory");
    out
}

/// Decodes a value written by [`encode`], and returns its length in bytes.
pub(crate) fn decode<T: Decode<()>>(bytes: &[u8]) -> Result<(T, usize), CodecError> {
    let (&found, rest) = bytes.split_first().ok_or_else(|| damaged("empty"))?;
    if found != VERSION {
        return Err(CodecError::Version { found });
    }
    let config = bincode::config::standard().with_limit::<DECODE_LIMIT>();
    let (value, used) = bincode::decode_from_slice(rest, config).map_err(damaged)?;
    Ok((value, used + 1))
}

/// A message that is not a valid record, on its way to the dead letters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// The kind it would have had, as far as known.
    pub kind: Kind,
    /// When it was taken.
    pub accepted_at: Timestamp,
    /// Its exact bytes.
    pub raw: Box<[u8]>,
    /// What is wrong with it.
    pub detail: String,
}

/// An entry as it is appended and read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A record to deliver.
    Record(Record),
    /// A message that becomes a dead letter.
    Rejected(Rejected),
    /// A dead letter of another outbox that becomes one of this outbox.
    Letter(Box<DeadLetter>),
}

impl Entry {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Record(record) => record.kind(),
            Self::Rejected(rejected) => rejected.kind,
            Self::Letter(letter) => letter.kind(),
        }
    }

    /// When it was taken.
    pub fn accepted_at(&self) -> Timestamp {
        match self {
            Self::Record(record) => record.accepted_at(),
            Self::Rejected(rejected) => rejected.accepted_at,
            Self::Letter(letter) => letter.first_at,
        }
    }

    /// The log that holds it.
    pub(crate) fn log(&self) -> Log {
        match self {
            Self::Rejected(_) | Self::Letter(_) => Log::Rejected,
            Self::Record(record) => match record.kind() {
                Kind::Quota => Log::Quota,
                Kind::Started => Log::Started,
                Kind::Completed => Log::Completed,
                Kind::Usage | Kind::Lifecycle => Log::Usage,
            },
        }
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Record(record) => record.data().len(),
            Self::Rejected(rejected) => rejected.raw.len() + rejected.detail.len(),
            Self::Letter(letter) => dead_letter_bytes(letter).len(),
        }
    }
}

/// The position and metadata of an entry in its pack's bytes.
#[derive(Encode, Decode)]
struct Meta {
    kind: u8,
    accepted_at: i64,
    len: u32,
    shape: Shape,
}

#[derive(Encode, Decode)]
enum Shape {
    Record(Layout),
    /// The first `raw` bytes are the message, the rest is the error text.
    Rejected {
        raw: u32,
    },
    /// The bytes are those of [`dead_letter_bytes`].
    Letter,
}

fn meta_of(entry: &Entry) -> Meta {
    let shape = match entry {
        Entry::Record(record) => Shape::Record(*record.layout()),
        Entry::Rejected(rejected) => Shape::Rejected { raw: rejected.raw.len() as u32 },
        Entry::Letter(_) => Shape::Letter,
    };
    Meta { kind: entry.kind() as u8, accepted_at: entry.accepted_at().0, len: entry.len() as u32, shape }
}

fn push_data(entry: &Entry, out: &mut Vec<u8>) {
    match entry {
        Entry::Record(record) => out.extend_from_slice(record.data()),
        Entry::Rejected(rejected) => {
            out.extend_from_slice(&rejected.raw);
            out.extend_from_slice(rejected.detail.as_bytes());
        }
        Entry::Letter(letter) => out.extend_from_slice(&dead_letter_bytes(letter)),
    }
}

fn entry_from(meta: &Meta, data: &[u8]) -> Result<Entry, CodecError> {
    let kind = Kind::from_u8(meta.kind).ok_or_else(|| damaged(format!("unknown kind {}", meta.kind)))?;
    let accepted_at = Timestamp(meta.accepted_at);
    match &meta.shape {
        Shape::Record(layout) => {
            Record::from_parts(kind, accepted_at, data.into(), *layout).map(Entry::Record).map_err(damaged)
        }
        Shape::Rejected { raw } => {
            let (raw, detail) = data.split_at_checked(*raw as usize).ok_or_else(|| damaged("lengths"))?;
            let detail = String::from_utf8_lossy(detail).into_owned();
            Ok(Entry::Rejected(Rejected { kind, accepted_at, raw: raw.into(), detail }))
        }
        Shape::Letter => Ok(Entry::Letter(Box::new(dead_letter_from(0, data)?))),
    }
}

/// The header before a pack's compressed bytes.
#[derive(Encode, Decode, Clone, Copy, Debug)]
pub(crate) struct PackHeader {
    pub count: u32,
    /// When its oldest record was accepted.
    pub oldest: i64,
    raw_len: u32,
    /// Covers the key and everything else: a pack found under another key is invalid.
    checksum: u64,
}

/// The value that stores `entries` as a pack under this key.
pub(crate) fn pack(place: (Log, u64), entries: &[&Entry]) -> std::io::Result<Vec<u8>> {
    let metas: Vec<Meta> = entries.iter().map(|entry| meta_of(entry)).collect();
    let mut raw = encode(&metas);
    raw.reserve(metas.iter().map(|meta| meta.len as usize).sum());
    for entry in entries {
        push_data(entry, &mut raw);
    }
    let oldest = entries.iter().map(|entry| entry.accepted_at().0).min().unwrap_or_default();
    seal(place, &raw, entries.len() as u32, oldest)
}

/// Compresses a pack's bytes and prepends its header.
pub(crate) fn seal(place: (Log, u64), raw: &[u8], count: u32, oldest: i64) -> std::io::Result<Vec<u8>> {
    let compressed = compression::compress(raw, compression::PACK)?;
    let mut header = PackHeader { count, oldest, raw_len: raw.len() as u32, checksum: 0 };
    header.checksum = header.checksum_of(place, &compressed);
    let mut value = encode(&header);
    value.extend_from_slice(&compressed);
    Ok(value)
}

impl PackHeader {
    fn checksum_of(&self, (log, first): (Log, u64), compressed: &[u8]) -> u64 {
        let head = encode(&(log as u8, first, self.count, self.oldest, self.raw_len));
        xxhash_rust::xxh3::xxh3_64_with_seed(compressed, xxhash_rust::xxh3::xxh3_64(&head))
    }
}

/// A pack's header and entries, checked against its checksum and its key.
pub(crate) fn unpack(place: (Log, u64), value: &[u8]) -> Result<(PackHeader, Vec<Entry>), CodecError> {
    let (header, start) = decode::<PackHeader>(value)?;
    let compressed = &value[start..];
    if header.checksum_of(place, compressed) != header.checksum {
        return Err(damaged("a pack's checksum does not match"));
    }
    let raw = decompress(compressed, header.raw_len)?;
    let (metas, mut at) = decode::<Vec<Meta>>(&raw)?;
    let mut entries = Vec::with_capacity(metas.len());
    for meta in &metas {
        let data = raw.get(at..at + meta.len as usize).ok_or_else(|| damaged("lengths"))?;
        at += meta.len as usize;
        entries.push(entry_from(meta, data)?);
    }
    if entries.len() != header.count as usize {
        return Err(damaged("a pack's count does not match"));
    }
    Ok((header, entries))
}

fn decompress(compressed: &[u8], raw_len: u32) -> Result<Vec<u8>, CodecError> {
    let raw_len = raw_len as usize;
    if raw_len > DECODE_LIMIT {
        return Err(damaged("a length is beyond everything"));
    }
    compression::decompress(compressed, raw_len).map_err(damaged)
}

/// The header before a dead letter's compressed bytes.
#[derive(Encode, Decode)]
struct LetterHeader {
    raw_len: u32,
    checksum: u64,
}

#[derive(Encode, Decode)]
struct WireDeadLetter {
    reason: u8,
    detail: String,
    attempts: u32,
    first_at: i64,
    last_at: i64,
    meta: Meta,
    data: Vec<u8>,
}

pub(crate) fn encode_dead_letter(letter: &DeadLetter) -> std::io::Result<Vec<u8>> {
    seal_dead_letter(letter.id, &dead_letter_bytes(letter))
}

/// A dead letter's bytes without its number.
pub(crate) fn dead_letter_bytes(letter: &DeadLetter) -> Vec<u8> {
    let entry = match &letter.payload {
        Payload::Record(record) => Entry::Record(record.clone()),
        Payload::Raw { kind, accepted_at, bytes } => Entry::Rejected(Rejected {
            kind: *kind,
            accepted_at: *accepted_at,
            raw: bytes.clone(),
            detail: String::new(),
        }),
    };
    let mut data = Vec::with_capacity(entry.len());
    push_data(&entry, &mut data);
    let end = letter.detail.floor_char_boundary(DETAIL_BYTES);
    let wire = WireDeadLetter {
        reason: letter.reason as u8,
        detail: letter.detail[..end].to_owned(),
        attempts: letter.attempts,
        first_at: letter.first_at.0,
        last_at: letter.last_at.0,
        meta: meta_of(&entry),
        data,
    };
    encode(&wire)
}

/// Compresses a dead letter's bytes and prepends the header.
pub(crate) fn seal_dead_letter(id: u64, raw: &[u8]) -> std::io::Result<Vec<u8>> {
    let compressed = compression::compress(raw, compression::SINGLE)?;
    let checksum = xxhash_rust::xxh3::xxh3_64_with_seed(&compressed, id);
    let mut value = encode(&LetterHeader { raw_len: raw.len() as u32, checksum });
    value.extend_from_slice(&compressed);
    Ok(value)
}

pub(crate) fn decode_dead_letter(id: u64, value: &[u8]) -> Result<DeadLetter, CodecError> {
    let (header, start) = decode::<LetterHeader>(value)?;
    if xxhash_rust::xxh3::xxh3_64_with_seed(&value[start..], id) != header.checksum {
        return Err(damaged("a dead letter's checksum does not match"));
    }
    dead_letter_from(id, &decompress(&value[start..], header.raw_len)?)
}

/// Decodes the result of [`dead_letter_bytes`] as the dead letter with this number.
fn dead_letter_from(id: u64, bytes: &[u8]) -> Result<DeadLetter, CodecError> {
    let (wire, _) = decode::<WireDeadLetter>(bytes)?;
    if matches!(wire.meta.shape, Shape::Letter) {
        return Err(damaged("a dead letter within a dead letter"));
    }
    let payload = match entry_from(&wire.meta, &wire.data)? {
        Entry::Record(record) => Payload::Record(record),
        Entry::Rejected(r) => Payload::Raw { kind: r.kind, accepted_at: r.accepted_at, bytes: r.raw },
        Entry::Letter(letter) => letter.payload,
    };
    Ok(DeadLetter {
        id,
        reason: Reason::from_u8(wire.reason).ok_or_else(|| damaged("unknown reason"))?,
        detail: wire.detail,
        attempts: wire.attempts,
        first_at: Timestamp(wire.first_at),
        last_at: Timestamp(wire.last_at),
        payload,
    })
}
