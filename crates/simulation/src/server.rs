//! The ControlPlane: apart from faults it keeps accounts by idempotency key, the order of sessions, and the contract.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use dataplane_agent::control_plane::WireAnswer;
use dataplane_agent::record::Kind;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::json;
use uuid::Uuid;

use crate::chance::Chance;
use crate::plan::{Fate, What};
use crate::request::{Endpoint, ParsedRequest};
use crate::world::State;

/// The ControlPlane's own state.
pub struct Server {
    pub(crate) chance: Chance,
    /// The number of records taken.
    taken: u64,
    /// Recent answers, each with the key of its request.
    pub(crate) answers: Vec<(Option<Uuid>, WireAnswer)>,
    /// Whether it knows this server.
    is_registered: bool,
    /// Sessions in flight, each with its number of requests.
    pub(crate) in_flight: BTreeMap<String, u32>,
    /// Requests sent during each fault.
    pub sent_into: BTreeMap<usize, u64>,
    /// Records that it reported as known.
    pub known_before: u64,
    /// Records whose first settling answer has arrived: taken, and known before. Without quota requests.
    pub told: [u64; 2],
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
            told: [0; 2],
        }
    }
}

/// The answer about one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    Taken,
    Not(u16),
}

pub(crate) fn answer(status: u16, body: impl Into<Bytes>) -> WireAnswer {
    WireAnswer { status, headers: HeaderMap::new(), body: body.into() }
}

pub(crate) fn with(mut answer: WireAnswer, name: &'static str, value: &str) -> WireAnswer {
    if let Ok(value) = HeaderValue::from_str(value) {
        answer.headers.insert(HeaderName::from_static(name), value);
    }
    answer
}

pub(crate) fn failure_of(status: u16) -> WireAnswer {
    answer(status, json!({"success": false, "error": "not now"}).to_string())
}

/// Whether this status stops later records of the session.
fn stops(status: u16) -> bool {
    matches!(status, 401 | 403 | 404 | 408 | 410 | 424 | 425 | 429 | 500..=599)
}

impl State {
    /// Answers a request.
    pub(crate) fn answer(&mut self, asked: &ParsedRequest) -> WireAnswer {
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
                    // A kind that is overloaded alone asks to wait.
                    Word::Not(503) if faults.contains(&What::FailingKind(kind, 503)) => {
                        with(failure_of(503), "retry-after", "5")
                    }
                    Word::Not(status) => failure_of(status),
                }
            }
            Endpoint::Batch => self.batch(asked, &faults),
            Endpoint::Register => {
                self.server.is_registered = true;
                answer(200, json!({"success": true, "data": {}}).to_string())
            }
            Endpoint::Heartbeat | Endpoint::Commands if !self.server.is_registered => failure_of(404),
            Endpoint::Commands => self.hand_out(),
            Endpoint::CommandResult => self.command_result(&asked.body, asked.key, asked.life),
            Endpoint::PublicKeys => self.public_keys(),
            Endpoint::Heartbeat | Endpoint::Other => {
                answer(200, json!({"success": true, "data": {}}).to_string())
            }
        }
    }

    fn batch(&mut self, asked: &ParsedRequest, faults: &[What]) -> WireAnswer {
        let breaks_order = faults.contains(&What::BreaksOrder);
        let mut exceptions = Vec::new();
        let mut at = 0;
        for length in asked.groups.clone() {
            let (mut is_stopped, mut is_passed) = (false, false);
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
                    // A refusal stops nothing: a good record that is refused for a while is taken late.
                    is_passed |= !stops(status) && status != 409;
                    exceptions.push(json!({"index": index, "status": status, "error": "so it is"}));
                }
                self.said(number, word, asked);
            }
            if breaks_order && is_stopped || is_passed {
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

    /// Counts a middlebox's page as a failure of the ControlPlane; another request's answer is not one.
    pub(crate) fn heard_of_a_portal(&mut self, asked: &ParsedRequest, answer: &WireAnswer) {
        let is_page = answer.status >= 400 && !answer.body.starts_with(b"{") && !answer.body.is_empty();
        for number in asked.records.iter().filter(|_| is_page) {
            self.records[*number].failed += 1;
        }
    }

    pub(crate) fn quota(&mut self, number: usize) -> WireAnswer {
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
