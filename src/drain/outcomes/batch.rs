//! Handles the answer to a batch: the records not accepted, or one answer for all of them, which may start a search for the
//! record at fault.

use tokio::time::Instant;
use uuid::Uuid;

use super::IN_PROGRESS;
use super::failures::RecordFailure;
use super::words::{detail, in_words, of_a_batch};
use crate::control_plane::{
    Answer, BatchException, Encoding, Failure, Meaning, Response, parse_batch_answer,
};
use crate::drain::DrainLoop;
use crate::drain::link::{Flight, asked_wait};
use crate::drain::queues::{Group, Item, LOGS, LaneKey, Parcel, lanes_of, place, records_in};
use crate::drain::routes::Beside;
use crate::drain::verdict::{Trouble, Verdict, by_status, judge, stops_session};
use crate::outbox::{Reason, Settlement};

/// The cause reported if the status alone does not explain it.
const UNUSABLE_BATCH: &str = "a batch answer that does not say which records were accepted";
/// If a batch is shed this often while others succeed, its contents may be the reason.
const SHED_AGAIN: u64 = 3;

/// A record of a batch that was not accepted.
struct Rest {
    lane: LaneKey,
    item: Item,
    verdict: Verdict,
    exception: BatchException,
}

/// The results of a batch's records.
#[derive(Default)]
struct Results {
    taken: Vec<(LaneKey, Item, Settlement)>,
    rest: Vec<Rest>,
    /// The session of a record accepted after an earlier one had failed.
    breach: Option<String>,
}

impl DrainLoop {
    /// Handles the answer to a batch: the records not accepted, or one answer for all.
    pub(super) fn batch_answered(
        &mut self,
        mut parcel: Parcel,
        encoding: Encoding,
        key: Uuid,
        flight: Flight,
        answer: &Answer,
        now: Instant,
    ) {
        // A foreign answer says nothing about batches either.
        let is_its_own =
            |response: &&Response| !matches!(response.meaning, Meaning::Foreign | Meaning::Mismatched);
        let response = answer.result.as_ref().ok().filter(is_its_own);
        let exceptions = response.and_then(|response| exceptions_in(response, key, records_in(&parcel)));
        self.batching.answered(exceptions.is_some());
        if let Some(exceptions) = exceptions {
            self.batch_results(parcel, exceptions, flight, now);
            // After the reset of a link that is up again.
            self.batching.encodings.passed(encoding, now);
            return;
        }
        if may_be_broken_on_the_way(answer) {
            self.batching.encodings.failed(encoding, records_in(&parcel));
        }
        match response.map(|response| (response.status, response)) {
            Some((413, _)) if records_in(&parcel) > 1 => {
                self.batching.too_large(&parcel);
                halve(&mut parcel);
                return self.try_again(parcel, now);
            }
            _ if is_mixed(&parcel) && self.is_for_a_kind(answer, now) => return self.try_again(parcel, now),
            Some((404 | 405 | 501, _)) if self.batching.absent(now) => return self.give_back(parcel, now),
            Some((404 | 405 | 501, _)) => return self.no_batches(parcel, now),
            Some((415, response)) if encoding != Encoding::Identity => {
                self.batching.encodings.refuses(encoding, response.accepts);
                return self.give_back(parcel, now);
            }
            Some((status, _)) if encoding != Encoding::Identity && may_be_the_encodings(status) => {
                return self.try_plain(parcel, now);
            }
            _ => {}
        }
        parcel.iter_mut().flat_map(|group| &mut group.items).for_each(|item| item.history.is_plain = false);
        if records_in(&parcel) == 1 {
            for (lane, item) in items_of(parcel) {
                self.lone_record_answered(lane, item, encoding, flight, answer, now);
            }
            return;
        }
        match judge(&answer.result) {
            (Verdict::Settled(Settlement::Delivered), retry_after) => {
                UNUSABLE_BATCH.clone_into(&mut self.heard);
                self.batch_failed(parcel, Trouble::Failing, retry_after, flight, now);
            }
            (Verdict::Failed { trouble, .. }, retry_after) => {
                self.batch_failed(parcel, trouble, retry_after, flight, now);
            }
            (Verdict::InProgress, retry_after) => {
                let change = self.link.answered(now);
                self.announce(change);
                for (lane, item) in items_of(parcel) {
                    self.retry(lane, item, IN_PROGRESS, retry_after, now);
                }
            }
            // Refused, or a duplicate, as a whole: halving finds the record concerned.
            (verdict, _) => {
                let log = parcel.first().and_then(|group| group.items.first()).map(|item| item.ticket.log);
                // An endpoint that has never accepted a batch says nothing about the records.
                let counts = verdict == Verdict::Refused && self.batching.is_proven();
                if let Some(log) = log.filter(|_| counts) {
                    let change = self.link.answered(now);
                    self.announce(change);
                    if self.routes.refused(log, &self.heard, now) {
                        self.held(log);
                    }
                }
                halve(&mut parcel);
                self.give_back(parcel, now);
            }
        }
    }

