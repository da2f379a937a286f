//! A consistent snapshot of the outbox.

use crate::outbox::engine::database::Durability;
use crate::outbox::format::dead_letter::Reason;

/// Counters and depths at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// The outbox's id, created with its folder.
    pub id: uuid::Uuid,
    /// Appended since this outbox was created, by kind in the order of [`Kind::ALL`](crate::record::Kind::ALL).
    pub enqueued: [u64; 5],
    /// Settled as delivered.
    pub delivered: [u64; 5],
    /// Settled as duplicates.
    pub duplicates: [u64; 5],
    /// Exported to a file, or in a quarantined segment: both can be recovered.
    pub exported: [u64; 5],
    /// Became dead letters, by kind and reason.
    pub dead_lettered: [[u64; Reason::ALL.len()]; 5],
    /// Waiting.
    pub depth: [u64; 5],
    /// Bytes of the waiting records.
    pub bytes: u64,
    /// When the oldest waiting usage record was accepted, microseconds since the epoch.
    pub oldest_usage: Option<i64>,
    /// The same for lifecycle events.
    pub oldest_lifecycle: Option<i64>,
    /// The same for quota requests.
    pub oldest_quota: Option<i64>,
    /// Stored dead letters.
    pub dead_letters: u64,
    /// Their bytes, as stored.
    pub dead_letter_bytes: u64,
    /// Dead letters deleted for their age.
    pub dead_letters_expired: u64,
    /// Segments in the catalog.
    pub segments: usize,
    /// Damaged segments: quarantined and not salvaged yet, or about to be quarantined.
    pub quarantined_segments: u64,
    /// Records known to have waited in the quarantined ones.
    pub quarantined_records: u64,
    /// Total disk usage in bytes.
    pub disk_bytes: u64,
    /// The part that counts towards the limit: segments and dead letters.
    pub counted_bytes: u64,
    /// The limit of that part.
    pub capacity_bytes: u64,
    /// Free bytes on its disk, if known.
    pub disk_free_bytes: Option<u64>,
    /// With less free space it accepts no records.
    pub min_free_bytes: u64,
    /// Whether it accepts records.
    pub accepting: bool,
    /// Why it does not.
    pub paused: Option<&'static str>,
    /// What an acknowledged record survives.
    pub durability: Durability,
    /// Whether that is less than configured, because the folder is in memory.
    pub is_in_memory: bool,
    /// The number of the last record appended.
    pub last_seq: u64,
}

impl Stats {
    /// All waiting records.
    pub fn total_depth(&self) -> u64 {
        self.depth.iter().sum()
    }
}
