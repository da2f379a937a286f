//! The demonstration's input: sessions with events and usage, quota requests, and malformed messages.

use std::time::Duration;

use serde_json::json;

use super::stage::{QUEUES, connect};

const USAGE: &str = QUEUES[0];
const LIFECYCLE: &str = QUEUES[1];
const QUOTA: &str = QUEUES[2];

/// Sessions per quota request.
const SESSIONS_PER_QUOTA: u32 = 10;
/// Steps in which the input is pushed, spread over the demonstration.
const STEPS: u32 = 100;
const STEP: Duration = Duration::from_millis(180);

const MALFORMED: [&str; 20] = [
    "",
    "not json",
    "{",
    "[]",
    "null",
    "42",
    "\"text\"",
    "{}",
    r#"{"transaction_id":"bad-9"}"#,
    r#"{"transaction_id":"bad-10","api_session_id":"s","customer_id":""}"#,
    r#"{"transaction_id":"bad-11","api_session_id":"s","customer_id":"c","product_code":"fax"}"#,
    r#"{"transaction_id":"bad-12","api_session_id":"s","customer_id":"c","connection_duration_seconds":-1}"#,
    r#"{"transaction_id":"bad-13","api_session_id":"s","customer_id":"c","data_bytes_processed":1.5}"#,
    r#"{"transaction_id":"bad-14","api_session_id":"s","customer_id":"c","request_count":0}"#,
    r#"{"transaction_id":"bad-15","api_session_id":7,"customer_id":"c"}"#,
    r#"{"transaction_id":"bad-16","api_session_id":"s","customer_id":"c","request_timestamp":"yesterday"}"#,
    r#"{"transaction_id":"bad-17","api_session_id":"s","customer_id":"c"} trailing"#,
    r#"{"transaction_id":"bad-18","api_session_id":"s","customer_id":"c","audio_duration_seconds":1e400}"#,
    r#"{"transaction_id":null,"api_session_id":"s","customer_id":"c"}"#,
    "{\"transaction_id\":\"bad-20\u{0}\"}",
];

/// What was pushed.
pub(super) struct Pushed {
    pub sessions: u32,
    pub valid: u64,
    pub quota: u64,
    pub malformed: u64,
}

/// The number of valid records that [`push`] pushes.
pub(super) fn total(sessions: u32, records: u32) -> u64 {
    u64::from(sessions) * (u64::from(records) + 2) + u64::from(sessions.div_ceil(SESSIONS_PER_QUOTA))
}

fn started(session: u32) -> String {
    json!({
        "transaction_id": format!("started-{session}"),
        "api_session_id": format!("session-{session}"),
        "customer_id": format!("customer-{}", session % 37),
        "event_type": "session_started",
        "timestamp": "2026-01-01T00:00:00Z",
        "metadata": { "client_info": { "agent": "demo" } },
    })
    .to_string()
}

fn completed(session: u32) -> String {
    json!({
        "transaction_id": format!("completed-{session}"),
        "api_session_id": format!("session-{session}"),
        "customer_id": format!("customer-{}", session % 37),
        "event_type": "session_completed",
        "timestamp": "2026-01-01T01:00:00Z",
        "disconnect_reason": "CLIENT_CLOSE",
    })
    .to_string()
}

fn usage(session: u32, number: u32) -> String {
    json!({
        "transaction_id": format!("usage-{session}-{number}"),
        "api_session_id": format!("session-{session}"),
        "customer_id": format!("customer-{}", session % 37),
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

fn quota(session: u32) -> String {
    json!({
        "transaction_id": format!("quota-{session}"),
        "api_session_id": format!("session-{session}"),
        "customer_id": format!("customer-{}", session % 37),
        "product_code": "speech_transcription",
        "timestamp": "2026-01-01T00:00:03Z",
    })
    .to_string()
}

/// Pushes everything step by step, each session's records in order.
pub(super) async fn push(redis_url: String, sessions: u32, records: u32) -> anyhow::Result<Pushed> {
    let mut redis = connect(&redis_url).await?;
    let mut clock = tokio::time::interval(STEP);
    let mut malformed = 0;
    for step in 0..STEPS {
        clock.tick().await;
        let mut pipe = redis::pipe();
        let part = |of: u32, step: u32| u64::from(of) * u64::from(step) / u64::from(STEPS);
        for session in 0..sessions {
            if step == 0 {
                pipe.lpush(LIFECYCLE, started(session)).ignore();
                if session % SESSIONS_PER_QUOTA == 0 {
                    pipe.lpush(QUOTA, quota(session)).ignore();
                }
            }
            for number in part(records, step)..part(records, step + 1) {
                pipe.lpush(USAGE, usage(session, u32::try_from(number)?)).ignore();
            }
            if step == STEPS - 1 {
                pipe.lpush(LIFECYCLE, completed(session)).ignore();
            }
        }
        if let Some(bad) = MALFORMED.get((step / (STEPS / 20)) as usize).filter(|_| step % (STEPS / 20) == 0)
        {
            pipe.lpush(USAGE, *bad).ignore();
            malformed += 1;
        }
        if !pipe.is_empty() {
            let () = pipe.query_async(&mut redis).await?;
        }
    }
    Ok(Pushed {
        sessions,
        valid: total(sessions, records),
        quota: u64::from(sessions.div_ceil(SESSIONS_PER_QUOTA)),
        malformed,
    })
}
