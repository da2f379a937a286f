//! Moving what an outbox holds to another one: JSON Lines, a record or a dead letter a line, with all that its identity and
//! its body need.
//!
//! ```json
//! {"v":1,"kind":"usage_record","accepted_at":1750000000000000,"sum":"…","key":"…","layout":{…},"data":"…"}
//! {"v":1,"kind":"usage_record","accepted_at":1750000000000000,"sum":"…","key":"…","layout":{…},"data":"…","dead_letter":{…}}
//! {"v":1,"kind":"usage_record","accepted_at":1750000000000000,"sum":"…","data":"…","dead_letter":{…}}
//! {"v":1,"end":{"records":1,"dead_letters":2}}
//! ```
//!
//! `data` is the record's buffer (the body, and what else is kept of the producer's bytes), `layout` says what lies where,
//! `sum` is its XXH3. `dead_letter` has the reason, the words, the attempts and the times; of one that never was a record
//! `data` is the message, as `hex` where it is not UTF-8. Records come log by log, and in order: quota requests,
//! started events, usage, completed events; then the dead letters.
//!
//! `end` is the last line, with what is before it: only an export that has written all writes it. A file without it, or
//! with another number of lines, is not whole: its export stopped half-way, or it is a copy that was cut, and then what is
//! missing is nowhere else. So it is taken in only for whoever says that it is known to be incomplete. Whole files may
//! follow one another in one.
//!
//! An export has an id: the XXH3 of its lines but the last, in 128 bits. An outbox knows the ids of what it has imported, and
//! refuses to take it in again unless that is meant.
//!
//! Taken in twice, a record is there twice, with one key, and is billed once. A dead letter is there as often as in the
//! file: nobody else would tell one from the other. Two of a file may be alike in everything, and are two all the same.

mod check;
mod line;

use std::collections::HashMap;
use std::io::{BufRead, Write};

use crate::outbox::api::handle::Outbox;
use crate::outbox::engine::fault;
use crate::outbox::format::codec::{self, Entry};
use crate::outbox::format::dead_letter::DeadLetter;
use crate::outbox::format::log::Log;
use crate::outbox::ledger::LedgerError;
use crate::outbox::ledger::audit::ExportId;
use crate::outbox::messages::{AppendError, Settlement, Ticket, Unsettled};
use crate::outbox::segments::segment::ReadError;
use line::{Line, Parsed, parse};

pub use check::{Accept, Checked, ExportHash, check_lines};

/// So many records are written before the file is synced and they are settled here.
const AT_ONCE: usize = 5000;
/// So many are appended at once, or so many bytes of lines.
const APPEND_AT_ONCE: usize = 500;
const CHUNK_BYTES: usize = 1 << 20;
/// So many dead letters are read at once.
const LETTERS_AT_ONCE: usize = 500;
/// What is exported, in this order; the dead letters come last.
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
    /// The file was imported before.
    #[error(
        "this export was imported on {at}; importing it again would double the backlog. To do so anyway, use --again"
    )]
    Known {
        /// When.
        at: String,
    },
    /// The file has no last line: its export did not finish, or it was cut.
    #[error(
        "it is not whole: it ends {place}, and lacks the line that an export writes when it has finished. If it is a \
         copy, copy it again; if the export itself has stopped half-way, --incomplete takes in what there is"
    )]
    NoEnd {
        /// Where it ends.
        place: String,
    },
    /// The file holds something else than its last line says.
    #[error(
        "line {line} says that {} records and {} dead letters are before it, and there are {} and {}: --incomplete takes \
         in what there is", .said.records, .said.dead_letters, .found.records, .found.dead_letters
    )]
    Miscounted {
        /// The number of that line, from 1.
        line: u64,
        /// What it says.
        said: Exported,
        /// What there is.
        found: Exported,
    },
    /// What was written could not be settled.
    #[error(
        "the records are in the file, but could not be settled here: both outboxes have them, with the same keys"
    )]
    Unsettled,
    /// What is no record could not become dead letters.
    #[error("nothing was begun: the ledger, which takes the dead letters, cannot be written now")]
    Unready,
    /// The dead letters that were taken in could not become such.
    #[error(
        "all is taken in, but the dead letters could not be moved to their place yet; that happens by itself when the \
         ledger can be written. Do not import the file again"
    )]
    NotDeadLettered,
}

