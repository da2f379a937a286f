//! A request as the ControlPlane reads it, and the rules that the agent must follow when it sends one.

use std::io::Read;
use std::time::Duration;

use bytes::Bytes;
use dataplane_agent::control_plane::{ConnectionChoice, WireRequest};
use dataplane_agent::record::Kind;
use hyper::header::HeaderValue;
use serde_json::Value;
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::plan::What;
use crate::world::{KEY_NAMESPACE, State, kind_name};

/// A pause takes effect at the next scrape.
const PAUSED_WITHIN: Duration = Duration::from_secs(3);

/// The contents of a request.
#[derive(Clone)]
pub(crate) struct ParsedRequest {
    pub(crate) endpoint: Endpoint,
    /// The numbers of its records, in order.
    pub(crate) records: Vec<usize>,
    /// The number of records of each session.
    pub(crate) groups: Vec<usize>,
    pub(crate) key: Option<Uuid>,
    pub(crate) correlation_id: Option<HeaderValue>,
    pub(crate) encoding: Option<String>,
    pub(crate) is_new: bool,
    /// The agent's life that sends it.
    pub(crate) life: u64,
    /// The body of a command's result.
    pub(crate) body: Bytes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Record(Kind),
    Batch,
    Register,
    Heartbeat,
    Commands,
    CommandResult,
    PublicKeys,
    Other,
}

/// Decodes a percent-encoded segment.
fn decoded(segment: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = segment.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let hex: String = rest.by_ref().take(2).map(char::from).collect();
            bytes.push(u8::from_str_radix(&hex, 16).unwrap_or(b'?'));
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn plain(body: &Bytes, encoding: Option<&str>) -> Result<Bytes, String> {
    match encoding {
        None => Ok(body.clone()),
        Some("gzip") => {
            let mut plain = Vec::new();
            flate2::read::GzDecoder::new(&body[..])
                .read_to_end(&mut plain)
                .map_err(|error| error.to_string())?;
            Ok(plain.into())
        }
        Some("zstd") => zstd::decode_all(&body[..]).map(Into::into).map_err(|error| error.to_string()),
        Some(other) => Err(format!("an encoding that is none: {other}")),
    }
}

#[derive(serde::Deserialize)]
struct Batch<'a> {
    #[serde(borrow)]
    sessions: Vec<Session<'a>>,
}

#[derive(serde::Deserialize)]
struct Session<'a> {
    api_session_id: String,
    #[serde(borrow)]
    records: Vec<BatchEntry<'a>>,
}

#[derive(serde::Deserialize)]
struct BatchEntry<'a> {
    kind: String,
    #[serde(borrow)]
    body: &'a RawValue,
}

