//! Makes a run's records with the agent's own acceptance code: their bytes and keys are an agent's.

use std::fmt::Write as _;
use std::io::Write as _;

use bytes::Bytes;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::control_plane::Encoding;
use crate::record::{Acceptor, Enrichment, KEY_NAMESPACE, Kind, Queue, Record, UnknownFields};
use crate::time;

/// No sample is nearly as large.
const RECORD_MAX_BYTES: usize = 256 << 10;

/// Seconds of audio in each usage record of a run.
pub const AUDIO_SECONDS: f64 = 1.25;

/// Makes the records of a run, each with its own transaction.
pub(super) struct Samples {
    run: String,
    customer: String,
    acceptor: Acceptor,
    /// The same server under another name. From a message it makes other bytes and the same key.
    other: Acceptor,
    made: u32,
}

impl Samples {
    pub(super) fn new(run: &str, customer: &str, enrichment: &Enrichment) -> Self {
        let acceptor =
            |enrichment: &Enrichment| Acceptor::new(enrichment, UnknownFields::Forward, RECORD_MAX_BYTES);
        let other = Enrichment { server_id: format!("{}-other", enrichment.server_id), ..enrichment.clone() };
        Self {
            run: run.to_owned(),
            customer: customer.to_owned(),
            acceptor: acceptor(enrichment),
            other: acceptor(&other),
            made: 0,
        }
    }

    /// This run's session for a purpose.
    pub(super) fn session(&self, purpose: &str) -> String {
        format!("conformance-{}-{purpose}", self.run)
    }

    /// A session that nobody has started. `purpose` comes first: a server can be told to reject sessions of that name.
    pub(super) fn unknown_session(&self, purpose: &str) -> String {
        format!("conformance-{purpose}-{}", self.run)
    }

    fn transaction(&mut self) -> String {
        self.made += 1;
        format!("conformance-{}-{:03}", self.run, self.made)
    }

    pub(super) fn usage(&mut self, session: &str) -> Record {
        let transaction = self.transaction();
        self.accept(Queue::Usage, &self.usage_message(session, &transaction))
    }

    /// A usage record that a server can be told to fail on, by its `transaction_id`.
    pub(super) fn failing(&self, session: &str) -> Record {
        let transaction = format!("conformance-fail-{}", self.run);
        self.accept(Queue::Usage, &self.usage_message(session, &transaction))
    }

    /// One message as two agents forward it: the same key, other bytes.
    pub(super) fn usage_of_two_agents(&mut self, session: &str) -> [Record; 2] {
        let transaction = self.transaction();
        let message = self.usage_message(session, &transaction);
        [&self.acceptor, &self.other].map(|acceptor| accepted(acceptor, Queue::Usage, &message))
    }

    /// A usage record with fields that the contract does not define.
    pub(super) fn with_unknown_fields(&mut self, session: &str) -> Record {
        let transaction = self.transaction();
        let mut message = self.usage_message(session, &transaction);
        message["conformance_text"] = "ä\u{1f600}\"\\".into();
        message["conformance_nested"] = json!({"list": [1, 2.5, null, true], "object": {}});
        self.accept(Queue::Usage, &message)
    }

    fn usage_message(&self, session: &str, transaction: &str) -> Value {
        json!({
            "transaction_id": transaction,
            "api_session_id": session,
            "customer_id": self.customer,
            "product_code": "speech_transcription",
            "connection_duration_seconds": 1.5,
            "data_bytes_processed": 1000,
            "audio_duration_seconds": AUDIO_SECONDS,
            "request_count": 1,
            "request_timestamp": "2026-01-01T00:00:00Z",
            "response_timestamp": "2026-01-01T00:00:01.500000Z",
        })
    }

    pub(super) fn started(&mut self, session: &str) -> Record {
        let transaction = self.transaction();
        let message = json!({
            "transaction_id": transaction,
            "api_session_id": session,
            "customer_id": self.customer,
            "event_type": "session_started",
            "timestamp": "2026-01-01T00:00:00Z",
            "metadata": {"client_info": {"sdk": "conformance"}},
        });
        self.accept(Queue::Lifecycle, &message)
    }

    pub(super) fn completed(&mut self, session: &str) -> Record {
        let transaction = self.transaction();
        let message = json!({
            "transaction_id": transaction,
            "api_session_id": session,
            "customer_id": self.customer,
            "event_type": "session_completed",
            "timestamp": "2026-01-01T00:00:02Z",
            "disconnect_reason": "CLIENT_CLOSE",
            "final_usage_summary": {"total_request_count": 1, "total_audio_duration_seconds": AUDIO_SECONDS},
            "metadata": {"client_info": {"sdk": "conformance"}},
        });
        self.accept(Queue::Lifecycle, &message)
    }

    pub(super) fn quota(&mut self, session: &str) -> Record {
        let transaction = self.transaction();
        let message = json!({
            "transaction_id": transaction,
            "api_session_id": session,
            "customer_id": self.customer,
            "product_code": "speech_transcription",
            "timestamp": "2026-01-01T00:00:01Z",
        });
        self.accept(Queue::Quota, &message)
    }

    /// The body of a usage record without `transaction_id`: it could not be billed exactly once.
    pub(super) fn without_transaction_id(&self, session: &str) -> Vec<u8> {
        let mut message = self.usage_message(session, "");
        message.as_object_mut().map(|fields| fields.remove("transaction_id"));
        message.to_string().into_bytes()
    }

