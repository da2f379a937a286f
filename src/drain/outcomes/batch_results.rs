//! Handles a batch that was answered record by record.

use tokio::time::Instant;

use super::RetryReason;
use super::failures::RecordFailure;
use super::words::{in_words, of_a_batch};
use crate::control_plane::BatchException;
use crate::drain::DrainLoop;
use crate::drain::link::Flight;
use crate::drain::queues::{Item, LOGS, LaneKey, Parcel, place};
use crate::drain::routes::Beside;
use crate::drain::verdict::{Trouble, Verdict, by_status, stops_session};
use crate::outbox::{Reason, Settlement};

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
    /// Handles the results: all records were accepted but the `exceptions`.
    pub(super) fn batch_results(
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
                    self.retry(lane, item, RetryReason::InProgress, None, now);
                }
                Verdict::Failed { trouble, may_be_poison } => {
                    let failure = RecordFailure {
                        trouble,
                        may_be_poison,
                        beside: Beside::ItsKind,
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
                if is_stopped {
                    results.breach.get_or_insert_with(|| item.record.session().to_owned());
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
