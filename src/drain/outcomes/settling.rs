//! What becomes of a record: it is settled, sent again, or a dead letter.

use std::time::Duration;

use tokio::time::Instant;

use super::IN_PROGRESS;
use crate::drain::DrainLoop;
use crate::drain::queues::{Item, LaneKey, Parcel, last_first};
use crate::outbox::{DeadLetter, Payload, Reason, Settlement};
use crate::record::Kind;

impl DrainLoop {
    pub(super) fn give_back(&mut self, parcel: Parcel, now: Instant) {
        for (lane, item) in last_first(parcel) {
            self.lanes.put_back(lane, item, now);
        }
    }

    pub(in crate::drain) fn settle(
        &mut self,
        key: LaneKey,
        item: &Item,
        settlement: Settlement,
        now: Instant,
    ) {
        // IMPORTANT: the outbox first: once the lane is gone, only the outbox knows that this record is settled.
        self.drain.outbox.settle(&item.ticket, settlement);
        self.settled(key, item, settlement, now);
    }

    /// Finishes a record that the outbox already counts as settled.
    pub(super) fn settled(&mut self, key: LaneKey, item: &Item, settlement: Settlement, now: Instant) {
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

    pub(super) fn retry(
        &mut self,
        key: LaneKey,
        item: Item,
        reason: &str,
        wait: Option<Duration>,
        now: Instant,
    ) {
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
    pub(super) fn own_delay(&self, item: &Item) -> Duration {
        let attempts = item.history.attempts;
        if item.ticket.kind == Kind::Quota {
            self.link.quota_delay(attempts)
        } else {
            self.link.record_delay(attempts)
        }
    }

    pub(in crate::drain) fn dead_letter(
        &mut self,
        key: LaneKey,
        item: &Item,
        reason: Reason,
        detail: String,
    ) {
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
}
