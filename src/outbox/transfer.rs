//! Moving what an outbox holds to another one: JSON Lines, a record or a dead letter a line, with all that its identity and
//! its body need.
//!
//! ```json
//! {"v":1,"kind":"usage_record","accepted_at":1750000000000000,"sum":"…","key":"…","layout":{…},"data":"…"}
//! {"v":1,"kind":"usage_record","accepted_at":1750000000000000,"sum":"…","key":"…","layout":{…},"data":"…","dead_letter":{…}}
//! {"v":1,"kind":"usage_record","accepted_at":1750000000000000,"sum":"…","data":"…","dead_letter":{…}}
//! ```
//!
//! `data` is the record's buffer (the body, and what else is kept of the producer's bytes), `layout` says what lies where,
//! `sum` is its XXH3. `dead_letter` has the reason, the words, the attempts and the times; of one that never was a record
//! `data` is the message, as `hex` where it is not UTF-8. Records come log by log, and in order: quota requests,
//! started events, usage, completed events; dead letters come last.
//!
//! Taken in twice, a record is there twice, with one key, and is billed once. A dead letter is there as often as in the
//! file: nobody else would tell one from the other. Two of a file may be alike in everything, and are two all the same.

use std::collections::HashMap;
use std::io::{BufRead, Write};

use serde::{Deserialize, Serialize};

use super::{
    AppendError, DeadLetter, Entry, Leased, LedgerError, Log, Outbox, Payload, ReadError, Reason, Settlement,
    codec,
};
use crate::record::{Kind, Layout, Original, Record, Span, Timestamp};

const VERSION: u32 = 1;
/// So many records are written before the file is synced and they are settled here.
const AT_ONCE: usize = 5000;
/// So many are appended at once, and of large ones so many bytes.
const APPEND_AT_ONCE: usize = 500;
const APPEND_BYTES: usize = 1 << 20;
/// So many dead letters are read at once.
const LETTERS_AT_ONCE: usize = 500;

/// Why a transfer stopped.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The file.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// What waits could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The records could not be appended.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// The dead letters could not be read, or not be removed.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// A line of the file.
    #[error("line {line}: {what}")]
    Line {
        /// Its number, from 1.
        line: u64,
        /// What is wrong with it.
        what: String,
    },
    /// What was written could not be settled.
    #[error(
        "the records are in the file, but could not be settled here: both outboxes have them, with the same keys"
    )]
    Unsettled,
    /// What is no record could not become dead letters.
    #[error("nothing is exported: the ledger, which takes the dead letters, cannot be written now")]
    Unready,
    /// The dead letters that were taken in could not become such.
    #[error(
        "all is taken in, but the dead letters could not be moved to their place yet; that happens by itself when the \
         ledger can be written. Do not import the file again"
    )]
    Unburied,
}

/// What was written to a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exported {
    /// Records that waited.
    pub records: u64,
    /// Dead letters.
    pub dead_letters: u64,
}

/// What was taken in from a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// Records.
    pub records: u64,
    /// Dead letters.
    pub dead_letters: u64,
    /// Dead letters that were here already, and are not taken in again.
    pub known: u64,
    /// The number of the last line, if that is cut off: it is passed over. What it would have been was not settled where it
    /// came from.
    pub cut: Option<u64>,
}

// A field that this release does not know may say that the line is no record to be sent.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    v: u32,
    kind: String,
    accepted_at: i64,
    sum: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<uuid::Uuid>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    layout: Option<WireLayout>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    data: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hex: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dead_letter: Option<WireDeadLetter>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireDeadLetter {
    reason: String,
    detail: String,
    attempts: u32,
    first_at: i64,
    last_at: i64,
}

#[derive(Serialize, Deserialize)]
struct WireLayout {
    body: u32,
    session: (u32, u32),
    transaction: (u32, u32),
    original: WireOriginal,
    correlation: Option<(u32, u32)>,
    traceparent: Option<(u32, u32)>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum WireOriginal {
    Prefix(u32),
    Kept((u32, u32)),
}

fn sum(data: &[u8]) -> String {
    format!("{:016x}", xxhash_rust::xxh3::xxh3_64(data))
}

impl Line {
    fn of(record: &Record) -> Self {
        let wire = |span: Span| (span.start, span.len);
        let layout = record.layout();
        let layout = WireLayout {
            body: layout.body,
            session: wire(layout.session),
            transaction: wire(layout.transaction),
            original: match layout.original {
                Original::Prefix(len) => WireOriginal::Prefix(len),
                Original::Kept(span) => WireOriginal::Kept(wire(span)),
            },
            correlation: layout.correlation.map(wire),
            traceparent: layout.traceparent.map(wire),
        };
        let line = Self::with(record.kind(), record.accepted_at(), record.data());
        Self { key: Some(record.key()), layout: Some(layout), ..line }
    }