    /// Whether a batch of several kinds that failed as a whole may have failed because of one of them. If so, each kind is
    /// sent separately from now on, to find out, and the failure itself has no consequence.
    fn is_for_a_kind(&mut self, answer: &Answer, now: Instant) -> bool {
        let (verdict, retry_after) = judge(&answer.result);
        let is_asked = asked_wait(retry_after).is_some();
        let failed = matches!(verdict, Verdict::Failed { may_be_poison: true, .. });
        let may_be = !is_asked && (failed || matches!(verdict, Verdict::Refused | Verdict::SessionUnknown));
        if may_be {
            self.batching.mixed_failed(now);
        }
        // An overloaded server must not get more requests.
        may_be && verdict.trouble() != Some(Trouble::Overloaded)
    }

    /// A batch of one record was answered as a whole: the answer is for the record.
    fn lone_record_answered(
        &mut self,
        key: LaneKey,
        item: Item,
        encoding: Encoding,
        flight: Flight,
        answer: &Answer,
        now: Instant,
    ) {
        if judge(&answer.result).0 != Verdict::Settled(Settlement::Delivered) {
            return self.record_answered(key, item, encoding, flight, answer, now);
        }
        // A 2xx without results: its meaning for the record is unknown.
        UNUSABLE_BATCH.clone_into(&mut self.heard);
        let failure = RecordFailure {
            trouble: Trouble::Failing,
            may_be_poison: false,
            beside: Beside::ItsKind,
            retry_after: None,
            was_up: self.link.trouble().is_none(),
            flight: Some(flight),
        };
        self.failed(key, item, failure, detail(answer), now);
    }

    /// A batch failed as a whole: because of load, the link, or one record in it. Halving finds that record if others
    /// succeed meanwhile.
    fn batch_failed(
        &mut self,
        mut parcel: Parcel,
        trouble: Trouble,
        retry_after: Option<std::time::Duration>,
        flight: Flight,
        now: Instant,
    ) {
        let Some(log) = parcel.first().and_then(|group| group.items.first()).map(|item| item.ticket.log)
        else {
            return;
        };
        let items = parcel.iter_mut().flat_map(|group| &mut group.items);
        let others_passed = self.routes.failed_on_all(items.map(|item| (item.ticket.log, &mut item.history)));
        let mut items = parcel.iter().flat_map(|group| &group.items);
        let is_again = items.any(|item| item.history.own_failures >= SHED_AGAIN);
        if others_passed && (is_again || trouble == Trouble::Failing) {
            halve(&mut parcel);
        }
        self.renew_credentials(trouble);
        if is_mixed(&parcel) {
            // A failure of several kinds is not attributed to one.
            let change = self.link.failed(trouble, retry_after, flight, now);
            self.announce(change);
        } else {
            self.troubled(log, lanes_of(&parcel), trouble, retry_after, flight, now);
        }
        let wait = retry_after.filter(|_| trouble == Trouble::Failing);
        for (lane, item) in items_of(parcel) {
            self.retry(lane, item, trouble.label(), wait, now);
        }
    }

    /// A body damaged in transit while compressed may succeed uncompressed: that is tried before anything is concluded.
    fn try_plain(&mut self, mut parcel: Parcel, now: Instant) {
        parcel.iter_mut().flat_map(|group| &mut group.items).for_each(|item| item.history.is_plain = true);
        self.try_again(parcel, now);
    }

    /// Sends the records again in another form, without counting an attempt.
    fn try_again(&mut self, mut parcel: Parcel, now: Instant) {
        parcel.iter_mut().flat_map(|group| &mut group.items).for_each(|item| item.history.attempts -= 1);
        self.give_back(parcel, now);
    }

