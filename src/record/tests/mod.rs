//! The contract's rules for messages and their results, by tables and for arbitrary messages.

mod any_message;
mod bytes;
mod fields;
mod identity;
mod lifecycle;
mod malformed;

use std::fmt;

use serde::de::{Deserializer as _, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::*;

/// 2026-01-31T12:00:00.000001Z.
const ACCEPTED: Timestamp = Timestamp::from_unix_micros(1_769_860_800_000_001);
const NOW: &str = r#""2026-01-31T12:00:00.000001Z""#;
const ENRICHMENT: &str = r#","server_instance_id":"edge-1","api_server_region":"eu \"1\"","processing_timestamp":"2026-01-31T12:00:00.000001Z","agent_version":"1.2.3"}"#;
const RECORD_MAX_BYTES: usize = 1 << 18;

/// A usage record with every field in its final form.
const USAGE: &str = r#"{"transaction_id":"t","api_session_id":"s","customer_id":"c","product_code":"speech_synthesis","connection_duration_seconds":1.50,"data_bytes_processed":10,"audio_duration_seconds":0,"request_count":2,"request_timestamp":"2026-01-31T10:00:00Z","response_timestamp":"2026-01-31T10:00:01+00:00"}"#;
const QUOTA: &str = r#"{"transaction_id":"t","api_session_id":"s","customer_id":"c","product_code":"speech_synthesis","timestamp":"2026-01-31T10:00:00Z"}"#;
const STARTED: &str = r#"{"transaction_id":"t","api_session_id":"s","customer_id":"c","event_type":"session_started","timestamp":"2026-01-31T10:00:00Z"}"#;
const COMPLETED: &str = r#"{"transaction_id":"t","api_session_id":"s","customer_id":"c","event_type":"session_completed","timestamp":"2026-01-31T10:00:00Z"}"#;

fn acceptor(unknown_fields: UnknownFields) -> Acceptor {
    let enrichment =
        Enrichment { server_id: "edge-1".into(), region: r#"eu "1""#.into(), version: "1.2.3".into() };
    Acceptor::new(&enrichment, unknown_fields, RECORD_MAX_BYTES)
}

fn accept(queue: Queue, raw: impl AsRef<[u8]>) -> Result<Record, Rejection> {
    acceptor(UnknownFields::Forward).at(ACCEPTED).accept(queue, raw.as_ref())
}

#[track_caller]
fn accepted(queue: Queue, raw: &str) -> Record {
    accept(queue, raw).unwrap_or_else(|rejection| panic!("{raw}: {rejection}"))
}

/// Why a message is rejected.
#[track_caller]
fn rejected(queue: Queue, raw: impl AsRef<[u8]>) -> String {
    let raw = raw.as_ref();
    match accept(queue, raw) {
        Ok(_) => panic!("accepted: {}", String::from_utf8_lossy(raw)),
        Err(rejection) => rejection.detail,
    }
}

fn body(record: &Record) -> &str {
    str::from_utf8(record.body()).unwrap()
}

/// The message with one field's value replaced, or with the field appended.
fn with(message: &str, name: &str, value: &str) -> String {
    let mut members = members(message);
    match members.iter_mut().find(|(other, _)| other == name) {
        Some(member) => value.clone_into(&mut member.1),
        None => members.push((name.to_owned(), value.to_owned())),
    }
    object(&members)
}

fn without(message: &str, name: &str) -> String {
    let mut members = members(message);
    members.retain(|(other, _)| other != name);
    object(&members)
}

fn object(members: &[(String, String)]) -> String {
    let members: Vec<_> = members.iter().map(|(name, value)| format!("{name:?}:{value}")).collect();
    format!("{{{}}}", members.join(","))
}

/// An object's members as another parser reads them: each name with its value's text.
fn members(text: &str) -> Vec<(String, String)> {
    struct Members;
    impl<'de> Visitor<'de> for Members {
        type Value = Vec<(String, String)>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut members = Vec::new();
            while let Some((name, value)) = map.next_entry::<String, Box<RawValue>>()? {
                members.push((name, value.get().to_owned()));
            }
            Ok(members)
        }
    }
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let members = deserializer.deserialize_map(Members).unwrap_or_else(|error| panic!("{error}: {text}"));
    deserializer.end().unwrap();
    members
}

/// The value of a field in a body, which must contain it once.
#[track_caller]
fn sent(record: &Record, name: &str) -> String {
    let mut members = members(body(record));
    members.retain(|(other, _)| other == name);
    assert_eq!(members.len(), 1, "{name}: {}", body(record));
    members.remove(0).1
}
