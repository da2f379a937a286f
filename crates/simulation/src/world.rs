//! Everything outside the agent: the time, the messages, the truth about each record, and the log.

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
use crate::commands::CommandQueue;
use crate::plan::{Plan, Push, What};
use crate::redis::Store;
use crate::server::Server;

/// The namespace of idempotency keys, as in docs/contract/keys.md.
pub const KEY_NAMESPACE: Uuid = Uuid::from_u128(0x7a1b_3741_a713_569c_ae9b_a8cf_bb86_aeab);

/// The world's clock starts at 24 November 2026.
const BEGIN: Duration = Duration::from_secs(1_795_478_400);

/// Everything outside the agent. Clones share it.
#[derive(Clone)]
pub struct World(Arc<Mutex<State>>);

/// The world's state.
pub struct State {
    /// This run's plan.
    pub plan: Arc<Plan>,
    /// The planted bug.
    pub bug: Option<Bug>,
    start: Instant,
    /// The events so far.
    pub log: Log,
    /// The violated invariants.
    pub violations: Vec<String>,
    /// The truth about each record, by its number.
    pub records: Vec<Truth>,
    /// The records' numbers, by key.
    pub by_key: BTreeMap<Uuid, usize>,
    /// How many messages have been pushed.
    pub pushed: usize,
    /// Everything planned is done: nothing more is pushed.
    pub is_over: bool,
    /// The error of the wall clock, in microseconds ahead.
    pub clock_offset: i64,
    /// When an operator last ordered immediate sending.
    pub hurried_at: Duration,
    /// When this life of the agent began.
    pub begun: Duration,
    /// The number of this life.
    pub life: u64,
    /// When each earlier life ended, and whether it stopped in order with everything settled on disk.
    pub ends: Vec<(Duration, bool)>,
    /// Redis.
    pub redis: Store,
    /// The ControlPlane.
    pub server: Server,
    /// The commands.
    pub commands: CommandQueue,
    /// The network's randomness.
    pub network: Chance,
    /// The randomness of Redis and the path to it.
    pub redis_chance: Chance,
    /// The disk's randomness.
    pub disk: Chance,
    /// The agent's randomness.
    pub machine: Chance,
    /// Disk steps in this life.
    pub steps: u64,
    /// The disk step at which the agent dies, and whether before or after it.
    pub dies_at: Option<(u64, bool)>,
    /// The disk step after which the agent dies, and the number of polls until then.
    pub dies_after: Option<(u64, u64)>,
    /// Polls of its tasks, and when it dies of them.
    pub polls: Polls,
}

/// The truth about a record.
pub struct Truth {
    /// The plan for it.
    pub push: Push,
    /// Its key; `None` if it is not a record.
    pub key: Option<Uuid>,
    /// Its transaction.
    pub transaction: String,
    /// Its session.
    pub session: String,
    /// The message.
    pub message: Vec<u8>,
    /// When it was pushed.
    pub pushed_at: Option<Duration>,
    /// The body as first sent.
    pub body: Option<Bytes>,
    /// Its position among all records taken by the ControlPlane.
    pub taken: Option<u64>,
    /// How often it was sent and attempted.
    pub tried: u32,
    /// How often it was refused.
    pub refused: u32,
    /// How often of these over a new connection.
    pub refused_anew: u32,
    /// In which life and when the agent was told to wait, and until when.
    pub not_before: Option<(u64, Duration, Duration)>,
    /// How often the ControlPlane failed on it.
    pub failed: u32,
    /// When its session was first reported as unknown.
    pub unknown_at: Option<Duration>,
    /// In which life and when the agent was told that it was taken.
    pub told: Option<(u64, Duration)>,
    /// Whether the ControlPlane broke the order of its session.
    pub is_broken: bool,
    /// The answer to a quota request.
    pub quota: Option<Vec<u8>>,
    /// How many times it was answered.
    pub quota_answers: usize,
}

/// Counts the polls of a life's tasks, and limits them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Polls {
    /// The polls so far.
    pub count: u64,
    /// The poll at which the life ends.
    pub dies_at: Option<u64>,
}

/// The events so far, as a hash, and as text if requested.
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

    /// Identifies the log's content.
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
            commands: CommandQueue::new(seed, &plan.commands),
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

    /// Locks the state.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The duration of the run so far.
    pub fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// The true time.
    pub fn true_time(&self) -> SystemTime {
        UNIX_EPOCH + BEGIN + self.now()
    }

    /// The current faults.
    pub fn faults(&self) -> impl Iterator<Item = What> + use<> {
        let (now, plan) = (self.now(), Arc::clone(&self.plan));
        (0..plan.faults.len()).filter_map(move |n| {
            let fault = &plan.faults[n];
            (fault.from <= now && now < fault.until).then_some(fault.what)
        })
    }

    /// The first current fault of a kind.
    pub fn fault<T>(&self, find: impl Fn(What) -> Option<T>) -> Option<T> {
        self.faults().find_map(find)
    }

    /// Adds a line to the log.
    pub fn note(&mut self, text: &str) {
        let now = self.now();
        self.log.add(now, text);
    }

    /// Reports a violation.
    pub fn violation(&mut self, text: String) {
        self.note(&format!("VIOLATION {text}"));
        self.violations.push(text);
    }

    /// Whether an earlier life did not end in order.
    pub fn has_died(&self) -> bool {
        self.ends.iter().any(|(_, was_in_order)| !was_in_order)
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

/// A kind's name in keys.
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
    // Includes names that must be percent-encoded.
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
