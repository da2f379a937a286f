//! Why an outbox cannot be opened.

use std::path::PathBuf;

use crate::outbox::engine::error::DatabaseError;
use crate::outbox::format::FORMAT;
use crate::outbox::ledger::LedgerError;
use crate::outbox::segments::segment::ReadError;

/// Why an outbox could not be opened. No waiting record was changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The folder cannot be used.
    #[error("OUTBOX_DIR {}: {source}", path.display())]
    Folder {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's error.
        #[source]
        source: std::io::Error,
    },
    /// The folder contains no outbox.
    #[error("OUTBOX_DIR {}: there is no outbox here; an agent creates an empty one at its start", .0.display())]
    Absent(PathBuf),
    /// Another process has it open.
    #[error("OUTBOX_DIR {}: another process has this outbox open", .0.display())]
    Locked(PathBuf),
    /// It was written by another release.
    #[error("OUTBOX_DIR {}: its format is {found}, this release reads format {FORMAT}", path.display())]
    Format {
        /// The folder.
        path: PathBuf,
        /// The format in `format.json`.
        found: String,
    },
    /// `format.json` is damaged.
    #[error("OUTBOX_DIR {}: {source}", path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
    /// The ledger cannot be used.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// A segment cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A new segment cannot be created.
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

impl OpenError {
    /// Whether something other than a folder is in its place, or above it: then another path must be configured.
    pub fn is_no_folder(&self) -> bool {
        let Self::Folder { source, .. } = self else { return false };
        source.kind() == std::io::ErrorKind::NotADirectory
    }
}
