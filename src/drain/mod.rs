//! The drain sends waiting records from the outbox, in order per session, as fast as the link allows.
//!
//! One task owns everything: it reads ahead from the outbox into [`queues`], asks the [`link`] how many requests may be in
//! flight, and acts on the [`verdict`] on each answer. No record is settled without an answer.
//!
//! # Which record may be read
//!
//! * quota requests and started events: at once;
//! * usage: once every started event appended before it has been read;
//! * `completed`: once the [`Watermark`] says that no usage pushed before it is left in Redis, and all usage appended until
//!   then has been read. The lanes enforce the rest.

mod admission;
mod batch;
mod controls;
mod dispatch;
mod link;
mod outcomes;
mod queues;
mod quota;
mod reading;
mod routes;
mod verdict;

use std::future::Future;
use std::num::NonZeroU64;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::control_plane::{Answer, Client, Encoding};
use crate::outbox::{Log, Outbox, Payload, QuotaReply, Reason, Settlement, Watermark};
use crate::record::Kind;
use crate::telemetry::metrics::Metrics;
use uuid::Uuid;

pub use admission::{Admission, AdmissionQueue, admission_channel};
use batch::Batching;
pub use batch::{Compression, DeliveryMode, Settings as BatchSettings};
use controls::Limiter;
pub use controls::{Controls, Orders, RateLimit};
pub use link::{Change, Circuit, Flight, Link, Settings as LinkSettings};
use outcomes::Confirmation;
use queues::{Item, LOGS, LaneKey, Lanes, Parcel, ReadAhead};
pub use queues::{QueueSettings, SessionOrder};
use routes::Routes;
pub use verdict::Trouble;

/// Time for Redis to accept pending quota answers when the drain pauses or stops. A request whose answer is not accepted by
/// then is sent again with the same key.
const LAST_PUSHES: Duration = Duration::from_secs(5);
/// How often quota requests are checked for expiry.
const EXPIRY_SWEEP: Duration = Duration::from_secs(1);

/// Dead letters read at startup to restore the brakes' counts, newest first, and their maximum age: a week.
const REMEMBERED_LETTERS: u64 = 2000;
const REMEMBERED_MICROS: i64 = 7 * 24 * 3600 * 1_000_000;

/// Reasons for retries other than a trouble of the link.
const OWN_REASONS: [&str; 3] = ["session_unknown", outcomes::IN_PROGRESS, outcomes::UNCONFIRMED];

/// Settings of the drain.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Of the link.
    pub link: LinkSettings,
    /// Of the batches.
    pub batch: BatchSettings,
    /// Of the records in memory.
    pub queues: QueueSettings,
    /// The order of a session's records outside batches.
    pub session_order: SessionOrder,
    /// Maximum age of a quota request.
    pub quota_ttl: Duration,
    /// How long a session may be unknown while others are delivered.
    pub session_grace: Duration,
    /// 5xx answers for one record, while others succeed, that make it a dead letter.
    pub poison_attempts: u32,
    /// The first request after startup is sent at a random moment within this time.
    pub first_contact_within: Duration,
}

/// Whether requests flow. The numbers are those of the metric.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LinkState {
    /// They flow: the circuit breaker is closed.
    #[default]
    Up = 0,
    /// A single request probes: the circuit breaker is half-open.
    Probing = 1,
    /// No request before the next probe: the circuit breaker is open. Or a kind of records is held.
    Down = 2,
}

impl LinkState {
    /// The public name.
    pub fn label(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Probing => "probing",
            Self::Down => "down",
        }
    }
}

/// The drain's public state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkStatus {
    /// Whether requests flow.
    pub state: LinkState,
    /// Why it is down, for all types or for the held ones.
    pub trouble: Option<Trouble>,
    /// Whether it is down for all kinds.
    pub is_down: bool,
    /// The answer that showed it.
    pub cause: Option<String>,
    /// When the next probe is sent.
    pub next_probe: Option<Instant>,
    /// The held record types, in sending order.
    pub held: Vec<HeldKind>,
    /// The drain is paused, by an operator or an export, and sends no more. Requests in flight may still be answered.
    pub holds: bool,
    /// It is paused, and holds no records.
    pub parked: bool,
}

/// A kind of records that the `ControlPlane` does not accept, while others may be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldKind {
    /// The kind.
    pub kind: Kind,
    /// The reason.
    pub trouble: Trouble,
    /// The answer that showed it.
    pub cause: String,
}

impl Default for LinkStatus {
    fn default() -> Self {
        Self {
            state: LinkState::Up,
            trouble: None,
            is_down: false,
            cause: None,
            next_probe: None,
            held: Vec::new(),
            holds: false,
            parked: false,
        }
    }
}

