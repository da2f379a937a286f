//! Every sample in `data/samples` is accepted or rejected as its folder says.
//!
//! One file is one message, byte for byte: some could not be part of a text file. A good sample is accepted, and the body
//! sent matches the contract. A bad sample is rejected with the reason given in `bad/reasons.txt`; `BLESS=1` writes that
//! file again, to be reviewed before it is committed.
//!
//! The largest messages are generated, not stored.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use chrono::DateTime;
use dataplane_agent::record::{
    Acceptor, Enrichment, Kind, Queue, Record, Rejection, Timestamp, UnknownFields,
};
use serde_json::value::RawValue;

/// The default of `RECORD_MAX_BYTES`.
const RECORD_MAX_BYTES: usize = 256 << 10;
const ACCEPTED_AT: &str = "2026-11-24T10:05:00.000001Z";

/// One message.
pub(crate) struct Sample {
    /// The queue that it is pushed to.
    pub(crate) queue: Queue,
    /// Its content or its fault: `usage/customer_id-missing`.
    pub(crate) name: String,
    /// The exact bytes pushed.
    pub(crate) bytes: Vec<u8>,
}

/// Messages that are delivered.
pub(crate) fn good() -> Vec<Sample> {
    let mut samples = read("good", "json");
    samples.extend(Queue::ALL.map(|queue| of_size(queue, "as-large-as-allowed", RECORD_MAX_BYTES)));
    samples
}

/// Messages that become dead letters.
pub(crate) fn bad() -> Vec<Sample> {
    let mut samples = read("bad", "bin");
    samples.extend(Queue::ALL.map(|queue| of_size(queue, "too-large", RECORD_MAX_BYTES + 1)));
    samples
}

/// The reason for each bad sample, as in its dead letter, by its name.
pub(crate) fn reasons() -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(reasons_path()).unwrap();
    let lines = text.lines().map(|line| line.split_once('\t').unwrap());
    lines.map(|(name, reason)| (name.to_owned(), reason.to_owned())).collect()
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data/samples")
}

fn reasons_path() -> PathBuf {
    folder().join("bad/reasons.txt")
}

fn read(kind: &str, extension: &str) -> Vec<Sample> {
    let mut samples = Vec::new();
    for queue in Queue::ALL {
        for file in std::fs::read_dir(folder().join(kind).join(queue.label())).unwrap() {
            let path = file.unwrap().path();
            assert_eq!(path.extension().unwrap(), extension, "{}", path.display());
            let name = format!("{}/{}", queue.label(), path.file_stem().unwrap().to_str().unwrap());
            samples.push(Sample { queue, name, bytes: std::fs::read(&path).unwrap() });
        }
    }
    samples.sort_by(|a, b| a.name.cmp(&b.name));
    samples
}

/// A message of this many bytes, otherwise valid.
fn of_size(queue: Queue, name: &str, size: usize) -> Sample {
    let label = queue.label();
    let mut text = format!(
        r#"{{"transaction_id":"{label}-{name}","api_session_id":"session-large","customer_id":"customer-42","#
    );
    text.push_str(match queue {
        Queue::Usage => {
            r#""connection_duration_seconds":1,"data_bytes_processed":1,"audio_duration_seconds":1,
            "request_timestamp":1795514400,"response_timestamp":1795514401,"#
        }
        Queue::Lifecycle => r#""event_type":"session_started","#,
        Queue::Quota => "",
    });
    text.push_str("\"metadata\":{\"filler\":\"\"}}");
    let filler = "x".repeat(size - text.len());
    Sample {
        queue,
        name: format!("{label}/{name}"),
        bytes: text.replace("\"\"}}", &format!("\"{filler}\"}}}}")).into(),
    }
}

fn accept(sample: &Sample, unknown_fields: UnknownFields) -> Result<Record, Rejection> {
    let enrichment =
        Enrichment { server_id: "edge-1".into(), region: "eu-central".into(), version: "1.0.0".into() };
    let micros = DateTime::parse_from_rfc3339(ACCEPTED_AT).unwrap().timestamp_micros();
    let acceptor = Acceptor::new(&enrichment, unknown_fields, RECORD_MAX_BYTES);
    acceptor.at(Timestamp::from_unix_micros(micros)).accept(sample.queue, &sample.bytes)
}

/// An object's members with their raw values.
type Members<'a> = BTreeMap<String, &'a RawValue>;

fn members(json: &[u8]) -> Members<'_> {
    serde_json::from_slice(json).unwrap()
}

fn text(body: &Members<'_>, name: &str) -> String {
    let value = body.get(name).unwrap_or_else(|| panic!("{name} is missing"));
    serde_json::from_str(value.get()).unwrap_or_else(|_| panic!("{name} is no string"))
}

