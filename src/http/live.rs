//! What the status page is sent: the last hour at once, then a picture of the agent each second, for as long as it looks.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Serialize;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use utoipa::ToSchema;

use super::Surface;
use super::health::{Concern, Condition, Health};
use super::history::{ByKind, History, HistoryBody, HistoryFile, Rates, Reading, TICK};
use super::requests::{Requests, RouteBody};
use super::reserve::RESERVE;
use crate::outbox::Reason;
use crate::outbox::metrics::oldest_ages;
use crate::record::Queue;
use crate::secret::Secret;

/// So many pages may look at once. Each costs some microseconds a second, and one of the surface's connections.
const STREAMS: usize = 32;
/// What waits for less is just passing through, and no backlog.
const PASSING: Duration = Duration::from_secs(5);
/// The history is written so often: so much of it a crash loses.
const KEEP_EVERY: Duration = Duration::from_mins(1);
/// And at the stop, if the disk takes it within this.
const KEPT_WITHIN: Duration = Duration::from_secs(1);

/// A picture of the agent.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct StatusSnapshot {
    /// `SERVER_ID`.
    server_id: String,
    region: String,
    version: String,
    /// When this was so, in milliseconds since 1970.
    at: i64,
    uptime_seconds: f64,
    /// How the agent is.
    status: Condition,
    /// Why it is not healthy.
    reasons: Vec<String>,
    /// What is wrong or will be, where, and which section of the runbook is about it.
    concerns: Vec<Concern>,
    /// Whether the ControlPlane knows this server.
    registered: bool,
    redis: RedisSnapshot,
    outbox: OutboxSnapshot,
    link: LinkSnapshot,
    /// What waits and what goes, by kind.
    kinds: ByKind<KindSnapshot>,
    /// Requests to the ControlPlane by route.
    routes: Vec<RouteBody>,
    /// Dead letters that are kept.
    dead_letters: u64,
    /// Records that have become dead letters since this outbox began, by reason.
    dead_lettered: BTreeMap<String, u64>,
    /// When nothing will wait any more, if the backlog goes on shrinking as it does; none unless records are being
    /// delivered and it shrinks.
    drained_in_seconds: Option<f64>,
    /// What is to be said where there is no forecast.
    no_forecast: Option<String>,
    /// Whether there is an `/admin`.
    admin: bool,
}

/// Redis, as the intake sees it.
#[derive(Debug, Serialize, ToSchema)]
struct RedisSnapshot {
    connected: bool,
    /// What is wrong.
    fault: Option<String>,
}

/// The outbox as a whole.
#[derive(Debug, Serialize, ToSchema)]
struct OutboxSnapshot {
    accepting: bool,
    /// Why not.
    reason: Option<String>,
    /// Records that wait.
    depth: u64,
    bytes: u64,
    disk_bytes: u64,
    capacity_bytes: u64,
    quarantined_segments: u64,
    quarantined_records: u64,
}

/// The link to the ControlPlane, and the drain that uses it.
#[derive(Debug, Serialize, ToSchema)]
struct LinkSnapshot {
    /// Up, probing or down.
    state: &'static str,
    connected: bool,
    /// Why it is down.
    reason: Option<String>,
    /// The answer that showed it.
    cause: Option<String>,
    /// When the next probe goes.
    next_probe_seconds: Option<f64>,
    /// Whether an operator has paused the drain.
    paused: bool,
    /// Requests a second; 0: no limit.
    rate_limit: u32,
    /// Bytes a second that requests may take of the link; 0: no limit.
    bandwidth: u64,
}

/// One kind of record.
#[derive(Debug, Serialize, ToSchema)]
struct KindSnapshot {
    /// Waiting in Redis; none while that is not known.
    in_redis: Option<u64>,
    /// Waiting in the outbox.
    depth: u64,
    /// Since when the oldest of those waits.
    oldest_age_seconds: f64,
    /// Taken over a second; none before two readings.
    in_per_second: Option<f64>,
    /// Settled a second; likewise.
    out_per_second: Option<f64>,
}

/// The pictures, for all who look.
pub struct Live {
    surface: Arc<Surface>,
    token: watch::Receiver<Option<Secret>>,
    history: Mutex<History>,
    requests: Mutex<Requests>,
    streams: Arc<Semaphore>,
    tick: watch::Receiver<()>,
}

/// Takes the pictures' readings.
pub struct Sampler {
    live: Arc<Live>,
    tick: watch::Sender<()>,
    file: HistoryFile,
}

