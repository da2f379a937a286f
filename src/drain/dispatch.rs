//! Dispatches the records that may go now, and admits requests without a record.

use tokio::time::Instant;

use super::DrainLoop;
use super::link::Circuit;
use super::queues::{BatchLimits, SessionOrder};
use super::sending::first_of;

/// From this limit of requests in flight on, one slot is reserved for quota requests, so that they are sent at once however
/// slowly other requests are answered. With fewer slots the reservation would cost too much.
const KEEPS_ONE_OF: usize = 8;

impl DrainLoop {
    /// Sends whatever may be sent now. Returns the time of the next action, if any.
    pub(super) fn start_sending(&mut self) -> Option<Instant> {
        let now = Instant::now();
        self.lanes.wake(now);
        if let Some(until) = self.give_turn(now) {
            return Some(until);
        }
        self.lanes.hold(self.routes.held());
        let batches = self.batching.is_on(now);
        // A batch keeps the session's order.
        self.lanes.set_order(if batches { SessionOrder::Strict } else { self.drain.settings.session_order });
        let mut limited = None;
        while self.sending.len() < self.link.limit(now) {
            // A quota request does not wait for the reserved slot, the window of bytes, or the link's rate.
            // A lane is in one batch at a time, but may be in many single requests.
            let lanes = if batches { self.lanes.sendable() } else { usize::MAX };
            let pipes = self.link.pipes(self.batching.largest(), lanes, now);
            let room = self.link.room(pipes, now);
            limited = self.link.rate_limited_until(now);
            let only_quota = self.is_kept_for_quota(now) || room.is_none() || limited.is_some();
            let probes = self.routes.due(now, |log| self.lanes.has_held(log)).filter(|_| !only_quota);
            let has_ready = if only_quota { self.lanes.has_ready_quota() } else { self.lanes.has_ready() };
            if probes.is_none() && !has_ready {
                break;
            }
            if let Some(until) = self.limited_until(now) {
                return Some(until);
            }
            // Held kinds take every second slot at most: a rate limit may make slots scarce. They also probe a link that has
            // been down for long: the other kinds' records may be what fails, and would keep it down for ever.
            let is_closed = self.link.circuit() == Circuit::Closed;
            let may_probe = !self.probed && (is_closed || self.is_down_for_long(now)) || !has_ready;
            let probes = probes.filter(|_| may_probe);
            let limits = batches.then(|| self.batch_limits(room.unwrap_or_default(), pipes));
            let picked = match probes {
                Some(log) => {
                    // While answers depend on the backend, two refusals do not suffice to pass a record.
                    let walks = self.routes.may_walk(log, now) && !self.confirmation.is_in_doubt(now);
                    self.lanes.pick_probe_of(log, walks)
                }
                None if only_quota => self.lanes.pick_quota(),
                None if is_closed => self.lanes.pick(limits),
                None => self.lanes.pick_probe(|log| self.routes.troubles_in_a_row(log)),
            };
            let Some(parcel) = picked else { break };
            if let Some((lane, expired)) = first_of(&parcel).filter(|(_, item)| self.is_expired(item)) {
                self.expire(lane, expired);
                continue;
            }
            self.may_send = false;
            self.probed = probes.is_some();
            if let Some(log) = probes {
                self.routes.probe_sent(log);
            }
            self.send(parcel, batches, probes, now);
        }
        self.next_action(limited, now)
    }

    /// The time of the next action, if any. `limited`: until when the link's rate allows no request.
    fn next_action(&self, limited: Option<Instant>, now: Instant) -> Option<Instant> {
        let probe = match self.link.circuit() {
            Circuit::Open { until } if self.lanes.has_ready() => Some(until.max(now)),
            _ => None,
        };
        let probe = probe.filter(|_| self.sending.is_empty() || self.link.limit(now) == 0);
        let whole_again = self.link.whole_again(now);
        let times = [probe, limited, self.held_probe(now), self.lanes.next_wake(), whole_again];
        times.into_iter().flatten().min()
    }

    /// Whether the link has been down for two of its longest waits. Until then a held kind is a poor probe, and one that
    /// hangs would delay the recovery.
    fn is_down_for_long(&self, now: Instant) -> bool {
        let long = self.drain.settings.link.max_backoff * 2;
        self.down_since.is_some_and(|since| now >= since + long)
    }

    fn batch_limits(&self, wire_bytes: usize, pipes: usize) -> BatchLimits {
        let (records, bytes) = self.batching.limits(wire_bytes);
        BatchLimits {
            records,
            bytes,
            of_a_session: self.batching.session_most(),
            of_one_kind: self.batching.is_of_one_kind(),
            pipes,
        }
    }

    /// Whether the next slot is the reserved one.
    fn is_kept_for_quota(&self, now: Instant) -> bool {
        let limit = self.link.limit(now);
        limit >= KEEPS_ONE_OF && self.sending.len() + 1 == limit
    }

    /// When a held kind will be probed, if not now.
    fn held_probe(&self, now: Instant) -> Option<Instant> {
        let due = self.routes.next_probe(|log| self.lanes.has_held(log))?;
        let at = match self.link.circuit() {
            Circuit::Open { until } => due.max(until),
            Circuit::HalfOpen => return None,
            Circuit::Closed => due,
        };
        (at > now).then_some(at)
    }

    /// Admits a request without a record, if one is waiting and no quota refresh is. Returns until when everything else
    /// must wait for it.
    pub(super) fn give_turn(&mut self, now: Instant) -> Option<Instant> {
        if self.turn.as_ref().is_none_or(tokio::sync::oneshot::Sender::is_closed) {
            self.turn = None;
            return None;
        }
        // A paused drain has no records that could take precedence.
        let runs = !self.orders.holds();
        match self.link.circuit() {
            Circuit::HalfOpen => return None,
            Circuit::Closed if runs && self.lanes.has_ready_quota() => return None,
            // A record is the better probe: its answer shows the state of the link.
            Circuit::Open { .. } if runs && self.lanes.has_ready() => return None,
            Circuit::Open { until } if until > now => return Some(until),
            Circuit::Closed | Circuit::Open { .. } => {}
        }
        if let Some(until) = self.limited_until(now) {
            return Some(until);
        }
        self.may_send = false;
        // A caller that has given up meanwhile only wastes one token of the rate.
        let _ = self.turn.take().map(|turn| turn.send(()));
        None
    }

    /// Takes a token of the rate and keeps it until a request is sent: there may be nothing to pick, or it may have
    /// expired. Without a token, returns when there will be one.
    fn limited_until(&mut self, now: Instant) -> Option<Instant> {
        let limiter = self.limiter.as_ref().filter(|_| !self.may_send)?;
        let Err(wait) = limiter.take() else {
            self.may_send = true;
            return None;
        };
        Some(now + wait)
    }
}
