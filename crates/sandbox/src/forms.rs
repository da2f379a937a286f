//! The schemas of requests in the API's description. The sandbox itself parses only the fields it needs: see
//! [`delivery`](super::delivery).

use utoipa::ToSchema;

/// What a customer uses.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub(super) enum ProductCode {
    SpeechTranscription,
    SpeechSynthesis,
    RealTimeStreaming,
}

/// A usage record, for which a customer is billed. It may contain further fields, as the producer wrote them.
#[derive(ToSchema)]
pub(super) struct UsageRecord {
    /// Identifies the record, together with its kind.
    #[schema(min_length = 1, example = "usage-good-1")]
    transaction_id: String,
    /// As in the path.
    #[schema(min_length = 1, example = "session-0001")]
    api_session_id: String,
    #[schema(min_length = 1, example = "customer-42")]
    customer_id: String,
    product_code: ProductCode,
    #[schema(minimum = 0, example = 61.25)]
    connection_duration_seconds: f64,
    /// An integer of any length.
    #[schema(minimum = 0, example = 1_960_000)]
    data_bytes_processed: u64,
    #[schema(minimum = 0, example = 58.5)]
    audio_duration_seconds: f64,
    /// An integer of any length.
    #[schema(minimum = 1, example = 12)]
    request_count: u64,
    #[schema(format = DateTime)]
    request_timestamp: String,
    /// Not before `request_timestamp`.
    #[schema(format = DateTime)]
    response_timestamp: String,
    /// The agent's `SERVER_ID`.
    server_instance_id: String,
    /// The agent's `SERVER_REGION`.
    api_server_region: String,
    /// When the agent accepted the record.
    #[schema(format = DateTime)]
    processing_timestamp: String,
    /// The agent's `APP_VERSION`.
    agent_version: String,
}

#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub(super) enum StartedType {
    SessionStarted,
}

/// A session has started.
#[derive(ToSchema)]
pub(super) struct SessionStarted {
    /// Identifies the record, together with its kind.
    #[schema(min_length = 1, example = "lifecycle-good-2")]
    transaction_id: String,
    #[schema(min_length = 1, example = "customer-42")]
    customer_id: String,
    event_type: StartedType,
    /// When it started.
    #[schema(format = DateTime)]
    started_at: String,
    /// When the agent accepted the event.
    #[schema(format = DateTime)]
    timestamp: String,
    /// The event's `metadata.client_info`; absent where the event has no metadata.
    #[schema(value_type = Object, required = false, nullable = false)]
    client_info: (),
}

#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub(super) enum CompletedType {
    SessionCompleted,
}

/// Why a session ended.
#[derive(ToSchema)]
#[schema(rename_all = "SCREAMING_SNAKE_CASE")]
pub(super) enum DisconnectReason {
    ClientClose,
    ClientError,
    StreamEnd,
    InvalidMessage,
    SessionTimeout,
    OutOfCredit,
    ServerError,
    ServerShutdown,
    Unknown,
    Stale,
}

/// A session's totals, as the producer sums them up.
#[derive(ToSchema)]
pub(super) struct FinalUsageSummary {
    #[schema(minimum = 0, required = false)]
    total_connection_duration_seconds: f64,
    #[schema(minimum = 0, required = false)]
    total_audio_duration_seconds: f64,
    #[schema(minimum = 0, required = false)]
    total_data_bytes_processed: u64,
    #[schema(minimum = 0, required = false)]
    total_request_count: u64,
    #[schema(format = DateTime, required = false)]
    last_request_timestamp: String,
}

/// A session has ended.
#[derive(ToSchema)]
pub(super) struct SessionCompleted {
    /// Identifies the record, together with its kind.
    #[schema(min_length = 1, example = "lifecycle-good-9")]
    transaction_id: String,
    #[schema(min_length = 1, example = "customer-42")]
    customer_id: String,
    event_type: CompletedType,
    /// When it ended.
    #[schema(format = DateTime)]
    completed_at: String,
    /// When the agent accepted the event.
    #[schema(format = DateTime)]
    timestamp: String,
    /// Null if the producer gives none.
    #[schema(required = true)]
    disconnect_reason: Option<DisconnectReason>,
    #[schema(required = false)]
    final_usage_summary: FinalUsageSummary,
    /// Additional data of the producer.
    #[schema(value_type = Object, required = false)]
    metadata: (),
}

