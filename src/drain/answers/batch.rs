//! The answer to a batch: each record's own result, or one for all of them, and then perhaps which of them it is for.

use tokio::time::Instant;

use super::{Failure, detail, in_words, lanes_of};
use crate::control_plane::{Answer, RecordResult, Response, parse_batch_answer};
use crate::drain::Run;
use crate::drain::lanes::Parcel;
use crate::drain::link::Trip;
use crate::drain::routes::Beside;
use crate::drain::verdict::{Trouble, Verdict, by_status, judge};
use crate::outbox::{Log, Reason, Settlement};

/// What was heard where the status says nothing of what is wrong.
const UNUSABLE_BATCH: &str = "a batch's answer without usable results";
/// A batch that has been shed so often, while others passed, may be shed for what is in it.
const SHED_AGAIN: u64 = 3;

impl Run {
    /// The answer to a batch: a result for each record, or one answer for all of them.
    pub(super) fn batch_answered(&mut self, mut parcel: Parcel, gzip: bool, trip: Trip, answer: &Answer) {
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
            let others_passed =
                self.routes.failed_on_all(Log::Usage, parcel.iter_mut().map(|(_, item)| &mut item.tries));
            if others_passed && parcel.iter().any(|(_, item)| item.tries.own_failures >= SHED_AGAIN) {
                halve(&mut parcel);
            }
            self.link_failed(parcel, Trouble::Overloaded, retry_after, trip, now);
        } else if parcel.len() == 1 {
            let Some((key, item)) = parcel.pop() else { return };
            if verdict == Verdict::Settled(Settlement::Delivered) {
                UNUSABLE_BATCH.clone_into(&mut self.heard);
                // 2xx without a result: nobody can say what it means for the record.
                let was_up = self.link.trouble().is_none();
                let (trouble, beside) = (Trouble::Failing, Beside::ItsKind);
                let failure = Failure { trouble, beside, retry_after, was_up, trip: Some(trip) };
                self.failed(key, item, failure, detail(answer), now);
            } else {
                self.record_answered(key, item, trip, answer);
            }
        } else if matches!(verdict, Verdict::ServerError | Verdict::Settled(Settlement::Delivered)) {
            if verdict != Verdict::ServerError {
                UNUSABLE_BATCH.clone_into(&mut self.heard);
            }
            // Perhaps one of them broke it: if others pass meanwhile, it is looked for in halves.
            if self.routes.failed_on_all(Log::Usage, parcel.iter_mut().map(|(_, item)| &mut item.tries)) {
                halve(&mut parcel);
            }
            self.troubled(Log::Usage, lanes_of(&parcel), Trouble::Failing, None, trip, now);
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
            if rest
                .iter()
                .any(|(.., verdict, _)| matches!(verdict, Verdict::ServerError | Verdict::Unavailable))
            {
                self.routes.passed_apart(Log::Usage, delivered);
            }
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
            let lanes = rest.iter().map(|(key, ..)| *key);
            self.troubled(Log::Usage, lanes, trouble, None, trip, now);
        }
        for (key, item, verdict, result) in rest {
            let detail = in_words(result.status, result.error.as_deref().unwrap_or_default());
            if verdict == Verdict::Refused {
                self.heard = of_a_batch(&result);
            }
            match verdict {
                Verdict::Refused => self.refused(key, item, detail, now),
                Verdict::SessionUnknown => self.session_unknown(key, item, detail, now),
                Verdict::ServerError | Verdict::Unavailable => {
                    let trouble =
                        if verdict == Verdict::Unavailable { Trouble::Overloaded } else { Trouble::Failing };
                    let beside = Beside::ItsKind;
                    let failure = Failure { trouble, beside, retry_after: None, was_up, trip: None };
                    self.failed(key, item, failure, detail, now);
                }
                Verdict::Link(trouble) => self.retry(key, item, trouble.label(), None, now),
                Verdict::Unsendable => self.bury(key, &item, Reason::Refused, detail),
                Verdict::Settled(settlement) => self.settle(key, &item, settlement),
            }
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
