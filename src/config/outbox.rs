//! Settings of the outbox: its folder, its limits, its durability.

use std::path::PathBuf;
use std::time::Duration;

use crate::outbox::{Durability, Settings};

use super::load::{Review, SettingsGroup};
use super::values::{ByteSize, bytes, whole};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// The smallest disk with room for a few records, and a size beyond any disk.
const DISK: (ByteSize, ByteSize) = (ByteSize(MIB), ByteSize(GIB << 20));

/// The outbox: its place and its limits.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Outbox")]
pub struct OutboxConfig {
    /// Folder of the outbox; default under systemd: $STATE_DIRECTORY/outbox
    #[arg(id = "OUTBOX_DIR", default_value = "data/outbox")]
    pub dir: PathBuf,

    /// Size limit of the outbox; at the limit, records stay in Redis. One commit (5 MiB) may exceed it, and a reserve of 8 MiB is not counted
    #[arg(id = "OUTBOX_MAX_BYTES", default_value = "10GiB", value_parser = bytes(DISK.0, DISK.1))]
    pub max_bytes: ByteSize,

    /// Space to leave free on the disk; with less, records stay in Redis
    #[arg(id = "OUTBOX_MIN_FREE_BYTES", default_value = "256MiB", value_parser = bytes(ByteSize(0), DISK.1))]
    pub min_free_bytes: ByteSize,

    /// Size of a segment; each is deleted when all its records are delivered
    #[arg(id = "OUTBOX_SEGMENT_BYTES", default_value = "64MiB", value_parser = bytes(ByteSize(MIB), ByteSize(GIB)))]
    pub segment_bytes: ByteSize,

    /// What an acknowledged record survives: a power cut, or only the end of the process
    #[arg(id = "OUTBOX_DURABILITY", default_value = "fsync")]
    pub durability: Durability,

    /// Largest record accepted; a larger one becomes a dead letter
    #[arg(id = "RECORD_MAX_BYTES", default_value = "256KiB", value_parser = bytes(ByteSize(KIB), ByteSize(16 * MIB)))]
    pub record_max_bytes: ByteSize,

    /// Days to keep a dead letter
    #[arg(id = "DEAD_LETTER_RETENTION_DAYS", default_value = "30", value_parser = whole(1, 3_650))]
    pub dead_letter_retention_days: u32,
}

impl OutboxConfig {
    /// The settings in the outbox's own type. `commit_seconds` observes the duration of commits.
    pub fn settings(&self, commit_seconds: prometheus::Histogram) -> Settings {
        Settings {
            dir: self.dir.clone(),
            max_bytes: self.max_bytes.0,
            min_free_bytes: self.min_free_bytes.0,
            segment_bytes: self.segment_bytes.0,
            durability: self.durability,
            dead_letter_retention: Duration::from_secs(u64::from(self.dead_letter_retention_days) * 86_400),
            commit_seconds,
        }
    }
}

impl SettingsGroup for OutboxConfig {
    fn check(&mut self, review: &mut Review) {
        if self.max_bytes < self.record_max_bytes {
            let text = format!("{} is too small for a record of RECORD_MAX_BYTES", self.max_bytes);
            review.problem("OUTBOX_MAX_BYTES", text);
        }
        if self.segment_bytes < self.record_max_bytes {
            let text = format!("{} is too small for a record of RECORD_MAX_BYTES", self.segment_bytes);
            review.problem("OUTBOX_SEGMENT_BYTES", text);
        }
        if self.durability == Durability::Process {
            review.warn("OUTBOX_DURABILITY is process: a power cut loses acknowledged records");
        }
    }
}
