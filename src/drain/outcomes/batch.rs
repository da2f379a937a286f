//! Handles the answer to a batch. One answer for all its records may start a search for the record at fault.

use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use super::RetryReason;
use super::failures::RecordFailure;
use super::words::detail;
use crate::control_plane::{
    Answer, BatchException, Encoding, Failure, Meaning, Response, parse_batch_answer,
};
use crate::drain::DrainLoop;
use crate::drain::link::{Flight, asked_wait};
use crate::drain::queues::{
    Group, Item, LOGS, LaneKey, Parcel, items, items_mut, lanes_of, last_first, records_in,
};
use crate::drain::routes::Beside;
use crate::drain::verdict::{Trouble, Verdict, judge};
use crate::outbox::Settlement;

/// The cause reported if the status alone does not explain it.
const UNUSABLE_BATCH: &str = "a batch answer that does not say which records were accepted";
/// If a batch is shed this often while others succeed, its contents may be the reason.
const SHED_AGAIN: u64 = 3;

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
                self.batching.too_large(&parcel, now);
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
        items_mut(&mut parcel).for_each(|item| item.history.is_plain = false);
        if records_in(&parcel) == 1 {
            for (lane, item) in last_first(parcel) {
                self.lone_record_answered(lane, item, encoding, flight, answer, now);
            }
            return;
        }
        self.several_records_answered(parcel, flight, answer, now);
    }

    /// Several records got one answer, which says nothing about batches.
    fn several_records_answered(
        &mut self,
        mut parcel: Parcel,
        flight: Flight,
        answer: &Answer,
        now: Instant,
    ) {
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
                for (lane, item) in last_first(parcel) {
                    self.retry(lane, item, RetryReason::InProgress, retry_after, now);
                }
            }
            // Refused, or a duplicate, as a whole: halving finds the record concerned.
            (verdict, _) => {
                let log = items(&parcel).next().map(|item| item.ticket.log);
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
        retry_after: Option<Duration>,
        flight: Flight,
        now: Instant,
    ) {
        let Some(log) = items(&parcel).next().map(|item| item.ticket.log) else { return };
        let histories = items_mut(&mut parcel).map(|item| (item.ticket.log, &mut item.history));
        let others_passed = self.routes.failed_on_all(histories);
        let is_again = items(&parcel).any(|item| item.history.own_failures >= SHED_AGAIN);
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
        for (lane, item) in last_first(parcel) {
            self.retry(lane, item, RetryReason::Failed(trouble), wait, now);
        }
    }

    /// A body damaged in transit while compressed may succeed uncompressed: that is tried before anything is concluded.
    fn try_plain(&mut self, mut parcel: Parcel, now: Instant) {
        items_mut(&mut parcel).for_each(|item| item.history.is_plain = true);
        self.try_again(parcel, now);
    }

    /// Sends the records again in another form, without counting an attempt.
    fn try_again(&mut self, mut parcel: Parcel, now: Instant) {
        items_mut(&mut parcel).for_each(|item| item.history.attempts -= 1);
        self.give_back(parcel, now);
    }

    /// Batches are required but not supported: records have no route.
    fn no_batches(&mut self, parcel: Parcel, now: Instant) {
        let change = self.link.not_found(now);
        self.announce(change);
        for log in LOGS.into_iter().filter(|log| items(&parcel).any(|item| item.ticket.log == *log)) {
            if self.routes.absent(log, &self.heard, now) {
                self.held(log);
            }
        }
        for (lane, item) in last_first(parcel) {
            self.retry(lane, item, RetryReason::Failed(Trouble::NoRoute), None, now);
        }
    }
}

/// Whether a parcel contains several kinds.
fn is_mixed(parcel: &[Group]) -> bool {
    let mut kinds = items(parcel).map(|item| item.ticket.kind);
    let first = kinds.next();
    kinds.any(|kind| Some(kind) != first)
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
fn halve(parcel: &mut [Group]) {
    let most = (records_in(parcel) / 2).max(1);
    items_mut(parcel).for_each(|item| item.history.batch_most = most);
}