impl Live {
    /// Of this agent, with what fills it. The history goes on from what is kept in `folder`, which is the outbox's.
    pub fn of(
        surface: Arc<Surface>,
        token: watch::Receiver<Option<Secret>>,
        folder: &Path,
    ) -> (Arc<Self>, Sampler) {
        let (tick, file) = (watch::Sender::new(()), HistoryFile::in_folder(folder));
        let history = History::of(file.read(crate::time::now().0 / 1000));
        let live = Arc::new(Self {
            surface,
            token,
            history: Mutex::new(history),
            requests: Mutex::default(),
            streams: Arc::new(Semaphore::new(STREAMS)),
            tick: tick.subscribe(),
        });
        (Arc::clone(&live), Sampler { live, tick, file })
    }

    /// With the history, which is locked meanwhile: nothing that takes it again may be called.
    fn history<T>(&self, with: impl FnOnce(&mut History) -> T) -> T {
        // A reading that a panic cut short is not in it.
        with(&mut self.history.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn hour(&self) -> HistoryBody {
        self.history(|history| history.body())
    }

    fn snapshot(&self) -> StatusSnapshot {
        let surface = &*self.surface;
        let health = Health::of(surface);
        let (stats, link, orders) = (&health.stats, surface.link.borrow().clone(), *surface.orders.borrow());
        let (rates, drained_in) = self.history(|history| (history.rates(), history.drained_in()));
        let now = crate::time::now();
        let ages = oldest_ages(stats, now.0);
        let in_redis = health.redis_connected.then(|| surface.redis.borrow().depths);
        let forecast = forecast(&health, rates, drained_in);
        let depth = |queue: Queue| {
            let kinds = crate::record::Kind::ALL.iter().zip(stats.depth);
            kinds.filter(|(kind, _)| kind.queue() == queue).map(|(_, depth)| depth).sum()
        };
        let given_up =
            |reason: Reason| stats.dead_lettered.iter().map(|reasons| reasons[reason as usize]).sum();
        StatusSnapshot {
            server_id: surface.server_id.clone(),
            region: surface.region.clone(),
            version: surface.version.clone(),
            at: now.0 / 1000,
            uptime_seconds: surface.started.elapsed().as_secs_f64(),
            status: health.status(),
            reasons: health.reasons(),
            concerns: health.concerns(),
            registered: health.registered,
            redis: RedisSnapshot { connected: health.redis_connected, fault: health.redis_fault.clone() },
            outbox: OutboxSnapshot {
                accepting: stats.accepting,
                reason: stats.paused.map(str::to_owned),
                depth: stats.total_depth(),
                bytes: stats.bytes,
                disk_bytes: stats.disk_bytes,
                capacity_bytes: stats.capacity_bytes,
                quarantined_segments: stats.quarantined_segments,
                quarantined_records: stats.quarantined_records,
            },
            link: LinkSnapshot {
                state: link.state.label(),
                connected: health.control_plane_connected,
                reason: link.trouble.map(|trouble| trouble.label().to_owned()),
                cause: link.cause,
                next_probe_seconds: link
                    .next_probe
                    .map(|at| at.saturating_duration_since(tokio::time::Instant::now()).as_secs_f64()),
                paused: orders.paused,
                rate_limit: orders.rate_limit.per_second,
                bandwidth: orders.bandwidth,
            },
            kinds: ByKind::each(|queue| KindSnapshot {
                in_redis: in_redis.map(|depths| depths[queue as usize]),
                depth: depth(queue),
                oldest_age_seconds: ages[queue as usize].1,
                in_per_second: rates.map(|rates| rates.taken[queue as usize]),
                out_per_second: rates.map(|rates| rates.settled[queue as usize]),
            }),
            routes: self.requests.lock().unwrap_or_else(PoisonError::into_inner).routes(),
            dead_letters: stats.dead_letters,
            dead_lettered: Reason::ALL.map(|reason| (reason.label().to_owned(), given_up(reason))).into(),
            drained_in_seconds: forecast.as_ref().ok().map(Duration::as_secs_f64),
            no_forecast: forecast.err(),
            admin: self.token.borrow().is_some(),
        }
    }
}

/// When nothing will wait any more, or why nobody can say.
fn forecast(health: &Health, rates: Option<Rates>, drained_in: Option<Duration>) -> Result<Duration, String> {
    if !health.redis_connected {
        return Err("Redis is not connected: what waits there is not known".to_owned());
    }
    if drained_in.is_some_and(|left| left.is_zero()) && health.stats.total_depth() == 0 {
        return Ok(Duration::ZERO);
    }
    if let Some(why) = health.not_sending() {
        return Err(why.text);
    }
    if rates.is_none_or(|rates| rates.settled.iter().sum::<f64>() <= 0.0) {
        let held = health.held_kinds().next().map(|held| held.text);
        return Err(held.unwrap_or_else(|| "nothing was delivered in the last seconds".to_owned()));
    }
    if health.oldest_age() < PASSING.as_secs_f64() {
        return Err("keeping up".to_owned());
    }
    drained_in.ok_or_else(|| "not shrinking".to_owned())
}

impl Sampler {
    /// Reads the counters each second until `stop` is true; then the pages' streams end, too.
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        let mut clock = tokio::time::interval(TICK);
        // After a pause of the process there is nothing to make up for.
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut kept, mut keeping) = (Instant::now(), None::<JoinHandle<()>>);
        loop {
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => break,
                _ = clock.tick() => {}
            }
            if kept.elapsed() >= KEEP_EVERY && keeping.as_ref().is_none_or(JoinHandle::is_finished) {
                (kept, keeping) = (Instant::now(), self.keep());
            }
            let surface = &self.live.surface;
            let in_redis = surface.redis.borrow().depths;
            let reading = Reading::of(Instant::now(), &surface.outbox.durable_stats(), in_redis);
            let now_ms = crate::time::now().0 / 1000;
            self.live.history(|history| history.note(reading, now_ms));
            let mut requests = self.live.requests.lock().unwrap_or_else(PoisonError::into_inner);
            requests.note(surface.started.elapsed().as_secs_f64(), &surface.metrics);
            drop(requests);
            self.tick.send_replace(());
        }
        // One at a time, for they write one file. A disk that hangs is not waited for here.
        if let Some(keeping) = keeping
            && tokio::time::timeout(KEPT_WITHIN, keeping).await.is_err()
        {
            return;
        }
        if let Some(keeping) = self.keep() {
            let _ = tokio::time::timeout(KEPT_WITHIN, keeping).await;
        }
    }

    /// Writes the history, on a thread that may wait for the disk; not into an outbox that is full, or gone.
    fn keep(&self) -> Option<JoinHandle<()>> {
        if !self.live.surface.outbox.stats().accepting {
            return None;
        }
        let (text, file) = (self.live.history(|history| history.kept()), self.file.clone());
        Some(tokio::task::spawn_blocking(move || file.write(&text)))
    }
}