/// A request for more quota. It may contain further fields, as the producer wrote them.
#[derive(ToSchema)]
pub(super) struct QuotaRefresh {
    /// Identifies the record, together with its kind.
    #[schema(min_length = 1, example = "quota-good-1")]
    transaction_id: String,
    /// As in the path.
    #[schema(min_length = 1, example = "session-0001")]
    api_session_id: String,
    #[schema(min_length = 1, example = "customer-42")]
    customer_id: String,
    product_code: ProductCode,
    #[schema(format = DateTime)]
    timestamp: String,
}

/// Many records, grouped by session. The `Idempotency-Key` is derived from the records' keys, in order.
#[derive(ToSchema)]
pub(super) struct Batch {
    sessions: Vec<BatchSession>,
}

/// A session's records, in order.
#[derive(ToSchema)]
pub(super) struct BatchSession {
    #[schema(min_length = 1, example = "session-0001")]
    api_session_id: String,
    records: Vec<BatchRecord>,
}

/// The kinds that are sent in batches.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub(super) enum BatchKind {
    SessionStarted,
    UsageRecord,
    SessionCompleted,
}

/// A record of a batch.
#[derive(ToSchema)]
pub(super) struct BatchRecord {
    kind: BatchKind,
    /// The exact bytes of the single request: a `SessionStarted`, `UsageRecord` or `SessionCompleted`.
    #[schema(value_type = Object)]
    body: (),
}

/// A server's registration.
#[derive(ToSchema)]
pub(super) struct Registration {
    #[schema(min_length = 1, example = "edge-1")]
    server_id: String,
    #[schema(example = "eu-central")]
    region: String,
    /// The agent's version.
    #[schema(example = "1.0.0")]
    version: String,
    /// The edge server's address, `DATAPLANE_HOST`.
    #[schema(example = "10.0.0.5")]
    ip_address: String,
    /// The edge server's port, `DATAPLANE_PORT`.
    #[schema(example = 8000)]
    port: u16,
    capabilities: Capabilities,
}

/// A server's capabilities.
#[derive(ToSchema)]
pub(super) struct Capabilities {
    max_concurrent_sessions: u32,
    /// Product codes, separated by commas.
    supported_products: String,
    /// Language codes, separated by commas.
    supported_languages: String,
}

/// A server's state.
#[derive(ToSchema)]
pub(super) struct Heartbeat {
    status: ServerStatus,
    metrics: HeartbeatMetrics,
}

#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub(super) enum ServerStatus {
    /// Nothing needs attention.
    Online,
    /// The agent works, but something needs attention.
    Degraded,
}

/// An agent's metrics.
#[derive(ToSchema)]
pub(super) struct HeartbeatMetrics {
    /// Usage records settled since the outbox was created.
    usage_records_processed: u64,
    /// Requests since the process started.
    control_plane_requests: u64,
    /// Messages waiting in Redis.
    redis_queue_depth: u64,
    /// Records given up since the outbox was created.
    failed_deliveries: u64,
    /// Resident memory; null if unknown.
    #[schema(required = true)]
    memory_usage_mb: Option<f64>,
    /// Of one core, since the last heartbeat.
    cpu_usage_percent: f64,
    /// Records waiting in the outbox.
    outbox_depth: u64,
    /// Age of the oldest record waiting in the outbox.
    outbox_oldest_age_seconds: f64,
    /// Dead letters stored now.
    dead_letters: u64,
    /// Since the start of the process.
    uptime_seconds: u64,
}

/// Commands waiting for a server.
#[derive(ToSchema)]
pub(super) struct Commands {
    commands: Vec<Command>,
}

/// A command for a server.
#[derive(ToSchema)]
pub(super) struct Command {
    /// Identifies the command permanently.
    #[schema(min_length = 1)]
    command_id: String,
    #[schema(example = "set_rate_limit")]
    command_type: String,
    #[schema(value_type = Object, required = false)]
    parameters: (),
    /// When the command was issued.
    #[schema(format = DateTime, required = false)]
    timestamp: String,
    /// A JWT with the content of the command: `aud`, `exp`, `jti`, `command_type`, `parameters`. Required for commands that
    /// change something.
    #[schema(required = false)]
    token: String,
    /// The target server. The agent ignores this field.
    #[schema(required = false)]
    server_id: String,
}

/// The result of a command.
#[derive(ToSchema)]
pub(super) struct CommandResult {
    command_id: String,
    success: bool,
    /// The output; null if there is none.
    #[schema(value_type = Option<Object>, required = true)]
    result: (),
    /// Why the command was not executed; null if it was.
    #[schema(required = true)]
    error_message: Option<String>,
    #[schema(format = DateTime)]
    execution_timestamp: String,
}

/// A JWK Set (RFC 7517).
#[derive(ToSchema)]
pub(super) struct KeySet {
    #[schema(value_type = Vec<Object>)]
    keys: (),
}
