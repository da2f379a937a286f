//! A consistent picture of the outbox.

use crate::outbox::engine::database::Durability;
use crate::outbox::format::dead_letter::Reason;

/// The counters and depths of one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Which outbox this is: made with its folder.
    pub id: uuid::Uuid,
    /// Appended since this outbox began, by kind in the order of [`Kind::ALL`](crate::record::Kind::ALL).
    pub enqueued: [u64; 5],
    /// Settled as delivered.
    pub delivered: [u64; 5],
    /// Settled as duplicates.
    pub duplicates: [u64; 5],
    /// Exported to a file, or lost to a quarantined segment, which is a file too: both can be brought back.
    pub exported: [u64; 5],
    /// Became dead letters, by kind and reason.
    pub dead_lettered: [[u64; Reason::ALL.len()]; 5],
    /// Waiting.
    pub depth: [u64; 5],
    /// Bytes of what waits.
    pub bytes: u64,
    /// When the oldest waiting usage record was accepted, microseconds since the epoch.
    pub oldest_usage: Option<i64>,
    /// Likewise, of lifecycle events.
    pub oldest_lifecycle: Option<i64>,
    /// Likewise, of quota requests.
    pub oldest_quota: Option<i64>,
    /// Dead letters that are kept.
    pub dead_letters: u64,
    /// Their bytes, as stored.
    pub dead_letter_bytes: u64,
    /// Dead letters dropped for their age.
    pub dead_letters_expired: u64,
    /// Segments in the catalog.
    pub segments: usize,
    /// Segments that are damaged: set aside and not salvaged yet, or about to be set aside.
    pub quarantined_segments: u64,
    /// Records that are known to have waited in those that were set aside.
    pub quarantined_records: u64,
    /// What all of it takes on the disk, in bytes.
    pub disk_bytes: u64,
    /// What of it counts towards the limit: segments and dead letters.
    pub counted_bytes: u64,
    /// The most of that.
    pub capacity_bytes: u64,
    /// What is free on its disk, in bytes, if that is known.
    pub disk_free_bytes: Option<u64>,
    /// With less than this free it takes no more.
    pub min_free_bytes: u64,
    /// Whether it takes more.
    pub accepting: bool,
    /// Why it does not.
    pub paused: Option<&'static str>,
    /// What an acknowledged record survives.
    pub durability: Durability,
    /// The number of the last record appended.
    pub last_seq: u64,
}

impl Stats {
    /// All that waits.
    pub fn total_depth(&self) -> u64 {
        self.depth.iter().sum()
    }
}
