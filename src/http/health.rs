//! Health and readiness of the agent and its parts.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use super::Surface;
use crate::drain::{HeldKind, LinkState, Orders, Trouble};
use crate::fleet::agent_metrics::is_well;
use crate::intake::NameHolder;
use crate::outbox::metrics::oldest_ages;
use crate::outbox::{DISK_LOW, FULL, Stats, meaning_of};
use crate::record::Queue;

/// The condition of the agent or of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Condition {
    /// It works.
    Healthy,
    /// Something is wrong, and nothing is lost.
    Degraded,
    /// The outbox does not accept records, or the process is stopping.
    Unhealthy,
}

/// Health, as `/health` reports it.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Health)]
pub(super) struct HealthBody {
    /// The agent's condition.
    status: Condition,
    /// Why it is not healthy.
    reasons: Vec<String>,
    /// Time of this state.
    #[schema(format = DateTime)]
    timestamp: String,
    /// The agent's version.
    version: String,
    /// Uptime of this process.
    uptime_seconds: f64,
    /// Whether Redis answers.
    redis_connected: bool,
    /// Whether the ControlPlane answers: false before its first answer, and after five failed requests in a row.
    control_plane_connected: bool,
    /// Whether the ControlPlane knows this server.
    server_registered: bool,
    /// The condition of each part.
    components: Components,
    /// The backlog.
    outbox: OutboxBody,
}

/// The condition of each part of the agent.
#[derive(Debug, Serialize, ToSchema)]
struct Components {
    redis: Component,
    outbox: OutboxComponent,
    drain: Component,
    control_plane: LinkComponent,
    registration: Component,
}

/// A part of the agent.
#[derive(Debug, Serialize, ToSchema)]
struct Component {
    status: Condition,
    /// What is wrong, or not done yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// The outbox.
#[derive(Debug, Serialize, ToSchema)]
struct OutboxComponent {
    status: Condition,
    /// What is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// What an acknowledged record survives.
    durability: &'static str,
}

/// The link to the ControlPlane.
#[derive(Debug, Serialize, ToSchema)]
struct LinkComponent {
    status: Condition,
    /// `up`, `probing` or `down`, and why it is not up; `requests fail`, and why, if only requests without records do.
    link: String,
    /// The answer that showed it.
    cause: Option<String>,
    /// Seconds until the next probe while the link is down.
    next_probe_seconds: Option<f64>,
    /// Held record types: the ControlPlane does not accept them. The others pass while the link is up.
    held: Vec<HeldBody>,
}

/// A held record type: its records wait, and one at a time probes.
#[derive(Debug, Serialize, ToSchema)]
struct HeldBody {
    /// usage_record, session_started, session_completed or quota_refresh.
    kind: &'static str,
    /// refusing, no_route, or a failure of this type alone: overloaded, failing, timeout, unreachable.
    reason: &'static str,
    /// The answer that showed it.
    cause: String,
}

/// Health with metrics.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct DetailedHealth {
    #[serde(flatten)]
    health: HealthBody,
    metrics: MetricsBody,
}

/// The backlog and its disk usage.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Outbox)]
pub(super) struct OutboxBody {
    /// Waiting records.
    depth: u64,
    /// Bytes of the waiting records.
    bytes: u64,
    /// Age of the oldest waiting record.
    oldest_age_seconds: f64,
    /// Disk usage of the outbox.
    disk_bytes: u64,
    /// The part of it that the limit applies to: segments and dead letters.
    counted_bytes: u64,
    /// `OUTBOX_MAX_BYTES`.
    capacity_bytes: u64,
    /// Dead letters stored now.
    dead_letters: u64,
    /// Damaged segments in quarantine, not salvaged.
    quarantined_segments: u64,
    /// Known records in those.
    quarantined_records: u64,
}

/// The most important metrics, for scripts.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Metrics)]
pub(super) struct MetricsBody {
    /// `SERVER_ID`.
    server_id: String,
    /// Time of this state.
    #[schema(format = DateTime)]
    timestamp: String,
    /// Uptime of this process.
    uptime_seconds: f64,
    /// Records waiting in Redis, by queue; null while unknown.
    queue_metrics: BTreeMap<String, Option<u64>>,
    connection_status: ConnectionStatus,
    server_info: ServerInfo,
    outbox: OutboxBody,
}