    fn of_letter(letter: &DeadLetter) -> Self {
        let line = match &letter.payload {
            Payload::Record(record) => Self::of(record),
            Payload::Raw { kind, accepted_at, bytes } => Self::with(*kind, *accepted_at, bytes),
        };
        let dead_letter = WireDeadLetter {
            reason: letter.reason.label().to_owned(),
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
            kind: kind.name().to_owned(),
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
        if self.v != VERSION {
            return Err(format!("format {} found, this release reads {VERSION}", self.v));
        }
        match self.dead_letter.take() {
            None => self.record().map(Entry::Record),
            Some(letter) => self.letter(letter).map(|letter| Entry::Letter(Box::new(letter))),
        }
    }

    fn kind(&self) -> Result<Kind, String> {
        let kind = Kind::ALL.into_iter().find(|kind| kind.name() == self.kind);
        kind.ok_or_else(|| format!("unknown kind {:?}", self.kind))
    }

    /// The bytes, which are as they were.
    fn bytes(&mut self) -> Result<Box<[u8]>, String> {
        let bytes = match (self.data.take(), self.hex.take()) {
            (Some(data), None) => data.into_bytes(),
            (None, Some(hex)) => from_hex(&hex).ok_or("its hex cannot be read")?,
            _ => return Err("one of data and hex is wanted".to_owned()),
        };
        if sum(&bytes) == self.sum { Ok(bytes.into()) } else { Err("its sum does not match".to_owned()) }
    }

    fn letter(mut self, letter: WireDeadLetter) -> Result<DeadLetter, String> {
        let reason = Reason::ALL.into_iter().find(|reason| reason.label() == letter.reason);
        let reason = reason.ok_or_else(|| format!("unknown reason {:?}", letter.reason))?;
        let payload = if self.layout.is_some() {
            Payload::Record(self.record()?)
        } else {
            let (kind, accepted_at) = (self.kind()?, Timestamp(self.accepted_at));
            Payload::Raw { kind, accepted_at, bytes: self.bytes()? }
        };
        Ok(DeadLetter {
            id: 0,
            reason,
            detail: letter.detail,
            attempts: letter.attempts,
            first_at: Timestamp(letter.first_at),
            last_at: Timestamp(letter.last_at),
            payload,
        })
    }

    fn record(mut self) -> Result<Record, String> {
        let (kind, data) = (self.kind()?, self.bytes()?);
        let (Some(layout), Some(key)) = (self.layout, self.key) else {
            return Err("layout and key are wanted".to_owned());
        };
        let span = |(start, len)| Span { start, len };
        let layout = Layout {
            body: layout.body,
            session: span(layout.session),
            transaction: span(layout.transaction),
            original: match layout.original {
                WireOriginal::Prefix(len) => Original::Prefix(len),
                WireOriginal::Kept(kept) => Original::Kept(span(kept)),
            },
            correlation: layout.correlation.map(span),
            traceparent: layout.traceparent.map(span),
        };
        let record =
            Record::from_parts(kind, Timestamp(self.accepted_at), data, layout).map_err(|e| e.to_string())?;
        if record.key() == key { Ok(record) } else { Err("its key does not match".to_owned()) }
    }

    fn write(&self, text: &mut Vec<u8>) -> Result<(), TransferError> {
        serde_json::to_writer(&mut *text, self).map_err(std::io::Error::from)?;
        text.push(b'\n');
        Ok(())
    }
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |hex, byte| hex + &format!("{byte:02x}"))
}

fn from_hex(hex: &str) -> Option<Vec<u8>> {
    let pairs = hex.as_bytes().chunks(2);
    pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

/// Writes all of it, durably, or leaves the file as it was: what is cut is no line.
fn write_synced(file: &mut std::fs::File, text: &[u8]) -> std::io::Result<()> {
    let before = file.metadata()?.len();
    let written = file.write_all(text).and_then(|()| super::fault::point()).and_then(|()| file.sync_data());
    written.inspect_err(|_| {
        // Where not even this can be done, an import passes over the rest.
        let _ = file.set_len(before).and_then(|()| file.sync_data());
    })
}

/// A line of a file that is taken in.
struct Numbered {
    /// From 1.
    n: u64,
    text: Vec<u8>,
}

impl Numbered {
    /// What it is. Nothing if it is the beginning of one: an export that was cut off, of what is still where it came from.
    fn entry(&self) -> Result<Option<Entry>, TransferError> {
        match parse(self.n, &self.text) {
            Err(_) if !self.text.ends_with(b"\n") => Ok(None),
            parsed => parsed.map(Some),
        }
    }
}

fn lines(mut file: Box<dyn BufRead>) -> impl Iterator<Item = std::io::Result<Numbered>> {
    (1..).map_while(move |n| {
        let mut text = Vec::new();
        match file.read_until(b'\n', &mut text) {
            Ok(0) => None,
            Ok(_) => Some(Ok(Numbered { n, text })),
            Err(error) => Some(Err(error)),
        }
    })
}

/// What line number `line` is.
fn parse(line: u64, text: &[u8]) -> Result<Entry, TransferError> {
    let bad = |what: String| TransferError::Line { line, what };
    let parsed: Line = serde_json::from_slice(text).map_err(|error| bad(error.to_string()))?;
    parsed.entry().map_err(bad)
}

/// What tells one dead letter from another, whatever its number.
fn digest(letter: &DeadLetter) -> u128 {
    xxhash_rust::xxh3::xxh3_128(&codec::dead_letter_bytes(letter))
}

/// Takes one of this digest out, if there is one left.
fn take_one(known: &mut HashMap<u128, u64>, digest: u128) -> bool {
    let left = known.get_mut(&digest).filter(|left| **left > 0);
    left.map(|left| *left -= 1).is_some()
}

impl Outbox {
    /// Hands what waits in a log to `visit`, page by page and in order, until it answers false.
    pub async fn each_waiting(
        &self,
        log: Log,
        mut visit: impl FnMut(Vec<Leased>) -> bool,
    ) -> Result<(), ReadError> {
        let (mut from, end) = (0, *self.last().borrow() + 1);
        while from < end {
            let lease = self.lease(log, from, end, APPEND_AT_ONCE).await?;
            from = lease.next;
            if !visit(lease.records) {
                break;
            }
        }
        Ok(())
    }

    /// Writes all that waits to `file`, and then the dead letters. As soon as it is safe there, what waits is settled here
    /// as exported, and the dead letters are dropped. `progress` is told how much of it is done.
    pub async fn export(
        &self,
        file: &mut std::fs::File,
        mut progress: impl FnMut(u64),
    ) -> Result<Exported, TransferError> {
        // What is no record becomes a dead letter now.
        if !self.flush().await {
            return Err(TransferError::Unready);
        }
        let mut exported = Exported::default();
        for log in [Log::Quota, Log::Started, Log::Usage, Log::Completed] {
            let (mut from, end) = (0, *self.last().borrow() + 1);
            while from < end {
                let lease = self.lease(log, from, end, AT_ONCE).await?;
                from = lease.next;
                let mut text = Vec::new();
                for leased in &lease.records {
                    let Entry::Record(record) = &leased.entry else { continue };
                    Line::of(record).write(&mut text)?;
                }
                // IMPORTANT: safe in the file before it is settled here.
                write_synced(file, &text)?;
                self.settle_all(lease.records.iter().map(|leased| (&leased.ticket, Settlement::Exported)));
                exported.records += lease.records.len() as u64;
                progress(exported.records);
            }
        }
        if !self.flush().await {
            return Err(TransferError::Unsettled);
        }
        let mut from = 0;
        loop {
            let letters = self.dead_letters(from, LETTERS_AT_ONCE).await?;
            let Some(last) = letters.last() else { return Ok(exported) };
            from = last.id + 1;
            let mut text = Vec::new();
            for letter in &letters {
                Line::of_letter(letter).write(&mut text)?;
            }
            // IMPORTANT: likewise.
            write_synced(file, &text)?;
            exported.dead_letters +=
                self.drop_dead_letters(letters.iter().map(|letter| letter.id).collect()).await?;
            progress(exported.records + exported.dead_letters);
        }
    }

    /// Appends what [`Outbox::export`] wrote. The file is checked as a whole before the first record is appended.
    /// Dead letters that are here already are passed over. `progress` is told how much of it is done.
    pub async fn import(
        &self,
        open: impl Fn() -> std::io::Result<Box<dyn BufRead>>,
        mut progress: impl FnMut(u64),
    ) -> Result<Imported, TransferError> {
        for line in lines(open()?) {
            line?.entry()?;
        }
        let mut known = self.known_letters().await?;
        let (mut imported, mut batch, mut bytes) = (Imported::default(), Vec::new(), 0);
        let mut lines = lines(open()?).peekable();
        while let Some(line) = lines.next() {
            let line = line?;
            match line.entry()? {
                None => imported.cut = Some(line.n),
                // IMPORTANT: only what was here before: of two lines that are alike the second is another dead letter.
                Some(Entry::Letter(letter)) if take_one(&mut known, digest(&letter)) => imported.known += 1,
                Some(entry) => {
                    let is_letter = matches!(entry, Entry::Letter(_));
                    let count = if is_letter { &mut imported.dead_letters } else { &mut imported.records };
                    *count += 1;
                    bytes += line.text.len();
                    batch.push(entry);
                }
            }
            let is_last = lines.peek().is_none();
            if !batch.is_empty() && (batch.len() >= APPEND_AT_ONCE || bytes >= APPEND_BYTES || is_last) {
                bytes = 0;
                let committed = self.append(std::mem::take(&mut batch), None).await?;
                committed.await.map_err(|_| AppendError::Closed)??;
                progress(imported.records + imported.dead_letters);
            }
        }
        // The dead letters among them become such now.
        if self.flush().await { Ok(imported) } else { Err(TransferError::Unburied) }
    }

    /// The digests of all dead letters that are kept, and how many have each.
    async fn known_letters(&self) -> Result<HashMap<u128, u64>, LedgerError> {
        let (mut known, mut from) = (HashMap::new(), 0);
        loop {
            let letters = self.dead_letters(from, LETTERS_AT_ONCE).await?;
            let Some(last) = letters.last() else { return Ok(known) };
            from = last.id + 1;
            for letter in &letters {
                *known.entry(digest(letter)).or_default() += 1;
            }
        }
    }
}
