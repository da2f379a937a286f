//! How an outbox is kept.

use std::path::PathBuf;
use std::time::Duration;

use crate::outbox::engine::database::Durability;

/// How an outbox is kept.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Its folder.
    pub dir: PathBuf,
    /// The most bytes it takes on the disk.
    pub max_bytes: u64,
    /// Bytes of the disk that it leaves free.
    pub min_free_bytes: u64,
    /// About the size of one segment, in bytes.
    pub segment_bytes: u64,
    /// Whether a commit waits for the disk.
    pub durability: Durability,
    /// How long a dead letter is kept.
    pub dead_letter_retention: Duration,
    /// Where the duration of commits is noted.
    pub commit_seconds: prometheus::Histogram,
}
