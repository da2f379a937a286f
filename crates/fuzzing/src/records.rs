//! Messages from each queue.

use serde::de::IgnoredAny;

use super::acceptance::{ACCEPTED, acceptor, text};
use super::members::{Member, last, members, object, only};
use super::times;
use dataplane_agent::record::{Kind, Queue, Record, Rejection, Timestamp, UnknownFields};

const NOW: &str = r#""2026-01-31T12:00:00.000001Z""#;
const RECORD_MAX_BYTES: usize = 1 << 18;
const MAX_DEPTH: usize = 64;

/// What the agent writes into a usage record, and what for.
const OURS: [(&str, &str); 4] = [
    ("server_instance_id", r#""edge-1""#),
    ("api_server_region", r#""eu \"1\"""#),
    ("processing_timestamp", NOW),
    ("agent_version", r#""1.2.3""#),
];

const NUMBERS: [&str; 4] = [
    "connection_duration_seconds",
    "audio_duration_seconds",
    "total_connection_duration_seconds",
    "total_audio_duration_seconds",
];
const INTEGERS: [&str; 4] =
    ["data_bytes_processed", "request_count", "total_data_bytes_processed", "total_request_count"];
const TIMES: [&str; 4] = ["request_timestamp", "response_timestamp", "timestamp", "last_request_timestamp"];

/// What the contract names, and what is sent where a producer leaves it out.
const USAGE: [(&str, Option<&str>); 10] = [
    ("transaction_id", None),
    ("api_session_id", None),
    ("customer_id", None),
    ("product_code", Some(r#""speech_transcription""#)),
    ("connection_duration_seconds", None),
    ("data_bytes_processed", None),
    ("audio_duration_seconds", None),
    ("request_count", Some("1")),
    ("request_timestamp", None),
    ("response_timestamp", None),
];
const QUOTA: [(&str, Option<&str>); 5] = [USAGE[0], USAGE[1], USAGE[2], USAGE[3], ("timestamp", Some(NOW))];

/// A message from the queue of usage records.
pub fn usage(data: &[u8]) {
    let Some([forwarded, dropped]) = both_ways(Queue::Usage, data) else { return };
    for (record, unknown) in [(&forwarded, UnknownFields::Forward), (&dropped, UnknownFields::Drop)] {
        enriched(record, &USAGE, &OURS, unknown);
        let again = accepted(Queue::Usage, record.body(), unknown);
        assert_eq!(members(text(again.body())), members(text(record.body())), "accepted again");
        assert_eq!(identity(&again), identity(record));
    }
    assert_eq!(identity(&forwarded), identity(&dropped));
}

/// A message from the queue of quota refresh requests.
pub fn quota(data: &[u8]) {
    let Some([forwarded, dropped]) = both_ways(Queue::Quota, data) else { return };
    for (record, unknown) in [(&forwarded, UnknownFields::Forward), (&dropped, UnknownFields::Drop)] {
        enriched(record, &QUOTA, &[], unknown);
        let again = accepted(Queue::Quota, record.body(), unknown);
        assert_eq!(text(again.body()), text(record.body()), "what needs nothing goes on with its own bytes");
        assert_eq!(identity(&again), identity(record));
    }
    assert_eq!(identity(&forwarded), identity(&dropped));
}

/// A message from the queue of session lifecycle events.
pub fn lifecycle(data: &[u8]) {
    let Some([record, dropped]) = both_ways(Queue::Lifecycle, data) else { return };
    assert_eq!(record, dropped, "unknown fields are never sent");
    let (given, sent) = (members(text(data)), members(text(record.body())));
    written_anew(record.kind(), &given, &sent);

    let session = serde_json::Value::from(record.session()).to_string();
    let metadata = only(&sent, "client_info").map(|client_info| object([("client_info", client_info)]));
    let again = sent.iter().filter_map(|(name, value)| match name.as_str() {
        "timestamp" | "client_info" => None,
        "started_at" | "completed_at" => Some(("timestamp", value.as_str())),
        name => Some((name, value.as_str())),
    });
    let beside = [("api_session_id", Some(session.as_str())), ("metadata", metadata.as_deref())];
    let beside = beside.into_iter().filter_map(|(name, value)| Some((name, value?)));
    let again = accepted(Queue::Lifecycle, object(again.chain(beside)).as_bytes(), UnknownFields::Forward);
    assert_eq!(text(again.body()), text(record.body()), "accepted again");
    assert_eq!((again.kind(), again.session(), again.key()), (record.kind(), record.session(), record.key()));
}

/// What the agent made of a message is a message too, if perhaps a larger one.
fn accepted(queue: Queue, raw: &[u8], unknown: UnknownFields) -> Record {
    match acceptor(unknown, RECORD_MAX_BYTES * 8).at(ACCEPTED).accept(queue, raw) {
        Ok(record) => record,
        Err(rejection) => panic!("accepted once, then not: {rejection}: {}", text(raw)),
    }
}

/// The records of a message, its unknown fields forwarded and dropped; nothing where it is rightly rejected.
fn both_ways(queue: Queue, raw: &[u8]) -> Option<[Record; 2]> {
    let accept = |unknown| acceptor(unknown, RECORD_MAX_BYTES).at(ACCEPTED).accept(queue, raw);
    let verdict = accept(UnknownFields::Forward);
    grammar(raw, verdict.as_ref().err());
    match (verdict, accept(UnknownFields::Drop)) {
        (Ok(forwarded), Ok(dropped)) => {
            kept(&forwarded, raw);
            kept(&dropped, raw);
            let acceptor = acceptor(UnknownFields::Forward, RECORD_MAX_BYTES);
            let key = acceptor.at(Timestamp(0)).accept(queue, raw).map(|record| record.key());
            assert_eq!(key, Ok(forwarded.key()), "the time of acceptance is no part of the identity");
            Some([forwarded, dropped])
        }
        (Err(rejection), Err(other)) => {
            assert_eq!(rejection, other);
            None
        }
        (one, other) => panic!("unknown fields decide: {one:?}, {other:?}"),
    }
}

/// That a message is no JSON, or no object, is said of those of which it is true and of no others.
fn grammar(raw: &[u8], rejection: Option<&Rejection>) {
    let detail = rejection.map_or("", |rejection| &rejection.detail);
    assert!(detail.is_ascii() && detail.len() < 300, "that may be a customer's data: {detail}");
    assert_eq!(detail.starts_with("too large"), raw.len() > RECORD_MAX_BYTES, "{detail}");
    if detail.starts_with("too large") {
        return;
    }
    assert_eq!(detail.starts_with("not UTF-8"), str::from_utf8(raw).is_err(), "{detail}");
    if detail.starts_with("not UTF-8") {
        return;
    }
    if detail.starts_with("nested deeper") {
        let brackets = raw.iter().filter(|byte| matches!(byte, b'[' | b'{')).count();
        assert!(brackets > MAX_DEPTH, "{brackets} brackets are no {MAX_DEPTH} levels");
        return;
    }
    let json = serde_json::from_str::<IgnoredAny>(text(raw));
    assert_eq!(detail.starts_with("not JSON"), json.is_err(), "{detail:?}, but {json:?}: {}", text(raw));
    if json.is_ok() {
        let object = raw.trim_ascii_start().starts_with(b"{");
        assert_eq!(detail.starts_with("must be a JSON object"), !object, "{detail}");
    }
}

/// What must be true of any record that was made of `raw`.
fn kept(record: &Record, raw: &[u8]) {
    assert_eq!(*record.original(), *raw, "the producer's own bytes");
    let given = members(text(raw));
    let string = |name| last(&given, name).and_then(|value| serde_json::from_str::<String>(value).ok());
    assert_eq!(Some(record.transaction().to_owned()), string("transaction_id"));
    assert_eq!(Some(record.session().to_owned()), string("api_session_id"));
    assert!(!record.transaction().is_empty() && !record.session().is_empty());
    assert!(record.correlation().is_none_or(|id| string("correlation_id").as_deref() == Some(id)));
    assert!(record.traceparent().is_none_or(|id| string("traceparent").as_deref() == Some(id)));
    let (kind, at, data, layout) = record.clone().into_parts();
    assert_eq!(Record::from_parts(kind, at, data, layout).as_ref(), Ok(record), "what is stored comes back");
}

fn identity(record: &Record) -> (Kind, &str, &str, uuid::Uuid) {
    (record.kind(), record.session(), record.transaction(), record.key())
}

/// A body holds what the contract names, once, what is ours, once, and of the rest all or nothing.
fn enriched(record: &Record, known: &[(&str, Option<&str>)], ours: &[(&str, &str)], unknown: UnknownFields) {
    let (given, sent) = (members(text(&record.original())), members(text(record.body())));
    for &(name, default) in known {
        match (last(&given, name), only(&sent, name)) {
            (Some(given), Some(sent)) => same(name, given, sent),
            (None, sent) => assert_eq!(sent, default, "{name}"),
            (Some(given), None) => panic!("{name}, {given}, is lost"),
        }
    }
    for &(name, value) in ours {
        assert_eq!(only(&sent, name), Some(value), "{name}");
    }
    let is_unknown = |(name, _): &&Member| {
        known.iter().all(|(known, _)| known != name) && ours.iter().all(|(ours, _)| ours != name)
    };
    let rest: Vec<_> = sent.iter().filter(is_unknown).collect();
    match unknown {
        UnknownFields::Forward => assert_eq!(rest, given.iter().filter(is_unknown).collect::<Vec<_>>()),
        UnknownFields::Drop => assert!(rest.is_empty(), "{rest:?}"),
    }
}

/// A lifecycle event's request holds exactly what the contract lists.
fn written_anew(kind: Kind, given: &[Member], sent: &[Member]) {
    let own = |name| last(given, name);
    let optional = |name| own(name).filter(|value| *value != "null");
    let metadata = optional("metadata").map(members);
    let (moment, rest) = match kind {
        Kind::Started => {
            let client_info = metadata.as_ref().map(|m| last(m, "client_info").unwrap_or("{}"));
            ("started_at", vec![("client_info", client_info)])
        }
        Kind::Completed => {
            let reason = optional("disconnect_reason").unwrap_or("null");
            let summary = optional("final_usage_summary");
            let rest = [Some(reason), summary, optional("metadata")];
            (
                "completed_at",
                ["disconnect_reason", "final_usage_summary", "metadata"].into_iter().zip(rest).collect(),
            )
        }
        kind => panic!("a record of kind {kind:?}"),
    };
    let shared = [
        ("transaction_id", own("transaction_id")),
        ("customer_id", own("customer_id")),
        ("event_type", own("event_type")),
        (moment, Some(own("timestamp").unwrap_or(NOW))),
        ("timestamp", Some(NOW)),
    ];
    let expected: Vec<_> =
        shared.into_iter().chain(rest).filter_map(|(name, value)| Some((name, value?))).collect();
    assert_eq!(
        sent.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(),
        expected.iter().map(|(name, _)| *name).collect::<Vec<_>>()
    );
    for ((name, value), (_, sent)) in expected.into_iter().zip(sent) {
        match name {
            "started_at" | "completed_at" => same("timestamp", value, sent),
            "final_usage_summary" => summary(&members(value), &members(sent)),
            _ => assert_eq!(sent, value, "{name}"),
        }
    }
}

fn summary(given: &[Member], sent: &[Member]) {
    let known = [&NUMBERS[2..], &INTEGERS[2..], &TIMES[3..]].concat();
    assert!(sent.iter().all(|(name, _)| known.contains(&name.as_str())), "{sent:?}");
    for name in known {
        match (last(given, name).filter(|value| *value != "null"), only(sent, name)) {
            (Some(given), Some(sent)) => same(name, given, sent),
            (None, None) => {}
            (given, sent) => panic!("{name}: {given:?} became {sent:?}"),
        }
    }
}

/// What is sent for a field is what was given for it, in the form that the contract wants.
fn same(name: &str, given: &str, sent: &str) {
    if TIMES.contains(&name) {
        times::same(given, sent);
    } else if NUMBERS.contains(&name) || INTEGERS.contains(&name) {
        let literal = serde_json::from_str(given).unwrap_or_else(|_| given.to_owned());
        assert_eq!(exact(&literal), exact(sent), "{name}: {given} became {sent}");
        let integer = sent.bytes().all(|byte| byte.is_ascii_digit());
        assert!(integer || NUMBERS.contains(&name), "{name}: {sent} is no integer");
        assert!(serde_json::from_str::<IgnoredAny>(sent).is_ok() && !sent.starts_with('"'), "{name}: {sent}");
    } else {
        assert_eq!(sent, given, "{name}");
    }
}

/// A number's value: all its digits that count, and the double nearest to it, which says where the point is.
fn exact(literal: &str) -> (String, f64) {
    let mantissa = literal.split(['e', 'E']).next().unwrap_or_default();
    let digits: String = mantissa.chars().filter(char::is_ascii_digit).collect();
    let Ok(nearest) = literal.parse::<f64>() else { panic!("{literal} is no number") };
    (digits.trim_matches('0').to_owned(), nearest)
}
