//! Moves an outbox's contents to another one as JSON Lines: a record or a dead letter per line, with everything that its
//! identity and body need.
//!
//! ```json
//! {"v":1,"kind":"usage_record","accepted_at":1750000000000000,"sum":"…","key":"…","layout":{…},"data":"…"}
//! {"v":1,"kind":"usage_record","accepted_at":1750000000000000,"sum":"…","key":"…","layout":{…},"data":"…","dead_letter":{…}}
//! {"v":1,"kind":"usage_record","accepted_at":1750000000000000,"sum":"…","data":"…","dead_letter":{…}}
//! {"v":1,"end":{"records":1,"dead_letters":2}}
//! ```
//!
//! `data` is the record's buffer (the body, and what else is kept of the producer's bytes), `layout` gives the positions of
//! its parts, `sum` is its XXH3. `dead_letter` contains the reason, the detail, the attempts and the times; for a message
//! that never was a record, `data` is the message, or `hex` if it is not UTF-8. Records come log by log and in order: quota
//! requests, started events, usage, completed events; then the dead letters.
//!
//! `end` is the last line, with the counts of the lines before it; only a complete export writes it. A file without it, or
//! with other counts, is incomplete: its export stopped early, or it is a truncated copy, and the missing lines exist
//! nowhere else. So it is imported only if the user says that it is known to be incomplete. Complete files may be
//! concatenated.
//!
//! An export has an id: the XXH3 of its lines except the last, in 128 bits. An outbox remembers the ids it has imported,
//! and refuses to import them again unless told to.
//!
//! If imported twice, a record is there twice with one key, and is billed once. A dead letter is there as often as in the
//! file, because nothing else would tell the two apart: two identical ones in a file remain two.

mod check;
mod export;
mod import;
mod line;

use serde::{Deserialize, Serialize};

use crate::outbox::ledger::LedgerError;
use crate::outbox::ledger::audit::ExportId;
use crate::outbox::messages::AppendError;
use crate::outbox::segments::segment::ReadError;

pub use check::{Accept, Checked, ExportHash, check_lines};
pub use export::{ExportPage, ExportPosition};
pub use import::{Chunk, KnownLetters, chunks};
#[cfg(feature = "fuzzing")]
pub(crate) use line::import_line_again;

/// Dead letters read at once.
const LETTERS_AT_ONCE: usize = 500;

/// Why a transfer stopped.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The file cannot be read or written.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The waiting records could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The records could not be appended.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// The dead letters could not be read or removed.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// A line of the file is invalid.
    #[error("line {line}: {what}")]
    Line {
        /// Its number, from 1.
        line: u64,
        /// The cause.
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
    /// The file has no last line: its export did not finish, or it was truncated.
    #[error(
        "it is not whole: it ends {place}, and lacks the line that an export writes when it has finished. If it is a \
         copy, copy it again; if the export itself has stopped half-way, --incomplete takes in what there is"
    )]
    NoEnd {
        /// Where it ends.
        place: String,
    },
    /// The file's contents differ from the counts in its last line.
    #[error(
        "line {line} says that {} records and {} dead letters are before it, and there are {} and {}: --incomplete takes \
         in what there is", .said.records, .said.dead_letters, .found.records, .found.dead_letters
    )]
    Miscounted {
        /// The number of that line, from 1.
        line: u64,
        /// The counts in it.
        said: Exported,
        /// The counts found.
        found: Exported,
    },
    /// The written records could not be settled.
    #[error(
        "the records are in the file, but could not be settled here: both outboxes have them, with the same keys"
    )]
    Unsettled,
    /// Rejected messages could not be moved to the dead letters.
    #[error("nothing was started: the ledger, which stores the dead letters, cannot be written now")]
    Unready,
    /// Imported dead letters could not be moved to their place.
    #[error(
        "all is taken in, but the dead letters could not be moved to their place yet; that happens by itself when the \
         ledger can be written. Do not import the file again"
    )]
    NotDeadLettered,
}

/// What was written to a file. Its counts are the file's last line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exported {
    /// Waiting records.
    pub records: u64,
    /// Dead letters.
    pub dead_letters: u64,
    /// The id of the export, if it is complete and not empty.
    #[serde(skip)]
    pub id: Option<ExportId>,
}

impl Exported {
    /// The number of lines of both kinds.
    pub fn total(self) -> u64 {
        self.records + self.dead_letters
    }

    /// The last line of a complete export with these counts.
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

/// What was imported from a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// Records.
    pub records: u64,
    /// Dead letters.
    pub dead_letters: u64,
    /// Dead letters skipped because they already existed.
    pub known: u64,
    /// The file was incomplete, as the user had said.
    pub is_incomplete: bool,
}

impl Imported {
    /// The number of records and dead letters that are new here.
    pub fn taken(self) -> u64 {
        self.records + self.dead_letters
    }

    /// The number of lines processed.
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
