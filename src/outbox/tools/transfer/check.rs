//! Checks whether a file to be imported is valid and complete.

use std::io::BufRead;

use xxhash_rust::xxh3::Xxh3;

use super::line::{Parsed, lines};
use super::{Exported, TransferError};
use crate::outbox::format::codec::Entry;
use crate::outbox::ledger::audit::ExportId;

/// Which files may be imported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accept {
    /// Complete exports only.
    Whole,
    /// Incomplete exports too.
    Incomplete,
}

/// The result for a file whose lines are all valid.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// The number of the last line if it is truncated: it must be skipped.
    pub cut: Option<u64>,
    /// Whether something is missing.
    pub is_incomplete: bool,
    /// The ids of the exports in it.
    pub exports: Vec<ExportId>,
}

/// Computes the id of an export from its lines except the last, as they are written or read.
#[derive(Default)]
pub struct ExportHash {
    hash: Xxh3,
    bytes: u64,
}

impl ExportHash {
    /// Adds the next lines.
    pub fn update(&mut self, lines: &[u8]) {
        self.hash.update(lines);
        self.bytes += lines.len() as u64;
    }

    /// The id of the export with these lines; `None` for an empty export: all of them are alike.
    pub fn id(&self) -> Option<ExportId> {
        (self.bytes > 0).then(|| self.hash.digest128())
    }
}

/// Checks every line of an export, and whether it is complete.
pub fn check_lines(file: impl BufRead, accept: Accept) -> Result<Checked, TransferError> {
    // The counts since the last end line.
    let (mut found, mut has_end) = (Exported::default(), false);
    let (mut count, mut checked) = (0, Checked::default());
    let mut incomplete = |error: TransferError| match accept {
        Accept::Whole => Err(error),
        Accept::Incomplete => {
            checked.is_incomplete = true;
            Ok(())
        }
    };
    let mut cut = None;
    let (mut exports, mut hash) = (Vec::new(), ExportHash::default());
    for line in lines(file) {
        let line = line?;
        match line.parsed()? {
            Some(Parsed::Entry(Entry::Letter(_))) => found.dead_letters += 1,
            Some(Parsed::Entry(_)) => found.records += 1,
            Some(Parsed::End(said)) => {
                if said != found {
                    incomplete(TransferError::Miscounted { line: line.n, said, found })?;
                }
                exports.extend(std::mem::take(&mut hash).id());
                found = Exported::default();
                (has_end, count) = (true, line.n);
                continue;
            }
            None => {
                (cut, has_end) = (Some(line.n), false);
                break;
            }
        }
        hash.update(&line.text);
        (has_end, count) = (false, line.n);
    }
    if !has_end {
        let place = cut.map_or_else(|| format!("after line {count}"), |cut| format!("within line {cut}"));
        incomplete(TransferError::NoEnd { place })?;
        exports.extend(hash.id());
    }
    Ok(Checked { cut, exports, ..checked })
}
