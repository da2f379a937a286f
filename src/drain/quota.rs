//! Quota requests: they expire, and are settled only once Redis has their answers.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::DrainLoop;
use super::queues::{Item, LaneKey};
use crate::outbox::{QuotaReply, Reason, Settlement};
use crate::record::{Kind, Timestamp};

impl DrainLoop {
    pub(super) fn is_expired(&self, item: &Item) -> bool {
        item.ticket.kind == Kind::Quota && item.ticket.accepted_at.0 < self.expiry().0
    }

    /// Quota requests accepted before this have expired.
    pub(super) fn expiry(&self) -> Timestamp {
        crate::time::lowest_within(self.drain.settings.quota_ttl)
    }

    pub(super) fn expire(&mut self, key: LaneKey, item: &Item) {
        let ttl = self.drain.settings.quota_ttl.as_secs();
        self.dead_letter(key, item, Reason::Expired, format!("waited longer than {ttl} s"));
    }

    /// Sends a quota answer to Redis. The record is settled when Redis has it.
    pub(super) fn push(&mut self, key: LaneKey, item: Item, settlement: Settlement, data: Vec<u8>) {
        let (done, pushed) = oneshot::channel();
        let answers = self.drain.quota_answers.clone();
        self.pushing.push(Box::pin(async move {
            let sent = answers.send(QuotaReply { data, done }).await.is_ok();
            (key, item, settlement, sent && pushed.await.is_ok())
        }));
    }

    pub(super) fn pushed(&mut self, (key, item, settlement, done): (LaneKey, Item, Settlement, bool)) {
        if done {
            self.settle(key, &item, settlement, Instant::now());
        } else {
            // The pushing task has failed, and the agent will end: the record stays and is sent again with the same key.
            self.lanes.put_back(key, item, Instant::now() + Duration::from_hours(1));
        }
    }
}
