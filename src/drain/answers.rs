//! Acting on answers: what each one settles, buries or gives back, and what the link learns from it.

use std::time::Duration;

use tokio::time::Instant;

use super::lanes::{Item, LaneKey, Parcel, kind_of};
use super::link::{Change, Trip};
use super::routes::Beside;
use super::verdict::{Trouble, Verdict, by_status, judge};
use super::{Form, Run, Sent};
use crate::control_plane::{
    Answer, QuotaAnswer, RecordResult, Response, parse_batch_answer, parse_quota_answer,
};
use crate::outbox::{DeadLetter, Log, Payload, Reason, Settlement};
use crate::record::Kind;

/// Of an answer, a dead letter keeps so much.
const DETAIL_BYTES: usize = 1024;

/// What was heard where the status says nothing of what is wrong.
const UNUSABLE_QUOTA: &str = "an answer to a quota request that cannot be used";
const UNUSABLE_BATCH: &str = "a batch's answer without usable results";

/// A batch that has been shed so often, while others passed, may be shed for what is in it.
const SHED_AGAIN: u32 = 3;

/// 5xx for one record.
struct Failure {
    trouble: Trouble,
    beside: Beside,
    retry_after: Option<Duration>,
    /// The link was up: else the failure is not the record's.
    was_up: bool,
}

impl Run {
    /// A request has ended, one way or another.
    pub(super) fn answered(&mut self, sent: Sent) {
        if let Some(heard) = heard(&sent.answer) {
            self.heard = heard;
        }
        let Sent { mut parcel, form, trip, probes, answer } = sent;
        match form {
            Form::Batch { gzip } => self.batch_answered(parcel, gzip, trip, &answer),
            Form::Single => {
                if let Some((key, item)) = parcel.pop() {
                    self.record_answered(key, item, trip, &answer);
                }
            }
        }
        if let Some(log) = probes {
            self.routes.probe_answered(log, Instant::now());
        }
        // Not every answer says how the link is; one that does not must not leave it in doubt.
        if self.sending.is_empty() {
            self.link.undecided(Instant::now());
        }
    }