/// The drain, ready to run.
pub struct Drain {
    /// The source of records.
    pub outbox: Outbox,
    /// The destination.
    pub client: Arc<Client>,
    /// The settings.
    pub settings: Settings,
    /// Receives the answers to quota refreshes.
    pub quota_answers: mpsc::Sender<QuotaReply>,
    /// Which completed events may be sent.
    pub watermark: watch::Receiver<Watermark>,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// Publishes the link's state.
    pub status: watch::Sender<LinkStatus>,
    /// The operator's orders.
    pub orders: watch::Receiver<Orders>,
    /// Requests for admission from other users of the link.
    pub admission: AdmissionQueue,
}

/// The form in which records are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// One record, to its own endpoint.
    Single,
    /// Several records, to the batch endpoint.
    Batch {
        /// How the body is compressed.
        encoding: Encoding,
        /// The request's idempotency key, which its answer must name.
        key: Uuid,
    },
}

/// A completed request.
struct CompletedRequest {
    parcel: Parcel,
    form: Form,
    flight: Flight,
    /// The held kind that it probes.
    probes: Option<Log>,
    answer: Answer,
}

type Sending = Pin<Box<dyn Future<Output = CompletedRequest> + Send>>;
type Pushing = Pin<Box<dyn Future<Output = (LaneKey, Item, Settlement, bool)> + Send>>;

struct DrainLoop {
    drain: Drain,
    lanes: Lanes,
    link: Link,
    routes: Routes,
    batching: Batching,
    confirmation: Confirmation,
    limiter: Option<Limiter>,
    /// The orders last applied.
    orders: Orders,
    /// When it was paused.
    held_back: Option<Instant>,
    /// Whether it is paused and holds no records.
    parked: bool,
    /// A caller waiting for admission.
    turn: Option<oneshot::Sender<()>>,
    /// Whether the rate limiter has admitted a request that is not sent yet.
    may_send: bool,
    /// Whether the last request probed a held kind.
    probed: bool,
    read_ahead: ReadAhead,
    sending: FuturesUnordered<Sending>,
    pushing: FuturesUnordered<Pushing>,
    reading: Option<reading::Reading>,
    read_failed: bool,
    /// The read error last logged.
    read_trouble: Option<String>,
    renewed_token: bool,
    /// Bytes sent and received that the metrics already include.
    counted_bytes: (u64, u64),
    /// The last answer that was not 2xx.
    heard: String,
    /// The answer that showed that the link is down.
    cause: Option<String>,
    /// Since when the link is down.
    down_since: Option<Instant>,
}

