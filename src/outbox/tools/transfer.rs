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
mod export;
mod import;
mod line;

use crate::outbox::ledger::LedgerError;
use crate::outbox::ledger::audit::ExportId;
use crate::outbox::messages::AppendError;
use crate::outbox::segments::segment::ReadError;

pub use check::{Accept, Checked, ExportHash, check_lines};
pub use export::{ExportPage, ExportPosition};
pub use import::{Chunk, KnownLetters, chunks};
#[cfg(feature = "fuzzing")]
pub(crate) use line::import_line_again;

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
