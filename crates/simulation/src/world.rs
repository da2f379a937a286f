//! Everything outside the agent: what time it is, what was pushed, what is known of each record, and the log.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use dataplane_agent::record::{Kind, Queue};
use dataplane_agent::time::Machine;
use tokio::time::Instant;
use uuid::Uuid;

use crate::bugs::Bug;
use crate::chance::Chance;
use crate::plan::{Plan, Push, What};
use crate::redis::Store;
use crate::server::Server;

/// The namespace of idempotency keys, as docs/contract/keys.md has it.
pub const KEY_NAMESPACE: Uuid = Uuid::from_u128(0x7a1b_3741_a713_569c_ae9b_a8cf_bb86_aeab);

/// The world's clock begins here: 24 November 2026.
const BEGIN: Duration = Duration::from_secs(1_795_478_400);

/// Everything outside the agent. Clones share it.
#[derive(Clone)]
pub struct World(Arc<Mutex<State>>);

/// The world's state.
pub struct State {
    /// What this run is.
    pub plan: Arc<Plan>,
    /// The bug that is planted in it.
    pub bug: Option<Bug>,
    start: Instant,
    /// What has happened.
    pub log: Log,
    /// What must not have happened.
    pub violations: Vec<String>,
    /// What is known of each record that is pushed, by its number.
    pub records: Vec<Truth>,
    /// Their numbers by their keys.
    pub by_key: BTreeMap<Uuid, usize>,
    /// How many of them have been pushed.
    pub pushed: usize,
    /// All that was planned is done with: no more is pushed.
    pub is_over: bool,
    /// By how much the wall clock is ahead, in microseconds.
    pub clock_offset: i64,
    /// When an operator last wanted everything at once.
    pub hurried_at: Duration,
    /// Since when this life of the agent runs.
    pub begun: Duration,
    /// The number of the agent's life.
    pub life: u64,
    /// When each earlier life ended, and whether in order with everything settled on the disk.
    pub ends: Vec<(Duration, bool)>,
    /// Redis.
    pub redis: Store,
    /// The ControlPlane.
    pub server: Server,
    /// Chance on the network.
    pub network: Chance,
    /// Chance within Redis and on the way to it.
    pub redis_chance: Chance,
    /// Chance of the disk.
    pub disk: Chance,
    /// The agent's own.
    pub machine: Chance,
    /// Steps of the disk in this life, and at which it dies: before it or behind it.
    pub steps: u64,
    /// The step of the disk at which the agent dies.
    pub dies_at: Option<(u64, bool)>,
    /// The step of the disk behind which it dies when its tasks have been polled so often.
    pub dies_after: Option<(u64, u64)>,
    /// How often its tasks have been polled, and when it dies of that.
    pub polls: Polls,
}

/// What is known of a record.
pub struct Truth {
    /// What was planned.
    pub push: Push,
    /// Its key; none of what is no record.
    pub key: Option<Uuid>,
    /// Its transaction.
    pub transaction: String,
    /// Its session.
    pub session: String,
    /// The message.
    pub message: Vec<u8>,
    /// When it was pushed.
    pub pushed_at: Option<Duration>,
    /// The body that was sent.
    pub body: Option<Bytes>,
    /// When the ControlPlane took it: the place among all that were taken.
    pub taken: Option<u64>,
    /// How often it was sent and tried.
    pub tried: u32,
    /// How often it was refused, over a connection of its own.
    pub refused: u32,
    /// How often of these over a connection that nobody had used before.
    pub refused_anew: u32,
    /// In which life and when the agent was told not to send it, and until when.
    pub not_before: Option<(u64, Duration, Duration)>,
    /// How often the ControlPlane failed on it.
    pub failed: u32,
    /// When it was answered first that its session is not known.
    pub unknown_at: Option<Duration>,
    /// In which life, and when, the agent was told that it is taken.
    pub told: Option<(u64, Duration)>,
    /// The ControlPlane broke the order of its session.
    pub is_broken: bool,
    /// Of a quota request: what was answered.
    pub quota: Option<Vec<u8>>,
    /// How many times it was answered.
    pub quota_answers: usize,
}

/// How often the tasks of a life have been polled, and after how many of these it ends.
#[derive(Clone, Copy, Debug, Default)]
pub struct Polls {
    /// So often.
    pub count: u64,
    /// It ends there.
    pub dies_at: Option<u64>,
}

/// What has happened, as a hash, and as text where somebody wants to read it.
pub struct Log {
    hash: u64,
    lines: u64,
    is_printed: bool,
}

impl Log {
    fn add(&mut self, at: Duration, text: &str) {
        let line = format!("{:>12.6} {text}", at.as_secs_f64());
        self.hash = xxhash_rust::xxh3::xxh3_64_with_seed(line.as_bytes(), self.hash);
        self.lines += 1;
        if self.is_printed {
            println!("{line}");
        }
    }

    /// What tells it from every other.
    pub fn digest(&self) -> (u64, u64) {
        (self.hash, self.lines)
    }
}

