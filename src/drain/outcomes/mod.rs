//! Acts on answers: settles records, makes dead letters or retries, and informs the link.

mod batch;
mod confirmation;

use std::time::Duration;

use tokio::time::Instant;

use super::link::{Change, Circuit, Flight, asked_wait};
use super::queues::{Item, LaneKey, Parcel, kind_of};
use super::routes::{Attribution, Beside, LinkFailure, Pause};
use super::verdict::{Trouble, Verdict, judge};
use super::{CompletedRequest, DrainLoop, Form};
use crate::control_plane::{Answer, Encoding, Meaning, QuotaAnswer, Response, parse_quota_answer};
use crate::outbox::{DeadLetter, Log, Payload, Reason, Settlement, Ticket};
use crate::record::Kind;

pub(super) use confirmation::Confirmation;

/// Bytes of an answer kept in a dead letter.
const DETAIL_BYTES: usize = 1024;

/// Pause between probes of a braked type while they are sent without backoff.
const PROBE_PAUSE: Duration = Duration::from_millis(50);
/// Pause between the steps of a walk: this many times the duration of half a step, up to a maximum.
const STEPS_APART: u32 = 20;
const STEP_PAUSE_MOST: Duration = Duration::from_secs(5);

/// Own failures after which a record no longer counts against the link.
const FAILED_AGAIN: u64 = 2;

/// Reasons for retries that are not troubles: the first attempt is in progress; the refusal is not confirmed.
pub(super) const IN_PROGRESS: &str = "in_progress";
pub(super) const UNCONFIRMED: &str = "unconfirmed_refusal";

/// The cause reported if the status alone does not explain it.
const UNUSABLE_QUOTA: &str = "an unusable answer to a quota request";

/// A record's request, or its part of a batch, failed.
#[derive(Clone, Copy)]
struct RecordFailure {
    trouble: Trouble,
    /// Whether the server may have failed because of the record.
    may_be_poison: bool,
    beside: Beside,
    retry_after: Option<Duration>,
    /// Whether the link was up: otherwise the failure is not the record's.
    was_up: bool,
    /// The request, if it was for this record alone and is not yet reported to the link.
    flight: Option<Flight>,
}

impl DrainLoop {
    /// Handles a completed request.
    pub(super) fn answered(&mut self, sent: CompletedRequest) {
        let now = Instant::now();
        if let Some(heard) = heard(&sent.answer) {
            self.heard = heard;
        }
        let CompletedRequest { parcel, form, flight, probes, answer } = sent;
        let elapsed = answer.elapsed;
        let first = parcel.first().and_then(|group| group.items.first());
        let is_known_refused = first.is_some_and(|item| item.history.is_confirmed());
        let refusals = probes.map(|log| self.routes.refusals(log));
        self.link.landed(flight);
        if let Some(accepts) = answer.result.as_ref().ok().and_then(|response| response.accepts) {
            self.batching.encodings.heard(accepts);
        }
        match form {
            Form::Batch { encoding, key } => self.batch_answered(parcel, encoding, key, flight, &answer, now),
            Form::Single => {
                for group in parcel {
                    for item in group.items {
                        self.record_answered(group.lane, item, Encoding::Identity, flight, &answer, now);
                    }
                }
            }
        }
        if let Some(log) = probes {
            // Steps of a walk are far apart. This makes it unlikely that a ControlPlane recovers between the two halves of
            // a step, and gets the second record first.
            let pause = if self.lanes.is_mid_step() {
                Pause::AtOnce
            } else if refusals == Some(self.routes.refusals(log)) {
                // Only a refusal says something about the record: otherwise the link may be down.
                Pause::Backoff
            } else if self.lanes.is_walking() {
                Pause::Short((elapsed * STEPS_APART).clamp(PROBE_PAUSE, STEP_PAUSE_MOST))
            } else if is_known_refused {
                Pause::Backoff
            } else {
                Pause::Short(PROBE_PAUSE)
            };
            self.routes.probe_answered(log, pause, now);
        }
        // Not every answer shows the state of the link; after one that does not, another probe may be sent.
        if self.sending.is_empty() {
            self.link.undecided(now);
        }
    }

