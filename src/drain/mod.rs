//! The drain: sends what waits in the outbox, in order per session, as fast as the link takes it and no faster.
//!
//! One task owns all of it: it reads ahead from the outbox into [`lanes`], asks the [`link`] how many requests may
//! be in flight, and acts on the [`verdict`] of each answer. Nothing is settled before an answer says so.
//!
//! # Which record may be read
//!
//! * quota requests and started events: at once;
//! * usage: once every started event that was appended before it has been read;
//! * `completed`: once the [`Horizon`] says that no usage pushed before it is left in Redis, and all usage that
//!   was appended until then has been read. The lanes see to the rest.

mod horizon;
mod lanes;
mod link;
mod verdict;

use std::collections::HashMap;
use std::future::Future;
use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use governor::clock::Clock as _;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::control_plane::{Answer, Client, Delivery, parse_quota_answer};
use crate::outbox::{DeadLetter, Lease, Log, Outbox, Payload, ReadError, Reason, Settlement, Ticket};
use crate::record::{Kind, Timestamp};
use crate::telemetry::metrics::Metrics;

pub use horizon::Horizon;
use lanes::{Item, LaneKey, Lanes};
use link::{Change, Link};
pub use link::{Circuit, Settings as LinkSettings};
pub use verdict::Trouble;
use verdict::{Verdict, judge};

/// Records of each class in hand at the most, and bytes of all together.
const WINDOW_RECORDS: usize = 8192;
const WINDOW_BYTES: usize = 12 << 20;
/// Records read at once.
const READ_RECORDS: usize = 512;
/// Of an answer, a dead letter keeps so much.
const DETAIL_BYTES: usize = 1024;
/// How often quota requests are looked through for expired ones.
const EXPIRY_SWEEP: Duration = Duration::from_secs(1);

/// How the drain works.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The link's part.
    pub link: LinkSettings,
    /// Requests a second; 0: no limit.
    pub rate_limit: u32,
    /// How many may go at once after a pause; 0: as many as go in a tenth of a second.
    pub burst: u32,
    /// How old a quota request may get.
    pub quota_ttl: Duration,
    /// How long a session may be unknown while others are delivered.
    pub session_grace: Duration,
    /// 5xx for one record while others pass, until it is a dead letter.
    pub poison_attempts: u32,
    /// The first contact after a start is at a random moment within this time.
    pub first_contact_within: Duration,
}

/// An answer to a quota refresh on its way to Redis.
pub struct QuotaPush {
    /// What is pushed.
    pub data: Vec<u8>,
    /// Answered when Redis has it.
    pub done: oneshot::Sender<()>,
}

/// What others may know of the drain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkStatus {
    /// closed, half-open or open.
    pub circuit: &'static str,
    /// Why it is down.
    pub trouble: Option<Trouble>,
    /// When the next probe goes.
    pub next_probe: Option<Instant>,
}

impl Default for LinkStatus {
    fn default() -> Self {
        Self { circuit: "closed", trouble: None, next_probe: None }
    }
}

/// The drain, ready to run.
pub struct Drain {
    /// Where records wait.
    pub outbox: Outbox,
    /// Where they go.
    pub client: Arc<Client>,
    /// How.
    pub settings: Settings,
    /// Where answers to quota refreshes go.
    pub quota_answers: mpsc::Sender<QuotaPush>,
    /// Which completed events may go.
    pub horizon: watch::Receiver<Horizon>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Where the link's state is told.
    pub status: watch::Sender<LinkStatus>,
}

type Sending = Pin<Box<dyn Future<Output = (LaneKey, Item, Instant, Answer)> + Send>>;
type Pushing = Pin<Box<dyn Future<Output = (LaneKey, Item, Settlement, bool)> + Send>>;
type Reading = Pin<Box<dyn Future<Output = (Log, u64, Result<Lease, ReadError>)> + Send>>;
type Limiter = governor::DefaultDirectRateLimiter;

