//! The format of a line: a record or a dead letter, with everything that its identity and body need.

use std::io::BufRead;

use serde::{Deserialize, Serialize};

use super::{Exported, TransferError};
use crate::outbox::format::codec::Entry;
use crate::outbox::format::dead_letter::{DeadLetter, Payload, Reason};
use crate::record::{Kind, Layout, Record, Timestamp};

const VERSION: u32 = 1;

// An unknown field may mean that the line must not be sent as a record.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TransferLine {
    v: u32,
    kind: Kind,
    accepted_at: i64,
    sum: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<uuid::Uuid>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    layout: Option<Layout>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    data: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hex: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dead_letter: Option<LineDeadLetter>,
}

/// The last line of a complete export.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct EndLine {
    v: u32,
    end: Exported,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LineDeadLetter {
    reason: Reason,
    detail: String,
    attempts: u32,
    first_at: i64,
    last_at: i64,
}

fn sum(data: &[u8]) -> String {
    format!("{:016x}", xxhash_rust::xxh3::xxh3_64(data))
}

impl TransferLine {
    pub(super) fn of(record: &Record) -> Self {
        let line = Self::with(record.kind(), record.accepted_at(), record.data());
        Self { key: Some(record.key()), layout: Some(*record.layout()), ..line }
    }

    pub(super) fn of_letter(letter: &DeadLetter) -> Self {
        let line = match &letter.payload {
            Payload::Record(record) => Self::of(record),
            Payload::Raw { kind, accepted_at, bytes } => Self::with(*kind, *accepted_at, bytes),
        };
        let dead_letter = LineDeadLetter {
            reason: letter.reason,
            detail: letter.detail.clone(),
            attempts: letter.attempts,
            first_at: letter.first_at.0,
            last_at: letter.last_at.0,
        };
        Self { dead_letter: Some(dead_letter), ..line }
    }

    fn with(kind: Kind, accepted_at: Timestamp, bytes: &[u8]) -> Self {
        let text = std::str::from_utf8(bytes).ok();
        Self {
            v: VERSION,
            kind,
            accepted_at: accepted_at.0,
            sum: sum(bytes),
            key: None,
            layout: None,
            data: text.map(str::to_owned),
            hex: text.is_none().then(|| to_hex(bytes)),
            dead_letter: None,
        }
    }

    fn entry(mut self) -> Result<Entry, String> {
        check_version(self.v)?;
        match self.dead_letter.take() {
            None => self.record().map(Entry::Record),
            Some(letter) => self.letter(letter).map(|letter| Entry::Letter(Box::new(letter))),
        }
    }

    /// The original bytes.
    fn bytes(&mut self) -> Result<Box<[u8]>, String> {
        let bytes = match (self.data.take(), self.hex.take()) {
            (Some(data), None) => data.into_bytes(),
            (None, Some(hex)) => from_hex(&hex).ok_or("its hex is invalid")?,
            _ => return Err("one of data and hex is required".to_owned()),
        };
        if sum(&bytes) == self.sum { Ok(bytes.into()) } else { Err("its sum does not match".to_owned()) }
    }

    fn letter(mut self, letter: LineDeadLetter) -> Result<DeadLetter, String> {
        let payload = if self.layout.is_some() {
            Payload::Record(self.record()?)
        } else {
            Payload::Raw { kind: self.kind, accepted_at: Timestamp(self.accepted_at), bytes: self.bytes()? }
        };
        Ok(DeadLetter {
            id: 0,
            reason: letter.reason,
            detail: letter.detail,
            attempts: letter.attempts,
            first_at: Timestamp(letter.first_at),
            last_at: Timestamp(letter.last_at),
            payload,
        })
    }

    fn record(mut self) -> Result<Record, String> {
        let data = self.bytes()?;
        let (Some(layout), Some(key)) = (self.layout, self.key) else {
            return Err("layout and key are required".to_owned());
        };
        let record = Record::from_parts(self.kind, Timestamp(self.accepted_at), data, layout);
        let record = record.map_err(|error| error.to_string())?;
        if record.key() == key { Ok(record) } else { Err("its key does not match".to_owned()) }
    }

    pub(super) fn write(&self, text: &mut Vec<u8>) -> Result<(), TransferError> {
        serde_json::to_writer(&mut *text, self).map_err(std::io::Error::from)?;
        text.push(b'\n');
        Ok(())
    }
}

fn check_version(v: u32) -> Result<(), String> {
    if v == VERSION { Ok(()) } else { Err(format!("format {v} found, this release reads {VERSION}")) }
}

/// The last line of an export with these counts.
pub(super) fn end_line(written: Exported) -> Result<Vec<u8>, TransferError> {
    let mut text = serde_json::to_vec(&EndLine { v: VERSION, end: written }).map_err(std::io::Error::from)?;
    text.push(b'\n');
    Ok(text)
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |hex, byte| hex + &format!("{byte:02x}"))
}

fn from_hex(hex: &str) -> Option<Vec<u8>> {
    let pairs = hex.as_bytes().chunks(2);
    pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

/// A parsed line.
pub(super) enum Parsed {
    /// A record or a dead letter.
    Entry(Entry),
    /// The end of an export, with the counts since the previous end line.
    End(Exported),
}

/// A line of a file to be imported.
pub(super) struct Numbered {
    /// From 1.
    pub(super) n: u64,
    pub(super) text: Vec<u8>,
}

impl Numbered {
    /// Parses it. `None` for the beginning of a line in a truncated file.
    pub(super) fn parsed(&self) -> Result<Option<Parsed>, TransferError> {
        match parse(self.n, &self.text) {
            Err(_) if !self.text.ends_with(b"\n") => Ok(None),
            parsed => parsed.map(Some),
        }
    }
}

/// The lines of a file, with their numbers and line ends.
pub(super) fn lines(mut file: impl BufRead) -> impl Iterator<Item = std::io::Result<Numbered>> {
    (1..).map_while(move |n| {
        let mut text = Vec::new();
        match file.read_until(b'\n', &mut text) {
            Ok(0) => None,
            Ok(_) => Some(Ok(Numbered { n, text })),
            Err(error) => Some(Err(error)),
        }
    })
}

/// The line that would be exported for the record or dead letter in this line.
#[cfg(feature = "fuzzing")]
pub(crate) fn import_line_again(line: &[u8]) -> Option<Vec<u8>> {
    let Parsed::Entry(entry) = parse(1, line).ok()? else { return None };
    let line = match &entry {
        Entry::Record(record) => TransferLine::of(record),
        Entry::Letter(letter) => TransferLine::of_letter(letter),
        Entry::Rejected(_) => return None,
    };
    let mut text = Vec::new();
    line.write(&mut text).ok()?;
    Some(text)
}

/// Parses line number `line`.
pub(super) fn parse(line: u64, text: &[u8]) -> Result<Parsed, TransferError> {
    let bad = |what: String| TransferError::Line { line, what };
    let error = match serde_json::from_slice::<TransferLine>(text) {
        Ok(parsed) => return parsed.entry().map(Parsed::Entry).map_err(bad),
        Err(error) => error,
    };
    let Ok(EndLine { v, end }) = serde_json::from_slice(text) else { return Err(bad(error.to_string())) };
    check_version(v).map_err(bad)?;
    Ok(Parsed::End(end))
}
