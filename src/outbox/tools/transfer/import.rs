//! Taking in what an export wrote.

use std::collections::HashMap;
use std::io::BufRead;

use super::line::{Parsed, parse};
use super::{Accept, Checked, Imported, LETTERS_AT_ONCE, TransferError, check_lines};
use crate::outbox::api::handle::Outbox;
use crate::outbox::format::codec::{self, Entry};
use crate::outbox::format::dead_letter::DeadLetter;
use crate::outbox::ledger::LedgerError;
use crate::outbox::ledger::audit::ExportId;
use crate::outbox::messages::AppendError;

/// So many are appended at once, or so many bytes of lines.
const APPEND_AT_ONCE: usize = 500;
const CHUNK_BYTES: usize = 1 << 20;

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

impl Outbox {
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
