//! Settings of an outbox.

use std::path::PathBuf;
use std::time::Duration;

use crate::outbox::engine::database::Durability;

/// Settings of an outbox.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Its folder.
    pub dir: PathBuf,
    /// The limit of its size on disk, in bytes.
    pub max_bytes: u64,
    /// Bytes to leave free on the disk.
    pub min_free_bytes: u64,
    /// The approximate size of a segment, in bytes.
    pub segment_bytes: u64,
    /// Whether a commit waits for the disk.
    pub durability: Durability,
    /// How long dead letters are kept.
    pub dead_letter_retention: Duration,
    /// Observes the duration of commits.
    pub commit_seconds: prometheus::Histogram,
}
