//! Applies the operator's orders, and parks a paused drain.

use std::num::NonZeroU64;

use tokio::time::Instant;

use super::controls::Orders;
use super::queues::{Lanes, ReadAhead};
use super::{DrainLoop, LAST_PUSHES};

impl DrainLoop {
    /// Applies the operator's orders.
    pub(super) fn obey(&mut self, orders: Orders) {
        let before = std::mem::replace(&mut self.orders, orders);
        let metrics = &self.drain.metrics;
        if orders.rate_limit != before.rate_limit {
            self.limiter = orders.rate_limit.limiter();
            metrics.rate_limit.set(orders.rate_limit.per_second.into());
        }
        if orders.bandwidth != before.bandwidth {
            self.drain.client.set_bandwidth(NonZeroU64::new(orders.bandwidth));
            metrics.bandwidth_limit.set(orders.bandwidth as i64);
        }
        if orders.holds() != before.holds() {
            self.parked = false;
            self.held_back = orders.holds().then(Instant::now);
            metrics.paused.set(orders.holds().into());
        }
        if orders.paused != before.paused {
            let order = if orders.paused { "paused" } else { "resumed" };
            tracing::info!("the sender was {order} by an operator");
        }
        if orders.exporting != before.exporting {
            let state = if orders.exporting { "started: the sender waits" } else { "ended" };
            tracing::info!("an export {state}");
        }
        let now = Instant::now();
        if orders.brake_releases != before.brake_releases {
            for log in self.routes.release_brakes(now) {
                self.let_go(log, now);
            }
        }
        if orders.probes != before.probes {
            self.link.hurry(now);
            self.routes.hurry(now);
            self.lanes.wake_all();
        }
    }

    /// While paused, once nothing is in flight: releases the records in memory. They are read again when the drain resumes,
    /// without those settled meanwhile.
    pub(super) fn park(&mut self) {
        let is_over = self.held_back.is_some_and(|since| since.elapsed() >= LAST_PUSHES);
        let waits =
            !self.sending.is_empty() || self.reading.is_some() || !(self.pushing.is_empty() || is_over);
        if !self.parked && !waits {
            // IMPORTANT: together with the lanes, which would wait for them.
            self.pushing.clear();
            self.lanes = Lanes::new(self.drain.settings.queues);
            self.routes.forget_lanes();
            self.read_ahead = ReadAhead::new(self.drain.settings.queues);
            self.parked = true;
        }
    }
}
