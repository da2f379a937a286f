//! Why an outbox cannot be opened.

use std::path::PathBuf;

use crate::outbox::engine::error::DatabaseError;
use crate::outbox::format::FORMAT;
use crate::outbox::ledger::LedgerError;
use crate::outbox::segments::segment::ReadError;

/// Why an outbox could not be opened. Nothing that waits in it was changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The folder cannot be used.
    #[error("OUTBOX_DIR {}: {source}", path.display())]
    Folder {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's word.
        #[source]
        source: std::io::Error,
    },
    /// There is no outbox in it.
    #[error("OUTBOX_DIR {}: there is no outbox", .0.display())]
    Absent(PathBuf),
    /// Another process has it.
    #[error("OUTBOX_DIR {}: another process has this outbox open", .0.display())]
    Locked(PathBuf),
    /// It was written by another release.
    #[error("OUTBOX_DIR {}: its format is {found}, this release reads format {FORMAT}", path.display())]
    Format {
        /// The folder.
        path: PathBuf,
        /// What `format.json` says.
        found: String,
    },
    /// `format.json` is damaged.
    #[error("OUTBOX_DIR {}: {source}", path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// A segment.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A new segment.
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

impl OpenError {
    /// Something else than a folder is in its place, or above it: only another one can be used.
    pub fn is_no_folder(&self) -> bool {
        let Self::Folder { source, .. } = self else { return false };
        source.kind() == std::io::ErrorKind::NotADirectory
    }
}