impl World {
    /// The world at the beginning of a run.
    pub fn new(plan: Plan, bug: Option<Bug>, is_printed: bool) -> Self {
        let records: Vec<Truth> = plan.pushes.iter().chain(&plan.pulses()).map(truth).collect();
        let keys = records.iter().enumerate().filter_map(|(number, truth)| Some((truth.key?, number)));
        let seed = plan.seed;
        Self(Arc::new(Mutex::new(State {
            by_key: keys.collect(),
            records,
            bug,
            start: Instant::now(),
            log: Log { hash: seed, lines: 0, is_printed },
            violations: Vec::new(),
            pushed: 0,
            is_over: false,
            clock_offset: plan.settings.clock_offset * 1_000_000,
            begun: Duration::ZERO,
            hurried_at: Duration::ZERO,
            life: 0,
            ends: Vec::new(),
            redis: Store::default(),
            server: Server::new(seed),
            network: Chance::new(seed, 2),
            redis_chance: Chance::new(seed, 3),
            disk: Chance::new(seed, 4),
            machine: Chance::new(seed, 5),
            steps: 0,
            dies_at: None,
            dies_after: None,
            polls: Polls::default(),
            plan: Arc::new(plan),
        })))
    }

    /// Its state, for a moment.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// How long the run has lasted.
    pub fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// The world's time.
    pub fn true_time(&self) -> SystemTime {
        UNIX_EPOCH + BEGIN + self.now()
    }

    /// What goes wrong just now.
    pub fn faults(&self) -> impl Iterator<Item = What> + use<> {
        let (now, plan) = (self.now(), Arc::clone(&self.plan));
        (0..plan.faults.len()).filter_map(move |n| {
            let fault = &plan.faults[n];
            (fault.from <= now && now < fault.until).then_some(fault.what)
        })
    }

    /// The first thing of this kind that goes wrong just now.
    pub fn fault<T>(&self, find: impl Fn(What) -> Option<T>) -> Option<T> {
        self.faults().find_map(find)
    }

    /// Writes a line of the log.
    pub fn note(&mut self, text: &str) {
        let now = self.now();
        self.log.add(now, text);
    }

    /// Something happened that must not.
    pub fn violation(&mut self, text: String) {
        self.note(&format!("VIOLATION {text}"));
        self.violations.push(text);
    }

    /// Whether this bug is planted.
    pub fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }
}

impl Machine for World {
    fn wall_clock(&self) -> SystemTime {
        let state = self.state();
        let passed = state.now().as_micros() as i64;
        let drift = passed / 1_000_000 * state.plan.settings.clock_drift;
        let ahead = state.clock_offset + drift;
        let ours = Duration::from_micros(ahead.unsigned_abs());
        if ahead < 0 { state.true_time() - ours } else { state.true_time() + ours }
    }

    fn random(&self) -> u64 {
        self.state().machine.bits()
    }
}

/// The queue that a message is pushed to.
pub fn queue_of(push: &Push) -> Queue {
    match push.kind {
        Some(Kind::Started | Kind::Completed | Kind::Lifecycle) => Queue::Lifecycle,
        Some(Kind::Quota) => Queue::Quota,
        Some(Kind::Usage) => Queue::Usage,
        None => [Queue::Usage, Queue::Lifecycle, Queue::Quota][push.number % 3],
    }
}

/// The name that a kind has in keys.
pub fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Usage => "usage_record",
        Kind::Started => "session_started",
        Kind::Completed | Kind::Lifecycle => "session_completed",
        Kind::Quota => "quota_refresh",
    }
}

fn truth(push: &Push) -> Truth {
    let Push { number, session, kind, padding, .. } = *push;
    let transaction = format!("t-{number}");
    // Also names that have to be encoded.
    let session = if session % 7 == 3 { format!("s/{session} é?") } else { format!("s-{session}") };
    let ids = format!(
        r#""transaction_id":"{transaction}","api_session_id":"{session}","customer_id":"c-{}","#,
        number % 5
    );
    let noise: String = (0..padding).map(|n| char::from(b'a' + ((n * 7 + number) % 26) as u8)).collect();
    let message = match kind {
        Some(Kind::Usage) => format!(
            r#"{{{ids}"connection_duration_seconds":1.5,"data_bytes_processed":{number},"audio_duration_seconds":1,"request_timestamp":"2026-11-24T00:00:00Z","response_timestamp":"2026-11-24T00:00:01Z","x":"{noise}"}}"#
        ),
        Some(Kind::Quota) => format!(r#"{{{ids}"product_code":"speech_transcription","x":"{noise}"}}"#),
        Some(Kind::Started) => {
            format!(
                r#"{{{ids}"event_type":"session_started","metadata":{{"client_info":{{"x":"{noise}"}}}}}}"#
            )
        }
        Some(Kind::Completed | Kind::Lifecycle) => format!(
            r#"{{{ids}"event_type":"session_completed","disconnect_reason":"STREAM_END","metadata":{{"x":"{noise}"}}}}"#
        ),
        None => format!(r#"{{{ids}"what":"no record","#),
    };
    let name = kind.map(|kind| format!("{}:{transaction}", kind_name(kind)));
    Truth {
        key: name.map(|name| Uuid::new_v5(&KEY_NAMESPACE, name.as_bytes())),
        push: push.clone(),
        transaction,
        session,
        message: message.into_bytes(),
        pushed_at: None,
        body: None,
        taken: None,
        tried: 0,
        refused: 0,
        refused_anew: 0,
        not_before: None,
        failed: 0,
        unknown_at: None,
        told: None,
        is_broken: false,
        quota: None,
        quota_answers: 0,
    }
}
