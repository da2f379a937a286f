//! The ControlPlane: apart from faults it keeps accounts by idempotency key, the order of sessions, and the contract. And the
//! network on the path to it.

use std::collections::BTreeMap;
use std::io::Read;
use std::time::Duration;

use bytes::Bytes;
use dataplane_agent::control_plane::{
    ConnectionChoice, ExchangeFuture, Failure, Wire, WireAnswer, WireRequest,
};
use dataplane_agent::record::Kind;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::bugs::Bug;
use crate::chance::Chance;
use crate::plan::{Fate, What};
use crate::world::{KEY_NAMESPACE, State, World, kind_name};

/// One-way delay without a fault.
const WAY: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(150));
/// A pause takes effect at the next scrape.
const PAUSED_WITHIN: Duration = Duration::from_secs(3);
/// Remembered answers, which may be given to another request.
const REMEMBERED: usize = 8;

/// The ControlPlane's own state.
pub struct Server {
    chance: Chance,
    /// The number of records taken.
    taken: u64,
    /// Recent answers, each with the key of its request.
    answers: Vec<(Option<Uuid>, WireAnswer)>,
    /// Whether it knows this server.
    is_registered: bool,
    /// Sessions in flight, each with its number of requests.
    in_flight: BTreeMap<String, u32>,
    /// Requests sent during each fault.
    pub sent_into: BTreeMap<usize, u64>,
    /// Records that it reported as known.
    pub known_before: u64,
}

impl Server {
    /// For this seed.
    pub fn new(seed: u64) -> Self {
        Self {
            chance: Chance::new(seed, 6),
            taken: 0,
            answers: Vec::new(),
            is_registered: false,
            in_flight: BTreeMap::new(),
            sent_into: BTreeMap::new(),
            known_before: 0,
        }
    }
}

/// The contents of a request.
#[derive(Clone)]
struct ParsedRequest {
    endpoint: Endpoint,
    /// The numbers of its records, in order.
    records: Vec<usize>,
    /// The number of records of each session.
    groups: Vec<usize>,
    key: Option<Uuid>,
    correlation_id: Option<HeaderValue>,
    encoding: Option<String>,
    is_new: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Endpoint {
    Record(Kind),
    Batch,
    Register,
    Heartbeat,
    Other,
}

/// The answer about one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    Taken,
    Not(u16),
}

fn answer(status: u16, body: impl Into<Bytes>) -> WireAnswer {
    WireAnswer { status, headers: HeaderMap::new(), body: body.into() }
}

fn with(mut answer: WireAnswer, name: &'static str, value: &str) -> WireAnswer {
    if let Ok(value) = HeaderValue::from_str(value) {
        answer.headers.insert(HeaderName::from_static(name), value);
    }
    answer
}

fn failure_of(status: u16) -> WireAnswer {
    answer(status, json!({"success": false, "error": "not now"}).to_string())
}

