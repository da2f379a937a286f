//! The status page's data: the last hour at once, then the agent's state each second, while the client is connected.

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
use super::history::{ByKind, CounterSample, History, HistoryBody, HistoryFile, Rates, TICK, Trend};
use super::requests::{Requests, RouteBody};
use super::reserve::RESERVE;
use crate::outbox::Reason;
use crate::outbox::metrics::oldest_ages;
use crate::record::Queue;
use crate::secret::Secret;

/// Streams at once. Each costs some microseconds per second and one of the server's connections.
const STREAMS: usize = 32;
/// Records younger than this are in transit and not a backlog.
const PASSING: Duration = Duration::from_secs(5);
/// How often the history is written: a crash loses this much of it.
const KEEP_EVERY: Duration = Duration::from_mins(1);
/// How long shutdown waits for the last write.
const KEPT_WITHIN: Duration = Duration::from_secs(1);

/// The state of the agent.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct StatusSnapshot {
    /// `SERVER_ID`.
    server_id: String,
    region: String,
    version: String,
    /// Time of this state, in milliseconds since 1970.
    at: i64,
    uptime_seconds: f64,
    /// The agent's condition.
    status: Condition,
    /// Why it is not healthy.
    reasons: Vec<String>,
    /// Present and coming problems, where they are, and the matching section of the runbook.
    concerns: Vec<Concern>,
    /// Whether the ControlPlane knows this server.
    registered: bool,
    redis: RedisSnapshot,
    outbox: OutboxSnapshot,
    link: LinkSnapshot,
    /// Backlog and rates by kind.
    kinds: ByKind<KindSnapshot>,
    /// Requests to the ControlPlane by route.
    routes: Vec<RouteBody>,
    /// Dead letters stored now.
    dead_letters: u64,
    /// Dead letters since the outbox was created, by reason.
    dead_lettered: BTreeMap<String, u64>,
    /// Seconds until the backlog is gone at its current rate of shrinking; null unless records are being delivered and it
    /// shrinks.
    drained_in_seconds: Option<f64>,
    /// Why there is no forecast.
    no_forecast: Option<String>,
    /// Whether the admin API is on.
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
    /// Why it does not accept records.
    reason: Option<String>,
    /// Waiting records.
    depth: u64,
    bytes: u64,
    /// Segments and dead letters, which the capacity limits.
    counted_bytes: u64,
    capacity_bytes: u64,
    quarantined_segments: u64,
    quarantined_records: u64,
}

/// The link to the ControlPlane, and the drain that uses it.
#[derive(Debug, Serialize, ToSchema)]
struct LinkSnapshot {
    /// `up`, `probing` or `down`; `requests fail` if only requests without records do.
    state: &'static str,
    connected: bool,
    /// Why it is not up: the code of the metrics.
    reason: Option<String>,
    /// The same in words, with what the agent does about it or the operator can do.
    meaning: Option<String>,
    /// The answer that showed it.
    cause: Option<String>,
    /// Seconds until the next probe.
    next_probe_seconds: Option<f64>,
    /// Whether an operator has paused the drain.
    paused: bool,
    /// Requests per second; 0: no limit.
    rate_limit: u32,
    /// Bytes per second that requests may use of the link; 0: no limit.
    bandwidth: u64,
}

/// One kind of record.
#[derive(Debug, Serialize, ToSchema)]
struct KindSnapshot {
    /// Waiting in Redis; null while unknown.
    in_redis: Option<u64>,
    /// Waiting in the outbox.
    depth: u64,
    /// Age of the oldest of those.
    oldest_age_seconds: f64,
    /// Taken from Redis per second; null before two readings.
    in_per_second: Option<f64>,
    /// Settled per second; null before two readings.
    out_per_second: Option<f64>,
}

/// Serves the state to all clients.
pub struct Live {
    surface: Arc<Surface>,
    token: watch::Receiver<Option<Secret>>,
    history: Mutex<History>,
    requests: Mutex<Requests>,
    streams: Arc<Semaphore>,
    tick: watch::Receiver<()>,
}

/// Reads the counters that the state is made of.
pub struct Sampler {
    live: Arc<Live>,
    tick: watch::Sender<()>,
    file: HistoryFile,
}

impl Live {
    /// For this agent, with its sampler. The history continues from the file in `folder`, the outbox's folder.
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

