//! Imports exported lines.

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

/// Lines appended at once, and the limit of their bytes.
const APPEND_AT_ONCE: usize = 500;
const CHUNK_BYTES: usize = 1 << 20;

/// Identifies a dead letter independently of its number.
fn digest(letter: &DeadLetter) -> u128 {
    xxhash_rust::xxh3::xxh3_128(&codec::dead_letter_bytes(letter))
}

/// The dead letters that existed before an import began, with their multiplicity.
#[derive(Debug, Default)]
pub struct KnownLetters(HashMap<u128, u64>);

impl KnownLetters {
    /// Whether this letter can be skipped.
    ///
    /// IMPORTANT: only letters that existed before count: of two identical lines, the second is another dead letter.
    fn take(&mut self, letter: &DeadLetter) -> bool {
        let left = self.0.get_mut(&digest(letter)).filter(|left| **left > 0);
        left.map(|left| *left -= 1).is_some()
    }
}

/// Lines of an export to be imported together.
#[derive(Debug, Default)]
pub struct Chunk {
    /// The number of the first line, from 1.
    pub first: u64,
    /// The lines, each with its line end.
    pub text: String,
}

impl Chunk {
    /// The records and dead letters in these lines.
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

/// Divides an export into chunks: some hundred lines, or some KiB of them, or one long line. Stops before the line that is
/// `cut` off, if any.
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
    /// Appends the contents of a file written by [`Outbox::export`]. The whole file is checked before the first record is
    /// appended, including whether it is complete, unless `accept` allows less. Existing dead letters are skipped.
    /// `progress` gets the number of processed lines.
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
        // Dead letters among them are moved to their place now.
        self.end_import(exports).await.map(|()| imported)
    }

    /// Fails if one of these exports was imported before, unless that is allowed.
    pub async fn check_new(&self, exports: &[ExportId], again: bool) -> Result<(), TransferError> {
        if again || exports.is_empty() {
            return Ok(());
        }
        match self.imported_before(exports.to_vec()).await? {
            Some(at) => Err(TransferError::Known { at: crate::record::Timestamp(at).to_rfc3339() }),
            None => Ok(()),
        }
    }

    /// Starts an import: returns what each of its chunks needs.
    pub async fn begin_import(&self) -> Result<KnownLetters, TransferError> {
        // Earlier rejected messages become dead letters first: otherwise they would be unknown.
        if !self.flush().await {
            return Err(TransferError::Unready);
        }
        Ok(self.known_letters().await?)
    }

    /// Ends an import: its exports are remembered, and its dead letters are moved to their place.
    pub async fn end_import(&self, exports: Vec<ExportId>) -> Result<(), TransferError> {
        if !exports.is_empty() {
            self.note_imported(exports).await?;
        }
        if self.flush().await { Ok(()) } else { Err(TransferError::NotDeadLettered) }
    }

    /// Imports a chunk, except known dead letters, and waits until it is durable.
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

    /// All stored dead letters.
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