/// What was written to a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exported {
    /// Records that waited.
    pub records: u64,
    /// Dead letters.
    pub dead_letters: u64,
    /// The id of the export, when it has ended and is not empty.
    pub id: Option<ExportId>,
}

impl Exported {
    /// Lines of both kinds.
    pub fn total(self) -> u64 {
        self.records + self.dead_letters
    }

    /// The line that ends an export that has written so much, and all.
    pub fn end_line(self) -> Result<Vec<u8>, TransferError> {
        line::end_line(self)
    }
}

impl std::ops::AddAssign for Exported {
    fn add_assign(&mut self, more: Self) {
        self.records += more.records;
        self.dead_letters += more.dead_letters;
    }
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
    /// The file was not whole, which is what whoever wanted it taken in had said.
    pub is_incomplete: bool,
}

impl Imported {
    /// Lines of all kinds that were done.
    pub fn total(self) -> u64 {
        self.records + self.dead_letters + self.known
    }
}

impl std::ops::AddAssign for Imported {
    fn add_assign(&mut self, more: Self) {
        self.records += more.records;
        self.dead_letters += more.dead_letters;
        self.known += more.known;
    }
}

/// Writes all of it, durably, or leaves the file as it was: what is cut is no line.
fn write_synced(file: &mut std::fs::File, text: &[u8]) -> std::io::Result<()> {
    let before = file.metadata()?.len();
    let written = file.write_all(text).and_then(|()| fault::point()).and_then(|()| file.sync_data());
    written.inspect_err(|_| {
        // Where not even this can be done, an import passes over the rest.
        let _ = file.set_len(before).and_then(|()| file.sync_data());
    })
}

/// What tells one dead letter from another, whatever its number.
fn digest(letter: &DeadLetter) -> u128 {
    xxhash_rust::xxh3::xxh3_128(&codec::dead_letter_bytes(letter))
}

/// The dead letters that were here before an import began, each as often as it was.
#[derive(Debug, Default)]
pub struct KnownLetters(HashMap<u128, u64>);

impl KnownLetters {
    /// Whether this one need not be taken in.
    ///
    /// IMPORTANT: only what was here before: of two lines that are alike the second is another dead letter.
    fn take(&mut self, letter: &DeadLetter) -> bool {
        let left = self.0.get_mut(&digest(letter)).filter(|left| **left > 0);
        left.map(|left| *left -= 1).is_some()
    }
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
    /// The records and dead letters of these lines.
    pub fn entries(&self) -> Result<Vec<Entry>, TransferError> {
        let lines = (self.first..).zip(self.text.lines());
        let parsed = lines.map(|(n, line)| parse(n, line.as_bytes()));
        let entries = parsed.filter_map(|line| match line {
            Ok(Parsed::Entry(entry)) => Some(Ok(entry)),
            Ok(Parsed::End(_)) => None,
            Err(error) => Some(Err(error)),
        });
        entries.collect()
    }
}

/// Cuts what was exported into chunks: some hundred lines, or some KiB of them, or one long one. It ends before the line
/// that is `cut` off, if one is.
pub fn chunks(file: impl BufRead, cut: Option<u64>) -> impl Iterator<Item = std::io::Result<Chunk>> {
    let mut lines = (1..).zip(file.lines()).take_while(move |(n, _)| Some(*n) != cut).peekable();
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
    stage: Stage,
    from: u64,
    /// What is appended later is not exported.
    end: u64,
    /// Nor is what becomes a dead letter later.
    letters_end: u64,
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    /// Of [`EXPORTED`].
    Log(usize),
    Letters,
}

