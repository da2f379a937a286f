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

use super::{AppendError, Entry, Leased, Log, Outbox, ReadError, Settlement, Ticket};
use crate::record::{Kind, Layout, Original, Record, Span, Timestamp};

const VERSION: u32 = 1;
/// So many records are written before the file is synced and they are settled here.
const AT_ONCE: usize = 5000;
/// So many are appended at once, or so many bytes of lines.
const APPEND_AT_ONCE: usize = 500;
const CHUNK_BYTES: usize = 1 << 20;
/// What is exported, in this order.
const EXPORTED: [Log; 4] = [Log::Quota, Log::Started, Log::Usage, Log::Completed];

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

/// Checks every line of what was exported. Gives how many there are.
pub fn check_lines(file: impl BufRead) -> Result<u64, TransferError> {
    let mut count = 0;
    for (n, line) in (1..).zip(file.lines()) {
        parse(n, &line?)?;
        count = n;
    }
    Ok(count)
}

/// Some lines of what was exported, to be taken in together.
#[derive(Debug, Default)]
pub struct Chunk {
    /// The number of the first line, from 1.
    pub first: u64,
    /// The lines, each with its end.
    pub text: String,
}

impl Chunk {
    /// The records of these lines.
    pub fn entries(&self) -> Result<Vec<Entry>, TransferError> {
        let lines = (self.first..).zip(self.text.lines());
        lines.map(|(n, line)| parse(n, line).map(Entry::Record)).collect()
    }
}

/// Cuts what was exported into chunks: some hundred lines, or some KiB of them, or one long one.
pub fn chunks(file: impl BufRead) -> impl Iterator<Item = std::io::Result<Chunk>> {
    let mut lines = (1..).zip(file.lines()).peekable();
    std::iter::from_fn(move || {
        let mut chunk = Chunk { first: lines.peek()?.0, text: String::new() };
        let mut count = 0;
        while let Some((_, line)) = lines.next_if(|(_, line)| {
            count == 0
                || count < APPEND_AT_ONCE
                    && line.as_ref().is_ok_and(|line| chunk.text.len() + line.len() < CHUNK_BYTES)
        }) {
            match line {
                Ok(line) => chunk.text.extend([&line, "\n"]),
                Err(error) => return Some(Err(error)),
            }
            count += 1;
        }
        Some(Ok(chunk))
    })
}

/// Where an export is.
#[derive(Clone, Debug)]
pub struct ExportPlace {
    /// Of [`EXPORTED`].
    log: usize,
    from: u64,
    /// What is appended later is not exported.
    end: u64,
}

/// Lines of an export, and what settles their records.
#[derive(Debug, Default)]
pub struct ExportPage {
    /// JSON Lines.
    pub text: Vec<u8>,
    tickets: Vec<Ticket>,
}

impl ExportPage {
    /// How many records.
    pub fn records(&self) -> u64 {
        self.tickets.len() as u64
    }
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

    /// Begins an export of what waits now.
    pub async fn begin_export(&self) -> ExportPlace {
        // What is no record becomes a dead letter now, and stays here.
        self.flush().await;
        ExportPlace { log: 0, from: 0, end: *self.last().borrow() + 1 }
    }

    /// The next lines of an export, and moves `place` behind them; `None` when there are no more. Nothing is settled
    /// yet.
    pub async fn export_page(&self, place: &mut ExportPlace) -> Result<Option<ExportPage>, TransferError> {
        while let Some(log) = EXPORTED.get(place.log) {
            let mut page = ExportPage::default();
            if place.from < place.end {
                let lease = self.lease(*log, place.from, place.end, AT_ONCE).await?;
                for leased in &lease.records {
                    let Entry::Record(record) = &leased.entry else { continue };
                    let line = Line::of(record).map_err(std::io::Error::other)?;
                    serde_json::to_writer(&mut page.text, &line).map_err(std::io::Error::from)?;
                    page.text.push(b'\n');
                    page.tickets.push(leased.ticket);
                }
                place.from = lease.next;
            } else {
                (place.log, place.from) = (place.log + 1, 0);
            }
            if page.records() > 0 {
                return Ok(Some(page));
            }
        }
        Ok(None)
    }

    /// Settles the records of a page as exported: it must be safe where it was written. Settled twice, they count once.
    pub fn settle_exported(&self, page: &ExportPage) {
        self.settle_all(page.tickets.iter().map(|ticket| (ticket, Settlement::Exported)));
    }

    /// Writes all that waits to `file`, and settles it here as exported as soon as it is safe there. Gives the number
    /// of records; `progress` is told of it.
    pub async fn export(
        &self,
        file: &mut std::fs::File,
        mut progress: impl FnMut(u64),
    ) -> Result<u64, TransferError> {
        let (mut exported, mut place) = (0, self.begin_export().await);
        while let Some(page) = self.export_page(&mut place).await? {
            file.write_all(&page.text)?;
            // IMPORTANT: safe in the file before it is settled here.
            file.sync_data()?;
            self.settle_exported(&page);
            exported += page.records();
            progress(exported);
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
        check_lines(open()?)?;
        let mut imported = 0;
        for chunk in chunks(open()?) {
            let chunk = chunk?;
            imported += self.append_all(chunk.entries()?).await?;
            progress(imported);
        }
        Ok(imported)
    }

    /// Appends, and waits until it is durable. Gives the number of records.
    pub async fn append_all(&self, entries: Vec<Entry>) -> Result<u64, TransferError> {
        let count = entries.len() as u64;
        let committed = self.append(entries, None).await?;
        committed.await.map_err(|_| AppendError::Closed)??;
        Ok(count)
    }
}
