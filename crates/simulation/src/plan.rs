//! Everything that a seed decides before a run: the load, the settings, the faults and the ends of the agent's lives.

pub(crate) mod faults;
mod load;

use std::time::Duration;

use dataplane_agent::drain::{
    BatchSettings, Compression, DeliveryMode, LinkSettings, QueueSettings, SessionOrder,
};
use dataplane_agent::intake::SourceMode;
use dataplane_agent::outbox::simulated::Crash;
use dataplane_agent::record::Kind;

use crate::chance::Chance;
use crate::commands::plan::{self as commands, Action, PlannedCommand, Proof};
pub use faults::{Fault, What};

/// Everything that a run depends on besides the agent.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The source of all randomness.
    pub seed: u64,
    /// The agent's configuration.
    pub settings: Settings,
    /// The messages and when they are pushed.
    pub pushes: Vec<Push>,
    /// The faults.
    pub faults: Vec<Fault>,
    /// How each life of the agent ends; the life after the last of these ends when the run is complete.
    pub ends: Vec<End>,
    /// Remote commands.
    pub commands: Vec<PlannedCommand>,
}

/// The agent's configuration.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "named as the agent's own settings")]
pub struct Settings {
    pub queues: QueueSettings,
    pub source: SourceMode,
    pub orphan_reclaim: Duration,
    pub mode: DeliveryMode,
    pub order: SessionOrder,
    pub compression: Compression,
    pub batch_records: usize,
    pub batch_bytes: usize,
    pub concurrency: usize,
    pub failures_to_open: u32,
    pub initial_delay: Duration,
    pub max_backoff: Duration,
    pub refusal_brake: u32,
    pub poison_attempts: u32,
    pub session_grace: Duration,
    pub quota_ttl: Duration,
    pub timeout: Duration,
    pub redis_timeout: Duration,
    pub heartbeat: Duration,
    pub command_poll: Duration,
    pub command_cache_ttl: Duration,
    pub keys_ttl: Duration,
    pub segment_bytes: u64,
    pub outbox_bytes: u64,
    pub mirror_most: usize,
    /// The initial error of this machine's clock, in seconds.
    pub clock_offset: i64,
    /// The drift of this machine's clock, in millionths too fast.
    pub clock_drift: i64,
}

/// A message to be pushed to Redis.
#[derive(Clone, Debug)]
pub struct Push {
    /// When it is pushed.
    pub at: Duration,
    /// Its number among all messages.
    pub number: usize,
    /// Its kind; `None`: not a record.
    pub kind: Option<Kind>,
    /// The number of its session.
    pub session: usize,
    /// Its position among the records of its session.
    pub place: usize,
    /// The ControlPlane's treatment of it.
    pub fate: Fate,
    /// Extra bytes.
    pub padding: usize,
}

/// The ControlPlane's treatment of a record in the absence of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It takes the record.
    Taken,
    /// It refuses the record with this status.
    Refused(u16),
    /// The ControlPlane fails on it.
    Poison,
    /// It does not know the session before this time.
    UnknownUntil(Duration),
}

/// How a life of the agent ends.
#[derive(Clone, Debug)]
pub struct End {
    /// When it ends.
    pub when: When,
    /// How it ends; `None`: an orderly stop.
    pub how: Option<Crash>,
    /// The delay before it is started again.
    pub restart_after: Duration,
}

/// When a life ends.
#[derive(Clone, Copy, Debug)]
pub enum When {
    /// After this time.
    After(Duration),
    /// After this many polls of its tasks.
    Polls(u64),
    /// At this step of the disk: before it (false) or after it (true).
    Step(u64, bool),
    /// After this many polls of its tasks following this step of the disk.
    PollsAfterStep(u64, u64),
}

/// The run must be complete this long after the last fault.
pub const PATIENCE: Duration = Duration::from_secs(1800);
/// From the last fault on, a short session is pushed at this interval: some decisions need the success of other records.
const PULSE: Duration = Duration::from_secs(2);
/// An outbox that is never full.
const ROOMY: u64 = 64 << 20;
/// The first session number of those pushed after the last fault.
const PULSES_FROM: usize = 1000;

const SECOND: Duration = Duration::from_secs(1);

impl Plan {
    /// The plan of this seed.
    pub fn of(seed: u64) -> Self {
        let chance = &mut Chance::new(seed, 1);
        let length = chance.time(5 * SECOND, 600 * SECOND);
        let mut settings = Settings::of(chance);
        if chance.happens(0.15) {
            settings.outbox_bytes = chance.size(256 << 10, 1 << 20);
            settings.segment_bytes = settings.outbox_bytes / 8;
        }
        let pushes = load::pushes(chance, length, settings.outbox_bytes < ROOMY);
        let faults = faults::faults(chance, length);
        let ends = ends(chance, length);
        let queues = &mut Chance::new(seed, 10);
        if queues.happens(0.3) {
            settings.queues = QueueSettings {
                records: queues.size(8, 1000) as usize,
                bytes: queues.size(64 << 10, 1 << 20) as usize,
                session_records: queues.size(2, 100) as usize,
                held_lanes: queues.size(1, 10) as usize,
            };
        }
        let source = &mut Chance::new(seed, 9);
        if source.happens(0.4) {
            settings.source = SourceMode::Stream;
            settings.orphan_reclaim = source.of(&[Duration::ZERO, 5 * SECOND, 60 * SECOND]);
        }
        let whats: Vec<What> = faults.iter().map(|fault| fault.what).collect();
        let commands = commands::of(seed, length, &whats);
        let mut plan = Self { seed, settings, pushes, faults, ends, commands };
        let storms = &mut Chance::new(seed, 11);
        if storms.happens(0.3) {
            plan.add_storms(storms, length);
        }
        plan
    }