/// Whether Redis and the ControlPlane answer.
#[derive(Debug, Serialize, ToSchema)]
struct ConnectionStatus {
    redis: bool,
    control_plane: bool,
}

/// This server.
#[derive(Debug, Serialize, ToSchema)]
struct ServerInfo {
    version: String,
    region: String,
    /// Whether the ControlPlane knows it.
    registered: bool,
}

/// A present or coming problem.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Concern {
    /// The part it concerns.
    pub place: Place,
    /// The problem, in words.
    pub text: String,
    /// The alert whose section of `/runbook` says what to do.
    #[schema(value_type = Option<String>)]
    pub runbook: Option<&'static str>,
}

/// A part of the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Place {
    /// The process as a whole.
    Agent,
    Redis,
    Outbox,
    Disk,
    Backlog,
    Link,
    DeadLetters,
}

impl Concern {
    fn new(place: Place, text: String, runbook: &'static str) -> Self {
        Self { place, text, runbook: Some(runbook) }
    }
}

/// The runbook section for it.
fn section_of(trouble: Trouble) -> &'static str {
    match trouble {
        Trouble::Credentials => "DataplaneCredentialsRefused",
        Trouble::ForeignAnswer => "DataplaneForeignAnswers",
        Trouble::Refusing => "DataplaneEverythingRefused",
        _ => "DataplaneLinkDown",
    }
}

/// The trouble's code, as in metrics and alerts, and what it is, in words.
pub(super) fn worded(trouble: Trouble) -> String {
    format!("{}: {}", trouble.label(), trouble.meaning())
}

/// Share of the capacity from which the outbox is nearly full.
const NEARLY_FULL: f64 = 0.9;
/// Age from which a record is reported, as in the alert.
const OLD: Duration = Duration::from_hours(1);

/// The current state.
pub(super) struct Health {
    pub redis_connected: bool,
    pub control_plane_connected: bool,
    pub registered: bool,
    registration_trouble: Option<String>,
    pub redis_fault: Option<String>,
    is_held_by_another: bool,
    pub stats: Stats,
    stopping: bool,
    link: LinkState,
    trouble: Option<Trouble>,
    is_link_down: bool,
    link_cause: Option<String>,
    next_probe: Option<tokio::time::Instant>,
    held: Vec<HeldKind>,
    drain_holds: Option<&'static str>,
    /// Why requests have failed since the `ControlPlane` last served this agent, and the last answer; `None` if a record was
    /// among them.
    failing: Option<(Trouble, String)>,
    is_well: bool,
}

impl Health {
    pub(super) fn of(surface: &Surface) -> Self {
        let redis = surface.redis.borrow();
        let link = surface.link.borrow();
        let (orders, stats) = (*surface.orders.borrow(), surface.outbox.durable_stats());
        let registration_trouble = surface.registration_trouble.borrow().clone();
        // Without records only heartbeats and polls show it.
        let failing = surface.client.unanswered().filter(|_| link.trouble.is_none());
        let is_answered = registration_trouble.is_none() && failing.is_none();
        Self {
            is_well: is_well(&redis, &link, orders, &stats) && is_answered,
            failing: failing.map(|failing| (Trouble::of(&failing), failing.cause)),
            registration_trouble,
            redis_connected: redis.connected,
            redis_fault: redis.fault.clone(),
            is_held_by_another: redis.connected && redis.name == NameHolder::Another,
            control_plane_connected: link.trouble.is_none() && surface.client.is_connected(),
            link: link.state,
            trouble: link.trouble,
            is_link_down: link.is_down,
            link_cause: link.cause.clone(),
            next_probe: link.next_probe,
            held: link.held.clone(),
            drain_holds: match orders {
                Orders { exporting: true, .. } => {
                    Some("an export is in progress; the agent sends again when it ends")
                }
                Orders { paused: true, .. } => {
                    Some("paused by an operator, until it is resumed or restarted")
                }
                _ => None,
            },
            registered: *surface.registered.borrow(),
            stopping: *surface.stopping.borrow(),
            stats,
        }
    }

