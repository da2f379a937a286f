//! Sending: what may go now goes, one record a request or many.

use std::sync::Arc;

use bytes::Bytes;
use governor::clock::Clock as _;
use tokio::time::Instant;

use super::batch::{self, Body};
use super::lanes::{Item, LaneKey, Parcel};
use super::link::{Circuit, Trip};
use super::{Form, Run, Sent};
use crate::control_plane::{Answer, Batch, Client, Connection, Delivery, Encoding};
use crate::outbox::Log;
use crate::record::{Kind, Record};

/// With so many places for requests in flight, one is kept for a quota request: it goes at once, however slowly all the others
/// are answered. Of fewer, one would be much.
const KEEPS_ONE_OF: usize = 8;

impl Run {
    /// Sends what may go now. Returns when there is something to do again, if time brings it.
    pub(super) fn start_sending(&mut self) -> Option<Instant> {
        let now = Instant::now();
        self.lanes.wake(now);
        if let Some(until) = self.give_turn(now) {
            return Some(until);
        }
        self.lanes.hold(self.routes.held());
        while self.sending.len() < self.link.limit(now) {
            let is_kept = self.is_kept_for_quota(now);
            let probes = self.routes.due(now, |log| self.lanes.has_held(log)).filter(|_| !is_kept);
            let has_ready = if is_kept { self.lanes.has_ready_quota() } else { self.lanes.has_ready() };
            if probes.is_none() && !has_ready {
                break;
            }
            if let Some(until) = self.link.paced_until(now) {
                return Some(until);
            }
            if let Some(until) = self.limited_until(now) {
                return Some(until);
            }
            let batches = self.batching.is_on(now);
            let is_closed = self.link.circuit() == Circuit::Closed;
            // What is held says nothing good of a link that is down: it probes that where nothing else can. Nor does it
            // take one place after the other where these are few, by a limit on the rate or a slow pace.
            let may_probe = is_closed && !self.probed || !has_ready;
            let probes = probes.filter(|_| may_probe);
            let picked = match probes {
                Some(log) => self.lanes.pick_probe_of(log),
                None if is_kept => self.lanes.pick_quota(),
                None if is_closed => self.lanes.pick(batches.then_some(&self.batching)),
                None => self.lanes.pick_probe(|log| self.routes.troubles_in_a_row(log)),
            };
            let Some(parcel) = picked else { break };
            let Some((key, first)) = parcel.first() else { continue };
            if self.is_expired(first) {
                self.expire(*key, first);
                continue;
            }
            let batch = batches && first.ticket.kind == Kind::Usage && batch::fits(first.record.body());
            let form = if batch { self.batching.next() } else { Form::Single };
            self.link.sent(now);
            self.may_send = false;
            self.probed = probes.is_some();
            if let Some(log) = probes {
                self.routes.probe_sent(log);
            }
            self.send(parcel, form, probes, now);
        }
        let probe = match self.link.circuit() {
            Circuit::Open { until } if self.lanes.has_ready() => Some(until.max(now)),
            _ => None,
        };
        let probe = probe.filter(|_| self.sending.is_empty() || self.link.limit(now) == 0);
        probe.into_iter().chain(self.held_probe(now)).chain(self.lanes.next_wake()).min()
    }

    /// Whether the next place is the last of many.
    fn is_kept_for_quota(&self, now: Instant) -> bool {
        let limit = self.link.limit(now);
        limit >= KEEPS_ONE_OF && self.sending.len() + 1 == limit
    }

    /// When a kind that is held will be probed, if that is not now.
    fn held_probe(&self, now: Instant) -> Option<Instant> {
        let due = self.routes.next_probe(|log| self.lanes.has_held(log))?;
        let at = match self.link.circuit() {
            Circuit::Open { until } => due.max(until),
            Circuit::HalfOpen => return None,
            Circuit::Closed => due,
        };
        (at > now).then_some(at)
    }

    /// Lets one request go that is about no record, if somebody waits for that and no quota refresh does. Returns until
    /// when everything has to wait for it.
    pub(super) fn give_turn(&mut self, now: Instant) -> Option<Instant> {
        if self.turn.as_ref().is_none_or(tokio::sync::oneshot::Sender::is_closed) {
            self.turn = None;
            return None;
        }
        // Of a drain that holds back nothing may go that would have to go first.
        let runs = !self.orders.holds();
        match self.link.circuit() {
            Circuit::HalfOpen => return None,
            Circuit::Closed if runs && self.lanes.has_ready_quota() => return None,
            // A record is the better probe: its answer says how the link is.
            Circuit::Open { .. } if runs && self.lanes.has_ready() => return None,
            Circuit::Open { until } if until > now => return Some(until),
            Circuit::Closed | Circuit::Open { .. } => {}
        }
        if let Some(until) = self.limited_until(now) {
            return Some(until);
        }
        self.may_send = false;
        // One that has given up meanwhile has wasted a place in the rate, and nothing else.
        let _ = self.turn.take().map(|turn| turn.send(()));
        None
    }

    /// Takes a place in the rate, which is kept until a request goes: what is picked may be nothing, or have expired. Or
    /// says when there is one.
    fn limited_until(&mut self, now: Instant) -> Option<Instant> {
        let limiter = self.limiter.as_ref().filter(|_| !self.may_send)?;
        let Err(wait) = limiter.check() else {
            self.may_send = true;
            return None;
        };
        Some(now + wait.wait_time_from(governor::clock::DefaultClock::default().now()))
    }

    fn send(&mut self, mut parcel: Parcel, form: Form, probes: Option<Log>, now: Instant) {
        for (_, item) in &mut parcel {
            item.tries.attempts += 1;
            if item.tries.attempts == 1 {
                self.routes.begin(item.ticket.log, &mut item.tries);
            }
        }
        let client = Arc::clone(&self.drain.client);
        let trip = Trip::begin(&parcel, now);
        self.sending.push(Box::pin(async move {
            let answer = match (form, parcel.as_slice()) {
                (Form::Single, [(_, item)]) => deliver(&client, &item.record).await,
                (form, parcel) => deliver_batch(&client, parcel, form == Form::Batch { gzip: true }).await,
            };
            Sent { parcel, form, trip, probes, answer }
        }));
    }
}

async fn deliver(client: &Client, record: &Record) -> Answer {
    client
        .deliver(Delivery {
            kind: record.kind(),
            session_id: record.session(),
            transaction_id: record.transaction(),
            body: Bytes::copy_from_slice(record.body()),
            key: record.key(),
            correlation_id: &record.correlation_id(),
            traceparent: record.traceparent(),
            connection: Connection::Any,
        })
        .await
}

async fn deliver_batch(client: &Client, parcel: &[(LaneKey, Item)], gzip: bool) -> Answer {
    let Body { bytes, key } = batch::body(parcel, gzip);
    let mut buffer = uuid::Uuid::encode_buffer();
    let correlation_id: &str = key.hyphenated().encode_lower(&mut buffer);
    if tracing::enabled!(tracing::Level::DEBUG) {
        for (_, item) in parcel {
            // The request has one id for all of them: this line leads from each record's own to that.
            tracing::debug!(
                correlation_id = &*item.record.correlation_id(),
                batch = correlation_id,
                "a record goes out in a batch"
            );
        }
    }
    let encoding = if gzip { Encoding::Gzip } else { Encoding::Identity };
    let records = parcel.len();
    let connection = Connection::Any;
    client.deliver_batch(Batch { body: bytes, encoding, records, key, correlation_id, connection }).await
}
