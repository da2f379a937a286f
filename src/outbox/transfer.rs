//! Moving what waits to another outbox: JSON Lines, a record a line, with all that its identity and its body need.
//!
//! ```json
//! {"v":1,"kind":"usage_record","key":"…","accepted_at":1750000000000000,"layout":{…},"sum":"…","data":"…"}
//! ```
//!
//! `data` is the record's buffer (the body, and what else is kept of the producer's bytes), `layout` says what lies where,
//! `sum` is its XXH3. Records come log by log, and in order: started events, usage, completed events.

use std::io::{BufRead, Write};

use serde::{Deserialize, Serialize};

use super::{AppendError, Entry, Leased, Log, Outbox, ReadError, Settlement};
use crate::record::{Kind, Layout, Original, Record, Span, Timestamp};

const VERSION: u32 = 1;
/// So many records are written before the file is synced and they are settled here.
const AT_ONCE: usize = 5000;
/// So many are appended at once.
const APPEND_AT_ONCE: usize = 500;

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
}

#[derive(Serialize, Deserialize)]
struct Line {
    v: u32,
    kind: String,
    key: uuid::Uuid,
    accepted_at: i64,
    layout: WireLayout,
    sum: String,
    data: String,
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
    fn of(record: &Record) -> Result<Self, std::str::Utf8Error> {
        let wire = |span: Span| (span.start, span.len);
        let layout = record.layout();
        Ok(Self {
            v: VERSION,
            kind: record.kind().name().to_owned(),
            key: record.key(),
            accepted_at: record.accepted_at().0,
            layout: WireLayout {
                body: layout.body,
                session: wire(layout.session),
                transaction: wire(layout.transaction),
                original: match layout.original {
                    Original::Prefix(len) => WireOriginal::Prefix(len),
                    Original::Kept(span) => WireOriginal::Kept(wire(span)),
                },
                correlation: layout.correlation.map(wire),
                traceparent: layout.traceparent.map(wire),
            },
            sum: sum(record.data()),
            data: std::str::from_utf8(record.data())?.to_owned(),
        })
    }

    fn record(self) -> Result<Record, String> {
        if self.v != VERSION {
            return Err(format!("format {} found, this release reads {VERSION}", self.v));
        }
        let span = |(start, len)| Span { start, len };
        let kind = Kind::ALL.into_iter().find(|kind| kind.name() == self.kind);
        let kind = kind.ok_or_else(|| format!("unknown kind {:?}", self.kind))?;
        if sum(self.data.as_bytes()) != self.sum {
            return Err("its sum does not match".to_owned());
        }
        let layout = Layout {
            body: self.layout.body,
            session: span(self.layout.session),
            transaction: span(self.layout.transaction),
            original: match self.layout.original {
                WireOriginal::Prefix(len) => Original::Prefix(len),
                WireOriginal::Kept(kept) => Original::Kept(span(kept)),
            },
            correlation: self.layout.correlation.map(span),
            traceparent: self.layout.traceparent.map(span),
        };
        let data = self.data.into_bytes().into_boxed_slice();
        let record =
            Record::from_parts(kind, Timestamp(self.accepted_at), data, layout).map_err(|e| e.to_string())?;
        if record.key() == self.key { Ok(record) } else { Err("its key does not match".to_owned()) }
    }
}

/// The record of line number `line`.
fn parse(line: u64, text: &str) -> Result<Record, TransferError> {
    let bad = |what: String| TransferError::Line { line, what };
    let parsed: Line = serde_json::from_str(text).map_err(|error| bad(error.to_string()))?;
    parsed.record().map_err(bad)
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

    /// Writes all that waits to `file`, and settles it here as exported as soon as it is safe there. Gives the number
    /// of records; `progress` is told of it.
    pub async fn export(
        &self,
        file: &mut std::fs::File,
        mut progress: impl FnMut(u64),
    ) -> Result<u64, TransferError> {
        // What is no record becomes a dead letter now, and stays here.
        self.flush().await;
        let mut exported = 0;
        for log in [Log::Quota, Log::Started, Log::Usage, Log::Completed] {
            let (mut from, end) = (0, *self.last().borrow() + 1);
            while from < end {
                let lease = self.lease(log, from, end, AT_ONCE).await?;
                from = lease.next;
                let mut text = Vec::new();
                for leased in &lease.records {
                    let Entry::Record(record) = &leased.entry else { continue };
                    let line = Line::of(record).map_err(std::io::Error::other)?;
                    serde_json::to_writer(&mut text, &line).map_err(std::io::Error::from)?;
                    text.push(b'\n');
                }
                file.write_all(&text)?;
                // IMPORTANT: safe in the file before it is settled here.
                file.sync_data()?;
                self.settle_all(lease.records.iter().map(|leased| (&leased.ticket, Settlement::Exported)));
                exported += lease.records.len() as u64;
                progress(exported);
            }
        }
        if self.flush().await { Ok(exported) } else { Err(TransferError::Unsettled) }
    }

    /// Appends what [`Outbox::export`] wrote. The file is checked as a whole before the first record is appended.
    /// Gives the number of records; `progress` is told of it.
    pub async fn import(
        &self,
        open: impl Fn() -> std::io::Result<Box<dyn BufRead>>,
        mut progress: impl FnMut(u64),
    ) -> Result<u64, TransferError> {
        for (n, line) in (1..).zip(open()?.lines()) {
            parse(n, &line?)?;
        }
        let (mut imported, mut batch) = (0, Vec::new());
        let mut lines = (1..).zip(open()?.lines()).peekable();
        while let Some((n, line)) = lines.next() {
            batch.push(Entry::Record(parse(n, &line?)?));
            if batch.len() >= APPEND_AT_ONCE || lines.peek().is_none() {
                imported += batch.len() as u64;
                let committed = self.append(std::mem::take(&mut batch), None).await?;
                committed.await.map_err(|_| AppendError::Closed)??;
                progress(imported);
            }
        }
        Ok(imported)
    }
}