    /// Calls `with` on the locked history; `with` must not lock it again.
    fn history<T>(&self, with: impl FnOnce(&mut History) -> T) -> T {
        // A panic leaves the history without the reading it cut short.
        with(&mut self.history.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn hour(&self) -> HistoryBody {
        self.history(|history| history.body())
    }

    fn snapshot(&self) -> StatusSnapshot {
        let surface = &*self.surface;
        let health = Health::of(surface);
        let (stats, orders) = (&health.stats, *surface.orders.borrow());
        let (rates, trend) = self.history(|history| (history.rates(), history.trend()));
        let now = crate::time::now();
        let ages = oldest_ages(stats, now.0);
        let in_redis = surface.redis.borrow().depths;
        let forecast = forecast(&health, in_redis, rates, trend);
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
                reason: health.refusal(),
                depth: stats.total_depth(),
                bytes: stats.bytes,
                counted_bytes: stats.counted_bytes,
                capacity_bytes: stats.capacity_bytes,
                quarantined_segments: stats.quarantined_segments,
                quarantined_records: stats.quarantined_records,
            },
            link: LinkSnapshot {
                state: health.link_state(),
                connected: health.control_plane_connected,
                reason: health.link_trouble().map(|trouble| trouble.label().to_owned()),
                meaning: health.link_trouble().map(|trouble| trouble.meaning().to_owned()),
                cause: health.cause(),
                next_probe_seconds: health.next_probe_seconds(),
                paused: orders.paused,
                rate_limit: orders.rate_limit.per_second,
                bandwidth: orders.bandwidth,
            },
            kinds: ByKind::each(|queue| KindSnapshot {
                in_redis: in_redis[queue as usize],
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

/// When the backlog will be gone, or why there is no forecast.
fn forecast(
    health: &Health,
    in_redis: [Option<u64>; 3],
    rates: Option<Rates>,
    trend: Trend,
) -> Result<Duration, String> {
    if in_redis.contains(&None) {
        return Err("the backlog in Redis is unknown".to_owned());
    }
    if trend == Trend::GoneIn(Duration::ZERO) && health.stats.total_depth() == 0 {
        return Ok(Duration::ZERO);
    }
    if let Some(why) = health.not_sending().next() {
        return Err(why.text);
    }
    let left = match trend {
        Trend::GoneIn(left) => Some(left),
        Trend::Lasting => None,
        Trend::Unmeasured => return Err("measuring the rate since records can be sent".to_owned()),
    };
    if rates.is_none_or(|rates| rates.settled.iter().sum::<f64>() <= 0.0) {
        let held = health.held_kinds().next().map(|held| held.text);
        return Err(held.unwrap_or_else(|| "nothing delivered in the last seconds".to_owned()));
    }
    if health.oldest_age() < PASSING.as_secs_f64() && health.stats.accepting {
        return Err("keeping up".to_owned());
    }
    left.ok_or_else(|| "backlog not shrinking".to_owned())
}

impl Sampler {
    /// Reads the counters each second until `stop` is true, which also ends the pages' streams.
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        let mut clock = tokio::time::interval(TICK);
        // After a pause of the process, missed ticks are not made up.
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
            let health = Health::of(surface);
            let sends = health.not_sending().next().is_none();
            let reading = CounterSample::of(Instant::now(), &health.stats, in_redis, sends);
            let now_ms = crate::time::now().0 / 1000;
            self.live.history(|history| history.note(reading, now_ms));
            let mut requests = self.live.requests.lock().unwrap_or_else(PoisonError::into_inner);
            requests.note(surface.started.elapsed().as_secs_f64(), &surface.metrics);
            drop(requests);
            self.tick.send_replace(());
        }
        // One write at a time, since all write one file. Shutdown does not wait for a disk that hangs.
        if let Some(keeping) = keeping
            && tokio::time::timeout(KEPT_WITHIN, keeping).await.is_err()
        {
            return;
        }
        if let Some(keeping) = self.keep() {
            let _ = tokio::time::timeout(KEPT_WITHIN, keeping).await;
        }
    }

    /// Writes the history on a blocking thread; skipped while the outbox is full or gone.
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
        // Numbers and strings always serialize.
        Err(error) => _ = write!(text, "{{\"error\":{:?}}}", error.to_string()),
    }
    text.push_str("\n\n");
    text.into()
}

/// The live data of the status page.
///
/// One event `history` (schema `History`), then one event `now` (schema `StatusSnapshot`) per second.
#[utoipa::path(
    get,
    path = "/events",
    tag = "page",
    responses(
        (status = 200, description = "Server-sent events, until the agent stops", body = String,
            content_type = "text/event-stream"),
        (status = 503, description = "Too many open streams, or too few file descriptors"),
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
    // A slow client misses events; at most one is queued for it.
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

/// The last hour, for the status page's charts.
#[utoipa::path(
    get,
    path = "/history",
    tag = "page",
    responses((status = 200, description = "Points, five seconds apart", body = HistoryBody))
)]
pub(super) async fn history(State(live): State<Arc<Live>>) -> axum::Json<HistoryBody> {
    axum::Json(live.hour())
}

/// The agent's current state, as the status page shows it.
#[utoipa::path(
    get,
    path = "/status",
    tag = "page",
    responses((status = 200, description = "The current state", body = StatusSnapshot))
)]
pub(super) async fn status(State(live): State<Arc<Live>>) -> axum::Json<StatusSnapshot> {
    axum::Json(live.snapshot())
}
