//! Everything that a seed decides before a run: the load, the settings, the faults and the ends of the agent's lives.

use std::time::Duration;

use dataplane_agent::drain::{
    BatchSettings, Compression, DeliveryMode, LinkSettings, QueueSettings, SessionOrder,
};
use dataplane_agent::intake::SourceMode;
use dataplane_agent::outbox::simulated::Crash;
use dataplane_agent::record::Kind;

use crate::chance::Chance;
use crate::commands::plan::{self as commands, Action, PlannedCommand, Proof};

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

/// A temporary fault.
#[derive(Clone, Debug)]
pub struct Fault {
    /// Its beginning.
    pub from: Duration,
    /// Its end.
    pub until: Duration,
    /// Its kind.
    pub what: What,
}

/// A kind of fault. An `f64` is the probability of each occurrence.
#[derive(Clone, Copy, Debug, PartialEq)]
#[expect(missing_docs, reason = "each is explained where it is played")]
pub enum What {
    // The network to the ControlPlane.
    LinkDown,
    LinkCutBefore(f64),
    LinkCutAfter(f64),
    LinkSlow(Duration),
    LinkLateAnswers(f64),
    ForeignAnswers(f64),
    Portal(u8, f64),
    Nonsense(u8, f64),
    // The ControlPlane.
    Overloaded(u16, u64, f64),
    Failing(u16, f64),
    FailingRecords(u16, f64),
    FailingKind(Kind, u16),
    FailingSessions(u16),
    Unauthorized(u16),
    Misconfigured(u16),
    RefusesAll(u16),
    NotSuccessful(f64),
    InProgress(f64),
    NoBatches(u16),
    BatchesTooLarge(usize),
    NoEncoding,
    BreaksOrder,
    ForgetsServer,
    // Redis and the way to it.
    RedisDown,
    RedisSlow(Duration),
    RedisLate(f64),
    RedisCutBefore(f64),
    RedisCutAfter(f64),
    RedisRefuses(f64),
    RedisRestart,
    // The disk.
    WritesFail(i32, f64),
    SyncsFail(f64),
    NamesFail(f64),
    DiskSlow(Duration),
    DiskLow,
    // This machine's clock: it is moved by this many seconds when the fault begins.
    ClockJumps(i64),
    // An operator.
    Paused,
    Probed,
    BrakeReleased,
}

impl What {
    /// Whether Redis may execute a command whose reply is lost.
    pub fn may_lose_redis_replies(&self) -> bool {
        matches!(self, Self::RedisSlow(_) | Self::RedisLate(_) | Self::RedisCutAfter(_))
    }
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
/// The most records that the ControlPlane fails on.
const POISONED: u32 = 3;
/// The first session number of those pushed in storms.
const STORMS_FROM: usize = 500;
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
        let pushes = pushes(chance, length, settings.outbox_bytes < ROOMY);
        let faults = faults(chance, length);
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

