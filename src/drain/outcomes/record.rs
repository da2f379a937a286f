//! Handles the answer to a request for one record.

use tokio::time::Instant;

use super::RetryReason;
use super::failures::RecordFailure;
use super::words::detail;
use crate::control_plane::{Answer, Encoding, QuotaAnswer, parse_quota_answer};
use crate::drain::DrainLoop;
use crate::drain::link::Flight;
use crate::drain::queues::{Item, LaneKey};
use crate::drain::routes::Beside;
use crate::drain::verdict::{Trouble, Verdict, judge};
use crate::outbox::{Reason, Settlement};
use crate::record::Kind;

/// The cause reported if the status alone does not explain it.
const UNUSABLE_QUOTA: &str = "an unusable answer to a quota request";

impl DrainLoop {
    /// Handles the answer to a request for one record.
    pub(super) fn record_answered(
        &mut self,
        key: LaneKey,
        item: Item,
        encoding: Encoding,
        flight: Flight,
        answer: &Answer,
        now: Instant,
    ) {
        let (verdict, retry_after) = judge(&answer.result);
        let was_up = self.link.trouble().is_none();
        if let (Kind::Quota, Verdict::Settled(settlement), Ok(response)) =
            (item.ticket.kind, verdict, &answer.result)
        {
            match (quota_data(&item, &response.body), settlement) {
                (Some(data), _) => {
                    self.delivered(item.ticket.log, 1, flight, now);
                    return self.push(key, item, settlement, data);
                }
                (None, Settlement::Delivered) => {
                    UNUSABLE_QUOTA.clone_into(&mut self.heard);
                    let failure = RecordFailure {
                        trouble: Trouble::Failing,
                        may_be_poison: true,
                        beside: Beside::Any,
                        retry_after,
                        was_up,
                        flight: Some(flight),
                    };
                    return self.failed(key, item, failure, detail(answer), now);
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
            Verdict::Settled(settlement) => self.accepted(key, &item, settlement, encoding, flight, now),
            Verdict::Refused => self.refused(key, item, detail(answer), true, now),
            // No request was sent: this says nothing about the link.
            Verdict::Unsendable => self.dead_letter(key, &item, Reason::Invalid, detail(answer)),
            Verdict::SessionUnknown => {
                self.tell_unknown(key, &item, now);
                self.session_unknown(key, item, detail(answer), now);
            }
            Verdict::InProgress => {
                self.answers(item.ticket.log, now);
                self.retry(key, item, RetryReason::InProgress, retry_after, now);
            }
            Verdict::NotTried => self.lanes.put_back(key, item, now),
            Verdict::Failed { trouble, may_be_poison } => {
                let failure = RecordFailure {
                    trouble,
                    may_be_poison,
                    beside: Beside::ItsKind,
                    retry_after,
                    was_up,
                    flight: Some(flight),
                };
                self.failed(key, item, failure, detail(answer), now);
            }
        }
    }

    /// A record was accepted, now or before.
    fn accepted(
        &mut self,
        key: LaneKey,
        item: &Item,
        settlement: Settlement,
        encoding: Encoding,
        flight: Flight,
        now: Instant,
    ) {
        if item.history.is_suspect() && !self.batching.is_proven() {
            // The batch endpoint refused a record that this endpoint accepts: the batch endpoint does not exist.
            self.batching.absent(now);
        }
        self.settle(key, item, settlement, now);
        self.dead_letter_before(key, item);
        self.delivered(item.ticket.log, 1, flight, now);
        // After the reset of a link that is up again.
        self.batching.encodings.passed(encoding, now);
    }
}

/// The data of an answer to this quota request. An answer to another one is invalid: the reader would take it for its own.
fn quota_data(item: &Item, body: &[u8]) -> Option<Vec<u8>> {
    let is_ours = |answer: &QuotaAnswer<'_>| {
        answer.api_session_id == item.record.session() && answer.transaction_id == item.record.transaction()
    };
    Some(parse_quota_answer(body).ok().filter(is_ours)?.data.to_vec())
}