/// One event of the stream.
fn event(name: &str, data: &impl Serialize) -> Bytes {
    let mut text = format!("event: {name}\ndata: ");
    match serde_json::to_string(data) {
        Ok(json) => text.push_str(&json),
        // Numbers and strings always can be written.
        Err(error) => _ = write!(text, "{{\"error\":{:?}}}", error.to_string()),
    }
    text.push_str("\n\n");
    text.into()
}

/// What the status page shows, as it happens.
///
/// An event `history` (of the form `History`), then each second an event `now` (of the form `StatusSnapshot`).
#[utoipa::path(
    get,
    path = "/events",
    tag = "page",
    responses(
        (status = 200, description = "Server-sent events, until the agent stops", body = String,
            content_type = "text/event-stream"),
        (status = 503, description = "Too many look already, or the agent is short of descriptors"),
    )
)]
pub(super) async fn events(State(live): State<Arc<Live>>) -> Response {
    let place = Arc::clone(&live.streams).try_acquire_owned().ok().filter(|_| !RESERVE.is_short());
    let Some(place) = place else {
        return (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "10")]).into_response();
    };
    let history = live.hour();
    let first = VecDeque::from([event("history", &history), event("now", &live.snapshot())]);
    let tick = live.tick.clone();
    // A page that reads slowly misses pictures, and is never owed more than one.
    let stream = stream::unfold((live, tick, place, first), |(live, mut tick, place, mut first)| async {
        if let Some(event) = first.pop_front() {
            return Some((Ok::<_, std::convert::Infallible>(event), (live, tick, place, first)));
        }
        tick.changed().await.ok()?;
        let now = event("now", &live.snapshot());
        Some((Ok(now), (live, tick, place, first)))
    });
    ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(stream)).into_response()
}

/// The last hour, as the status page draws it.
#[utoipa::path(
    get,
    path = "/history",
    tag = "page",
    responses((status = 200, description = "Five seconds a point", body = HistoryBody))
)]
pub(super) async fn history(State(live): State<Arc<Live>>) -> axum::Json<HistoryBody> {
    axum::Json(live.hour())
}

/// How the agent is now, as the status page shows it.
#[utoipa::path(
    get,
    path = "/status",
    tag = "page",
    responses((status = 200, description = "A picture of this moment", body = StatusSnapshot))
)]
pub(super) async fn status(State(live): State<Arc<Live>>) -> axum::Json<StatusSnapshot> {
    axum::Json(live.snapshot())
}