impl State {
    /// Parses a request, and checks whether this agent may send it.
    pub(crate) fn read(&mut self, request: &WireRequest) -> Option<ParsedRequest> {
        let header = |name: &str| request.headers.get(name).cloned();
        let text = |name: &str| header(name).and_then(|value| value.to_str().ok().map(str::to_owned));
        let encoding = text("content-encoding");
        let mut asked = ParsedRequest {
            endpoint: Endpoint::Other,
            records: Vec::new(),
            groups: Vec::new(),
            key: text("idempotency-key").and_then(|key| Uuid::parse_str(&key).ok()),
            correlation_id: header("x-correlation-id"),
            is_new: request.connection == ConnectionChoice::New,
            life: self.life,
            body: Bytes::new(),
            encoding: encoding.clone(),
        };
        let path = request.uri.path().to_owned();
        let parts: Vec<&str> = path.trim_start_matches("/api/v1/").split('/').collect();
        let body = match plain(&request.body, encoding.as_deref()) {
            Ok(body) => body,
            Err(error) => {
                self.violation(format!("a body that cannot be read: {error}"));
                return None;
            }
        };
        match parts[..] {
            ["records", "batch"] => {
                asked.endpoint = Endpoint::Batch;
                let batch: Batch<'_> = match serde_json::from_slice(&body) {
                    Ok(batch) => batch,
                    Err(error) => {
                        self.violation(format!("a batch that is none: {error}"));
                        return None;
                    }
                };
                let mut keys = Vec::new();
                for session in batch.sessions {
                    asked.groups.push(session.records.len());
                    for entry in session.records {
                        let number =
                            self.record(&entry.kind, &session.api_session_id, entry.body.get().as_bytes())?;
                        keys.extend_from_slice(self.records[number].key?.as_bytes());
                        asked.records.push(number);
                    }
                }
                if asked.key != Some(Uuid::new_v5(&KEY_NAMESPACE, &keys)) {
                    self.violation("a batch whose key is not made of its records'".into());
                }
            }
            ["sessions", session, what] => {
                let kind = match what {
                    "usage-records" => Kind::Usage,
                    "started" => Kind::Started,
                    "completed" => Kind::Completed,
                    "refresh" => Kind::Quota,
                    _ => return None,
                };
                asked.endpoint = Endpoint::Record(kind);
                let number = self.record(kind_name(kind), &decoded(session), &body)?;
                if asked.key != self.records[number].key {
                    let transaction = self.records[number].transaction.clone();
                    self.violation(format!("{transaction} has another key than its own"));
                }
                asked.records.push(number);
                asked.groups.push(1);
            }
            ["servers", "register"] => asked.endpoint = Endpoint::Register,
            ["servers", _, "heartbeat"] => asked.endpoint = Endpoint::Heartbeat,
            ["servers", _, "commands"] => asked.endpoint = Endpoint::Commands,
            ["servers", _, "command-results"] => {
                (asked.endpoint, asked.body) = (Endpoint::CommandResult, body);
            }
            ["auth", "public-keys"] => asked.endpoint = Endpoint::PublicKeys,
            _ => {}
        }
        Some(asked)
    }

    /// The number of this record, if it is one and its body is the same as ever.
    fn record(&mut self, kind: &str, session: &str, body: &[u8]) -> Option<usize> {
        let parsed: Value = serde_json::from_slice(body).unwrap_or_default();
        let transaction = parsed.get("transaction_id").and_then(Value::as_str).unwrap_or_default();
        let key = Uuid::new_v5(&KEY_NAMESPACE, format!("{kind}:{transaction}").as_bytes());
        let Some(number) = self.by_key.get(&key).copied() else {
            self.violation(format!("a record that nobody pushed: {kind} {transaction}"));
            return None;
        };
        let truth = &mut self.records[number];
        let before = truth.body.get_or_insert_with(|| Bytes::copy_from_slice(body));
        let (is_same, is_its_session, is_pushed) =
            (before[..] == *body, truth.session == session, truth.pushed_at.is_some());
        let name = truth.transaction.clone();
        if !is_same {
            self.violation(format!("{name} has another body than before"));
        }
        if !is_its_session {
            self.violation(format!("{name} is sent for the session {session}"));
        }
        if !is_pushed {
            self.violation(format!("{name} is sent before it was pushed"));
        }
        Some(number)
    }

    /// Checks rules that the agent must follow when sending.
    pub(crate) fn check_sending(&mut self, asked: &ParsedRequest) {
        let (life, now) = (self.life, self.now());
        for (n, fault) in self.plan.faults.iter().enumerate() {
            if fault.from <= now && now < fault.until && !asked.records.is_empty() {
                *self.server.sent_into.entry(n).or_default() += 1;
            }
            let is_paused = fault.what == What::Paused
                && fault.from.max(self.begun) + PAUSED_WITHIN < now
                && now < fault.until;
            if is_paused && !asked.records.is_empty() {
                self.violations.push("records are sent while the drain is paused".into());
            }
        }
        for number in &asked.records {
            let Some((told_in, told_at, until)) = self.records[*number].not_before else { continue };
            if told_in == life && now < until && self.hurried_at < told_at {
                let name = self.records[*number].transaction.clone();
                let early = until.checked_sub(now).unwrap().as_secs_f64();
                self.violation(format!("{name} is sent {early:.3} s before the ControlPlane wants it"));
            }
        }
        for number in &asked.records {
            let truth = &self.records[*number];
            let Some((told_in, told_at)) = truth.told else { continue };
            if truth.push.kind == Some(Kind::Quota) {
                continue;
            }
            // An agent that died while replaying has the dead letter and the record.
            let is_replayed = self.plan.has_replays() && self.has_died() && truth.refused + truth.failed > 0;
            let is_excused = is_replayed || told_in != life && self.may_have_forgotten(told_in, told_at);
            if !is_excused {
                let name = truth.transaction.clone();
                let ago = now.saturating_sub(told_at).as_secs_f64();
                self.violation(format!(
                    "{name} is sent again {ago:.3} s after it was answered that it is taken"
                ));
            }
        }
    }

    /// Whether an agent may have forgotten what it was told at this time in this life.
    fn may_have_forgotten(&self, life: u64, told_at: Duration) -> bool {
        let Some((ended, was_in_order)) = self.ends.get(life as usize).copied() else { return true };
        if was_in_order {
            return false;
        }
        let slow = self.plan.faults.iter().any(|fault| {
            let is_disks = matches!(
                fault.what,
                What::WritesFail(..) | What::SyncsFail(_) | What::NamesFail(_) | What::DiskSlow(_)
            );
            is_disks
                && fault.from < ended + Duration::from_secs(1)
                && fault.until + Duration::from_secs(5) > told_at
        });
        slow || ended.saturating_sub(told_at) < Duration::from_millis(250)
    }
}