    fn batch_results(
        &mut self,
        parcel: Parcel,
        exceptions: Vec<BatchException>,
        flight: Flight,
        now: Instant,
    ) {
        let Results { taken, rest, breach } = sort_out(parcel, exceptions);
        let was_up = self.link.trouble().is_none();
        // IMPORTANT: delivered records first: they show whether the other failures are the records' or the link's. And the
        // outbox before the lanes: once a lane is gone, only the outbox knows that its records are settled.
        self.drain.outbox.settle_all(taken.iter().map(|(_, item, settlement)| (&item.ticket, *settlement)));
        let mut delivered = [0_u64; LOGS.len()];
        for (lane, item, settlement) in &taken {
            delivered[place(item.ticket.log).unwrap_or_default()] += 1;
            self.settled(*lane, item, *settlement, now);
            self.dead_letter_before(*lane, item);
        }
        drop(taken);
        self.batch_delivered(delivered, &rest, flight, now);
        self.batch_troubled(delivered, &rest, flight, was_up, now);
        if let Some(session) = breach {
            self.breached(&session, now);
        }
        let (not_tried, rest): (Vec<_>, Vec<_>) =
            rest.into_iter().partition(|rest| rest.verdict == Verdict::NotTried);
        // Last first: each is put back before the previous one.
        for Rest { lane, mut item, .. } in not_tried.into_iter().rev() {
            item.history.is_plain = false;
            item.history.attempts -= 1;
            self.lanes.put_back(lane, item, now);
        }
        for Rest { lane, mut item, verdict, exception } in rest {
            item.history.is_plain = false;
            let detail = in_words(exception.status, exception.error.as_deref().unwrap_or_default());
            match verdict {
                Verdict::Refused => {
                    self.heard = of_a_batch(&exception);
                    let counts = delivered[place(item.ticket.log).unwrap_or_default()] == 0;
                    self.refused(lane, item, detail, counts, now);
                }
                Verdict::SessionUnknown => self.session_unknown(lane, item, detail, now),
                Verdict::NotTried | Verdict::InProgress => {
                    self.retry(lane, item, IN_PROGRESS, None, now);
                }
                Verdict::Failed { trouble, may_be_poison } => {
                    let beside = Beside::ItsKind;
                    let failure = RecordFailure {
                        trouble,
                        may_be_poison,
                        beside,
                        retry_after: None,
                        was_up,
                        flight: None,
                    };
                    self.failed(lane, item, failure, detail, now);
                }
                Verdict::Unsendable => self.dead_letter(lane, &item, Reason::Invalid, detail),
                Verdict::Settled(settlement) => self.settle(lane, &item, settlement, now),
            }
        }
    }

    /// The ControlPlane broke its promise: it accepted a record of this session after failing an earlier one.
    fn breached(&mut self, session: &str, now: Instant) {
        self.drain.metrics.order_breaches.inc();
        tracing::error!(
            session,
            "the ControlPlane accepted a record although an earlier one of the same session had failed; batches hold one record per session for now"
        );
        self.batching.breached(now);
    }

    /// Reports the deliveries to the link and the routes.
    fn batch_delivered(&mut self, delivered: [u64; LOGS.len()], rest: &[Rest], flight: Flight, now: Instant) {
        if delivered.iter().any(|records| *records > 0) {
            self.link_delivered(flight, now);
        }
        for (log, records) in LOGS.into_iter().zip(delivered).filter(|(_, records)| *records > 0) {
            self.route_delivered(log, records, flight.sent, now);
            if rest.iter().any(|rest| rest.item.ticket.log == log && rest.verdict.trouble().is_some()) {
                self.routes.passed_apart(log, records);
            }
        }
    }

    /// Reports the kinds without a delivery to the link and the routes.
    fn batch_troubled(
        &mut self,
        delivered: [u64; LOGS.len()],
        rest: &[Rest],
        flight: Flight,
        was_up: bool,
        now: Instant,
    ) {
        for (log, _) in LOGS.into_iter().zip(delivered).filter(|(_, records)| *records == 0) {
            // A record that fails again while others succeed is itself at fault.
            let of_it: Vec<&Rest> = rest
                .iter()
                .filter(|rest| rest.item.ticket.log == log)
                .filter(|rest| !(was_up && self.fails_by_itself(&rest.item)))
                .collect();
            let of_it = || of_it.iter().copied();
            let failed = of_it().find_map(|rest| Some((rest.verdict.trouble()?, &rest.exception)));
            let unknown = || of_it().filter(|rest| rest.verdict == Verdict::SessionUnknown);
            if let Some((trouble, exception)) = failed {
                self.heard = of_a_batch(exception);
                self.renew_credentials(trouble);
                let lanes = of_it().filter(|rest| rest.verdict.trouble().is_some()).map(|rest| rest.lane);
                self.troubled(log, lanes, trouble, None, flight, now);
            } else if let Some(first) = unknown().next() {
                self.heard = of_a_batch(&first.exception);
                for rest in unknown() {
                    self.tell_unknown(rest.lane, &rest.item, now);
                }
            }
        }
    }