/// Lines of an export, and what settles them.
#[derive(Debug, Default)]
pub struct ExportPage {
    /// JSON Lines.
    pub text: Vec<u8>,
    tickets: Vec<Ticket>,
    letters: Vec<u64>,
}

impl ExportPage {
    /// What is in it.
    pub fn counts(&self) -> Exported {
        let (records, dead_letters) = (self.tickets.len() as u64, self.letters.len() as u64);
        Exported { records, dead_letters, id: None }
    }
}

impl Outbox {
    /// Hands what waits in a log to `visit`, page by page and in order, until it answers false.
    pub async fn each_waiting(
        &self,
        log: Log,
        mut visit: impl FnMut(Vec<Unsettled>) -> bool,
    ) -> Result<(), ReadError> {
        let (mut from, end) = (0, *self.last().borrow() + 1);
        while from < end {
            let log_page = self.read(log, from, end, APPEND_AT_ONCE).await?;
            from = log_page.next;
            if !visit(log_page.records) {
                break;
            }
        }
        Ok(())
    }

    /// Begins an export of what waits now, and of the dead letters that there are.
    pub async fn begin_export(&self) -> Result<ExportPlace, TransferError> {
        // What is no record becomes a dead letter now.
        if !self.flush().await {
            return Err(TransferError::Unready);
        }
        let (end, letters_end) = (*self.last().borrow() + 1, self.next_dead_letter());
        Ok(ExportPlace { stage: Stage::Log(0), from: 0, end, letters_end })
    }

    /// The next lines of an export, and moves `place` behind them; `None` when there are no more. Nothing is settled
    /// yet.
    pub async fn export_page(&self, place: &mut ExportPlace) -> Result<Option<ExportPage>, TransferError> {
        while let Stage::Log(n) = place.stage {
            let Some(log) = EXPORTED.get(n) else {
                (place.stage, place.from) = (Stage::Letters, 0);
                break;
            };
            if place.from >= place.end {
                (place.stage, place.from) = (Stage::Log(n + 1), 0);
                continue;
            }
            let log_page = self.read(*log, place.from, place.end, AT_ONCE).await?;
            let mut page = ExportPage::default();
            for unsettled in &log_page.records {
                let Entry::Record(record) = &unsettled.entry else { continue };
                Line::of(record).write(&mut page.text)?;
                page.tickets.push(unsettled.ticket);
            }
            place.from = log_page.next;
            if !page.tickets.is_empty() {
                return Ok(Some(page));
            }
        }
        self.export_letters(place).await
    }

    async fn export_letters(&self, place: &mut ExportPlace) -> Result<Option<ExportPage>, TransferError> {
        let letters = self.dead_letters(place.from, LETTERS_AT_ONCE).await?;
        let mut page = ExportPage::default();
        for letter in letters.iter().take_while(|letter| letter.id < place.letters_end) {
            Line::of_letter(letter).write(&mut page.text)?;
            page.letters.push(letter.id);
            place.from = letter.id + 1;
        }
        Ok((!page.letters.is_empty()).then_some(page))
    }

    /// Settles a page that is safe where it was written: its records as exported, and its dead letters are dropped.
    /// Settled twice, it counts once.
    pub async fn settle_exported(&self, page: &ExportPage) -> Result<(), TransferError> {
        self.settle_all(page.tickets.iter().map(|ticket| (ticket, Settlement::Exported)));
        if !page.letters.is_empty() {
            self.drop_dead_letters(page.letters.clone()).await?;
        }
        Ok(())
    }

