//! Turns a producer's message into a record, or says why it is invalid.

use super::draft::Acceptance;
use super::{Kind, Queue, Record, Rejection, Timestamp, lifecycle, quota, usage};

/// Offsets into a record's buffer have 32 bits; the buffer holds up to twice the message, and a little more.
const LARGEST_RECORD: usize = 1 << 30;

/// The fields that this agent adds to every usage record, apart from the time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enrichment {
    /// `server_instance_id`: the server this agent runs beside (`SERVER_ID`).
    pub server_id: String,
    /// `api_server_region` (`SERVER_REGION`).
    pub region: String,
    /// `agent_version` (`APP_VERSION`).
    pub version: String,
}

/// How to treat fields that the contract does not define (`UNKNOWN_FIELDS`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum UnknownFields {
    /// Forward them unchanged.
    Forward,
    /// Drop them, like the previous agent.
    Drop,
}

/// Accepts messages. Built once from the configuration.
#[derive(Clone, Debug)]
pub struct Acceptor {
    /// The members added to a usage record, up to the time and after it.
    before_time: String,
    after_time: String,
    drop_unknown: bool,
    max_bytes: usize,
}

impl Acceptor {
    /// `record_max_bytes` is the longest message accepted (`RECORD_MAX_BYTES`), 1 GiB at most.
    pub fn new(enrichment: &Enrichment, unknown_fields: UnknownFields, record_max_bytes: usize) -> Self {
        let json = |text: &str| serde_json::Value::from(text).to_string();
        let [server, region, time, version] = usage::ENRICHMENT;
        Self {
            before_time: format!(
                r#","{server}":{},"{region}":{},"{time}":"#,
                json(&enrichment.server_id),
                json(&enrichment.region)
            ),
            after_time: format!(r#","{version}":{}}}"#, json(&enrichment.version)),
            drop_unknown: unknown_fields == UnknownFields::Drop,
            max_bytes: record_max_bytes.min(LARGEST_RECORD),
        }
    }

    /// The longest message accepted.
    pub fn max_bytes(&self) -> usize {
        self.max_bytes
    }

    /// Prepares to accept messages taken at this time.
    pub fn at(&self, accepted_at: Timestamp) -> Acceptance {
        let now = format!("\"{}\"", accepted_at.to_rfc3339());
        let enrichment = format!("{}{now}{}", self.before_time, self.after_time);
        Acceptance {
            accepted_at,
            drop_unknown: self.drop_unknown,
            max_bytes: self.max_bytes,
            now,
            enrichment,
        }
    }
}

impl Acceptance {
    /// Turns a message from a queue into a record. Never panics, and takes time proportional to the message's length,
    /// whatever its content.
    pub fn accept(&self, queue: Queue, raw: &[u8]) -> Result<Record, Rejection> {
        let kind = match queue {
            Queue::Usage => Kind::Usage,
            Queue::Lifecycle => Kind::Lifecycle,
            Queue::Quota => Kind::Quota,
        };
        let text = self.text(raw).map_err(|detail| Rejection { kind, detail })?;
        let draft = match queue {
            Queue::Usage => usage::draft(self, text).map_err(|detail| Rejection { kind, detail })?,
            Queue::Quota => quota::draft(self, text).map_err(|detail| Rejection { kind, detail })?,
            Queue::Lifecycle => lifecycle::draft(self, text)?,
        };
        Ok(draft.seal(self.accepted_at, text))
    }

    fn text<'a>(&self, raw: &'a [u8]) -> Result<&'a str, String> {
        let limit = self.max_bytes;
        if raw.len() > limit {
            return Err(format!("too large: {} bytes, the limit is {limit}", raw.len()));
        }
        let text = std::str::from_utf8(raw)
            .map_err(|error| format!("not UTF-8: invalid byte at {}", error.valid_up_to()))?;
        if text.starts_with('\u{feff}') {
            return Err("not JSON: starts with a byte order mark".to_owned());
        }
        Ok(text)
    }
}