struct Run {
    drain: Drain,
    lanes: Lanes,
    link: Link,
    limiter: Option<Limiter>,
    /// Up to where each log has been read.
    read: HashMap<Log, u64>,
    /// While usage is read again: up to where it had been read before.
    refill_upto: Option<u64>,
    sending: FuturesUnordered<Sending>,
    pushing: FuturesUnordered<Pushing>,
    reading: Option<Reading>,
    read_failed: bool,
    renewed_token: bool,
}

impl Drain {
    /// Runs until `stop` is true; then waits for the requests in flight.
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        let jitter = rand::random_range(0.0..=1.0);
        let first_contact = Instant::now() + self.settings.first_contact_within.mul_f64(jitter);
        let mut run = Run {
            lanes: Lanes::default(),
            link: Link::new(self.settings.link.clone(), first_contact),
            limiter: limiter(&self.settings),
            read: HashMap::new(),
            refill_upto: None,
            sending: FuturesUnordered::new(),
            pushing: FuturesUnordered::new(),
            reading: None,
            read_failed: false,
            renewed_token: false,
            drain: self,
        };
        let mut last = run.drain.outbox.last();
        let mut horizon = run.drain.horizon.clone();
        let mut sweep = tokio::time::interval(EXPIRY_SWEEP);
        sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while !*stop.borrow() {
            run.start_reading();
            let next = run.start_sending();
            run.tell();
            tokio::select! {
                biased;
                // A sender that is gone has nothing more to say but that it is over.
                _ = stop.changed() => break,
                Some(sent) = run.sending.next() => run.answered(sent),
                Some(pushed) = run.pushing.next() => run.pushed(pushed),
                (log, from, lease) = reading(&mut run.reading) => run.loaded(log, from, lease),
                Ok(()) = last.changed() => {}
                Ok(()) = horizon.changed() => {}
                () = sleep_until(next) => {}
                _ = sweep.tick() => run.sweep(),
            }
        }
        while let Some(sent) = run.sending.next().await {
            run.answered(sent);
        }
    }
}