impl Drain {
    /// Runs until `stop` is true; then waits for the requests in flight.
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        let first_contact =
            Instant::now() + self.settings.first_contact_within.mul_f64(crate::time::random_part());
        let mut run = DrainLoop {
            lanes: Lanes::new(self.settings.queues),
            link: Link::new(self.settings.link.clone(), first_contact),
            routes: Routes::new(self.settings.link.clone()),
            batching: Batching::new(self.settings.batch.clone()),
            confirmation: Confirmation::default(),
            limiter: None,
            orders: Orders::default(),
            held_back: None,
            parked: false,
            turn: None,
            may_send: false,
            probed: false,
            read_ahead: ReadAhead::new(self.settings.queues),
            sending: FuturesUnordered::new(),
            pushing: FuturesUnordered::new(),
            reading: None,
            read_failed: false,
            read_trouble: None,
            renewed_token: false,
            counted_bytes: (0, 0),
            heard: String::new(),
            cause: None,
            down_since: None,
            drain: self,
        };
        run.tell_trouble(&[]);
        for reason in Trouble::ALL.map(Trouble::label).into_iter().chain(OWN_REASONS) {
            run.drain.metrics.retries.with_label_values(&[reason]).inc_by(0);
        }
        tokio::select! {
            biased;
            () = run.remember_refusals() => {}
            // Stopped before it started: nothing to restore.
            _ = stop.wait_for(|stop| *stop) => {}
        }
        let mut last = run.drain.outbox.last();
        let mut watermark = run.drain.watermark.clone();
        let mut orders = run.drain.orders.clone();
        orders.mark_changed();
        let mut sweep = tokio::time::interval(EXPIRY_SWEEP);
        sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while !*stop.borrow() {
            let next = if run.orders.holds() {
                run.park();
                run.give_turn(Instant::now())
            } else {
                run.start_reading();
                run.start_sending()
            };
            run.tell();
            tokio::select! {
                biased;
                // A dropped sender also means stop.
                _ = stop.changed() => break,
                Some(sent) = run.sending.next() => run.answered(sent),
                Some(pushed) = run.pushing.next() => run.pushed(pushed),
                (log, from, page) = reading::finished(&mut run.reading) => run.loaded(log, from, page),
                Ok(()) = last.changed() => {}
                Ok(()) = watermark.changed() => {}
                Ok(()) = orders.changed() => run.obey(*orders.borrow_and_update()),
                Some(turn) = run.drain.admission.next(), if run.turn.is_none() => run.turn = Some(turn),
                () = sleep_until(next) => {}
                _ = sweep.tick() => run.sweep(),
            }
        }
        while let Some(sent) = run.sending.next().await {
            run.answered(sent);
        }
        // A quota request whose answer has reached Redis must not be sent again.
        let pushes = async {
            while let Some(pushed) = run.pushing.next().await {
                run.pushed(pushed);
            }
        };
        let _ = tokio::time::timeout(LAST_PUSHES, pushes).await;
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

impl DrainLoop {
    /// Applies the operator's orders.
    fn obey(&mut self, orders: Orders) {
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
            tracing::info!(paused = orders.paused, "the sender was paused or resumed");
        }
        if orders.exporting != before.exporting {
            tracing::info!(exporting = orders.exporting, "an export started or ended");
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
    fn park(&mut self) {
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

    /// Exports a sample for every reason from the start: alerts miss a series that appears with its first fault.
    fn tell_trouble(&self, now: &[Trouble]) {
        for trouble in Trouble::ALL {
            let is_it = i64::from(now.contains(&trouble));
            self.drain.metrics.link_trouble.with_label_values(&[trouble.label()]).set(is_it);
        }
    }

    /// Counts each kind's refusals among the newest dead letters, which an earlier process may have made a moment ago.
    /// Otherwise each restart would cost another brake's worth of dead letters.
    async fn remember_refusals(&mut self) {
        if self.drain.settings.link.refusal_brake == 0 {
            return;
        }
        let outbox = self.drain.outbox.clone();
        let since = crate::time::now().0.saturating_sub(REMEMBERED_MICROS);
        let end = outbox.next_dead_letter();
        let mut from = end.saturating_sub(REMEMBERED_LETTERS);
        let mut refusals = [0; LOGS.len()];
        // The end is fixed: a flood of malformed messages keeps adding dead letters.
        while from < end {
            // Unreadable dead letters must not stop sending: the brake then counts from zero.
            let letters = outbox.dead_letters(from, 100).await.unwrap_or_default();
            let Some(last) = letters.last() else { break };
            from = last.id + 1;
            for letter in letters {
                let was_answered = letter.reason == Reason::Refused && letter.detail.starts_with("status ");
                if let Payload::Record(record) = &letter.payload
                    && was_answered
                    && letter.last_at.0 >= since
                {
                    refusals[queues::place_of(record.kind())] += 1;
                }
            }
        }
        for (log, refusals) in LOGS.into_iter().zip(refusals) {
            self.routes.remember_refusals(log, refusals);
        }
    }

    fn held_kinds(&self) -> Vec<HeldKind> {
        let held = self.routes.all_held().map(|(log, held)| HeldKind {
            kind: queues::kind_of(log),
            trouble: held.trouble,
            cause: held.cause.clone(),
        });
        held.collect()
    }

    /// Publishes the link's state.
    fn tell(&self) {
        let (state, next_probe) = match self.link.circuit() {
            Circuit::Closed => (LinkState::Up, None),
            // Before the first request there is no known trouble.
            Circuit::Open { .. } if self.link.trouble().is_none() => (LinkState::Up, None),
            Circuit::HalfOpen => (LinkState::Probing, None),
            Circuit::Open { until } => (LinkState::Down, Some(until)),
        };
        let (trouble, cause, parked) = (self.link.trouble(), self.cause.clone(), self.parked);
        let (held, is_down, holds) = (self.held_kinds(), trouble.is_some(), self.orders.holds());
        let mut status = LinkStatus { state, trouble, is_down, cause, next_probe, held, holds, parked };
        // While the link itself is up, held kinds are reported as down.
        if let (None, Some(held)) = (trouble, status.held.first()) {
            status.trouble = Some(held.trouble);
            status.cause = Some(format!("{}: {}", held.kind.name(), held.cause));
            (status.state, status.next_probe) = (LinkState::Down, self.routes.next_probe(|_| true));
        }
        let metrics = &self.drain.metrics;
        let changed = self.drain.status.send_if_modified(|now| {
            let changed = *now != status;
            now.clone_from(&status);
            changed
        });
        if changed {
            metrics.link_state.with_label_values(&[] as &[&str]).set(status.state as i64);
            let troubles = status.trouble.into_iter().chain(status.held.iter().map(|held| held.trouble));
            self.tell_trouble(&troubles.collect::<Vec<_>>());
        }
        let limit = self.link.limit(Instant::now()) as i64;
        metrics.concurrency.with_label_values(&[] as &[&str]).set(limit);
        let (rate, round_trip) = self.link.measured();
        metrics.link_rate.set(rate);
        metrics.link_round_trip.set(round_trip.unwrap_or_default().as_secs_f64());
    }
}