#[track_caller]
fn is_time(body: &Members<'_>, name: &str) {
    assert!(DateTime::parse_from_rfc3339(&text(body, name)).is_ok(), "{name}: {}", body[name]);
}

#[track_caller]
fn is_integer(body: &Members<'_>, name: &str) {
    assert!(body[name].get().bytes().all(|b| b.is_ascii_digit()), "{name}: {}", body[name]);
}

#[track_caller]
fn is_number(body: &Members<'_>, name: &str) {
    let number: f64 = serde_json::from_str(body[name].get()).unwrap();
    assert!(number >= 0.0, "{name}: {number}");
}

#[track_caller]
fn is_identifier(body: &Members<'_>, name: &str) {
    assert!(!text(body, name).is_empty(), "{name}");
}

const USAGE: [&str; 10] = [
    "transaction_id",
    "api_session_id",
    "customer_id",
    "product_code",
    "connection_duration_seconds",
    "data_bytes_processed",
    "audio_duration_seconds",
    "request_count",
    "request_timestamp",
    "response_timestamp",
];
const ADDED: [&str; 4] = ["server_instance_id", "api_server_region", "processing_timestamp", "agent_version"];
const QUOTA: [&str; 5] = ["transaction_id", "api_session_id", "customer_id", "product_code", "timestamp"];
const PRODUCTS: [&str; 3] = ["speech_transcription", "speech_synthesis", "real_time_streaming"];

fn is_usage_record(body: &Members<'_>) {
    for name in ["transaction_id", "api_session_id", "customer_id"] {
        is_identifier(body, name);
    }
    assert!(PRODUCTS.contains(&text(body, "product_code").as_str()));
    is_number(body, "connection_duration_seconds");
    is_number(body, "audio_duration_seconds");
    is_integer(body, "data_bytes_processed");
    is_integer(body, "request_count");
    is_time(body, "request_timestamp");
    is_time(body, "response_timestamp");
    let added = ADDED.map(|name| text(body, name));
    assert_eq!(added, ["edge-1", "eu-central", ACCEPTED_AT, "1.0.0"]);
}

fn is_quota_request(body: &Members<'_>) {
    for name in ["transaction_id", "api_session_id", "customer_id"] {
        is_identifier(body, name);
    }
    assert!(PRODUCTS.contains(&text(body, "product_code").as_str()));
    is_time(body, "timestamp");
}

/// A lifecycle request contains exactly the contract's fields.
fn is_lifecycle_request(kind: Kind, given: &Members<'_>, body: &Members<'_>) {
    is_identifier(body, "transaction_id");
    is_identifier(body, "customer_id");
    assert_eq!(text(body, "timestamp"), ACCEPTED_AT);
    let given_object = |name: &str| given.get(name).copied().filter(|value| value.get() != "null");
    let mut expected = vec!["transaction_id", "customer_id", "event_type", "timestamp"];
    if kind == Kind::Started {
        assert_eq!(text(body, "event_type"), "session_started");
        is_time(body, "started_at");
        expected.push("started_at");
        if let Some(metadata) = given_object("metadata") {
            let client_info = members(metadata.get().as_bytes()).get("client_info").map(|v| v.get());
            assert_eq!(body["client_info"].get(), client_info.unwrap_or("{}"));
            expected.push("client_info");
        }
    } else {
        assert_eq!(text(body, "event_type"), "session_completed");
        is_time(body, "completed_at");
        let reason = given.get("disconnect_reason").map_or("null", |value| value.get());
        assert_eq!(body["disconnect_reason"].get(), reason);
        expected.extend(["completed_at", "disconnect_reason"]);
        if let Some(metadata) = given_object("metadata") {
            assert_eq!(body["metadata"].get(), metadata.get());
            expected.push("metadata");
        }
        if let Some(summary) = given_object("final_usage_summary") {
            is_summary(
                &members(summary.get().as_bytes()),
                &members(body["final_usage_summary"].get().as_bytes()),
            );
            expected.push("final_usage_summary");
        }
    }
    let names: BTreeSet<_> = body.keys().map(String::as_str).collect();
    assert_eq!(names, expected.into_iter().collect());
}

/// The contract's fields of a summary are sent, others are not.
fn is_summary(given: &Members<'_>, sent: &Members<'_>) {
    let named = |name: &str| name.starts_with("total_") || name == "last_request_timestamp";
    let expected: BTreeSet<_> =
        given.iter().filter(|(name, value)| named(name) && value.get() != "null").map(|(n, _)| n).collect();
    assert_eq!(sent.keys().collect::<BTreeSet<_>>(), expected);
    for name in sent.keys() {
        match name.as_str() {
            "total_data_bytes_processed" | "total_request_count" => is_integer(sent, name),
            "last_request_timestamp" => is_time(sent, name),
            _ => is_number(sent, name),
        }
    }
}