async fn reading(reading: &mut Option<Reading>) -> (Log, u64, Result<Lease, ReadError>) {
    match reading {
        Some(lease) => {
            let read = lease.await;
            *reading = None;
            read
        }
        None => std::future::pending().await,
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

fn limiter(settings: &Settings) -> Option<Limiter> {
    let rate = NonZeroU32::new(settings.rate_limit)?;
    let burst = NonZeroU32::new(settings.burst)
        .or_else(|| NonZeroU32::new(rate.get() / 10))
        .unwrap_or(NonZeroU32::MIN);
    Some(governor::RateLimiter::direct(governor::Quota::per_second(rate).allow_burst(burst)))
}

impl Run {
    fn position(&self, log: Log) -> u64 {
        self.read.get(&log).copied().unwrap_or(0)
    }

    /// Reads ahead, one log at a time, where there is room and something to read.
    fn start_reading(&mut self) {
        if self.reading.is_some() || self.read_failed {
            return;
        }
        let end = *self.drain.outbox.last().borrow() + 1;
        if self.refill_upto.is_none()
            && let Some(from) = self.lanes.begin_refill()
        {
            self.refill_upto = Some(self.position(Log::Usage));
            self.read.insert(Log::Usage, from);
        }
        let horizon = *self.drain.horizon.borrow();
        let usage_read = self.refill_upto.unwrap_or_else(|| self.position(Log::Usage));
        let completed_end = if usage_read >= horizon.usage { horizon.completed.min(usage_read) } else { 0 };
        let bounds = [
            (Log::Quota, Kind::Quota, end),
            (Log::Started, Kind::Started, end),
            (Log::Usage, Kind::Usage, self.position(Log::Started)),
            (Log::Completed, Kind::Completed, completed_end),
        ];
        for (log, kind, bound) in bounds {
            let from = self.position(log);
            if from >= bound {
                continue;
            }
            if self.lanes.count(kind) >= WINDOW_RECORDS || self.lanes.bytes() >= WINDOW_BYTES {
                self.lanes.cut_waiting();
                continue;
            }
            let outbox = self.drain.outbox.clone();
            self.reading =
                Some(Box::pin(
                    async move { (log, from, outbox.lease(log, from, bound, READ_RECORDS).await) },
                ));
            return;
        }
    }

    fn loaded(&mut self, log: Log, from: u64, lease: Result<Lease, ReadError>) {
        let lease = match lease {
            Ok(lease) => lease,
            Err(error) => {
                // Reading on would break the order of what is behind; the records stay where they are.
                tracing::error!(%error, log = ?log, from, "the outbox cannot be read");
                self.read_failed = true;
                return;
            }
        };
        for leased in lease.records {
            self.lanes.load(leased);
        }
        self.lanes.forget_emptied();
        self.read.insert(log, lease.next);
        if log == Log::Usage
            && let Some(upto) = self.refill_upto
            && (lease.next >= upto || self.lanes.refill_is_done())
        {
            self.read.insert(log, lease.next.max(upto));
            self.refill_upto = None;
            self.lanes.refilled();
        }
    }

    /// Sends what may go now. Returns when there is something to do again, if time brings it.
    fn start_sending(&mut self) -> Option<Instant> {
        let now = Instant::now();
        self.lanes.wake(now);
        while self.sending.len() < self.link.limit(now) && self.lanes.has_ready() {
            if let Some(limiter) = &self.limiter
                && let Err(wait) = limiter.check()
            {
                return Some(now + wait.wait_time_from(governor::clock::DefaultClock::default().now()));
            }
            let probing = self.link.circuit() != Circuit::Closed;
            let picked = if probing { self.lanes.pick_probe() } else { self.lanes.pick() };
            let Some((key, item)) = picked else { break };
            if self.is_expired(&item.ticket) {
                self.expire(key, &item);
                continue;
            }
            self.link.sent();
            self.send(key, item, now);
        }
        let probe = match self.link.circuit() {
            Circuit::Open { until } if self.lanes.has_ready() => Some(until.max(now)),
            _ => None,
        };
        let probe = probe.filter(|_| self.sending.is_empty() || self.link.limit(now) == 0);
        probe.into_iter().chain(self.lanes.next_wake()).min()
    }

    fn send(&mut self, key: LaneKey, mut item: Item, now: Instant) {
        item.attempts += 1;
        if item.attempts == 1 {
            item.deliveries = self.link.deliveries();
        }
        let client = Arc::clone(&self.drain.client);
        self.sending.push(Box::pin(async move {
            let record_key = item.record.key();
            let mut buffer = uuid::Uuid::encode_buffer();
            let correlation = item
                .record
                .correlation()
                .unwrap_or_else(|| record_key.hyphenated().encode_lower(&mut buffer));
            let answer = client
                .deliver(Delivery {
                    kind: item.ticket.kind,
                    session_id: item.record.session(),
                    body: Bytes::copy_from_slice(item.record.body()),
                    key: record_key,
                    correlation_id: correlation,
                    traceparent: item.record.traceparent(),
                })
                .await;
            (key, item, now, answer)
        }));
    }

    fn answered(&mut self, (key, mut item, sent, answer): (LaneKey, Item, Instant, Answer)) {
        let now = Instant::now();
        self.count(&item.ticket, &answer);
        let (mut verdict, retry_after) = judge(&answer.result);
        if item.ticket.kind == Kind::Quota && matches!(verdict, Verdict::Delivered | Verdict::Duplicate) {
            let body = answer.result.as_ref().map(|response| response.body.clone()).unwrap_or_default();
            match (parse_quota_answer(&body), &verdict) {
                (Ok(parsed), _) => {
                    let data = parsed.data.to_vec();
                    let change = self.link.delivered(sent, now);
                    Self::announce(change);
                    self.push(key, item, &verdict, data);
                    return;
                }
                (Err(_), Verdict::Delivered) => verdict = Verdict::ServerError,
                (Err(_), _) => {}
            }
        }
        let change = match verdict {
            Verdict::Delivered | Verdict::Duplicate => {
                self.renewed_token = false;
                let settlement =
                    if verdict == Verdict::Delivered { Settlement::Delivered } else { Settlement::Duplicate };
                self.settle(key, &item, settlement);
                self.link.delivered(sent, now)
            }
            Verdict::Refused => {
                let change = self.link.refused(now);
                // The brake holds from the refusal that sets it: that one is still a dead letter, no later one.
                if self.link.is_braked() && change.is_none() {
                    self.retry(key, item, "refusing", None, now);
                } else {
                    self.bury(key, &item, Reason::Refused, &answer);
                }
                change
            }
            Verdict::SessionUnknown => self.session_unknown(key, item, &answer, now),
            Verdict::ServerError => {
                item.poisoned += u32::from(self.link.deliveries() > item.deliveries);
                item.deliveries = self.link.deliveries();
                if item.poisoned >= self.drain.settings.poison_attempts {
                    self.bury(key, &item, Reason::Poison, &answer);
                    None
                } else {
                    let change = self.link.failed(Trouble::Failing, None, sent, now);
                    self.retry(key, item, Trouble::Failing.label(), retry_after, now);
                    change
                }
            }
            Verdict::Link(trouble) => {
                if trouble == Trouble::Credentials && !self.renewed_token {
                    self.renewed_token = true;
                    self.drain.client.renew_token();
                }
                let change = self.link.failed(trouble, retry_after, sent, now);
                self.retry(key, item, trouble.label(), None, now);
                change
            }
        };
        Self::announce(change);
    }

    fn session_unknown(
        &mut self,
        key: LaneKey,
        mut item: Item,
        answer: &Answer,
        now: Instant,
    ) -> Option<Change> {
        let clock = self.link.delivering();
        let since = *item.unknown_since.get_or_insert(clock);
        if clock.saturating_sub(since) >= self.drain.settings.session_grace {
            self.bury(key, &item, Reason::SessionUnknown, answer);
            return None;
        }
        let change = self.link.session_unknown(now);
        self.retry(key, item, "session_unknown", None, now);
        change
    }

    fn settle(&mut self, key: LaneKey, item: &Item, settlement: Settlement) {
        // IMPORTANT: the outbox first: once the lane is gone, only the outbox knows that this record is done with.
        self.drain.outbox.settle(&item.ticket, settlement);
        self.lanes.settle(key, item);
        let age = (crate::clock::now().0 - item.ticket.accepted_at.0).max(0) as f64 / 1e6;
        self.drain
            .metrics
            .delivery_latency
            .with_label_values(&[item.ticket.kind.queue().label()])
            .observe(age);
    }

    fn retry(&mut self, key: LaneKey, item: Item, reason: &str, wait: Option<Duration>, now: Instant) {
        self.drain.metrics.retries.with_label_values(&[reason]).inc();
        let link_is_down = self.link.trouble().is_some();
        // While the link is down its own backoff paces everything: a record that waited longer would only delay
        // the backlog when the link is back. What the record itself met keeps its own backoff.
        let own_fault = matches!(reason, "failing" | "session_unknown" | "refusing");
        let delay = match wait {
            Some(wait) => wait,
            None if link_is_down && !own_fault => Duration::ZERO,
            None => self.link.record_delay(item.attempts),
        };
        self.lanes.put_back(key, item, now + delay);
    }

    fn bury(&mut self, key: LaneKey, item: &Item, reason: Reason, answer: &Answer) {
        let detail = match &answer.result {
            Ok(response) => {
                let head = &response.body[..response.body.len().min(DETAIL_BYTES)];
                format!("status {}: {}", response.status, String::from_utf8_lossy(head))
            }
            Err(failure) => failure.to_string(),
        };
        self.bury_with(key, item, reason, detail);
    }

    fn bury_with(&mut self, key: LaneKey, item: &Item, reason: Reason, detail: String) {
        let id = item.record.key();
        tracing::warn!(correlation_id = %id, reason = reason.label(), kind = item.ticket.kind.name(), "a record became a dead letter");
        let letter = DeadLetter {
            id: 0,
            reason,
            detail,
            attempts: item.attempts,
            first_at: item.ticket.accepted_at,
            last_at: crate::clock::now(),
            payload: Payload::Record(item.record.clone()),
        };
        self.drain.outbox.bury(&item.ticket, letter);
        self.lanes.settle(key, item);
    }

    fn is_expired(&self, ticket: &Ticket) -> bool {
        ticket.kind == Kind::Quota && ticket.accepted_at.0 < self.expiry().0
    }

    fn expiry(&self) -> Timestamp {
        let ttl = i64::try_from(self.drain.settings.quota_ttl.as_micros()).unwrap_or(i64::MAX);
        Timestamp(crate::clock::now().0.saturating_sub(ttl))
    }

    fn expire(&mut self, key: LaneKey, item: &Item) {
        let ttl = self.drain.settings.quota_ttl.as_secs();
        self.bury_with(key, item, Reason::Expired, format!("waited for longer than {ttl} s"));
    }

    fn sweep(&mut self) {
        for (key, item) in self.lanes.take_expired(self.expiry().0) {
            self.expire(key, &item);
        }
        // Whatever could not be read may be readable again: storage that was full, or was opened anew.
        self.read_failed = false;
    }

    /// Hands a quota answer to Redis; the record is settled when it is there.
    fn push(&mut self, key: LaneKey, item: Item, verdict: &Verdict, data: Vec<u8>) {
        let settlement =
            if *verdict == Verdict::Delivered { Settlement::Delivered } else { Settlement::Duplicate };
        let (done, pushed) = oneshot::channel();
        let answers = self.drain.quota_answers.clone();
        self.pushing.push(Box::pin(async move {
            let sent = answers.send(QuotaPush { data, done }).await.is_ok();
            (key, item, settlement, sent && pushed.await.is_ok())
        }));
    }

    fn pushed(&mut self, (key, item, settlement, done): (LaneKey, Item, Settlement, bool)) {
        if done {
            self.settle(key, &item, settlement);
        } else {
            // Only at shutdown: the record stays and is asked for again, with the same key, after the next start.
            self.lanes.put_back(key, item, Instant::now() + Duration::from_hours(1));
        }
    }

    fn count(&self, ticket: &Ticket, answer: &Answer) {
        let endpoint = match ticket.kind {
            Kind::Usage => "usage",
            Kind::Started => "started",
            Kind::Completed | Kind::Lifecycle => "completed",
            Kind::Quota => "refresh",
        };
        match &answer.result {
            Ok(response) => {
                let code = response.status.to_string();
                self.drain.metrics.request(endpoint, &code, answer.elapsed);
            }
            Err(failure) => self.drain.metrics.request(endpoint, failure.label(), answer.elapsed),
        }
    }

    fn announce(change: Option<Change>) {
        match change {
            Some(Change::Down(trouble)) => {
                tracing::warn!(
                    reason = trouble.label(),
                    "the link to the ControlPlane is down; records wait in the outbox"
                );
            }
            Some(Change::Up) => tracing::info!("the link to the ControlPlane is up"),
            None => {}
        }
    }

    /// Tells the others how the link is.
    fn tell(&self) {
        let (circuit, state, next_probe) = match self.link.circuit() {
            Circuit::Closed => ("closed", 0, None),
            // Before the first contact nothing is known to be wrong.
            Circuit::Open { .. } if self.link.trouble().is_none() => ("closed", 0, None),
            Circuit::HalfOpen => ("half-open", 1, None),
            Circuit::Open { until } => ("open", 2, Some(until)),
        };
        let status = LinkStatus { circuit, trouble: self.link.trouble(), next_probe };
        let metrics = &self.drain.metrics;
        let changed = self.drain.status.send_if_modified(|now| {
            let changed = *now != status;
            now.clone_from(&status);
            changed
        });
        if changed {
            metrics.link_state.with_label_values(&[] as &[&str]).set(state);
            metrics.link_trouble.reset();
            if let Some(trouble) = status.trouble {
                metrics.link_trouble.with_label_values(&[trouble.label()]).set(1);
            }
        }
        let limit = self.link.limit(Instant::now()) as i64;
        metrics.concurrency.with_label_values(&[] as &[&str]).set(limit);
    }
}