    /// Batches are required but not supported: records have no route.
    fn no_batches(&mut self, parcel: Parcel, now: Instant) {
        let change = self.link.not_found(now);
        self.announce(change);
        for log in LOGS
            .into_iter()
            .filter(|log| parcel.iter().flat_map(|group| &group.items).any(|item| item.ticket.log == *log))
        {
            if self.routes.absent(log, &self.heard, now) {
                self.held(log);
            }
        }
        for (lane, item) in items_of(parcel) {
            self.retry(lane, item, Trouble::NoRoute.label(), None, now);
        }
    }
}

/// Whether a parcel contains several kinds.
fn is_mixed(parcel: &[Group]) -> bool {
    let mut kinds = parcel.iter().flat_map(|group| &group.items).map(|item| item.ticket.kind);
    let first = kinds.next();
    kinds.any(|kind| Some(kind) != first)
}

fn items_of(parcel: Parcel) -> impl Iterator<Item = (LaneKey, Item)> {
    // Last first: each is put back before the previous one.
    parcel.into_iter().flat_map(|group| group.items.into_iter().rev().map(move |item| (group.lane, item)))
}

/// Sorts the records into accepted ones and the others with their verdicts.
fn sort_out(parcel: Parcel, exceptions: Vec<BatchException>) -> Results {
    let mut results = Results::default();
    let mut exceptions = exceptions.into_iter().peekable();
    let mut index = 0;
    for group in parcel {
        let mut is_stopped = false;
        for item in group.items {
            let exception = exceptions.next_if(|exception| exception.index == index);
            index += 1;
            let Some(exception) = exception else {
                if is_stopped && results.breach.is_none() {
                    results.breach = Some(item.record.session().to_owned());
                }
                results.taken.push((group.lane, item, Settlement::Delivered));
                continue;
            };
            let verdict = match by_status(exception.status) {
                // It should not have been tried, and the refusal may be due to the missing record before it.
                Verdict::Refused if is_stopped => {
                    results.breach.get_or_insert_with(|| item.record.session().to_owned());
                    Verdict::NotTried
                }
                // No earlier record of its session failed. It will be sent alone, and this does not count towards poison.
                Verdict::NotTried if !is_stopped => {
                    Verdict::Failed { trouble: Trouble::Failing, may_be_poison: false }
                }
                verdict => verdict,
            };
            is_stopped |= stops_session(exception.status);
            match verdict {
                Verdict::Settled(settlement) => results.taken.push((group.lane, item, settlement)),
                _ => results.rest.push(Rest { lane: group.lane, item, verdict, exception }),
            }
        }
    }
    results
}

/// The exceptions, if the answer is valid.
fn exceptions_in(response: &Response, batch: Uuid, records: usize) -> Option<Vec<BatchException>> {
    if response.meaning != Meaning::Delivered {
        return None;
    }
    parse_batch_answer(&response.body, batch, records).ok()
}

/// Whether a proxy that cannot handle compressed bodies would answer with this status.
fn may_be_the_encodings(status: u16) -> bool {
    matches!(status, 400 | 403 | 406 | 411 | 422 | 500 | 502)
}

/// Whether a middlebox may have answered this, or cut the connection, because of the body's encoding: true for any answer
/// that says nothing specific about a batch.
fn may_be_broken_on_the_way(answer: &Answer) -> bool {
    match &answer.result {
        Ok(response) => !matches!(response.status, ..300 | 404 | 405 | 409 | 413 | 415 | 424 | 501),
        Err(failure) => matches!(failure, Failure::Cut(_)),
    }
}

/// Halves the number of records that these may travel with.
fn halve(parcel: &mut Parcel) {
    let most = (records_in(parcel) / 2).max(1);
    for item in parcel.iter_mut().flat_map(|group| &mut group.items) {
        item.history.batch_most = most;
    }
}
