//! The network between the agent and the ControlPlane: delays, cuts, and answers of third parties.

mod tampering;

use std::time::Duration;

use dataplane_agent::control_plane::{ExchangeFuture, Failure, Wire, WireAnswer, WireRequest};
use dataplane_agent::record::Kind;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::bugs::Bug;
use crate::plan::What;
use crate::request::{Endpoint, ParsedRequest};
use crate::server::{answer, failure_of, with};
use crate::world::{State, World};

/// One-way delay without a fault.
const WAY: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(150));
/// Remembered answers, which may be given to another request.
const REMEMBERED: usize = 8;

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

/// How long an answer asks to wait: in seconds, or until a date by its own `Date`.
fn asked_wait(answer: &WireAnswer) -> Option<Duration> {
    if !matches!(answer.status, 408 | 425 | 429 | 500..=599) {
        return None;
    }
    let header = |name: &str| answer.headers.get(name)?.to_str().ok();
    let wait = header("retry-after")?;
    if let Ok(seconds) = wait.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let until = httpdate::parse_http_date(wait).ok()?;
    until.duration_since(httpdate::parse_http_date(header("date")?).ok()?).ok()
}

/// An answer that is almost right: a batch's with a wrong count or without results, a record's with another session or
/// transaction. It settles nothing.
fn nonsense(which: u8, asked: &ParsedRequest, ids: &[(String, String)]) -> Option<WireAnswer> {
    let (transaction, session) = ids.first()?;
    let data = match (asked.endpoint, which) {
        (Endpoint::Batch, 0) => json!({"batch": asked.key, "count": ids.len() + 1, "exceptions": []}),
        (Endpoint::Batch, _) => json!({"batch": asked.key, "count": ids.len()}),
        (_, 0) => json!({"transaction_id": transaction, "api_session_id": "another"}),
        _ => json!({"transaction_id": "another", "api_session_id": session}),
    };
    Some(answer(200, json!({"success": true, "data": data}).to_string()))
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
        let State { network: chance, server, records, .. } = state;
        let ids: Vec<(String, String)> = asked
            .records
            .iter()
            .map(|number| (records[*number].transaction.clone(), records[*number].session.clone()))
            .collect();
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
                    let which = if which < 10 { which } else { chance.within(0, 9) as u8 };
                    transit.foreign = Some(portal(which));
                }
                What::Nonsense(which, likely) if chance.happens(likely) => {
                    transit.foreign = transit.foreign.or_else(|| nonsense(which, asked, &ids));
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
        state.check_commanded(!asked.records.is_empty());
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
        let mut faults = state.plan.faults.iter();
        let is_partial =
            faults.any(|fault| matches!(fault.what, What::Overloaded(.., likely) if likely < 1.0));
        // An overload that sheds part of the requests may be taken for one kind's: the link's wait then ends.
        if let Some(wait) = asked_wait(answer).filter(|_| !is_partial) {
            for number in &asked.records {
                state.records[*number].not_before = Some((life, now, now + wait));
            }
        }
        let mut known_before: Vec<u64> = Vec::new();
        let not: Vec<u64> = match asked.endpoint {
            Endpoint::Batch if answer.status == 200 => {
                let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
                if body["data"]["batch"].is_null() {
                    return;
                }
                let exceptions = body["data"]["exceptions"].as_array().cloned().unwrap_or_default();
                let (known, not): (Vec<_>, Vec<_>) =
                    exceptions.iter().partition(|exception| exception["status"] == 409);
                known_before.extend(known.iter().filter_map(|exception| exception["index"].as_u64()));
                not.iter().filter_map(|exception| exception["index"].as_u64()).collect()
            }
            Endpoint::Record(_) if matches!(answer.status, 201 | 204) => Vec::new(),
            Endpoint::Record(_) if answer.status == 409 && !answer.headers.contains_key("retry-after") => {
                Vec::new()
            }
            _ => return,
        };
        for (index, number) in asked.records.iter().enumerate() {
            if not.contains(&(index as u64)) {
                continue;
            }
            let is_first = state.records[*number].told.replace((life, now)).is_none();
            let is_known = answer.status == 409 || known_before.contains(&(index as u64));
            state.server.told[usize::from(is_known)] += u64::from(is_first);
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