    /// The outbox is full or cannot be written, or the process is stopping.
    pub(super) fn is_unhealthy(&self) -> bool {
        self.stopping || !self.stats.accepting
    }

    /// 200 when ready, else 503.
    pub(super) fn readiness(&self) -> StatusCode {
        let is_down = self.is_unhealthy() || !self.redis_connected;
        if is_down { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK }
    }

    /// Damaged segments are in quarantine: the rest works, but an operator has to act.
    fn is_damaged(&self) -> bool {
        self.stats.quarantined_segments > 0
    }

    pub(super) fn status(&self) -> Condition {
        match (self.is_unhealthy(), self.is_well) {
            (true, _) => Condition::Unhealthy,
            (false, true) => Condition::Healthy,
            (false, false) => Condition::Degraded,
        }
    }

    /// Why no records are sent: an order, the link, or both.
    pub(super) fn not_sending(&self) -> impl Iterator<Item = Concern> {
        let held = self
            .drain_holds
            .map(|why| Concern::new(Place::Link, format!("not sending: {why}"), "DataplaneDrainPaused"));
        // Meanwhile nothing probes it with a record.
        let state = if held.is_some() { "was down when last tried" } else { "is down" };
        let down = self.trouble.filter(|_| self.is_link_down).map(|trouble| {
            let cause = self.link_cause.as_ref().map(|cause| format!(". The last answer: {cause}"));
            let text = format!("the link {state}: {}{}", worded(trouble), cause.unwrap_or_default());
            Concern::new(Place::Link, text, section_of(trouble))
        });
        held.into_iter().chain(down)
    }

    /// The time until a record probes the link, if one will.
    pub(super) fn next_probe_seconds(&self) -> Option<f64> {
        let at = self.next_probe.filter(|_| self.drain_holds.is_none())?;
        Some(at.saturating_duration_since(tokio::time::Instant::now()).as_secs_f64())
    }