    /// The answer to a request about one record.
    fn record_answered(&mut self, key: LaneKey, item: Item, trip: Trip, answer: &Answer) {
        let now = Instant::now();
        let (mut verdict, retry_after) = judge(&answer.result);
        let was_up = self.link.trouble().is_none();
        let mut beside = Beside::ItsKind;
        if let (Kind::Quota, Some(settlement), Ok(response)) =
            (item.ticket.kind, verdict.settlement(), &answer.result)
        {
            // One for another request is no answer to this one: whoever waits for it would take it for his.
            let is_ours = |answer: &QuotaAnswer<'_>| {
                answer.api_session_id == item.record.session()
                    && answer.transaction_id == item.record.transaction()
            };
            match (parse_quota_answer(&response.body).ok().filter(is_ours), settlement) {
                (Some(parsed), _) => {
                    let data = parsed.data.to_vec();
                    self.delivered(item.ticket.log, 1, trip, now);
                    self.push(key, item, settlement, data);
                    return;
                }
                (None, Settlement::Delivered) => {
                    UNUSABLE_QUOTA.clone_into(&mut self.heard);
                    verdict = Verdict::ServerError;
                    beside = Beside::Any;
                }
                // It was answered before, and this answer has nothing to add: what was said then is lost, and whoever
                // asked must ask anew.
                (None, Settlement::Duplicate | Settlement::Exported) => tracing::warn!(
                    correlation_id = &*item.record.correlation_id(),
                    "a quota request was answered before, and is not told what: no answer to it goes to Redis"
                ),
            }
        }
        match verdict {
            Verdict::Settled(settlement) => {
                self.settle(key, &item, settlement);
                self.delivered(item.ticket.log, 1, trip, now);
            }
            Verdict::Refused => self.refused(key, item, detail(answer), now),
            // Nobody was asked: it says nothing of the link.
            Verdict::Unsendable => self.bury(key, &item, Reason::Refused, detail(answer)),
            Verdict::SessionUnknown => {
                self.tell_unknown(key, &item, now);
                self.session_unknown(key, item, detail(answer), now);
            }
            Verdict::ServerError => {
                let failure = Failure { trouble: Trouble::Failing, beside, retry_after, was_up };
                if !self.failed(key, item, failure, detail(answer), now) {
                    let change = self.link.failed(Trouble::Failing, None, trip, now);
                    self.announce(change);
                }
            }
            Verdict::Unavailable => {
                let change = self.link.failed(Trouble::Overloaded, retry_after, trip, now);
                self.announce(change);
                let failure = Failure { trouble: Trouble::Overloaded, beside, retry_after, was_up };
                self.failed(key, item, failure, detail(answer), now);
            }
            Verdict::Link(trouble) => self.link_failed(vec![(key, item)], trouble, retry_after, trip, now),
        }
    }

    /// The answer to a batch: a result for each record, or one answer for all of them.
    fn batch_answered(&mut self, mut parcel: Parcel, gzip: bool, trip: Trip, answer: &Answer) {
        let now = Instant::now();
        let results = answer.result.as_ref().ok().and_then(|response| results_in(response, &parcel));
        self.batching.answered(results.is_some());
        if let Some(results) = results {
            self.batch_results(parcel, results, trip, now);
            return;
        }
        match answer.result.as_ref().map(|response| response.status) {
            Ok(404 | 405 | 501) if self.batching.refused(now) => return self.give_back(parcel, now),
            Ok(404 | 405 | 501) => return self.no_batches(parcel, now),
            Ok(415) if gzip => {
                self.batching.stop_compressing();
                return self.give_back(parcel, now);
            }
            _ => {}
        }
        let (verdict, retry_after) = judge(&answer.result);
        if let Verdict::Link(trouble) = verdict {
            self.link_failed(parcel, trouble, retry_after, trip, now);
        } else if verdict == Verdict::Unavailable && parcel.len() > 1 {
            // Load, most often; and what one of them does to the server, which is looked for where load would be over.
            let lasts = parcel.iter().any(|(_, item)| item.tries.attempts >= SHED_AGAIN);
            let others_passed =
                self.routes.may_be_one_of(Log::Usage, parcel.iter_mut().map(|(_, item)| &mut item.tries));
            if lasts && others_passed {
                halve(&mut parcel);
            }
            self.link_failed(parcel, Trouble::Overloaded, retry_after, trip, now);
        } else if parcel.len() == 1 {
            let Some((key, item)) = parcel.pop() else { return };
            if verdict == Verdict::Settled(Settlement::Delivered) {
                UNUSABLE_BATCH.clone_into(&mut self.heard);
                // 2xx without a result: nobody can say what it means for the record.
                let was_up = self.link.trouble().is_none();
                let failure =
                    Failure { trouble: Trouble::Failing, beside: Beside::ItsKind, retry_after, was_up };
                if !self.failed(key, item, failure, detail(answer), now) {
                    let change = self.link.failed(Trouble::Failing, None, trip, now);
                    self.announce(change);
                }
            } else {
                self.record_answered(key, item, trip, answer);
            }
        } else if matches!(verdict, Verdict::ServerError | Verdict::Settled(Settlement::Delivered)) {
            if verdict != Verdict::ServerError {
                UNUSABLE_BATCH.clone_into(&mut self.heard);
            }
            // Perhaps one of them broke it: if others pass meanwhile, it is looked for in halves.
            if self.routes.may_be_one_of(Log::Usage, parcel.iter_mut().map(|(_, item)| &mut item.tries)) {
                halve(&mut parcel);
            }
            let change = self.link.failed(Trouble::Failing, None, trip, now);
            self.announce(change);
            for (key, item) in parcel {
                self.retry(key, item, Trouble::Failing.label(), retry_after, now);
            }
        } else {
            // Refused, or known, as a whole: halves tell which of them is meant.
            halve(&mut parcel);
            self.give_back(parcel, now);
        }
    }

    fn batch_results(&mut self, parcel: Parcel, results: Vec<RecordResult>, trip: Trip, now: Instant) {
        let (mut delivered, mut rest) = (0, Vec::new());
        // IMPORTANT: what was delivered first: it says whether the others' fates are theirs or the link's.
        for ((key, item), result) in parcel.into_iter().zip(results) {
            match by_status(result.status) {
                Verdict::Settled(settlement) => {
                    self.settle(key, &item, settlement);
                    delivered += 1;
                }
                verdict => rest.push((key, item, verdict, result)),
            }
        }
        let was_up = self.link.trouble().is_none();
        if delivered > 0 {
            self.delivered(Log::Usage, delivered, trip, now);
        } else if rest.iter().all(|(.., verdict, _)| *verdict == Verdict::SessionUnknown) {
            if let Some((.., result)) = rest.first() {
                self.heard = of_a_batch(result);
            }
            for (key, item, ..) in &rest {
                self.tell_unknown(*key, item, now);
            }
        } else if let Some((trouble, result)) =
            rest.iter().find_map(|(.., verdict, result)| Some((verdict.trouble()?, result)))
        {
            self.heard = of_a_batch(result);
            let change = self.link.failed(trouble, None, trip, now);
            self.announce(change);
        }
        for (key, item, verdict, result) in rest {
            let detail = format!("status {}: {}", result.status, result.error.as_deref().unwrap_or_default());
            if verdict == Verdict::Refused {
                self.heard = of_a_batch(&result);
            }
            match verdict {
                Verdict::Refused => self.refused(key, item, detail, now),
                Verdict::SessionUnknown => self.session_unknown(key, item, detail, now),
                Verdict::ServerError | Verdict::Unavailable => {
                    let trouble =
                        if verdict == Verdict::Unavailable { Trouble::Overloaded } else { Trouble::Failing };
                    let failure = Failure { trouble, beside: Beside::ItsKind, retry_after: None, was_up };
                    self.failed(key, item, failure, detail, now);
                }
                Verdict::Link(trouble) => self.retry(key, item, trouble.label(), None, now),
                Verdict::Unsendable => self.bury(key, &item, Reason::Refused, detail),
                Verdict::Settled(settlement) => self.settle(key, &item, settlement),
            }
        }
    }

    fn delivered(&mut self, log: Log, records: u64, trip: Trip, now: Instant) {
        self.renewed_token = false;
        let change = self.link.delivered(trip, now);
        if change == Some(Change::Up) {
            self.batching.ask_again();
        }
        self.announce(change);
        if self.routes.delivered(log, records, now) {
            self.let_go(log, now);
        }
    }

    /// A kind that was held goes again.
    pub(super) fn let_go(&mut self, log: Log, now: Instant) {
        tracing::info!(kind = kind_of(log).name(), "the ControlPlane may have records of this kind again");
        self.link.begin_small(now);
        if log == Log::Usage {
            self.batching.ask_again();
        }
    }

    /// A kind is held from now on.
    fn held(&self, log: Log) {
        let held = self.routes.all_held().find(|(of, _)| *of == log);
        if let Some((_, held)) = held {
            tracing::warn!(
                kind = kind_of(log).name(),
                reason = held.trouble.label(),
                cause = held.cause,
                "the ControlPlane takes no records of this kind; they wait in the outbox"
            );
        }
    }

    fn refused(&mut self, key: LaneKey, item: Item, detail: String, now: Instant) {
        let log = item.ticket.log;
        let change = self.link.refused(now);
        self.announce(change);
        let sets_it = self.routes.refused(log, &self.heard, now);
        // The brake holds from the refusal that sets it: that one is still a dead letter, no later one.
        if self.routes.gives_up(log, sets_it) {
            self.bury(key, &item, Reason::Refused, detail);
        } else {
            self.retry(key, item, Trouble::Refusing.label(), None, now);
        }
        if sets_it {
            self.held(log);
        }
    }

    /// There are no batches, and we were told to insist: usage has no route.
    fn no_batches(&mut self, parcel: Parcel, now: Instant) {
        let change = self.link.not_found(now);
        self.announce(change);
        if self.routes.absent(Log::Usage, &self.heard, now) {
            self.held(Log::Usage);
        }
        for (key, item) in parcel {
            self.retry(key, item, Trouble::NoRoute.label(), None, now);
        }
    }

    /// Tells the link, and the kind's route, of a session that is not known.
    fn tell_unknown(&mut self, key: LaneKey, item: &Item, now: Instant) {
        let log = item.ticket.log;
        // Whatever was wrong with the link, it answers.
        let change = self.link.not_found(now);
        self.announce(change);
        // One that was unknown already while others were delivered is no sign that all are.
        let since = self.lanes.unknown_since(key, self.routes.progress());
        let session = LaneKey::of_session(item.record.session());
        let news = self.routes.is_news(log, &since).then_some(session);
        if self.routes.session_unknown(log, news, self.link.limit(now), &self.heard, now) {
            self.held(log);
        }
    }

    fn session_unknown(&mut self, key: LaneKey, item: Item, detail: String, now: Instant) {
        let since = self.lanes.unknown_since(key, self.routes.progress());
        let unknown_for = self.routes.delivering_since(item.ticket.log, &since);
        if unknown_for >= self.drain.settings.session_grace {
            self.bury(key, &item, Reason::SessionUnknown, detail);
        } else {
            self.retry(key, item, "session_unknown", None, now);
        }
    }

    /// The server failed on this record. True if that was once too often.
    fn failed(
        &mut self,
        key: LaneKey,
        mut item: Item,
        Failure { trouble, beside, retry_after, was_up }: Failure,
        detail: String,
        now: Instant,
    ) -> bool {
        let is_its_own = self.routes.is_its_own(item.ticket.log, beside, &mut item.tries) && was_up;
        item.tries.poisoned += u32::from(is_its_own);
        if item.tries.poisoned >= self.drain.settings.poison_attempts {
            self.bury(key, &item, Reason::Poison, detail);
            return true;
        }
        let wait = match (trouble, is_its_own) {
            // It need not be tried again with every probe that finds the others well.
            (Trouble::Overloaded, true) => {
                Some(self.link.record_delay(item.tries.attempts).max(retry_after.unwrap_or_default()))
            }
            (Trouble::Overloaded, false) => None,
            _ => retry_after,
        };
        self.retry(key, item, trouble.label(), wait, now);
        false
    }

    fn link_failed(
        &mut self,
        parcel: Parcel,
        trouble: Trouble,
        retry_after: Option<Duration>,
        trip: Trip,
        now: Instant,
    ) {
        if trouble == Trouble::Credentials && !self.renewed_token {
            self.renewed_token = true;
            self.drain.client.renew_token();
        }
        let change = self.link.failed(trouble, retry_after, trip, now);
        self.announce(change);
        for (key, item) in parcel {
            self.retry(key, item, trouble.label(), None, now);
        }
    }

    fn give_back(&mut self, parcel: Parcel, now: Instant) {
        for (key, item) in parcel {
            self.lanes.put_back(key, item, now);
        }
    }

    pub(super) fn settle(&mut self, key: LaneKey, item: &Item, settlement: Settlement) {
        // IMPORTANT: the outbox first: once the lane is gone, only the outbox knows that this record is done with.
        self.drain.outbox.settle(&item.ticket, settlement);
        self.lanes.known(key);
        self.lanes.settle(key, item);
        if tracing::enabled!(tracing::Level::DEBUG) {
            tracing::debug!(
                correlation_id = &*item.record.correlation_id(),
                kind = item.ticket.kind.name(),
                duplicate = settlement == Settlement::Duplicate,
                "a record is delivered"
            );
        }
        let age = (crate::clock::now().0 - item.ticket.accepted_at.0).max(0) as f64 / 1e6;
        let kind = item.ticket.kind.queue().label();
        self.drain.metrics.delivery_latency.with_label_values(&[kind]).observe(age);
    }

    fn retry(&mut self, key: LaneKey, item: Item, reason: &str, wait: Option<Duration>, now: Instant) {
        self.drain.metrics.retries.with_label_values(&[reason]).inc();
        if tracing::enabled!(tracing::Level::DEBUG) {
            let (correlation_id, attempts) = (item.record.correlation_id(), item.tries.attempts);
            tracing::debug!(
                correlation_id = &*correlation_id,
                reason,
                attempts,
                "a record will be sent again"
            );
        }
        let link_is_down = self.link.trouble().is_some();
        // While the link is down its own backoff paces everything: a record that waited longer would only delay
        // the backlog when the link is back. What the record itself met keeps its own backoff.
        let own_fault = matches!(reason, "failing" | "session_unknown" | "refusing");
        let delay = match wait {
            Some(wait) => wait,
            None if link_is_down && !own_fault => Duration::ZERO,
            None => self.link.record_delay(item.tries.attempts),
        };
        self.lanes.put_back(key, item, now + delay);
    }

    pub(super) fn bury(&mut self, key: LaneKey, item: &Item, reason: Reason, detail: String) {
        tracing::warn!(
            correlation_id = &*item.record.correlation_id(),
            reason = reason.label(),
            kind = item.ticket.kind.name(),
            "a record became a dead letter"
        );
        let letter = DeadLetter {
            id: 0,
            reason,
            detail,
            attempts: item.tries.attempts,
            first_at: item.ticket.accepted_at,
            last_at: crate::clock::now(),
            payload: Payload::Record(item.record.clone()),
        };
        self.drain.outbox.bury(&item.ticket, letter);
        self.lanes.settle(key, item);
    }

    /// One log line a change of the link's state.
    pub(super) fn announce(&mut self, change: Option<Change>) {
        match change {
            Some(Change::Down(trouble)) => {
                tracing::warn!(
                    reason = trouble.label(),
                    cause = self.heard,
                    "the link to the ControlPlane is down; records wait in the outbox"
                );
                self.cause = Some(self.heard.clone());
                self.routes.link_down();
            }
            Some(Change::Up) => {
                tracing::info!("the link to the ControlPlane is up");
                self.cause = None;
            }
            None => {}
        }
    }
}