    /// Writes all that waits to `file`, and then the dead letters. As soon as it is safe there, what waits is settled here
    /// as exported, and the dead letters are dropped. `progress` is told how much of it is done:
    /// that is in the file for good, also when the rest fails.
    pub async fn export(
        &self,
        file: &mut std::fs::File,
        mut progress: impl FnMut(Exported),
    ) -> Result<Exported, TransferError> {
        let (mut exported, mut place) = (Exported::default(), self.begin_export().await?);
        let mut hash = ExportHash::default();
        while let Some(page) = self.export_page(&mut place).await? {
            // IMPORTANT: safe in the file before it is settled here.
            write_synced(file, &page.text)?;
            self.settle_exported(&page).await?;
            hash.update(&page.text);
            exported += page.counts();
            progress(exported);
        }
        write_synced(file, &exported.end_line()?)?;
        exported.id = hash.id();
        if self.flush().await { Ok(exported) } else { Err(TransferError::Unsettled) }
    }

    /// Appends what [`Outbox::export`] wrote. The file is checked as a whole before the first record is appended, also
    /// whether all of it is there, unless less is to be accepted.
    /// Dead letters that are here already are passed over. `progress` is told how much of it is done.
    pub async fn import(
        &self,
        open: impl Fn() -> std::io::Result<Box<dyn BufRead>>,
        (accept, again): (Accept, bool),
        mut progress: impl FnMut(u64),
    ) -> Result<Imported, TransferError> {
        let Checked { cut, is_incomplete, exports } = check_lines(open()?, accept)?;
        self.check_new(&exports, again).await?;
        let (mut imported, mut known) =
            (Imported { is_incomplete, ..Imported::default() }, self.begin_import().await?);
        for chunk in chunks(open()?, cut) {
            imported += self.import_chunk(chunk?.entries()?, &mut known).await?;
            progress(imported.total());
        }
        // The dead letters among them become such now.
        self.end_import(exports).await.map(|()| imported)
    }

    /// An error if one of these exports was imported before, unless they may be taken in again.
    pub async fn check_new(&self, exports: &[ExportId], again: bool) -> Result<(), TransferError> {
        if again || exports.is_empty() {
            return Ok(());
        }
        match self.imported_before(exports.to_vec()).await? {
            Some(at) => Err(TransferError::Known { at: crate::record::Timestamp(at).to_rfc3339() }),
            None => Ok(()),
        }
    }

    /// Begins an import: gives what each of its chunks must know.
    pub async fn begin_import(&self) -> Result<KnownLetters, TransferError> {
        // What came before becomes a dead letter first: else it would not be known.
        if !self.flush().await {
            return Err(TransferError::Unready);
        }
        Ok(self.known_letters().await?)
    }

    /// Ends an import: its exports are known from now on, and the dead letters that were taken in become such now.
    pub async fn end_import(&self, exports: Vec<ExportId>) -> Result<(), TransferError> {
        if !exports.is_empty() {
            self.note_imported(exports).await?;
        }
        if self.flush().await { Ok(()) } else { Err(TransferError::NotDeadLettered) }
    }

    /// Takes in a chunk of what was exported, but what is known, and waits until it is durable.
    pub async fn import_chunk(
        &self,
        entries: Vec<Entry>,
        known: &mut KnownLetters,
    ) -> Result<Imported, TransferError> {
        let mut imported = Imported::default();
        let mut new = Vec::with_capacity(entries.len());
        for entry in entries {
            match &entry {
                Entry::Letter(letter) if known.take(letter) => {
                    imported.known += 1;
                    continue;
                }
                Entry::Letter(_) => imported.dead_letters += 1,
                _ => imported.records += 1,
            }
            new.push(entry);
        }
        if !new.is_empty() {
            let committed = self.append(new, None).await?;
            committed.await.map_err(|_| AppendError::Closed)??;
        }
        Ok(imported)
    }

    /// All dead letters that are kept.
    async fn known_letters(&self) -> Result<KnownLetters, LedgerError> {
        let (mut known, mut from) = (KnownLetters::default(), 0);
        loop {
            let letters = self.dead_letters(from, LETTERS_AT_ONCE).await?;
            let Some(last) = letters.last() else { return Ok(known) };
            from = last.id + 1;
            for letter in &letters {
                *known.0.entry(digest(letter)).or_default() += 1;
            }
        }
    }
}