#[test]
fn good_samples_are_accepted_and_sent_as_the_contract_says() {
    for sample in good() {
        println!("{}", sample.name);
        let record =
            accept(&sample, UnknownFields::Forward).unwrap_or_else(|rejection| panic!("{rejection}"));
        assert_eq!(record.original().as_ref(), sample.bytes);
        let (given, body) = (members(&sample.bytes), members(record.body()));
        assert_eq!(record.session(), text(&given, "api_session_id"));
        assert_eq!(record.transaction(), text(&given, "transaction_id"));
        assert_eq!(
            record.correlation().map(str::to_owned),
            given.get("correlation_id").map(|_| text(&given, "correlation_id"))
        );
        assert_eq!(
            record.traceparent().map(str::to_owned),
            given.get("traceparent").map(|_| text(&given, "traceparent"))
        );
        let named: &[&str] = match record.kind() {
            Kind::Usage => {
                is_usage_record(&body);
                &[&USAGE[..], &ADDED].concat()
            }
            Kind::Quota => {
                is_quota_request(&body);
                &QUOTA
            }
            kind => {
                is_lifecycle_request(kind, &given, &body);
                continue;
            }
        };
        for (name, value) in given.iter().filter(|(name, _)| !named.contains(&name.as_str())) {
            assert_eq!(body[name].get(), value.get(), "{name} is not the producer's any more");
        }
        let dropped = accept(&sample, UnknownFields::Drop).unwrap();
        let left: Vec<_> = members(dropped.body()).into_keys().collect();
        assert!(left.iter().all(|name| named.contains(&name.as_str())), "{left:?}");
    }
}

#[test]
fn a_sample_that_needs_no_change_is_sent_with_the_producers_own_bytes() {
    for sample in read("good", "json").into_iter().filter(|sample| sample.queue != Queue::Lifecycle) {
        let record = accept(&sample, UnknownFields::Forward).unwrap();
        let is_changed = ["strings", "floats", "zone", "as-unix", "time-in", "twice"]
            .iter()
            .any(|word| sample.name.contains(word));
        let without_brace = &sample.bytes[..sample.bytes.len() - 1];
        assert_eq!(record.body().starts_with(without_brace), !is_changed, "{}", sample.name);
    }
}

#[test]
fn bad_samples_are_rejected_for_a_reason_that_a_person_understands() {
    let rejections: BTreeMap<_, _> = bad()
        .into_iter()
        .map(|sample| {
            let rejection = accept(&sample, UnknownFields::Forward).err();
            let detail = rejection.unwrap_or_else(|| panic!("{} is accepted", sample.name)).detail;
            (sample.name, detail)
        })
        .collect();
    if std::env::var_os("BLESS").is_some() {
        let text = rejections.iter().fold(String::new(), |mut text, (name, reason)| {
            writeln!(text, "{name}\t{reason}").unwrap();
            text
        });
        std::fs::write(reasons_path(), text).unwrap();
    }
    let expected = reasons();
    for (name, reason) in &rejections {
        assert_eq!(Some(reason), expected.get(name), "{name}");
    }
    assert_eq!(rejections.len(), expected.len(), "reasons.txt names samples that are not there");
}

/// A bad sample's name begins with the faulty field, if it is a single one.
#[test]
fn a_reason_names_the_field_that_is_wrong() {
    let fields: BTreeSet<_> =
        USAGE.iter().chain(&QUOTA).chain(&["event_type", "disconnect_reason", "metadata"]).collect();
    let mut seen = BTreeSet::new();
    for (name, reason) in reasons() {
        let (queue, what) = name.split_once('/').unwrap();
        let field = what.split('-').next().unwrap();
        if fields.contains(&field) || field.starts_with("final_usage_summary") {
            assert!(reason.starts_with(&format!("{field}: ")), "{name}: {reason}");
            seen.insert(format!("{queue} {field}"));
        }
    }
    let summary = [
        "total_connection_duration_seconds",
        "total_audio_duration_seconds",
        "total_data_bytes_processed",
        "total_request_count",
        "last_request_timestamp",
    ];
    let lifecycle = [
        "transaction_id",
        "api_session_id",
        "customer_id",
        "event_type",
        "timestamp",
        "disconnect_reason",
        "final_usage_summary",
        "metadata",
    ];
    let mut all: BTreeSet<_> = USAGE.iter().map(|field| format!("usage {field}")).collect();
    all.extend(QUOTA.iter().map(|field| format!("quota {field}")));
    all.extend(lifecycle.iter().map(|field| format!("lifecycle {field}")));
    all.extend(summary.iter().map(|field| format!("lifecycle final_usage_summary.{field}")));
    assert_eq!(seen, all, "a field without a bad sample");
}
