//! The forms of what a `ControlPlane` is sent, as the description of its API has them. The sandbox itself reads only what it
//! needs of a body: see [`delivery`](super::delivery).

use utoipa::ToSchema;

/// What a customer uses.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub(super) enum ProductCode {
    SpeechTranscription,
    SpeechSynthesis,
    RealTimeStreaming,
}

/// What a customer is billed for. Fields that are not named here may follow, as the producer wrote them.
#[derive(ToSchema)]
pub(super) struct UsageRecord {
    /// With the kind of record it is the identity.
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
    /// With the kind of record it is the identity.
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

/// What a session used in all, as the producer sums it up.
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
    /// With the kind of record it is the identity.
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
    /// Null where the producer gives none.
    #[schema(required = true)]
    disconnect_reason: Option<DisconnectReason>,
    #[schema(required = false)]
    final_usage_summary: FinalUsageSummary,
    /// Anything that the producer has to say.
    #[schema(value_type = Object, required = false)]
    metadata: (),
}

/// A request for more quota. Fields that are not named here may follow, as the producer wrote them.
#[derive(ToSchema)]
pub(super) struct QuotaRefresh {
    /// With the kind of record it is the identity.
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

/// Many records, by session. The `Idempotency-Key` is made of those of the records, in order.
#[derive(ToSchema)]
pub(super) struct Batch {
    sessions: Vec<BatchSession>,
}

/// A session's records, in their order.
#[derive(ToSchema)]
pub(super) struct BatchSession {
    #[schema(min_length = 1, example = "session-0001")]
    api_session_id: String,
    records: Vec<BatchRecord>,
}

/// What comes in batches.
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
    /// The very bytes of the single request: a `SessionStarted`, `UsageRecord` or `SessionCompleted`.
    #[schema(value_type = Object)]
    body: (),
}

/// What a server says of itself.
#[derive(ToSchema)]
pub(super) struct Registration {
    #[schema(min_length = 1, example = "edge-1")]
    server_id: String,
    #[schema(example = "eu-central")]
    region: String,
    /// The agent's.
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

/// What a server can do.
#[derive(ToSchema)]
pub(super) struct Capabilities {
    max_concurrent_sessions: u32,
    /// Product codes, separated by commas.
    supported_products: String,
    /// Language codes, separated by commas.
    supported_languages: String,
}

/// How a server is.
#[derive(ToSchema)]
pub(super) struct Heartbeat {
    status: ServerStatus,
    metrics: HeartbeatMetrics,
}

#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub(super) enum ServerStatus {
    /// All is well.
    Online,
    /// It works, and something needs attention.
    Degraded,
}

/// The figures of an agent.
#[derive(ToSchema)]
pub(super) struct HeartbeatMetrics {
    /// Usage records settled since the outbox began.
    usage_records_processed: u64,
    /// Requests since the start.
    control_plane_requests: u64,
    /// Messages that wait in Redis.
    redis_queue_depth: u64,
    /// Records given up since the outbox began.
    failed_deliveries: u64,
    /// Resident memory; null where it is not known.
    #[schema(required = true)]
    memory_usage_mb: Option<f64>,
    /// Of one core, since the last heartbeat.
    cpu_usage_percent: f64,
    /// Records that wait in the outbox.
    outbox_depth: u64,
    /// The age of the oldest of them.
    outbox_oldest_age_seconds: f64,
    /// Dead letters that are kept.
    dead_letters: u64,
    /// Since the start of the process.
    uptime_seconds: u64,
}

/// What waits for a server.
#[derive(ToSchema)]
pub(super) struct Commands {
    commands: Vec<Command>,
}

/// Something that a server is to do.
#[derive(ToSchema)]
pub(super) struct Command {
    /// Names it for ever.
    #[schema(min_length = 1)]
    command_id: String,
    #[schema(example = "set_rate_limit")]
    command_type: String,
    #[schema(value_type = Object, required = false)]
    parameters: (),
    /// When it was given.
    #[schema(format = DateTime, required = false)]
    timestamp: String,
    /// A JWT that says the same as the command: `aud`, `exp`, `jti`, `command_type`, `parameters`. What changes something
    /// needs one.
    #[schema(required = false)]
    token: String,
    /// Whom it is for. The agent does not look at it.
    #[schema(required = false)]
    server_id: String,
}

/// What became of a command.
#[derive(ToSchema)]
pub(super) struct CommandResult {
    command_id: String,
    success: bool,
    /// What came of it; null if nothing.
    #[schema(value_type = Option<Object>, required = true)]
    result: (),
    /// Why it was not done; null if it was.
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
