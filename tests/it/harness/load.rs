//! What producers push: whole sessions, and single messages.

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

/// The same as [`push_sessions`], to streams.
pub(crate) async fn add_sessions(redis: &RedisServer, prefix: &str, sessions: u32, usage_each: u32) -> u64 {
    let names: Vec<String> = (0..sessions).map(|n| format!("{prefix}-{n}")).collect();
    redis.add(LIFECYCLE, &names.iter().map(|name| started(name)).collect::<Vec<_>>()).await;
    redis.add(QUOTA, &names.iter().map(|name| quota(name, 0)).collect::<Vec<_>>()).await;
    for number in 0..usage_each {
        redis.add(USAGE, &names.iter().map(|name| usage(name, number)).collect::<Vec<_>>()).await;
    }
    redis.add(LIFECYCLE, &names.iter().map(|name| completed(name)).collect::<Vec<_>>()).await;
    u64::from(sessions) * u64::from(usage_each + 3)
}

/// Pushes `sessions` whole sessions, interleaved: started, `usage` usage records, one quota request, completed.
/// Returns how many records that are.
pub(crate) async fn push_sessions(redis: &RedisServer, prefix: &str, sessions: u32, usage_each: u32) -> u64 {
    let names: Vec<String> = (0..sessions).map(|n| format!("{prefix}-{n}")).collect();
    redis.push(LIFECYCLE, &names.iter().map(|name| started(name)).collect::<Vec<_>>()).await;
    redis.push(QUOTA, &names.iter().map(|name| quota(name, 0)).collect::<Vec<_>>()).await;
    for number in 0..usage_each {
        redis.push(USAGE, &names.iter().map(|name| usage(name, number)).collect::<Vec<_>>()).await;
    }
    redis.push(LIFECYCLE, &names.iter().map(|name| completed(name)).collect::<Vec<_>>()).await;
    u64::from(sessions) * u64::from(usage_each + 3)
}