    /// The messages pushed after the last fault until the run is complete, in order.
    pub fn pulses(&self) -> Vec<Push> {
        let (begin, from) = (self.quiet_from(), self.pushes.len());
        let kinds = [Kind::Started, Kind::Usage, Kind::Quota, Kind::Completed];
        let count = (PATIENCE.as_secs() / PULSE.as_secs()) as usize * kinds.len();
        let pulse = |n: usize| Push {
            at: begin + PULSE * (n / kinds.len()) as u32,
            number: from + n,
            kind: Some(kinds[n % kinds.len()]),
            session: PULSES_FROM + n / kinds.len(),
            place: n % kinds.len(),
            fate: Fate::Taken,
            padding: 1,
        };
        (0..count).map(pulse).collect()
    }

    /// When the last fault has ended and the last message has been pushed.
    pub fn quiet_from(&self) -> Duration {
        let faults = self.faults.iter().map(|fault| fault.until);
        let pushes = self.pushes.iter().map(|push| push.at);
        let commands = self.commands.iter().map(|command| command.at);
        faults.chain(pushes).chain(commands).max().unwrap_or_default()
    }

    /// Whether a command replays dead letters.
    pub fn has_replays(&self) -> bool {
        let mut commands = self.commands.iter();
        commands.any(|command| command.action == Action::Replay && command.proof == Proof::Good)
    }
}

impl Settings {
    fn of(chance: &mut Chance) -> Self {
        use DeliveryMode::{Auto, Batch, Single};
        Self {
            queues: QueueSettings::default(),
            source: SourceMode::List,
            orphan_reclaim: Duration::ZERO,
            mode: chance.of(&[Auto, Auto, Auto, Batch, Single]),
            order: chance.of(&[SessionOrder::Strict, SessionOrder::Strict, SessionOrder::Boundaries]),
            compression: chance.of(&[
                Compression::None,
                Compression::Auto,
                Compression::Gzip,
                Compression::Zstd,
                Compression::None,
            ]),
            batch_records: chance.size(1, 200) as usize,
            batch_bytes: chance.size(4 << 10, 1 << 20) as usize,
            concurrency: chance.size(1, 32) as usize,
            failures_to_open: chance.within(1, 4) as u32,
            initial_delay: chance.time(SECOND / 2, 5 * SECOND),
            max_backoff: chance.time(5 * SECOND, 30 * SECOND),
            refusal_brake: chance.of(&[0, 3, 10, 100]),
            poison_attempts: chance.within(2, 10) as u32,
            session_grace: chance.time(5 * SECOND, 120 * SECOND),
            quota_ttl: chance.time(20 * SECOND, 300 * SECOND),
            timeout: chance.time(2 * SECOND, 30 * SECOND),
            redis_timeout: chance.time(SECOND, 10 * SECOND),
            heartbeat: chance.time(5 * SECOND, 60 * SECOND),
            command_poll: chance.time(SECOND, 60 * SECOND),
            command_cache_ttl: chance.time(60 * SECOND, 3600 * SECOND),
            keys_ttl: chance.time(10 * SECOND, 3600 * SECOND),
            segment_bytes: chance.size(4 << 10, 256 << 10),
            outbox_bytes: ROOMY,
            mirror_most: chance.of(&[0, 10_000, 10_000]),
            clock_offset: if chance.happens(0.2) {
                chance.of(&[-86_400 * 400, -3600, 3600, 86_400 * 400])
            } else {
                0
            },
            clock_drift: if chance.happens(0.3) { chance.within(0, 1000) as i64 - 500 } else { 0 },
        }
    }

    /// The link's settings.
    pub fn link(&self) -> LinkSettings {
        LinkSettings {
            failures_to_open: self.failures_to_open,
            initial_delay: self.initial_delay,
            max_backoff: self.max_backoff,
            multiplier: 2.0,
            concurrency: self.concurrency,
            refusal_brake: self.refusal_brake,
        }
    }

    /// The batches' settings.
    pub fn batch(&self) -> BatchSettings {
        BatchSettings {
            mode: self.mode,
            max_records: self.batch_records,
            max_bytes: self.batch_bytes,
            compression: self.compression,
        }
    }
}

fn ends(chance: &mut Chance, length: Duration) -> Vec<End> {
    let count = chance.of(&[0, 0, 1, 2, 3, 6]);
    let mut ends = Vec::new();
    for _ in 0..count {
        let when = match chance.within(0, 5) {
            0 => When::After(chance.time(SECOND / 100, length)),
            1 => When::Polls(chance.size(1, 5000)),
            2 | 3 => When::Step(chance.size(1, 300), chance.happens(0.5)),
            _ => When::PollsAfterStep(chance.size(1, 300), chance.size(1, 40)),
        };
        let how = chance.of(&[Some(Crash::Kill), Some(Crash::Power), Some(Crash::Power), None]);
        let restart_after = chance.time(SECOND / 1000, 30 * SECOND);
        ends.push(End { when, how, restart_after });
    }
    ends
}
