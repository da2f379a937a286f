//! Session lifecycle events. Their bodies are rewritten with exactly the fields of the contract; other data of the producer
//! belongs in `metadata`.

use super::draft::{Acceptance, Draft, RecordBody};
use super::json::{Malformed, Members, Token, write_member};
use super::schema::{Absent, Field, FieldRule, FieldValues, Schema, unless_faulty};
use super::{Kind, Rejection};

const STARTED: &str = "session_started";
const COMPLETED: &str = "session_completed";

const TRANSACTION: usize = 0;
const SESSION: usize = 1;
const CUSTOMER: usize = 2;
const EVENT_TYPE: usize = 3;
const TIMESTAMP: usize = 4;
const DISCONNECT_REASON: usize = 5;
const SUMMARY: usize = 6;
const METADATA: usize = 7;

const SCHEMA: Schema<8> = Schema {
    fields: [
        Field::required("transaction_id", FieldRule::Id),
        Field::required("api_session_id", FieldRule::Id),
        Field::required("customer_id", FieldRule::Id),
        Field::required("event_type", FieldRule::OneOf(&[STARTED, COMPLETED])),
        Field { name: "timestamp", rule: FieldRule::Time, absent: Absent::Now },
        Field::optional(
            "disconnect_reason",
            FieldRule::OneOf(&[
                "CLIENT_CLOSE",
                "CLIENT_ERROR",
                "STREAM_END",
                "INVALID_MESSAGE",
                "SESSION_TIMEOUT",
                "OUT_OF_CREDIT",
                "SERVER_ERROR",
                "SERVER_SHUTDOWN",
                "UNKNOWN",
                "STALE",
            ]),
        ),
        Field::optional("final_usage_summary", FieldRule::Object),
        Field::optional("metadata", FieldRule::Object),
    ],
    ours: &[],
};

const SUMMARY_SCHEMA: Schema<5> = Schema {
    fields: [
        Field::optional("total_connection_duration_seconds", FieldRule::Number),
        Field::optional("total_audio_duration_seconds", FieldRule::Number),
        Field::optional("total_data_bytes_processed", FieldRule::Integer(0)),
        Field::optional("total_request_count", FieldRule::Integer(0)),
        Field::optional("last_request_timestamp", FieldRule::Time),
    ],
    ours: &[],
};

pub(super) fn draft<'a>(acceptance: &Acceptance, text: &'a str) -> Result<Draft<'a>, Rejection> {
    let found =
        SCHEMA.find(text).map_err(|error| Rejection { kind: Kind::Lifecycle, detail: error.to_string() })?;
    let kind = kind_of(found.values[EVENT_TYPE]);
    compose(acceptance, kind, text, &found).map_err(|detail| Rejection { kind, detail })
}

/// The kind according to a message's event type, even if the rest of the message is invalid.
fn kind_of(event_type: Option<Token<'_>>) -> Kind {
    match event_type.and_then(|token| token.string().ok()).as_deref() {
        Some(STARTED) => Kind::Started,
        Some(COMPLETED) => Kind::Completed,
        _ => Kind::Lifecycle,
    }
}

fn compose<'a>(
    acceptance: &Acceptance,
    kind: Kind,
    text: &'a str,
    found: &FieldValues<'a, 8>,
) -> Result<Draft<'a>, String> {
    let given = found.values[SUMMARY].map(|token| token.raw).filter(|raw| raw.starts_with('{'));
    let (summary, faults) = match given.map(summary).transpose() {
        Ok(summary) => (summary, Vec::new()),
        Err(faults) => (None, faults),
    };
    let values = unless_faulty(SCHEMA.check(found, &acceptance.now), faults)?;
    let client_info = match (kind, values[METADATA].as_deref()) {
        (Kind::Started, Some(metadata)) => Some(client_info(metadata).map_err(|error| error.to_string())?),
        _ => None,
    };
    let moment = if kind == Kind::Started { "started_at" } else { "completed_at" };
    let own = |field: usize, name| (name, values[field].as_deref());
    let shared = [
        own(TRANSACTION, "transaction_id"),
        own(CUSTOMER, "customer_id"),
        own(EVENT_TYPE, "event_type"),
        own(TIMESTAMP, moment),
        ("timestamp", Some(acceptance.now.as_str())),
    ];
    let started = [("client_info", client_info)];
    let completed = [
        ("disconnect_reason", Some(values[DISCONNECT_REASON].as_deref().unwrap_or("null"))),
        ("final_usage_summary", summary.as_deref()),
        own(METADATA, "metadata"),
    ];
    let rest: &[_] = if kind == Kind::Started { &started } else { &completed };

    // Enough for the body followed by the message itself.
    let mut bytes = Vec::with_capacity(2 * text.len() + 256);
    write_object(&mut bytes, shared.iter().chain(rest));
    Ok(Draft {
        kind,
        body: RecordBody { bytes, verbatim: None },
        session: SCHEMA.required(found, SESSION)?,
        transaction: SCHEMA.required(found, TRANSACTION)?,
        correlation: found.correlation,
        traceparent: found.traceparent,
    })
}

/// The summary to send: the known fields of the producer's summary, normalised, without nulls. Otherwise everything wrong
/// with it.
fn summary(given: &str) -> Result<String, Vec<String>> {
    let within = |fault: String| format!("final_usage_summary.{fault}");
    let found = SUMMARY_SCHEMA.find(given).map_err(|error| vec![error.to_string()])?;
    let values = SUMMARY_SCHEMA.check(&found, "null");
    let values = values.map_err(|faults| faults.into_iter().map(within).collect::<Vec<_>>())?;
    let names = SUMMARY_SCHEMA.fields.iter().map(|field| field.name);
    let members: Vec<_> = names.zip(values.iter().map(Option::as_deref)).collect();
    let mut bytes = Vec::with_capacity(given.len());
    write_object(&mut bytes, &members);
    String::from_utf8(bytes).map_err(|error| vec![error.to_string()])
}

/// `client_info` as it appears in the metadata, whatever its value.
fn client_info(metadata: &str) -> Result<&str, Malformed> {
    let mut client_info = "{}";
    for member in Members::of(metadata)? {
        let member = member?;
        if member.name() == "client_info" {
            client_info = member.value.raw;
        }
    }
    Ok(client_info)
}

fn write_object<'a>(
    out: &mut Vec<u8>,
    members: impl IntoIterator<Item = &'a (&'static str, Option<&'a str>)>,
) {
    out.push(b'{');
    for (name, value) in members {
        if let Some(value) = value {
            write_member(out, name, value);
        }
    }
    out.push(b'}');
}
