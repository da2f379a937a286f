//! The producers' messages: whole sessions and single messages.

use serde_json::json;

use super::{LIFECYCLE, QUOTA, RedisServer, USAGE};

pub(crate) fn usage(session: &str, number: u32) -> String {
    json!({
        "transaction_id": format!("usage-{session}-{number}"),
        "api_session_id": session,
        "customer_id": "customer-1",
        "product_code": "speech_transcription",
        "connection_duration_seconds": 12.5,
        "data_bytes_processed": 48_000,
        "audio_duration_seconds": 3.25,
        "request_count": 1,
        "request_timestamp": "2026-01-01T00:00:01.5Z",
        "response_timestamp": "2026-01-01T00:00:02Z",
        "sequence": number,
    })
    .to_string()
}

pub(crate) fn event(session: &str, event_type: &str) -> String {
    json!({
        "transaction_id": format!("{event_type}-{session}"),
        "api_session_id": session,
        "customer_id": "customer-1",
        "event_type": event_type,
        "timestamp": "2026-01-01T00:00:00Z",
    })
    .to_string()
}

pub(crate) fn started(session: &str) -> String {
    event(session, "session_started")
}

pub(crate) fn completed(session: &str) -> String {
    event(session, "session_completed")
}

pub(crate) fn quota(session: &str, number: u32) -> String {
    json!({
        "transaction_id": format!("quota-{session}-{number}"),
        "api_session_id": session,
        "customer_id": "customer-1",
        "product_code": "speech_transcription",
        "timestamp": "2026-01-01T00:00:03Z",
    })
    .to_string()
}

/// The messages of `sessions` whole sessions, interleaved, in the order to push them: started, one quota request,
/// `usage_each` usage records, completed.
pub(crate) fn sessions(prefix: &str, sessions: u32, usage_each: u32) -> Vec<(&'static str, Vec<String>)> {
    let names: Vec<String> = (0..sessions).map(|n| format!("{prefix}-{n}")).collect();
    let of_each = |message: &dyn Fn(&str) -> String| names.iter().map(|name| message(name)).collect();
    let mut parts = vec![(LIFECYCLE, of_each(&started)), (QUOTA, of_each(&|name| quota(name, 0)))];
    parts.extend((0..usage_each).map(|number| (USAGE, of_each(&|name| usage(name, number)))));
    parts.push((LIFECYCLE, of_each(&completed)));
    parts
}

/// Adds whole sessions to streams. Returns the number of records.
pub(crate) async fn add_sessions(redis: &RedisServer, prefix: &str, sessions: u32, usage_each: u32) -> u64 {
    for (queue, messages) in self::sessions(prefix, sessions, usage_each) {
        redis.add(queue, &messages).await;
    }
    u64::from(sessions) * u64::from(usage_each + 3)
}

/// The same for lists.
pub(crate) async fn push_sessions(redis: &RedisServer, prefix: &str, sessions: u32, usage_each: u32) -> u64 {
    for (queue, messages) in self::sessions(prefix, sessions, usage_each) {
        redis.push(queue, &messages).await;
    }
    u64::from(sessions) * u64::from(usage_each + 3)
}
