//! Errors of a database, and what they mean for its files.

use std::path::PathBuf;

/// An error of a database.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// sled returned an error.
    #[error("{}: {source}", path.display())]
    Sled {
        /// The database's folder.
        path: PathBuf,
        /// sled's error.
        #[source]
        source: sled::Error,
    },
    /// sled panicked: its files are damaged.
    #[error("{}: damaged: {message}", path.display())]
    Panicked {
        /// The database's folder.
        path: PathBuf,
        /// The panic's message.
        message: String,
    },
    /// The database is missing.
    #[error("{}: missing", .0.display())]
    Missing(PathBuf),
    /// A sync failed: readable data may not be on disk.
    #[error("{}: cannot be synced: {source}", path.display())]
    Unsynced {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        #[source]
        source: std::io::Error,
    },
    /// The file system returned an error.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's error.
        #[source]
        source: std::io::Error,
    },
}

/// The error number for an unreadable medium: bad sectors, a damaged file system.
const EIO: i32 = 5;
const EUCLEAN: i32 = 117;

impl DatabaseError {
    /// An error of the file system about `path`.
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { path: path.into(), source }
    }

    /// A failed sync of `path`.
    pub(crate) fn unsynced(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Unsynced { path: path.into(), source }
    }

    /// Whether the database is still open elsewhere, which sled reports only as text.
    pub(super) fn is_in_use(&self) -> bool {
        matches!(self, Self::Sled { source: sled::Error::Io(error), .. }
            if error.to_string().contains("could not acquire lock"))
    }

    /// Whether the files themselves are damaged. Any other error (a full disk, no descriptors left, no permission) may
    /// pass, and the files are then as good as before.
    pub fn is_damage(&self) -> bool {
        let of_io = |error: &std::io::Error| match error.raw_os_error() {
            Some(code) => matches!(code, EIO | EUCLEAN),
            None => !self.is_in_use(),
        };
        match self {
            Self::Sled { source: sled::Error::Io(error), .. } => of_io(error),
            Self::Io { source, .. } => {
                source.kind() == std::io::ErrorKind::NotFound
                    || source.raw_os_error().is_some() && of_io(source)
            }
            Self::Unsynced { .. } => false,
            Self::Panicked { .. } | Self::Missing(_) | Self::Sled { .. } => true,
        }
    }

    /// Whether sled had no space to write.
    fn is_lack_of_room(&self) -> bool {
        use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        let Self::Sled { source: sled::Error::Io(error), .. } = self else { return false };
        matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
    }

    /// Whether, after a failed commit, the readable data may differ from what is on disk.
    pub(crate) fn leaves_doubt(&self) -> bool {
        match self {
            Self::Unsynced { .. } => true,
            // A lack of space leaves no doubt: the commit has synced everything written before it.
            Self::Sled { .. } | Self::Panicked { .. } => !self.is_lack_of_room(),
            Self::Missing(_) | Self::Io { .. } => false,
        }
    }

    /// The same error for a file that was read a moment ago: the failure is not due to what is stored.
    pub(crate) fn of_readable(self) -> Self {
        if !self.is_of_medium() {
            return self;
        }
        match self {
            Self::Sled { path, source } => Self::Unsynced { path, source: std::io::Error::other(source) },
            Self::Io { path, source } => Self::Unsynced { path, source },
            other => other,
        }
    }

    /// Whether opening met a medium that failed to read, write or sync.
    pub(crate) fn is_of_medium(&self) -> bool {
        match self {
            Self::Unsynced { .. } => true,
            Self::Sled { source: sled::Error::Io(source), .. } | Self::Io { source, .. } => {
                source.raw_os_error() == Some(EIO)
            }
            Self::Sled { .. } | Self::Panicked { .. } | Self::Missing(_) => false,
        }
    }
}