    /// Adds times in which records arrive, the disk is so slow that several commits are under way, and Redis fails. The agent
    /// may end in the first of them.
    fn add_storms(&mut self, chance: &mut Chance, length: Duration) {
        for storm in 0..chance.within(1, 3) {
            let from = length.mul_f64(chance.part());
            let lasts = chance.time(SECOND, 20 * SECOND);
            let until = from + lasts;
            let often = chance.of(&[0.05, 0.2, 0.5]);
            let redis = chance.of(&[
                What::RedisCutBefore(often),
                What::RedisCutAfter(often),
                What::RedisCutAfter(often),
                What::RedisLate(often),
                What::RedisRefuses(often),
                What::RedisRestart,
            ]);
            let disk =
                [What::DiskSlow(chance.time(SECOND / 10, 5 * SECOND)), What::WritesFail(5, often / 4.0)];
            let failing = if chance.happens(0.3) { &disk[..] } else { &disk[..1] };
            let whats = failing.iter().copied().chain([redis]);
            self.faults.extend(whats.map(|what| Fault { from, until, what }));
            if storm == 0 && chance.happens(0.5) {
                let when = When::After(from + lasts.mul_f64(chance.part()));
                let how = chance.of(&[Some(Crash::Kill), Some(Crash::Power)]);
                self.ends.insert(0, End { when, how, restart_after: chance.time(SECOND / 1000, SECOND) });
            }
            for session in 0..chance.within(1, 8) {
                let usage = chance.size(1, 60) as usize;
                for place in 0..usage + 2 {
                    let kind = match place {
                        0 => Kind::Started,
                        place if place == usage + 1 => Kind::Completed,
                        _ => Kind::Usage,
                    };
                    self.pushes.push(Push {
                        at: from + lasts.mul_f64(place as f64 / (usage + 2) as f64),
                        number: 0,
                        kind: Some(kind),
                        session: STORMS_FROM + (storm * 8 + session) as usize,
                        place,
                        fate: Fate::Taken,
                        padding: 1,
                    });
                }
            }
        }
        number(&mut self.pushes);
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

fn pushes(chance: &mut Chance, length: Duration, is_narrow: bool) -> Vec<Push> {
    let sessions = chance.size(1, 60) as usize;
    let most = chance.size(1, 40);
    // A narrow outbox filled with records that wait for the success of others would be stuck.
    let bad = if is_narrow { 0.0 } else { chance.of(&[0.0, 0.0, 0.02, 0.1]) };
    let large = is_narrow || chance.happens(0.1);
    // Many at once, or one after another.
    let bursts = chance.happens(0.5);
    // More than one round can take.
    let rush = chance.happens(0.1);
    let (sessions, most) = if rush { (60, 40) } else { (sessions, most) };
    let mut pushes = Vec::new();
    let mut poisoned = 0;
    for session in 0..sessions {
        let begin = length.mul_f64(if rush { 0.1 } else { chance.part() * 0.8 });
        let lasts = if rush || bursts { SECOND / 20 } else { length.mul_f64(chance.part() * 0.2) };
        let unknown = if chance.happens(bad / 2.0) {
            let until = chance.of(&[10, 60, 86_400]);
            Some(Fate::UnknownUntil(begin + Duration::from_secs(until)))
        } else {
            None
        };
        let usage = if rush { chance.within(1, most) } else { chance.size(1, most) } as usize;
        let mut kinds = Vec::new();
        if chance.happens(0.9) {
            kinds.push(Some(Kind::Started));
        }
        for _ in 0..usage {
            if chance.happens(0.1) {
                kinds.push(Some(Kind::Quota));
            }
            kinds.push(if chance.happens(bad / 2.0) { None } else { Some(Kind::Usage) });
        }
        if chance.happens(0.9) {
            kinds.push(Some(Kind::Completed));
        }
        let count = kinds.len() as u32;
        for (place, kind) in kinds.into_iter().enumerate() {
            let fate = match unknown {
                Some(fate) => fate,
                None if chance.happens(bad / 2.0) => Fate::Refused(chance.of(&[422, 400, 422, 413, 414])),
                // With many failures, a record no longer counts as failing by itself.
                None if chance.happens(bad / 4.0) && poisoned < POISONED => {
                    poisoned += 1;
                    Fate::Poison
                }
                None => Fate::Taken,
            };
            let padding = if large { chance.size(1, 20_000) } else { chance.size(1, 400) } as usize;
            let at = begin + lasts.mul_f64(f64::from(place as u32) / f64::from(count));
            pushes.push(Push { at, number: 0, kind, session, place, fate, padding });
        }
    }
    number(&mut pushes);
    pushes
}

/// Sorts and numbers the messages.
fn number(pushes: &mut [Push]) {
    pushes.sort_by_key(|push| (push.at, push.session, push.place));
    for (number, push) in pushes.iter_mut().enumerate() {
        push.number = number;
    }
}

fn faults(chance: &mut Chance, length: Duration) -> Vec<Fault> {
    let count = chance.of(&[0, 1, 2, 4, 8, 12]);
    let mut faults = Vec::new();
    for _ in 0..count {
        let from = length.mul_f64(chance.part());
        let until = from + chance.time(SECOND / 10, 120 * SECOND);
        faults.push(Fault { from, until, what: what(chance) });
        // Some bugs show only while two things fail at once.
        if chance.happens(0.2) {
            faults.push(Fault { from, until, what: what(chance) });
        }
    }
    faults
}

fn what(chance: &mut Chance) -> What {
    let likely = chance.of(&[0.02, 0.1, 0.3, 0.7, 1.0]);
    match chance.within(0, 19) {
        0..=4 => of_link(chance, likely),
        5..=10 => of_control_plane(chance, likely),
        11..=14 => of_redis(chance),
        15..=17 => of_disk(chance, likely),
        18 => What::ClockJumps(chance.of(&[-86_400 * 20, -3600, -60, -2, 2, 60, 3600, 86_400 * 20])),
        _ => chance.of(&[What::Paused, What::Probed, What::BrakeReleased]),
    }
}

fn of_link(chance: &mut Chance, likely: f64) -> What {
    match chance.within(0, 9) {
        0 => What::LinkDown,
        1 => What::LinkCutBefore(likely),
        2 | 3 => What::LinkCutAfter(likely),
        4 => What::LinkSlow(chance.time(SECOND / 10, 40 * SECOND)),
        5 | 6 => What::LinkLateAnswers(likely),
        // From 10 on, each answer has another page.
        7 => What::Portal(chance.within(0, 14) as u8, likely),
        8 => What::ForeignAnswers(likely),
        _ => chance.of(&[What::ForeignAnswers(likely), What::Nonsense(0, likely), What::Nonsense(1, likely)]),
    }
}

fn of_control_plane(chance: &mut Chance, likely: f64) -> What {
    match chance.within(0, 19) {
        0..=2 => {
            What::Overloaded(chance.of(&[429, 503, 503, 408, 425]), chance.of(&[0, 0, 1, 5, 30]), likely)
        }
        3 => What::Failing(chance.of(&[500, 502, 504]), likely),
        4..=7 => What::FailingRecords(chance.of(&[500, 503, 500, 429]), likely),
        8 => What::FailingKind(
            chance.of(&[Kind::Usage, Kind::Started, Kind::Completed, Kind::Quota]),
            chance.of(&[500, 503, 404, 401, 422]),
        ),
        9 => What::FailingSessions(chance.of(&[500, 404, 503])),
        10 => What::Unauthorized(chance.of(&[401, 403])),
        11 => What::Misconfigured(chance.of(&[301, 302, 402, 405, 407, 451])),
        12 => What::RefusesAll(chance.of(&[400, 422])),
        13 => What::NotSuccessful(likely),
        14 => What::InProgress(likely),
        15 => What::NoBatches(chance.of(&[404, 405, 501])),
        16 => What::BatchesTooLarge(chance.size(1, 50) as usize),
        17 => What::NoEncoding,
        18 => What::BreaksOrder,
        _ => What::ForgetsServer,
    }
}

fn of_redis(chance: &mut Chance) -> What {
    let now_and_then = chance.of(&[0.01, 0.05, 0.2]);
    match chance.within(0, 9) {
        0 => What::RedisDown,
        1 | 2 => What::RedisSlow(chance.time(SECOND / 100, 20 * SECOND)),
        3 | 4 => What::RedisLate(now_and_then),
        5 => What::RedisCutBefore(now_and_then),
        6 | 7 => What::RedisCutAfter(now_and_then),
        8 => What::RedisRefuses(now_and_then),
        _ => What::RedisRestart,
    }
}

fn of_disk(chance: &mut Chance, likely: f64) -> What {
    match chance.within(0, 5) {
        0 | 1 => What::WritesFail(chance.of(&[5, 28]), likely),
        2 => What::SyncsFail(chance.of(&[0.01, 0.05, 0.2])),
        3 => What::NamesFail(likely),
        4 => What::DiskSlow(chance.time(SECOND / 100, 5 * SECOND)),
        _ => What::DiskLow,
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