/// What an answer that settles nothing was, for people. Its body is not told: it may repeat the record.
fn heard(answer: &Answer) -> Option<String> {
    match &answer.result {
        Ok(response) if (200..300).contains(&response.status) => None,
        Ok(response) => Some(format!("status {}", response.status)),
        Err(failure) => Some(failure.to_string()),
    }
}

/// What one of a batch's results was, likewise.
fn of_a_batch(result: &RecordResult) -> String {
    format!("status {} for a record of a batch", result.status)
}

/// A batch's results, where the answer has them: also one that refuses may say for each record what it thinks of it.
fn results_in(response: &Response, parcel: &Parcel) -> Option<Vec<RecordResult>> {
    let may = matches!(response.status, 200..=299 | 400 | 409 | 413 | 422);
    let transactions = parcel.iter().map(|(_, item)| item.record.transaction());
    may.then(|| parse_batch_answer(&response.body, transactions).ok()).flatten()
}

/// From now on these travel with half as many.
fn halve(parcel: &mut Parcel) {
    let most = (parcel.len() / 2).max(1);
    for (_, item) in parcel {
        item.tries.batch_most = most;
    }
}

/// What a dead letter keeps of an answer.
fn detail(answer: &Answer) -> String {
    match &answer.result {
        Ok(response) => {
            let head = &response.body[..response.body.len().min(DETAIL_BYTES)];
            format!("status {}: {}", response.status, String::from_utf8_lossy(head))
        }
        Err(failure) => failure.to_string(),
    }
}
