//! Settings of delivery: rate, batches, and when a record is given up.

use std::time::Duration;

use crate::drain::{Compression, DeliveryMode, SessionOrder};
use crate::record::UnknownFields;

use super::values::{ByteSize, bytes, seconds, seconds_or_zero, whole};

/// Delivery: pace, batches, patience.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Delivery")]
pub struct DeliveryConfig {
    /// Maximum number of requests in flight
    #[arg(id = "DRAIN_CONCURRENCY", default_value = "32", value_parser = whole(1, 1_024))]
    pub concurrency: u32,

    /// Maximum requests per second (0: no limit)
    #[arg(id = "DRAIN_RATE_LIMIT", default_value = "0", value_parser = whole(0, 1_000_000))]
    pub rate_limit: u32,

    /// Requests allowed at once before that limit applies (0: derived from the limit)
    #[arg(id = "DRAIN_BURST", default_value = "0", value_parser = whole(0, 1_000_000))]
    pub burst: u32,

    /// Maximum bytes per second for requests, headers and TLS included (0: no limit)
    #[arg(id = "DRAIN_BANDWIDTH", default_value = "0", value_parser = bytes(ByteSize(0), ByteSize(100 << 30)))]
    pub bandwidth: ByteSize,

    /// How records are sent: one per request, in batches, or in batches where the ControlPlane supports them
    #[arg(id = "DELIVERY_MODE", default_value = "auto")]
    pub mode: DeliveryMode,

    /// Maximum records in a batch
    #[arg(id = "BATCH_MAX_RECORDS", default_value = "2000", value_parser = whole(1, 10_000))]
    pub batch_max_records: u32,

    /// Maximum bytes in a batch, before compression
    #[arg(id = "BATCH_MAX_BYTES", default_value = "1MiB", value_parser = bytes(ByteSize(1 << 10), ByteSize(64 << 20)))]
    pub batch_max_bytes: ByteSize,

    /// How batches are compressed
    #[arg(id = "BATCH_COMPRESSION", default_value = "auto")]
    pub batch_compression: Compression,

    /// Order of a session's records sent one per request: one after another, or usage concurrently
    #[arg(id = "SESSION_ORDER", default_value = "strict")]
    pub session_order: SessionOrder,

    /// Fields that the contract does not define: forward or drop them
    #[arg(id = "UNKNOWN_FIELDS", default_value = "forward")]
    pub unknown_fields: UnknownFields,

    /// Seconds after acceptance at which a quota refresh request expires
    #[arg(id = "QUOTA_REFRESH_TTL_SECONDS", default_value = "300", value_parser = seconds)]
    pub quota_refresh_ttl: Duration,

    /// Seconds a record waits until the ControlPlane knows its session
    #[arg(id = "SESSION_UNKNOWN_GRACE_SECONDS", default_value = "900", value_parser = seconds_or_zero)]
    pub session_unknown_grace: Duration,

    /// Attempts after which a record that alone makes the ControlPlane fail becomes a dead letter
    #[arg(id = "POISON_ATTEMPTS", default_value = "10", value_parser = whole(1, 1_000))]
    pub poison_attempts: u32,

    /// Refusals in a row after which refused records wait instead of becoming dead letters (0: off)
    #[arg(id = "REFUSAL_BRAKE", default_value = "100", value_parser = whole(0, 1_000_000))]
    pub refusal_brake: u32,

    /// Seconds to finish requests in flight at shutdown
    #[arg(id = "SHUTDOWN_TIMEOUT_SECONDS", default_value = "20", value_parser = seconds)]
    pub shutdown_timeout: Duration,
}
