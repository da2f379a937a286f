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
mod orders;
mod outcomes;
mod past_refusals;
mod queues;
mod quota;
mod reading;
mod routes;
mod sending;
mod status;
mod sweep;
mod verdict;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::control_plane::{Answer, Client, Encoding};
use crate::outbox::{Log, Outbox, QuotaReply, Settlement, Watermark};
use crate::telemetry::metrics::Metrics;
use uuid::Uuid;

pub use admission::{Admission, AdmissionQueue, admission_channel};
use batch::Batching;
pub use batch::{Compression, DeliveryMode, Settings as BatchSettings};
use controls::Limiter;
pub use controls::{Controls, Orders, RateLimit};
pub use link::{Change, Circuit, Flight, Link, Settings as LinkSettings};
use outcomes::{Confirmation, RetryReason};
use queues::{Item, LaneKey, Lanes, Parcel, ReadAhead};
pub use queues::{QueueSettings, SessionOrder};
use routes::Routes;
pub use status::{HeldKind, LinkState, LinkStatus};
pub use verdict::Trouble;

/// Time for Redis to accept pending quota answers when the drain pauses or stops. A request whose answer is not accepted by
/// then is sent again with the same key.
const LAST_PUSHES: Duration = Duration::from_secs(5);

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
        let mut run = DrainLoop::new(self);
        run.tell_trouble(&[]);
        for reason in RetryReason::all() {
            run.drain.metrics.retries.with_label_values(&[reason.label()]).inc_by(0);
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
        let mut sweep = tokio::time::interval(sweep::EVERY);
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
    fn new(drain: Drain) -> Self {
        let first_contact =
            Instant::now() + drain.settings.first_contact_within.mul_f64(crate::time::random_part());
        Self {
            lanes: Lanes::new(drain.settings.queues),
            link: Link::new(drain.settings.link.clone(), first_contact),
            routes: Routes::new(drain.settings.link.clone()),
            batching: Batching::new(drain.settings.batch.clone()),
            confirmation: Confirmation::default(),
            limiter: None,
            orders: Orders::default(),
            held_back: None,
            parked: false,
            turn: None,
            may_send: false,
            probed: false,
            read_ahead: ReadAhead::new(drain.settings.queues),
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
            drain,
        }
    }
}
