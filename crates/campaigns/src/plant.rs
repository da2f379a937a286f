//! Planted failures, which the account must detect.

/// A planted failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Plant {
    /// A delivered record is removed from the ControlPlane's accounts.
    LoseOne,
    /// A delivered record gets another key.
    OtherKey,
    /// Messages waiting in Redis are deleted.
    LoseQueue,
    /// The outbox does not wait for the disk.
    NoSync,
    /// The disk reports syncs that it has not made.
    LyingSync,
    /// Redis has no append-only file.
    NoFile,
}