    /// Handles the answer to a request for one record.
    fn record_answered(
        &mut self,
        key: LaneKey,
        item: Item,
        encoding: Encoding,
        flight: Flight,
        answer: &Answer,
        now: Instant,
    ) {
        let (mut verdict, retry_after) = judge(&answer.result);
        let was_up = self.link.trouble().is_none();
        let mut beside = Beside::ItsKind;
        if let (Kind::Quota, Verdict::Settled(settlement), Ok(response)) =
            (item.ticket.kind, verdict, &answer.result)
        {
            // An answer to another request is invalid: the reader would take it for its own.
            let is_ours = |answer: &QuotaAnswer<'_>| {
                answer.api_session_id == item.record.session()
                    && answer.transaction_id == item.record.transaction()
            };
            match (parse_quota_answer(&response.body).ok().filter(is_ours), settlement) {
                (Some(parsed), _) => {
                    let data = parsed.data.to_vec();
                    self.delivered(item.ticket.log, 1, flight, now);
                    self.push(key, item, settlement, data);
                    return;
                }
                (None, Settlement::Delivered) => {
                    UNUSABLE_QUOTA.clone_into(&mut self.heard);
                    verdict = Verdict::Failed { trouble: Trouble::Failing, may_be_poison: true };
                    beside = Beside::Any;
                }
                // The request was answered before, and this answer carries no quota: the first answer is lost, and the
                // requester must ask again.
                (None, Settlement::Duplicate | Settlement::Exported) => tracing::warn!(
                    correlation_id = &*item.record.correlation_id(),
                    "the ControlPlane reports a quota request as a duplicate without its answer: nothing is sent to Redis"
                ),
            }
        }
        match verdict {
            Verdict::Settled(settlement) => {
                let log = item.ticket.log;
                if item.history.is_suspect() && !self.batching.is_proven() {
                    // The batch endpoint refused a record that this endpoint accepts: the batch endpoint does not exist.
                    self.batching.absent(now);
                }
                self.settle(key, &item, settlement, now);
                self.dead_letter_before(key, &item);
                self.delivered(log, 1, flight, now);
                // After the reset of a link that is up again.
                self.batching.encodings.passed(encoding, now);
            }
            Verdict::Refused => self.refused(key, item, detail(answer), true, now),
            // No request was sent: this says nothing about the link.
            Verdict::Unsendable => self.dead_letter(key, &item, Reason::Invalid, detail(answer)),
            Verdict::SessionUnknown => {
                self.tell_unknown(key, &item, now);
                self.session_unknown(key, item, detail(answer), now);
            }
            Verdict::InProgress => {
                self.answers(item.ticket.log, now);
                self.retry(key, item, IN_PROGRESS, retry_after, now);
            }
            Verdict::NotTried => self.lanes.put_back(key, item, now),
            Verdict::Failed { trouble, may_be_poison } => {
                let failure = RecordFailure {
                    trouble,
                    may_be_poison,
                    beside,
                    retry_after,
                    was_up,
                    flight: Some(flight),
                };
                self.failed(key, item, failure, detail(answer), now);
            }
        }
    }

    /// A record was delivered ahead of others of its session, each refused twice. These become dead letters: sent now, they
    /// could only arrive out of order.
    pub(super) fn dead_letter_before(&mut self, key: LaneKey, delivered: &Item) {
        if !self.lanes.has_walked_past(key) {
            return;
        }
        let Ticket { log, seq, .. } = delivered.ticket;
        while let Some(mut item) = self.lanes.take_refused_before(key, log, seq) {
            let detail = item.refusal.take().map_or_else(|| "refused twice".to_owned(), String::from);
            self.dead_letter(key, &item, Reason::Refused, detail);
        }
    }

    fn delivered(&mut self, log: Log, records: u64, flight: Flight, now: Instant) {
        self.link_delivered(flight, now);
        self.route_delivered(log, records, flight.sent, now);
    }

    /// Reports a request that delivered records to the link: once, whatever it contains.
    fn link_delivered(&mut self, flight: Flight, now: Instant) {
        self.renewed_token = false;
        let change = self.link.delivered(flight, now);
        if change == Some(Change::Up) {
            self.batching.ask_again();
        }
        self.announce(change);
    }

    fn route_delivered(&mut self, log: Log, records: u64, sent: Instant, now: Instant) {
        if self.routes.delivered(log, records, sent, now) {
            self.let_go(log, now);
        }
    }

    /// A held type is released.
    pub(super) fn let_go(&mut self, log: Log, now: Instant) {
        tracing::info!(kind = kind_of(log).name(), "sending records of this type again");
        if !self.routes.was_braked_briefly(log) {
            self.link.begin_small(now);
        }
        if log == Log::Usage {
            self.batching.ask_again();
        }
    }

    /// Whether an answer without success, to a record of this kind, shows that the link is up. While other kinds keep it
    /// down, a held kind's refusal shows nothing new: the link would come up and go down again with every probe.
    fn shows_the_link(&self, log: Log) -> bool {
        self.link.circuit() == Circuit::Closed || !self.routes.is_held(log) || !self.lanes.has_ready()
    }

    /// A request was answered, though without success.
    fn answers(&mut self, log: Log, now: Instant) {
        if self.shows_the_link(log) {
            let change = self.link.answered(now);
            self.announce(change);
        }
        self.let_go_if_answered(log, now);
    }

    fn let_go_if_answered(&mut self, log: Log, now: Instant) {
        if self.routes.answered(log, now) {
            self.let_go(log, now);
        }
    }

    /// A type is held from now on.
    fn held(&self, log: Log) {
        let held = self.routes.all_held().find(|(of, _)| *of == log);
        if let Some((_, held)) = held {
            tracing::warn!(
                kind = kind_of(log).name(),
                reason = held.trouble.label(),
                cause = held.cause,
                "the ControlPlane does not accept records of this type; they wait in the outbox"
            );
        }
    }

    /// A record was refused. `counts`: it counts for the brake, as nothing was delivered beside it.
    fn refused(&mut self, key: LaneKey, mut item: Item, detail: String, counts: bool, now: Instant) {
        let log = item.ticket.log;
        self.answers(log, now);
        let sets_brake = counts && self.routes.refused(log, &self.heard, now);
        let is_confirmed = self.confirmation.refused(&mut item.history, now);
        item.refusal = Some(detail.as_str().into());
        if self.routes.is_braked(log) {
            self.lanes.note_refusal(key);
            // Only probes are sent, in their own order and pace. When the brake is released, everything is sent at once.
            self.retry(key, item, Trouble::Refusing.label(), Some(Duration::ZERO), now);
        } else if is_confirmed {
            self.dead_letter(key, &item, Reason::Refused, detail);
        } else {
            let wait = Confirmation::wait(&item.history);
            self.retry(key, item, UNCONFIRMED, Some(wait), now);
        }
        if sets_brake {
            self.held(log);
        }
    }

    /// Reports an unknown session to the link and the kind's route.
    fn tell_unknown(&mut self, key: LaneKey, item: &Item, now: Instant) {
        let log = item.ticket.log;
        // Whatever was wrong with the link, it answers now.
        if self.shows_the_link(log) {
            let change = self.link.not_found(now);
            self.announce(change);
        }
        self.let_go_if_answered(log, now);
        // A session that was already unknown while others were delivered does not suggest that all are.
        let since = self.lanes.unknown_since(key, self.routes.progress(now));
        let session = LaneKey::of_session(item.record.session());
        let news = self.routes.is_news(log, &since).then_some(session);
        if self.routes.session_unknown(log, news, self.link.limit(now), &self.heard, now) {
            self.held(log);
        }
    }

    fn session_unknown(&mut self, key: LaneKey, item: Item, detail: String, now: Instant) {
        let since = self.lanes.unknown_since(key, self.routes.progress(now));
        let unknown_for = self.routes.delivering_since(item.ticket.log, &since);
        if unknown_for >= self.drain.settings.session_grace {
            self.dead_letter(key, &item, Reason::SessionUnknown, detail);
        } else {
            self.retry(key, item, "session_unknown", None, now);
        }
    }

    /// Handles the failure of a record's request.
    fn failed(&mut self, key: LaneKey, mut item: Item, failure: RecordFailure, detail: String, now: Instant) {
        let RecordFailure { trouble, may_be_poison, beside, retry_after, was_up, flight } = failure;
        let log = item.ticket.log;
        // While its kind is held, a failure is not the record's own, except if only the answer was unusable.
        let counts = was_up && (beside == Beside::Any || !self.routes.is_held(log));
        let passed = self.routes.failed_on(log, beside, &mut item.history);
        let others_passed = passed.others && counts;
        item.history.poisoned += u32::from(others_passed && may_be_poison);
        self.routes.is_failing(log, key);
        let is_its_own = self.routes.are_its_own(log, beside, &item.history);
        let is_poison = item.history.poisoned >= self.drain.settings.poison_attempts;
        if may_be_poison && is_poison && others_passed && is_its_own {
            self.dead_letter(key, &item, Reason::Poison, detail);
            return;
        }
        // A record that fails repeatedly while nothing else does must not slow down everything else.
        let speaks_for_itself =
            is_its_own && passed.any && was_up && item.history.own_failures >= FAILED_AGAIN;
        if let Some(flight) = flight.filter(|_| !speaks_for_itself) {
            self.renew_credentials(trouble);
            self.troubled(log, std::iter::once(key), trouble, retry_after, flight, now);
        }
        let is_known = speaks_for_itself || (others_passed && is_its_own);
        let wait = match trouble {
            // It need not be retried with every probe that finds the others well.
            _ if is_known => {
                let own = self.own_delay(&item);
                Some(own.max(retry_after.unwrap_or_default()))
            }
            Trouble::Failing => retry_after,
            _ => None,
        };
        self.retry(key, item, trouble.label(), wait, now);
    }

    /// Whether one more failure would be this record's own. Called before the next attempt is recorded.
    fn fails_by_itself(&self, item: &Item) -> bool {
        let history = &item.history;
        let is_again = history.own_failures + 1 >= FAILED_AGAIN;
        let is_its_own = || self.routes.are_its_own(item.ticket.log, Beside::ItsKind, history);
        is_again && self.routes.any_passed(history) && is_its_own()
    }

    /// A request failed with what may be the link's trouble. Reports it to the link, unless only its kind is in trouble.
    fn troubled(
        &mut self,
        log: Log,
        lanes: impl Iterator<Item = LaneKey>,
        trouble: Trouble,
        retry_after: Option<Duration>,
        flight: Flight,
        now: Instant,
    ) {
        let asked = asked_wait(retry_after);
        let failure =
            LinkFailure { trouble, sent: flight.sent, is_asked: asked.is_some(), cause: &self.heard };
        let attribution = self.routes.troubled(log, lanes, failure, now);
        if attribution == Attribution::Link {
            let change = self.link.failed(trouble, retry_after, flight, now);
            self.announce(change);
            return;
        }
        if attribution == Attribution::KindFromNowOn {
            self.link.was_not_to_blame(trouble, now);
            self.held(log);
        }
        if let Some(wait) = asked {
            self.routes.asked_to_wait(log, wait, now);
        }
    }

    /// Renews the credentials once: the token may be too old, or signed with a replaced key.
    fn renew_credentials(&mut self, trouble: Trouble) {
        if trouble == Trouble::Credentials && !self.renewed_token {
            self.renewed_token = true;
            self.drain.client.renew_token();
        }
    }

    fn give_back(&mut self, parcel: Parcel, now: Instant) {
        for group in parcel {
            // Last first: each is put back before the previous one.
            for item in group.items.into_iter().rev() {
                self.lanes.put_back(group.lane, item, now);
            }
        }
    }

    pub(super) fn settle(&mut self, key: LaneKey, item: &Item, settlement: Settlement, now: Instant) {
        // IMPORTANT: the outbox first: once the lane is gone, only the outbox knows that this record is settled.
        self.drain.outbox.settle(&item.ticket, settlement);
        self.settled(key, item, settlement, now);
    }

    /// Finishes a record that the outbox already counts as settled.
    fn settled(&mut self, key: LaneKey, item: &Item, settlement: Settlement, now: Instant) {
        self.confirmation.delivered(&item.history, now);
        self.routes.is_done(item.ticket.log, key);
        self.lanes.delivered(key);
        self.lanes.settle(key, item);
        if tracing::enabled!(tracing::Level::DEBUG) {
            tracing::debug!(
                correlation_id = &*item.record.correlation_id(),
                kind = item.ticket.kind.name(),
                duplicate = settlement == Settlement::Duplicate,
                "a record was delivered"
            );
        }
        let age = (crate::time::now().0 - item.ticket.accepted_at.0).max(0) as f64 / 1e6;
        let kind = item.ticket.kind.queue().label();
        self.drain.metrics.delivery_latency.with_label_values(&[kind]).observe(age);
    }

    fn retry(&mut self, key: LaneKey, item: Item, reason: &str, wait: Option<Duration>, now: Instant) {
        self.drain.metrics.retries.with_label_values(&[reason]).inc();
        if tracing::enabled!(tracing::Level::DEBUG) {
            let (correlation_id, attempts) = (item.record.correlation_id(), item.history.attempts);
            tracing::debug!(
                correlation_id = &*correlation_id,
                reason,
                attempts,
                "a record will be sent again"
            );
        }
        let link_is_down = self.link.trouble().is_some();
        // While the link is down its own backoff paces everything: a longer wait of a record would only delay the backlog
        // when the link is back. Failures of the record itself keep its own backoff.
        let own_fault = matches!(reason, "failing" | "session_unknown" | "refusing" | IN_PROGRESS);
        let delay = match wait {
            Some(wait) => wait,
            None if link_is_down && !own_fault => Duration::ZERO,
            None => self.own_delay(&item),
        };
        self.lanes.put_back(key, item, now + delay);
    }

    /// How long this record waits after its failure on a link that is up.
    fn own_delay(&self, item: &Item) -> Duration {
        let attempts = item.history.attempts;
        if item.ticket.kind == Kind::Quota {
            self.link.quota_delay(attempts)
        } else {
            self.link.record_delay(attempts)
        }
    }

    pub(super) fn dead_letter(&mut self, key: LaneKey, item: &Item, reason: Reason, detail: String) {
        let letter = DeadLetter {
            id: 0,
            reason,
            detail,
            attempts: item.history.attempts,
            first_at: item.ticket.accepted_at,
            last_at: crate::time::now(),
            payload: Payload::Record(item.record.clone()),
        };
        self.drain.outbox.settle_as_dead_letter(&item.ticket, letter);
        self.routes.is_done(item.ticket.log, key);
        self.lanes.settle(key, item);
    }

    /// Logs a change of the link's state.
    pub(super) fn announce(&mut self, change: Option<Change>) {
        match change {
            Some(Change::Down(trouble)) => {
                tracing::warn!(
                    reason = trouble.label(),
                    cause = self.heard,
                    proxy = self.drain.client.proxy(),
                    "the link to the ControlPlane is down; records wait in the outbox"
                );
                self.cause = Some(self.heard.clone());
                self.down_since.get_or_insert_with(Instant::now);
                self.routes.link_down();
            }
            Some(Change::Up) => {
                tracing::info!("the link to the ControlPlane is up");
                (self.cause, self.down_since) = (None, None);
                self.routes.link_up(Instant::now());
            }
            None => {}
        }
    }
}

/// Describes an answer that settles nothing. Omits its body, which may quote the record.
fn heard(answer: &Answer) -> Option<String> {
    match &answer.result {
        Ok(Response { meaning: Meaning::Delivered, .. }) => None,
        Ok(Response { meaning: Meaning::Failing, status: status @ 200..300, .. }) => {
            Some(format!("status {status} with \"success\": false"))
        }
        Ok(response) => Some(format!("status {}{}", response.status, response.meaning.remark())),
        Err(failure) => Some(failure.to_string()),
    }
}

/// The part of an answer kept in a dead letter.
fn detail(answer: &Answer) -> String {
    match &answer.result {
        Ok(response) => {
            let head = &response.body[..response.body.len().min(DETAIL_BYTES)];
            in_words(response.status, &String::from_utf8_lossy(head))
        }
        Err(failure) => failure.to_string(),
    }
}

/// The same for one result of a batch; only the status if there is no text.
fn in_words(status: u16, words: &str) -> String {
    if words.is_empty() { format!("status {status}") } else { format!("status {status}: {words}") }
}