    fn accept(&self, queue: Queue, message: &Value) -> Record {
        accepted(&self.acceptor, queue, message)
    }
}

fn accepted(acceptor: &Acceptor, queue: Queue, message: &Value) -> Record {
    let accepted = acceptor.at(time::now()).accept(queue, message.to_string().as_bytes());
    accepted.unwrap_or_else(|rejection| unreachable!("a sample was rejected: {rejection}"))
}

/// A request with many records.
#[derive(Clone, Default)]
pub(super) struct SampleBatch {
    parts: Vec<Part>,
}

/// A part of a batch.
#[derive(Clone)]
pub(super) struct Part {
    pub(super) session: String,
    /// `None` for a body that is not a record and must be refused.
    pub(super) record: Option<Record>,
    kind: Kind,
    body: Vec<u8>,
    key: Uuid,
}

impl SampleBatch {
    /// Adds a session's records in order.
    pub(super) fn with(mut self, records: impl IntoIterator<Item = Record>) -> Self {
        self.parts.extend(records.into_iter().map(|record| Part {
            session: record.session().to_owned(),
            kind: record.kind(),
            body: record.body().to_vec(),
            key: record.key(),
            record: Some(record),
        }));
        self
    }

    /// Adds a body that is not a record.
    pub(super) fn with_bad(mut self, session: &str, body: Vec<u8>) -> Self {
        let (session, kind, key) = (session.to_owned(), Kind::Usage, Uuid::new_v4());
        self.parts.push(Part { session, record: None, kind, body, key });
        self
    }

    pub(super) fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The batch's key, made from the keys of its records as the agent makes it.
    pub(super) fn key(&self) -> Uuid {
        let keys: Vec<u8> = self.parts.iter().flat_map(|part| *part.key.as_bytes()).collect();
        Uuid::new_v5(&KEY_NAMESPACE, &keys)
    }

    /// The body in this encoding.
    pub(super) fn body(&self, encoding: Encoding) -> Bytes {
        let plain = self.plain();
        let packed = match encoding {
            Encoding::Identity => Ok(plain),
            Encoding::Gzip => {
                let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(&plain).and_then(|()| encoder.finish())
            }
            Encoding::Zstd => zstd::bulk::compress(&plain, 1),
        };
        packed.unwrap_or_else(|error| unreachable!("compressing in memory cannot fail: {error}")).into()
    }

    fn plain(&self) -> Vec<u8> {
        let mut text = Vec::from(br#"{"sessions":["#);
        for (at, group) in self.parts.chunk_by(|one, next| one.session == next.session).enumerate() {
            let Some(first) = group.first() else { continue };
            let comma = if at == 0 { "" } else { "," };
            let session = Value::from(first.session.as_str());
            text.extend(format!(r#"{comma}{{"api_session_id":{session},"records":["#).bytes());
            for (at, part) in group.iter().enumerate() {
                let comma = if at == 0 { "" } else { "," };
                text.extend(format!(r#"{comma}{{"kind":"{}","body":"#, part.kind.name()).bytes());
                text.extend_from_slice(&part.body);
                text.push(b'}');
            }
            text.extend_from_slice(b"]}");
        }
        text.extend_from_slice(b"]}");
        text
    }

    /// Describes the batch.
    pub(super) fn in_words(&self) -> String {
        let mut words = format!("POST /api/v1/records/batch, {} records:", self.parts.len());
        for (index, part) in self.parts.iter().enumerate() {
            let transaction = part.record.as_ref().map_or("without transaction_id", Record::transaction);
            // Writing to a string cannot fail.
            let _ = write!(words, " [{index}] {} {transaction} of {};", part.kind.name(), part.session);
        }
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_what_the_contract_says_in_each_encoding() {
        let enrichment = Enrichment { server_id: "s".into(), region: "r".into(), version: "1".into() };
        let mut samples = Samples::new("run", "c\"x", &enrichment);
        let (one, two) = (samples.session("a\"b"), samples.session("b"));
        let records = [samples.started(&one), samples.usage(&one), samples.usage(&two)];
        let keys: Vec<u8> = records.iter().flat_map(|record| record.key().into_bytes()).collect();
        let bodies = records.clone().map(|record| serde_json::from_slice::<Value>(record.body()).unwrap());
        let batch = SampleBatch::default().with(records);
        assert_eq!(batch.key(), Uuid::new_v5(&KEY_NAMESPACE, &keys));
        let plain = batch.body(Encoding::Identity);
        let [started, usage, other] = bodies;
        let expected = json!({"sessions": [
            {"api_session_id": one, "records": [
                {"kind": "session_started", "body": started}, {"kind": "usage_record", "body": usage}]},
            {"api_session_id": two, "records": [{"kind": "usage_record", "body": other}]},
        ]});
        assert_eq!(serde_json::from_slice::<Value>(&plain).unwrap(), expected);
        let mut gzip = Vec::new();
        let packed = batch.body(Encoding::Gzip);
        std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&*packed), &mut gzip).unwrap();
        let zstd = zstd::decode_all(&*batch.body(Encoding::Zstd)).unwrap();
        assert!(gzip == plain && zstd == plain);
    }

    #[test]
    fn two_agents_make_one_key_and_two_bodies_of_a_message() {
        let enrichment = Enrichment { server_id: "s".into(), region: "r".into(), version: "1".into() };
        let mut samples = Samples::new("run", "c", &enrichment);
        let [one, other] = samples.usage_of_two_agents("session");
        assert!(one.key() == other.key() && one.body() != other.body());
    }
}
