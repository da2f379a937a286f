//! Failures on purpose, to see that the account finds them.

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Plant {
    /// One delivered record is struck from the ControlPlane's accounts.
    LoseOne,
    /// One delivered record has another key.
    OtherKey,
    /// What waits in Redis is deleted.
    LoseQueue,
    /// The outbox does not wait for the disk.
    NoSync,
    /// The disk says that it has synced, and has not.
    LyingSync,
    /// Redis keeps no file.
    NoFile,
}
