//! How fast and in what form records are sent, and when one is given up.

use std::time::Duration;

use crate::drain::{Compression, DeliveryMode, SessionOrder};
use crate::record::UnknownFields;

use super::values::{Bytes, bytes, seconds, seconds_or_zero, whole};

/// Delivery: pace, batches, patience.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Delivery")]
pub struct DeliveryConfig {
    /// The most requests in flight
    #[arg(id = "DRAIN_CONCURRENCY", default_value = "32", value_parser = whole(1, 1_024))]
    pub concurrency: u32,

    /// The most requests a second (0: no limit)
    #[arg(id = "DRAIN_RATE_LIMIT", default_value = "0", value_parser = whole(0, 1_000_000))]
    pub rate_limit: u32,

    /// Requests that may be made at once before that limit applies (0: follows from the limit)
    #[arg(id = "DRAIN_BURST", default_value = "0", value_parser = whole(0, 1_000_000))]
    pub burst: u32,

    /// The most bytes a second that requests take of the link, heads and TLS included (0: no limit)
    #[arg(id = "DRAIN_BANDWIDTH", default_value = "0", value_parser = bytes(Bytes(0), Bytes(100 << 30)))]
    pub bandwidth: Bytes,

    /// How records are sent: one a request, many, or many where the ControlPlane can
    #[arg(id = "DELIVERY_MODE", default_value = "auto")]
    pub mode: DeliveryMode,

    /// The most records in a batch
    #[arg(id = "BATCH_MAX_RECORDS", default_value = "2000", value_parser = whole(1, 10_000))]
    pub batch_max_records: u32,

    /// The most bytes in a batch, before compression
    #[arg(id = "BATCH_MAX_BYTES", default_value = "1MiB", value_parser = bytes(Bytes(1 << 10), Bytes(64 << 20)))]
    pub batch_max_bytes: Bytes,

    /// How batches are compressed
    #[arg(id = "BATCH_COMPRESSION", default_value = "auto")]
    pub batch_compression: Compression,

    /// The order of a session's records where they go one a request: one after another, or usage several at once
    #[arg(id = "SESSION_ORDER", default_value = "strict")]
    pub session_order: SessionOrder,

    /// Fields that the contract does not name: sent on, or dropped
    #[arg(id = "UNKNOWN_FIELDS", default_value = "forward")]
    pub unknown_fields: UnknownFields,

    /// Seconds after which a quota refresh request, once accepted, is no longer worth sending
    #[arg(id = "QUOTA_REFRESH_TTL_SECONDS", default_value = "300", value_parser = seconds)]
    pub quota_refresh_ttl: Duration,

    /// Seconds that a record waits for the ControlPlane to know its session
    #[arg(id = "SESSION_UNKNOWN_GRACE_SECONDS", default_value = "900", value_parser = seconds_or_zero)]
    pub session_unknown_grace: Duration,

    /// Attempts after which a record that alone makes the ControlPlane fail is a dead letter
    #[arg(id = "POISON_ATTEMPTS", default_value = "10", value_parser = whole(1, 1_000))]
    pub poison_attempts: u32,

    /// Refusals in a row after which nothing more is given up for being refused (0: off)
    #[arg(id = "REFUSAL_BRAKE", default_value = "100", value_parser = whole(0, 1_000_000))]
    pub refusal_brake: u32,

    /// Seconds for finishing what is in flight when the agent is told to stop
    #[arg(id = "SHUTDOWN_TIMEOUT_SECONDS", default_value = "20", value_parser = seconds)]
    pub shutdown_timeout: Duration,
}