    /// The link's state: `up`, `probing` or `down`; `requests fail` if only requests without records do.
    pub(super) fn link_state(&self) -> &'static str {
        if self.failing.is_some() { "requests fail" } else { self.link.label() }
    }

    /// Why the ControlPlane cannot be used, whatever request showed it.
    pub(super) fn link_trouble(&self) -> Option<Trouble> {
        self.trouble.or(self.failing_for())
    }

    /// Why requests have failed since the `ControlPlane` last served this agent, if no record was among them.
    pub(super) fn failing_for(&self) -> Option<Trouble> {
        self.failing.as_ref().map(|(trouble, _)| *trouble)
    }

    /// The answer that showed that the ControlPlane cannot be used.
    pub(super) fn cause(&self) -> Option<String> {
        self.link_cause.clone().or_else(|| self.failing.as_ref().map(|(_, cause)| cause.clone()))
    }

    /// The held record types, and why.
    pub(super) fn held_kinds(&self) -> impl Iterator<Item = Concern> {
        self.held.iter().map(|held| {
            let text = format!("{} records are held: {}", held.kind.name(), worded(held.trouble));
            Concern::new(Place::Link, text, section_of(held.trouble))
        })
    }

    /// Why the outbox accepts no records: the code of the metric, a phrase, and the figures of a full outbox or disk.
    pub(super) fn refusal(&self) -> Option<String> {
        let (stats, reason) = (&self.stats, self.stats.paused?);
        let figures = match (reason, stats.disk_free_bytes) {
            (FULL, _) => format!(" ({} of {} bytes)", stats.counted_bytes, stats.capacity_bytes),
            (DISK_LOW, Some(free)) => {
                format!(" ({free} bytes free, OUTBOX_MIN_FREE_BYTES is {})", stats.min_free_bytes)
            }
            _ => String::new(),
        };
        Some(format!("{reason}: {}{figures}", meaning_of(reason)))
    }

    /// How much lies in quarantine, and what to do.
    fn quarantine(&self) -> Option<String> {
        let Stats { quarantined_segments: segments, quarantined_records: records, .. } = self.stats;
        self.is_damaged().then(|| {
            format!(
                "damaged segments in quarantine: {segments}, with {records} known records, which are not delivered; recover \
                 them with `dataplane-agent outbox salvage`"
            )
        })
    }

    /// What is wrong with Redis.
    fn redis_trouble(&self) -> Option<String> {
        match (&self.redis_fault, self.redis_connected) {
            (Some(fault), _) if self.is_held_by_another => {
                Some(format!("{fault}. This agent takes no records; it exits, and systemd starts it again"))
            }
            (Some(fault), _) => Some(format!("{fault}; the agent keeps trying, and records stay in Redis")),
            (None, false) => Some("not connected yet; the agent keeps trying".to_owned()),
            (None, true) => None,
        }
    }

    /// Present problems, in words.
    pub(super) fn reasons(&self) -> Vec<String> {
        self.troubles().into_iter().map(|trouble| trouble.text).collect()
    }

    /// Present problems with their runbook sections.
    fn troubles(&self) -> Vec<Concern> {
        let mut troubles = Vec::new();
        if self.stopping {
            let text = "the agent is stopping; records stay in Redis and in the outbox".to_owned();
            troubles.push(Concern { place: Place::Agent, text, runbook: None });
        }
        if let Some(refusal) = self.refusal() {
            let text = format!("the outbox is not accepting records: {refusal}");
            troubles.push(Concern::new(Place::Outbox, text, "DataplaneOutboxNotAccepting"));
        }
        let quarantine = self.quarantine();
        troubles.extend(quarantine.map(|text| Concern::new(Place::Outbox, text, "DataplaneQuarantine")));
        let section = match (self.is_held_by_another, self.redis_connected) {
            (true, _) => "DataplaneServerIdTaken",
            (false, true) => "DataplaneRedisRefuses",
            (false, false) => "DataplaneRedisAway",
        };
        let redis = self.redis_trouble().map(|trouble| format!("Redis: {trouble}"));
        troubles.extend(redis.map(|text| Concern::new(Place::Redis, text, section)));
        troubles.extend(self.not_sending());
        troubles.extend(self.failing.iter().map(|(trouble, cause)| {
            let text =
                format!("requests to the ControlPlane fail: {}. The last answer: {cause}", worded(*trouble));
            let section = match section_of(*trouble) {
                "DataplaneLinkDown" => "DataplaneControlPlaneSilent",
                section => section,
            };
            Concern::new(Place::Link, text, section)
        }));
        troubles.extend(self.held_kinds());
        // Where no request passes, this is only a consequence.
        let registration = self.registration_trouble.iter().filter(|_| self.link_trouble().is_none());
        troubles.extend(registration.map(|why| {
            let text = format!("registration: {why}; the agent keeps trying");
            Concern::new(Place::Link, text, "DataplaneNotRegistered")
        }));
        troubles
    }

    /// Present problems, and those to come unless somebody acts.
    pub(super) fn concerns(&self) -> Vec<Concern> {
        let (mut concerns, stats) = (self.troubles(), &self.stats);
        if stats.accepting && stats.counted_bytes as f64 > stats.capacity_bytes as f64 * NEARLY_FULL {
            let text = "the outbox is nearly full; when it is full, records stay in Redis".to_owned();
            concerns.push(Concern::new(Place::Disk, text, "DataplaneOutboxFillsUp"));
        }
        if stats.is_in_memory {
            let text = "OUTBOX_DIR is in memory: a power cut loses the waiting records".to_owned();
            concerns.push(Concern { place: Place::Outbox, text, runbook: None });
        }
        if self.oldest_age() > OLD.as_secs_f64() {
            let text = "the oldest record has waited more than an hour".to_owned();
            concerns.push(Concern::new(Place::Backlog, text, "DataplaneBacklogOld"));
        }
        if stats.dead_letters > 0 {
            let text =
                format!("dead letters: {}, kept and not billed; replay or drop them", stats.dead_letters);
            concerns.push(Concern::new(Place::DeadLetters, text, "DataplaneDeadLetters"));
        }
        concerns
    }

    /// Age in seconds of the oldest waiting record.
    pub(super) fn oldest_age(&self) -> f64 {
        oldest_ages(&self.stats, crate::time::now().0).iter().map(|(_, age)| *age).fold(0.0, f64::max)
    }

    fn outbox(&self) -> OutboxBody {
        OutboxBody {
            depth: self.stats.total_depth(),
            bytes: self.stats.bytes,
            oldest_age_seconds: self.oldest_age(),
            disk_bytes: self.stats.disk_bytes,
            counted_bytes: self.stats.counted_bytes,
            capacity_bytes: self.stats.capacity_bytes,
            dead_letters: self.stats.dead_letters,
            quarantined_segments: self.stats.quarantined_segments,
            quarantined_records: self.stats.quarantined_records,
        }
    }

    fn components(&self) -> Components {
        let redis = self.redis_trouble().map_or_else(Component::healthy, Component::degraded);
        let (status, reason) = match (self.refusal(), self.quarantine()) {
            (Some(refusal), _) => (Condition::Unhealthy, Some(refusal)),
            (None, Some(quarantine)) => (Condition::Degraded, Some(quarantine)),
            (None, None) => (Condition::Healthy, None),
        };
        let outbox = OutboxComponent { status, reason, durability: self.stats.durability.meaning() };
        let drain = self.drain_holds.map_or_else(Component::healthy, Component::degraded);
        let (status, link) = match self.link_trouble() {
            Some(trouble) => (Condition::Degraded, format!("{}: {}", self.link_state(), trouble.label())),
            None => (Condition::Healthy, self.link_state().to_owned()),
        };
        let next_probe_seconds = self.next_probe_seconds();
        let cause = self.cause();
        let held = self.held.iter().map(|held| HeldBody {
            kind: held.kind.name(),
            reason: held.trouble.label(),
            cause: held.cause.clone(),
        });
        let held = held.collect();
        let control_plane = LinkComponent { status, link, cause, next_probe_seconds, held };
        let registration = match &self.registration_trouble {
            Some(trouble) => Component::degraded(format!("{trouble}; the agent keeps trying")),
            // At a start that is no trouble yet.
            None if !self.registered => Component {
                reason: Some("not registered; the agent retries".to_owned()),
                ..Component::healthy()
            },
            None => Component::healthy(),
        };
        Components { redis, outbox, drain, control_plane, registration }
    }

    pub(super) fn body(&self, surface: &Surface) -> HealthBody {
        HealthBody {
            status: self.status(),
            reasons: self.reasons(),
            timestamp: crate::time::now().to_rfc3339(),
            version: surface.version.clone(),
            uptime_seconds: surface.started.elapsed().as_secs_f64(),
            redis_connected: self.redis_connected,
            control_plane_connected: self.control_plane_connected,
            server_registered: self.registered,
            components: self.components(),
            outbox: self.outbox(),
        }
    }

    pub(super) fn detailed(&self, surface: &Surface) -> DetailedHealth {
        DetailedHealth { health: self.body(surface), metrics: self.metrics(surface) }
    }

    pub(super) fn metrics(&self, surface: &Surface) -> MetricsBody {
        let depths = surface.redis.borrow().depths;
        let name = |queue: Queue| surface.names.queue(queue).to_owned();
        MetricsBody {
            server_id: surface.server_id.clone(),
            timestamp: crate::time::now().to_rfc3339(),
            uptime_seconds: surface.started.elapsed().as_secs_f64(),
            queue_metrics: Queue::ALL.map(|queue| (name(queue), depths[queue as usize])).into(),
            connection_status: ConnectionStatus {
                redis: self.redis_connected,
                control_plane: self.control_plane_connected,
            },
            server_info: ServerInfo {
                version: surface.version.clone(),
                region: surface.region.clone(),
                registered: self.registered,
            },
            outbox: self.outbox(),
        }
    }
}

impl Component {
    fn healthy() -> Self {
        Self { status: Condition::Healthy, reason: None }
    }

    fn degraded(reason: impl Into<String>) -> Self {
        Self { status: Condition::Degraded, reason: Some(reason.into()) }
    }
}
