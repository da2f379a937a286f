//! The ledger: what was settled, the counters, the dead letters and the row of segments, in one database.
//!
//! One commit here is atomic, so a record leaves the outbox in one step with becoming a dead letter, and
//! the counters always agree with the marks.

use std::collections::BTreeMap;
use std::path::Path;

use super::Log;
use super::codec::{self, CodecError};
use super::database::{Batch, Database, DatabaseError, Durability};
use super::dead_letter::DeadLetter;
use super::schema::{Counters, SegmentInfo};
use super::settled::{Changes, Mark, Settled};

const CACHE_BYTES: u64 = 2 << 20;

const COUNTERS: &[u8] = b"c";
const SEGMENT: u8 = b'g';
const LOW: u8 = b'l';
const MARK: u8 = b'p';
const LETTER: u8 = b'd';

/// What the ledger can meet.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The database.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// A value.
    #[error("ledger: {0}")]
    Codec(#[from] CodecError),
    /// Compression.
    #[error("ledger: {0}")]
    Io(#[from] std::io::Error),
}

pub(super) struct Ledger {
    db: Database,
}

/// Changes that are committed together.
#[derive(Default)]
pub(super) struct Entry(Batch);

impl Entry {
    pub(super) fn counters(&mut self, counters: &Counters) {
        self.0.put(COUNTERS, codec::encode(counters));
    }

    pub(super) fn settled(&mut self, log: Log, changes: &Changes) {
        if let Some(low) = changes.low {
            self.0.put(&[LOW, log as u8], codec::encode(&low));
        }
        for (first, mark) in &changes.marks {
            let key = [&[MARK, log as u8][..], &first.to_be_bytes()].concat();
            match mark {
                Some(mark) => self.0.put(&key, codec::encode(mark)),
                None => self.0.remove(&key),
            }
        }
    }

    pub(super) fn letter(&mut self, letter: &DeadLetter) -> std::io::Result<u64> {
        let value = codec::encode_dead_letter(letter)?;
        let mut framed = (value.len() as u32).to_be_bytes().to_vec();
        framed.extend_from_slice(&value);
        self.0.put_chunked(&letter_key(letter.id), &framed);
        Ok(framed.len() as u64)
    }

    pub(super) fn segment(&mut self, id: u64, info: &SegmentInfo) {
        self.0.put(&segment_key(id), codec::encode(info));
    }

    pub(super) fn forget_segment(&mut self, id: u64) {
        self.0.remove(&segment_key(id));
    }
}

fn segment_key(id: u64) -> Vec<u8> {
    [&[SEGMENT][..], &id.to_be_bytes()].concat()
}

fn letter_key(id: u64) -> Vec<u8> {
    [&[LETTER][..], &id.to_be_bytes()].concat()
}

fn number(key: &[u8], at: usize) -> u64 {
    key.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_be_bytes)
}

impl Ledger {
    pub(super) fn open(dir: &Path, durability: Durability) -> Result<Self, LedgerError> {
        Ok(Self { db: Database::open(&dir.join("ledger"), durability, CACHE_BYTES)? })
    }

    pub(super) fn commit(&self, entry: Entry) -> Result<(), LedgerError> {
        Ok(self.db.commit(entry.0)?)
    }

    pub(super) fn counters(&self) -> Result<Counters, LedgerError> {
        Ok(self.db.get(COUNTERS)?.map(|value| codec::decode(&value)).transpose()?.map_or_else(
            || Counters { next_dead_letter: 1, ..Counters::default() },
            |(counters, _)| counters,
        ))
    }

    pub(super) fn settled(&self, log: Log) -> Result<Settled, LedgerError> {
        let low = match self.db.get(&[LOW, log as u8])? {
            Some(value) => codec::decode(&value)?.0,
            None => 0,
        };
        let mut marks = BTreeMap::new();
        let prefix = [MARK, log as u8];
        let mut bad = None;
        self.db.scan(&prefix, &prefix, |key, value| match codec::decode::<Mark>(value) {
            Ok((mark, _)) => {
                marks.insert(number(key, 2), mark);
                true
            }
            Err(error) => {
                bad = Some(error);
                false
            }
        })?;
        bad.map_or_else(|| Ok(Settled::restore(low, marks)), |error| Err(error.into()))
    }

    pub(super) fn segments(&self) -> Result<Vec<(u64, SegmentInfo)>, LedgerError> {
        let mut segments = Vec::new();
        let mut bad = None;
        self.db.scan(&[SEGMENT], &[SEGMENT], |key, value| match codec::decode(value) {
            Ok((info, _)) => {
                segments.push((number(key, 1), info));
                true
            }
            Err(error) => {
                bad = Some(error);
                false
            }
        })?;
        bad.map_or(Ok(segments), |error| Err(error.into()))
    }

    /// The dead letters from number `from` on, at most `most`.
    pub(super) fn letters(&self, from: u64, most: usize) -> Result<Vec<DeadLetter>, LedgerError> {
        let mut letters = Vec::new();
        let mut bad = None;
        let (mut value, mut whole) = (Vec::new(), 0);
        self.db.scan(&[LETTER], &letter_key(from), |key, chunk| {
            if value.is_empty() {
                let Some((len, _)) = chunk.split_first_chunk::<4>() else { return true };
                whole = u32::from_be_bytes(*len) as usize + 4;
            }
            value.extend_from_slice(chunk);
            if value.len() < whole {
                return true;
            }
            match codec::decode_dead_letter(number(key, 1), &value[4..]) {
                Ok(letter) => letters.push(letter),
                Err(error) => bad = Some(error),
            }
            value.clear();
            bad.is_none() && letters.len() < most
        })?;
        bad.map_or(Ok(letters), |error| Err(error.into()))
    }

    pub(super) fn disk_bytes(&self) -> u64 {
        self.db.disk_bytes()
    }
}
