//! What becomes of a record: it is settled, sent again, or a dead letter.

use std::time::Duration;

use tokio::time::Instant;

use crate::drain::DrainLoop;
use crate::drain::Trouble;
use crate::drain::queues::{Item, LaneKey, Parcel, last_first};
use crate::outbox::{DeadLetter, Payload, Reason, Settlement};
use crate::record::Kind;

/// Why a record will be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::drain) enum RetryReason {
    /// Its request failed.
    Failed(Trouble),
    /// The `ControlPlane` is still processing an earlier attempt.
    InProgress,
    /// Its session is unknown.
    SessionUnknown,
    /// It was refused, and the refusal is not confirmed.
    Unconfirmed,
}

impl RetryReason {
    /// All reasons.
    pub(in crate::drain) fn all() -> impl Iterator<Item = Self> {
        let others = [Self::InProgress, Self::SessionUnknown, Self::Unconfirmed];
        Trouble::ALL.into_iter().map(Self::Failed).chain(others)
    }

    /// The name in logs and metrics.
    pub(in crate::drain) const fn label(self) -> &'static str {
        match self {
            Self::Failed(trouble) => trouble.label(),
            Self::InProgress => "in_progress",
            Self::SessionUnknown => "session_unknown",
            Self::Unconfirmed => "unconfirmed_refusal",
        }
    }

    /// Whether it may be the record's own, so that the record waits also while the link is down.
    const fn may_be_its_own(self) -> bool {
        matches!(
            self,
            Self::Failed(Trouble::Failing | Trouble::Refusing) | Self::InProgress | Self::SessionUnknown
        )
    }
}

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
        reason: RetryReason,
        wait: Option<Duration>,
        now: Instant,
    ) {
        self.drain.metrics.retries.with_label_values(&[reason.label()]).inc();
        if tracing::enabled!(tracing::Level::DEBUG) {
            let (correlation_id, attempts) = (item.record.correlation_id(), item.history.attempts);
            tracing::debug!(
                correlation_id = &*correlation_id,
                reason = reason.label(),
                attempts,
                "a record will be sent again"
            );
        }
        let link_is_down = self.link.trouble().is_some();
        // While the link is down its own backoff paces everything: a longer wait of a record would only delay the backlog
        // when the link is back. Failures of the record itself keep its own backoff.
        let delay = match wait {
            Some(wait) => wait,
            None if link_is_down && !reason.may_be_its_own() => Duration::ZERO,
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