/// Whether this status stops later records of the session.
fn stops(status: u16) -> bool {
    matches!(status, 401 | 403 | 404 | 408 | 410 | 424 | 425 | 429 | 500..=599)
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
    fn read(&mut self, request: &WireRequest) -> Option<ParsedRequest> {
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
    fn check_sending(&mut self, asked: &ParsedRequest) {
        let (life, now) = (self.life, self.now());
        for (n, fault) in self.plan.faults.iter().enumerate() {
            if fault.from <= now && now < fault.until {
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
            let is_excused = told_in != life && self.may_have_forgotten(told_in, told_at);
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

    /// Answers a request.
    fn answer(&mut self, asked: &ParsedRequest) -> WireAnswer {
        let faults: Vec<What> = self.faults().collect();
        if let Some(answer) = self.faulty(asked, &faults) {
            return answer;
        }
        let is_single = self.server.chance.happens(0.1);
        match asked.endpoint {
            Endpoint::Record(kind) => {
                let number = asked.records[0];
                let word = self.take(number, &faults, false);
                self.said(number, word, asked);
                match word {
                    Word::Taken | Word::Not(409) if kind == Kind::Quota => self.quota(number),
                    Word::Taken if is_single => answer(204, ""),
                    Word::Taken => {
                        let truth = &self.records[number];
                        let (transaction, session) = (&truth.transaction, &truth.session);
                        let data = json!({"transaction_id": transaction, "api_session_id": session});
                        answer(201, json!({"success": true, "data": data}).to_string())
                    }
                    Word::Not(409) if is_single => answer(409, ""),
                    Word::Not(status) => failure_of(status),
                }
            }
            Endpoint::Batch => self.batch(asked, &faults),
            Endpoint::Register => {
                self.server.is_registered = true;
                answer(200, json!({"success": true, "data": {}}).to_string())
            }
            Endpoint::Heartbeat if !self.server.is_registered => failure_of(404),
            _ => answer(200, json!({"success": true, "data": {}, "commands": []}).to_string()),
        }
    }

    fn batch(&mut self, asked: &ParsedRequest, faults: &[What]) -> WireAnswer {
        let breaks_order = faults.contains(&What::BreaksOrder);
        let mut exceptions = Vec::new();
        let mut at = 0;
        for length in asked.groups.clone() {
            let mut is_stopped = false;
            for index in at..at + length {
                let number = asked.records[index];
                let word = if is_stopped && !breaks_order {
                    Word::Not(424)
                } else {
                    self.take(number, faults, true)
                };
                self.records[number].is_broken |= is_stopped && breaks_order;
                if let Word::Not(status) = word {
                    is_stopped |= stops(status);
                    exceptions.push(json!({"index": index, "status": status, "error": "so it is"}));
                }
                self.said(number, word, asked);
            }
            if breaks_order && is_stopped {
                for index in at..at + length {
                    self.records[asked.records[index]].is_broken = true;
                }
            }
            at += length;
        }
        let data = json!({"batch": asked.key, "count": asked.records.len(), "exceptions": exceptions});
        answer(200, json!({"success": true, "data": data}).to_string())
    }

    /// Decides whether a record is taken now.
    fn take(&mut self, number: usize, faults: &[What], is_in_batch: bool) -> Word {
        let (kind, session) = (self.records[number].push.kind, self.records[number].push.session);
        for fault in faults {
            match *fault {
                What::FailingRecords(status, likely) if self.server.chance.happens(likely) => {
                    return Word::Not(status);
                }
                What::FailingKind(failing, status) if kind == Some(failing) => return Word::Not(status),
                What::FailingSessions(status) if session % 4 == 1 => return Word::Not(status),
                What::RefusesAll(status) => return Word::Not(status),
                What::InProgress(likely) if is_in_batch && self.server.chance.happens(likely) => {
                    return Word::Not(503);
                }
                _ => {}
            }
        }
        let now = self.now();
        if self.records[number].taken.is_some() {
            self.server.known_before += 1;
            return Word::Not(409);
        }
        match self.records[number].push.fate {
            Fate::Refused(status) => return Word::Not(status),
            Fate::Poison => return Word::Not(500),
            Fate::UnknownUntil(until) if now < until => return Word::Not(404),
            Fate::UnknownUntil(_) | Fate::Taken => {}
        }
        self.server.taken += 1;
        self.records[number].taken = Some(self.server.taken);
        let name = self.records[number].transaction.clone();
        self.note(&format!("taken {name}"));
        Word::Taken
    }

    /// Notes the answer about a record.
    fn said(&mut self, number: usize, word: Word, asked: &ParsedRequest) {
        let now = self.now();
        let truth = &mut self.records[number];
        match word {
            Word::Not(400 | 413 | 414 | 415 | 422) => {
                truth.refused += 1;
                truth.refused_anew += u32::from(asked.is_new);
            }
            Word::Not(404 | 410) => {
                truth.unknown_at.get_or_insert(now);
            }
            Word::Not(500..=599 | 429) => truth.failed += 1,
            Word::Taken | Word::Not(_) => {}
        }
    }

    /// A middlebox's page counts as a failure of the ControlPlane; another request's answer does not.
    fn heard_of_a_portal(&mut self, asked: &ParsedRequest, answer: &WireAnswer) {
        let is_page = answer.status >= 400 && !answer.body.starts_with(b"{") && !answer.body.is_empty();
        for number in asked.records.iter().filter(|_| is_page) {
            self.records[*number].failed += 1;
        }
    }

    fn quota(&mut self, number: usize) -> WireAnswer {
        let seconds = self.now().as_secs();
        let truth = &mut self.records[number];
        let (transaction, session) = (truth.transaction.clone(), truth.session.clone());
        let data = truth.quota.get_or_insert_with(|| {
            let data = json!({
                "api_session_id": session, "new_quota_amount": 100 + number, "final_quota": false,
                "transaction_id": transaction, "timestamp": seconds,
            });
            data.to_string().into_bytes()
        });
        let data = String::from_utf8_lossy(data);
        answer(200, format!(r#"{{"success":true,"data":{data}}}"#))
    }

    /// A fault's answer to the request as a whole, which ignores its content.
    fn faulty(&mut self, asked: &ParsedRequest, faults: &[What]) -> Option<WireAnswer> {
        let is_batch = asked.endpoint == Endpoint::Batch;
        for fault in faults {
            let chance = &mut self.server.chance;
            let whole = match *fault {
                What::Overloaded(status, wait, likely) if chance.happens(likely) => {
                    let answer = failure_of(status);
                    let date = self.true_time() + Duration::from_secs(wait);
                    match wait {
                        0 => Some(answer),
                        30 => Some(with(answer, "retry-after", &httpdate::fmt_http_date(date))),
                        _ => Some(with(answer, "retry-after", &wait.to_string())),
                    }
                }
                What::Failing(status, likely) if chance.happens(likely) => Some(failure_of(status)),
                What::Unauthorized(status) | What::Misconfigured(status) => Some(failure_of(status)),
                What::NotSuccessful(likely) if chance.happens(likely) => {
                    Some(answer(200, json!({"success": false, "error": "no"}).to_string()))
                }
                What::InProgress(likely)
                    if !asked.records.is_empty() && !is_batch && chance.happens(likely) =>
                {
                    Some(with(failure_of(409), "retry-after", "1"))
                }
                What::NoBatches(status) if is_batch => Some(failure_of(status)),
                What::BatchesTooLarge(most) if is_batch && asked.records.len() > most => {
                    Some(failure_of(413))
                }
                What::NoEncoding if asked.encoding.is_some() => Some(failure_of(415)),
                What::RefusesAll(status) if is_batch && chance.happens(0.3) => Some(failure_of(status)),
                What::ForgetsServer => {
                    self.server.is_registered = false;
                    None
                }
                _ => None,
            };
            if let Some(answer) = whole {
                // `success: false` is a failure too.
                let word = Word::Not(if answer.status < 300 { 500 } else { answer.status });
                let is_refusal = matches!(answer.status, 400 | 413 | 414 | 415 | 422);
                if !is_batch || asked.records.len() == 1 || !is_refusal {
                    for number in asked.records.clone() {
                        self.said(number, word, asked);
                    }
                }
                return Some(answer);
            }
        }
        None
    }
}

/// The answer of a middlebox.
fn portal(which: u8) -> WireAnswer {
    let html = "<html><body>Please sign in</body></html>";
    match which {
        0 => answer(200, html),
        1 => answer(200, ""),
        2 => answer(200, r#"{"success":true,"data":{"cou"#),
        3 => answer(206, r#"{"success":true}"#),
        4 => answer(422, html),
        5 => answer(409, html),
        6 => with(answer(302, ""), "location", "http://portal.invalid/"),
        7 => answer(511, html),
        8 => answer(200, "[]"),
        _ => answer(400, html),
    }
}

/// The network, with the ControlPlane at its other end.
pub struct Network(pub World);

/// The fate of a request on its way.
struct RequestTransit {
    there: Duration,
    back: Duration,
    /// Why no connection is made.
    refused: Option<Failure>,
    is_cut_before: bool,
    is_cut_behind: bool,
    /// The answer of another host.
    foreign: Option<WireAnswer>,
}

impl RequestTransit {
    fn of(state: &mut State, asked: &ParsedRequest) -> Self {
        let faults: Vec<What> = state.faults().collect();
        let State { network: chance, server, .. } = state;
        let of_others = server.answers.iter().filter(|(key, _)| *key != asked.key);
        let of_others: Vec<WireAnswer> = of_others.map(|(_, answer)| answer.clone()).collect();
        let mut transit = Self {
            there: chance.time(WAY.0, WAY.1),
            back: chance.time(WAY.0, WAY.1),
            refused: None,
            is_cut_before: false,
            is_cut_behind: false,
            foreign: None,
        };
        for fault in faults {
            match fault {
                What::LinkDown => {
                    transit.refused = Some(match chance.within(0, 3) {
                        0 => Failure::Dns("no such host".into()),
                        1 => Failure::Timeout { connected: false },
                        _ => Failure::Unreachable("connection refused".into()),
                    });
                }
                What::LinkCutBefore(likely) => transit.is_cut_before |= chance.happens(likely),
                What::LinkCutAfter(likely) => transit.is_cut_behind |= chance.happens(likely),
                What::LinkSlow(most) => {
                    transit.there += most.mul_f64(chance.part());
                    transit.back += most.mul_f64(chance.part());
                }
                What::LinkLateAnswers(likely) if chance.happens(likely) => {
                    transit.back += Duration::from_secs(60);
                }
                What::Portal(which, likely) if chance.happens(likely) => {
                    transit.foreign = Some(portal(which));
                }
                What::ForeignAnswers(likely) if chance.happens(likely) && !of_others.is_empty() => {
                    let at = chance.bits() as usize % of_others.len();
                    transit.foreign = Some(of_others[at].clone());
                }
                _ => {}
            }
        }
        transit
    }
}

/// Marks sessions as in flight until the agent has the answer or has given up.
struct InFlight {
    world: World,
    sessions: Vec<String>,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let mut state = self.world.state();
        for session in &self.sessions {
            if let Some(count) = state.server.in_flight.get_mut(session) {
                *count -= 1;
            }
        }
    }
}

impl Network {
    /// A request leaves the agent.
    fn leaves(&self, request: &mut WireRequest) -> Option<(ParsedRequest, RequestTransit, InFlight)> {
        let mut state = self.0.state();
        Self::tamper_with_request(&mut state, request);
        let asked = state.read(request)?;
        state.check_sending(&asked);
        let mut sessions = Vec::new();
        if !matches!(asked.endpoint, Endpoint::Record(Kind::Quota)) {
            for number in &asked.records {
                state.records[*number].tried += 1;
                let session = state.records[*number].session.clone();
                if !sessions.contains(&session) {
                    sessions.push(session);
                }
            }
        } else if let Some(number) = asked.records.first() {
            state.records[*number].tried += 1;
        }
        let is_strict = state.plan.settings.order == dataplane_agent::drain::SessionOrder::Strict;
        for session in &sessions {
            let count = state.server.in_flight.entry(session.clone()).or_default();
            *count += 1;
            if *count > 1 && is_strict {
                state.violation(format!("the session {session} is in flight twice"));
            }
        }
        let names: Vec<&str> = asked.records.iter().map(|n| &*state.records[*n].transaction).collect();
        let line = format!("sends {:?} {}", asked.endpoint, names.join(" "));
        state.note(&line);
        let transit = RequestTransit::of(&mut state, &asked);
        drop(state);
        Some((asked, transit, InFlight { world: self.0.clone(), sessions }))
    }

    async fn pass(&self, asked: ParsedRequest, transit: RequestTransit) -> Result<WireAnswer, Failure> {
        let RequestTransit { there, back, refused, is_cut_before, is_cut_behind, foreign } = transit;
        if let Some(failure) = refused {
            tokio::time::sleep(there / 2).await;
            return Err(failure);
        }
        if self.0.state().has(Bug::SettleBeforeTheAnswer) && !asked.records.is_empty() && foreign.is_none() {
            return self.as_if_taken(asked, there, is_cut_before).await;
        }
        let is_foreign = foreign.is_some();
        let (world, sent) = (self.0.clone(), asked.clone());
        let (answer, answered) = oneshot::channel();
        // A request in transit arrives, even if its sender is gone.
        tokio::spawn(async move {
            tokio::time::sleep(there).await;
            let given = if is_cut_before {
                Err(Failure::Cut("connection reset".into()))
            } else if let Some(foreign) = foreign {
                world.state().heard_of_a_portal(&sent, &foreign);
                Ok(foreign)
            } else {
                let mut state = world.state();
                let given = state.answer(&sent);
                let given = dressed(&mut state, &sent, given);
                remember(&mut state, &sent, &given);
                if is_cut_behind { Err(Failure::Cut("connection reset".into())) } else { Ok(given) }
            };
            tokio::time::sleep(back).await;
            let _ = answer.send(given);
        });
        let given = answered.await.unwrap_or(Err(Failure::Cut("the other end is gone".into())));
        if !is_foreign && let Ok(answer) = &given {
            self.not_tried(&asked, answer);
        }
        self.tamper_with_answer(&asked, given, is_foreign)
    }

    /// Requests reported to the agent as not tried do not count as attempts.
    fn not_tried(&self, asked: &ParsedRequest, answer: &WireAnswer) {
        let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        let mut state = self.0.state();
        for exception in body["data"]["exceptions"].as_array().into_iter().flatten() {
            let index = exception["index"].as_u64().unwrap_or(u64::MAX) as usize;
            if exception["status"] == 424
                && let Some(number) = asked.records.get(index)
            {
                state.records[*number].tried -= 1;
            }
        }
    }

    /// The agent receives the answer: from now on it must not send what was taken.
    fn arrives(&self, asked: &ParsedRequest, given: &Result<WireAnswer, Failure>, is_foreign: bool) {
        let mut state = self.0.state();
        let line = match given {
            Ok(answer) => format!("answer {} of {} bytes", answer.status, answer.body.len()),
            Err(failure) => format!("answer {}", failure.label()),
        };
        state.note(&line);
        let Ok(answer) = given else { return };
        if is_foreign {
            return;
        }
        if asked.endpoint == Endpoint::Record(Kind::Quota) && answer.status == 200 {
            asked.records.iter().for_each(|number| state.records[*number].quota_answers += 1);
        }
        let (life, now) = (state.life, state.now());
        let asked_wait =
            answer.headers.get("retry-after").and_then(|wait| wait.to_str().ok()?.parse::<u64>().ok());
        if let Some(wait) = asked_wait.filter(|_| matches!(answer.status, 429 | 503)) {
            for number in &asked.records {
                state.records[*number].not_before = Some((life, now, now + Duration::from_secs(wait)));
            }
        }
        let not: Vec<u64> = match asked.endpoint {
            Endpoint::Batch if answer.status == 200 => {
                let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
                if body["data"]["batch"].is_null() {
                    return;
                }
                let exceptions = body["data"]["exceptions"].as_array().cloned().unwrap_or_default();
                let not = exceptions.iter().filter(|exception| exception["status"] != 409);
                not.filter_map(|exception| exception["index"].as_u64()).collect()
            }
            Endpoint::Record(_) if matches!(answer.status, 201 | 204) => Vec::new(),
            Endpoint::Record(_) if answer.status == 409 && !answer.headers.contains_key("retry-after") => {
                Vec::new()
            }
            _ => return,
        };
        for (index, number) in asked.records.iter().enumerate() {
            if !not.contains(&(index as u64)) {
                state.records[*number].told = Some((life, now));
            }
        }
    }
}

/// Adds headers to the answer.
fn dressed(state: &mut State, asked: &ParsedRequest, mut answer: WireAnswer) -> WireAnswer {
    let date = httpdate::fmt_http_date(state.true_time());
    answer = with(answer, "date", &date);
    if state.server.chance.happens(0.7)
        && let Some(id) = &asked.correlation_id
    {
        answer.headers.insert("x-correlation-id", id.clone());
    }
    let takes_none = state.fault(|what| (what == What::NoEncoding).then_some(())).is_some();
    if !takes_none && state.plan.seed.is_multiple_of(2) {
        answer = with(answer, "accept-encoding", "zstd, gzip");
    }
    answer
}

/// Remembers an answer that may be given to another request. It must identify its own request by its body or correlation id:
/// otherwise nobody could tell that it is wrong.
fn remember(state: &mut State, asked: &ParsedRequest, answer: &WireAnswer) {
    let mut answer = answer.clone();
    let names = asked.endpoint == Endpoint::Batch && answer.status == 200
        || matches!(asked.endpoint, Endpoint::Record(_)) && matches!(answer.status, 200 | 201);
    if let Some(id) = asked.correlation_id.clone().filter(|_| !names) {
        answer.headers.insert("x-correlation-id", id);
    }
    if names && state.server.chance.happens(0.5) {
        answer.headers.remove("x-correlation-id");
    }
    if names || asked.correlation_id.is_some() {
        state.server.answers.push((asked.key, answer));
        if state.server.answers.len() > REMEMBERED {
            state.server.answers.remove(0);
        }
    }
}

impl Wire for Network {
    fn exchange(&self, mut request: WireRequest) -> ExchangeFuture<'_> {
        Box::pin(async move {
            let Some((asked, transit, in_flight)) = self.leaves(&mut request) else {
                return Ok(failure_of(400));
            };
            let is_foreign = transit.foreign.is_some();
            let given = self.pass(asked.clone(), transit).await;
            self.arrives(&asked, &given, is_foreign);
            drop(in_flight);
            given
        })
    }
}

/// The effects of planted bugs in transit.
impl Network {
    fn tamper_with_request(state: &mut State, request: &mut WireRequest) {
        let Some(bug) = state.bug else { return };
        let Some(key) = request.headers.get("idempotency-key").cloned() else { return };
        let is_record = request.uri.path().contains("/sessions/") || request.uri.path().ends_with("/batch");
        let is_plain = !request.headers.contains_key("content-encoding");
        let known = state.by_key.get(&Uuid::parse_str(key.to_str().unwrap_or_default()).unwrap_or_default());
        let is_retry = known.is_some_and(|number| state.records[*number].tried > 0);
        match bug {
            Bug::NewKeyOnRetry if is_record && is_retry => {
                request.headers.insert(
                    "idempotency-key",
                    HeaderValue::from_static("0c2d1f6e-0000-4000-8000-000000000000"),
                );
            }
            Bug::NewBodyOnRetry if is_record && is_retry => {
                let text = String::from_utf8_lossy(&request.body).replacen('{', r#"{"again":1,"#, 1);
                request.body = text.into();
            }
            Bug::SendPastTheHead if is_plain && request.uri.path().ends_with("/batch") => {
                if let Ok(mut batch) = serde_json::from_slice::<Value>(&request.body) {
                    for session in batch["sessions"].as_array_mut().into_iter().flatten() {
                        if let Some(records) = session["records"].as_array_mut() {
                            records.reverse();
                        }
                    }
                    request.body = batch.to_string().into();
                }
            }
            _ => {}
        }
    }

    fn tamper_with_answer(
        &self,
        asked: &ParsedRequest,
        given: Result<WireAnswer, Failure>,
        is_foreign: bool,
    ) -> Result<WireAnswer, Failure> {
        let state = self.0.state();
        let Some(bug) = state.bug else { return given };
        let Ok(mut answer) = given else { return given };
        match bug {
            Bug::Drop424 | Bug::Count424 if asked.endpoint == Endpoint::Batch && !is_foreign => {
                if let Ok(mut body) = serde_json::from_slice::<Value>(&answer.body)
                    && let Some(exceptions) = body["data"]["exceptions"].as_array_mut()
                {
                    if bug == Bug::Drop424 {
                        exceptions.retain(|exception| exception["status"] != 424);
                    }
                    for exception in exceptions {
                        if exception["status"] == 424 {
                            exception["status"] = 500.into();
                        }
                    }
                    answer.body = body.to_string().into();
                }
            }
            Bug::SettleOnAForeignAnswer if is_foreign => {
                drop(state);
                return Ok(self.taken(asked));
            }
            _ => {}
        }
        Ok(answer)
    }

    /// An answer that takes everything.
    fn taken(&self, asked: &ParsedRequest) -> WireAnswer {
        let mut state = self.0.state();
        match asked.endpoint {
            Endpoint::Batch => {
                let data = json!({"batch": asked.key, "count": asked.records.len(), "exceptions": []});
                answer(200, json!({"success": true, "data": data}).to_string())
            }
            Endpoint::Record(Kind::Quota) => state.quota(asked.records[0]),
            _ => answer(204, ""),
        }
    }

    /// Counts the request as answered while it is still in transit.
    async fn as_if_taken(
        &self,
        asked: ParsedRequest,
        there: Duration,
        is_cut: bool,
    ) -> Result<WireAnswer, Failure> {
        let (world, sent) = (self.0.clone(), asked.clone());
        tokio::spawn(async move {
            tokio::time::sleep(there).await;
            if !is_cut {
                world.state().answer(&sent);
            }
        });
        tokio::time::sleep(Duration::from_millis(1)).await;
        Ok(self.taken(&asked))
    }
}
