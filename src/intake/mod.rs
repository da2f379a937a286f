//! The intake: takes messages from Redis, has the outbox make them durable, and only then acknowledges them.
//!
//! The only place that names redis. One task owns the conversation. Each *round* is one script call, which
//! acknowledges what has been committed, takes more, and measures; while the outbox commits one batch the next is
//! being taken and parsed. When all queues are empty, three connections block in `BLMOVE`, whose move is
//! only the wake-up: what it moved is picked up by the next round like all else, so one atomic picture decides
//! the order of things.
//!
//! # Crash safety
//!
//! A message is in the queue, or in this agent's in-flight list, until its batch is durable. The batch's
//! commit carries the position and a digest of each message; on every connection the in-flight list is compared with
//! them ([`source`]), so that what was committed but not acknowledged is not taken twice.

mod push;
mod source;

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{oneshot, watch};

use crate::config::RedisConfig;
use crate::drain::Horizon;
use crate::outbox::{AppendError, Entry, Outbox, Recent, Rejected, Taken};
use crate::record::{Acceptor, Kind, Queue};
use crate::telemetry::metrics::Metrics;

pub use push::{Mirror, push_quota_answers};
pub use source::SourceError;
use source::{Ask, BLOCK, Given, ORDER, Source, connect};

/// Messages of one queue in one round.
const ROUND_MESSAGES: usize = 1024;
/// Batches that wait for their commit: one is being written, one waits, one is being parsed. Fewer than the outbox
/// keeps checkpoints for.
const PIPELINE: usize = 3;
/// While the intake is paused, or nothing comes, queues are measured this often.
const MEASURE: Duration = Duration::from_secs(1);
/// Between attempts to reach Redis.
const RECONNECT_FIRST: Duration = Duration::from_millis(100);
const RECONNECT_MOST: Duration = Duration::from_secs(5);

/// Where the records come from.
#[derive(Clone)]
pub struct Settings {
    /// The Redis server.
    pub client: redis::Client,
    /// The names of the keys.
    pub names: Names,
    /// The longest wait for an answer.
    pub timeout: Duration,
}

/// The names of the keys.
#[derive(Clone, Debug)]
pub struct Names {
    /// Usage records.
    pub usage: String,
    /// Lifecycle events.
    pub lifecycle: String,
    /// Quota refresh requests.
    pub quota: String,
    /// Answers to those.
    pub quota_response: String,
    /// The mirror of dead letters.
    pub dead_letters: String,
    /// Whose in-flight lists these are.
    pub server_id: String,
}

impl Names {
    /// The queue's name.
    pub fn queue(&self, queue: Queue) -> &str {
        match queue {
            Queue::Usage => &self.usage,
            Queue::Lifecycle => &self.lifecycle,
            Queue::Quota => &self.quota,
        }
    }

    /// This agent's in-flight list.
    pub fn in_flight(&self, queue: Queue) -> String {
        format!("{}:processing:{}", self.queue(queue), self.server_id)
    }

    /// How many messages this agent has acknowledged.
    fn acked(&self, queue: Queue) -> String {
        format!("{}:acked:{}", self.queue(queue), self.server_id)
    }
}

/// How the conversation with Redis goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RedisStatus {
    /// Whether it answers.
    pub connected: bool,
    /// What is wrong, if anything is.
    pub fault: Option<String>,
    /// What waits in each queue, in the order of [`Queue::ALL`].
    pub depths: [u64; 3],
}

/// The intake, ready to run.
pub struct Intake {
    /// Where from.
    pub settings: Settings,
    /// Where to.
    pub outbox: Outbox,
    /// What makes records of messages.
    pub acceptor: Acceptor,
    /// Where the drain learns which completed events may go.
    pub horizon: watch::Sender<Horizon>,
    /// Where the state is told.
    pub status: watch::Sender<RedisStatus>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

/// The client for the configured Redis. Connects to nothing yet.
pub fn client(config: &RedisConfig) -> Result<redis::Client, redis::RedisError> {
    if let Some(url) = &config.url {
        return redis::Client::open(url.expose());
    }
    let mut login = redis::RedisConnectionInfo::default().set_db(i64::from(config.db));
    if let Some(password) = &config.password {
        login = login.set_password(password.expose());
    }
    let address = redis::ConnectionAddr::Tcp(config.host.clone(), config.port);
    redis::Client::open(redis::IntoConnectionInfo::into_connection_info(address)?.set_redis_settings(login))
}

/// A digest for the checkpoint. Persisted: the algorithm never changes.
fn digest(message: &[u8]) -> u32 {
    xxhash_rust::xxh3::xxh3_64(message) as u32
}

/// A batch on its way into the outbox.
struct Batch {
    committed: oneshot::Receiver<Result<u64, AppendError>>,
    /// By queue, in the order of [`ORDER`].
    counts: [usize; 3],
    /// Usage taken before and with it, and left in Redis then: what its completed events wait for.
    watermark: u64,
    has_events: bool,
}

/// One conversation: from a connection to its loss.
struct Session<'a> {
    intake: &'a Intake,
    source: Source,
    batches: VecDeque<Batch>,
    /// Taken and not acknowledged, by queue.
    known: [usize; 3],
    /// Committed and not acknowledged.
    to_ack: [usize; 3],
    positions: [u64; 3],
    usage_taken: u64,
    usage_committed: u64,
    /// Completed events below this number wait until so much usage is committed.
    waits: VecDeque<(u64, u64)>,
    first_round: bool,
    number: u64,
}

type Wake<'a> = Pin<Box<dyn Future<Output = redis::RedisResult<redis::Value>> + Send + 'a>>;

impl Intake {
    /// Runs until `stop` is true. Redis being away is waited out.
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        let mut delay = RECONNECT_FIRST;
        let mut number = 0;
        while !*stop.borrow() {
            number += 1;
            match self.converse(number, &mut stop).await {
                Ok(()) => return,
                Err((error, had_begun)) => {
                    if had_begun {
                        delay = RECONNECT_FIRST;
                    }
                    self.lost(&error);
                }
            }
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                _ = stop.changed() => {}
            }
            delay = (delay * 2).min(RECONNECT_MOST);
        }
    }

    fn lost(&self, error: &SourceError) {
        let outbox_paused = matches!(error, SourceError::Append(_));
        let fault = error.to_string();
        let changed = self.status.send_if_modified(|status| {
            let was = status.connected || status.fault.is_none();
            status.connected = outbox_paused;
            status.fault = (!outbox_paused).then_some(fault);
            was
        });
        self.metrics.redis_up(outbox_paused);
        if changed && !outbox_paused {
            tracing::warn!(%error, "Redis cannot be used; it is tried again until it can");
        }
    }

    /// One conversation. `Ok` when it was stopped; else what ended it, and whether it had begun.
    async fn converse(
        &self,
        number: u64,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<(), (SourceError, bool)> {
        let mut session = tokio::select! {
            session = Session::begin(self, number) => session.map_err(|error| (error, false))?,
            _ = stop.changed() => return Ok(()),
        };
        session.run(stop).await.map_err(|error| (error, true))
    }
}

impl<'a> Session<'a> {
    async fn begin(intake: &'a Intake, number: u64) -> Result<Self, SourceError> {
        let settings = &intake.settings;
        let mut source = Source::open(&settings.client, settings).await?;
        let adopted = source.adopt_previous(&settings.names).await?;
        if adopted > 0 {
            tracing::info!(adopted, "messages that the previous agent had in flight are taken over");
        }
        let (mut to_ack, mut positions) = ([0; 3], [0; 3]);
        for (n, queue) in ORDER.into_iter().enumerate() {
            let taken = intake.outbox.recently_taken(queue);
            (to_ack[n], positions[n]) = source.recover(&settings.names, queue, &taken).await?;
        }
        Ok(Self {
            intake,
            source,
            batches: VecDeque::new(),
            known: to_ack,
            to_ack,
            positions,
            usage_taken: 0,
            usage_committed: 0,
            waits: VecDeque::new(),
            first_round: true,
            number,
        })
    }

    async fn run(&mut self, stop: &mut watch::Receiver<bool>) -> Result<(), SourceError> {
        let settings = &self.intake.settings;
        let client = &settings.client;
        let mut blocking = Vec::with_capacity(ORDER.len());
        for _ in ORDER {
            blocking.push(connect(client, settings, BLOCK).await?);
        }
        let mut wakes: [Option<Wake<'_>>; 3] = [None, None, None];
        let mut paused = self.intake.outbox.paused();
        let mut idle = false;
        loop {
            self.collect_committed()?;
            let stopping = *stop.borrow();
            let pause = *paused.borrow_and_update();
            self.tell_paused(if stopping { Some("stopping") } else { pause });
            let open = !stopping && pause.is_none();
            if stopping && self.batches.is_empty() {
                self.round(false).await?;
                return Ok(());
            }
            let take = open && self.batches.len() < PIPELINE;
            let has_acks = self.to_ack.iter().any(|n| *n > 0);
            if has_acks || (take && !idle) {
                idle = !self.round(take).await? && take;
                continue;
            }
            // Nothing to do just now: a commit, a message, the end of a pause, or the time to measure.
            if open && take {
                for (n, queue) in ORDER.into_iter().enumerate() {
                    if wakes[n].is_none() {
                        wakes[n] = Some(wake(blocking[n].clone(), &settings.names, queue));
                    }
                }
            }
            let [a, b, c] = &mut wakes;
            tokio::select! {
                committed = first_commit(&mut self.batches) => self.committed(committed)?,
                woken = armed(a) => idle = keep_idle(woken)?,
                woken = armed(b) => idle = keep_idle(woken)?,
                woken = armed(c) => idle = keep_idle(woken)?,
                Ok(()) = paused.changed() => idle = false,
                _ = stop.changed() => {}
                () = tokio::time::sleep(MEASURE), if !open => { self.round(false).await?; }
            }
        }
    }

    /// One round. True if it gave anything.
    async fn round(&mut self, take: bool) -> Result<bool, SourceError> {
        let want = if take { ROUND_MESSAGES } else { 0 };
        let asks =
            std::array::from_fn(|n| Ask { ack: self.to_ack[n], known: self.known[n] - self.to_ack[n], want });
        let names = &self.intake.settings.names;
        let given = self.source.round(names, &asks).await?;
        for (n, ask) in asks.iter().enumerate() {
            self.known[n] -= ask.ack;
        }
        self.to_ack = [0; 3];
        self.tell_depths(&given);
        let usage_left = given[1].left;
        self.usage_taken += given[1].messages.len() as u64;
        let watermark = self.usage_taken + usage_left;
        if self.first_round {
            // Events of an earlier conversation wait for what is in Redis now: that is all that can be before them.
            self.first_round = false;
            self.waits.push_back((*self.intake.outbox.last().borrow() + 1, watermark));
        }
        for (_, waits_for) in &mut self.waits {
            // With several agents on the queue some of it goes to others: what is left now is all that can still come.
            *waits_for = (*waits_for).min(watermark);
        }
        let gave = given.iter().any(|given| !given.messages.is_empty());
        if gave {
            self.append(given, watermark).await?;
        }
        self.release();
        Ok(gave)
    }

    async fn append(&mut self, given: [Given; 3], watermark: u64) -> Result<(), SourceError> {
        let accepted_at = crate::clock::now();
        let acceptance = self.intake.acceptor.at(accepted_at);
        let mut entries = Vec::with_capacity(given.iter().map(|given| given.messages.len()).sum());
        let mut recent = Recent::default();
        let mut counts = [0; 3];
        for (n, given) in given.into_iter().enumerate() {
            let queue = ORDER[n];
            counts[n] = given.messages.len();
            let mut taken = Taken { position: self.positions[n], digests: Vec::with_capacity(counts[n]) };
            for message in given.messages {
                taken.digests.push(digest(&message));
                entries.push(match acceptance.accept(queue, &message) {
                    Ok(record) => Entry::Record(record),
                    Err(rejection) => Entry::Rejected(Rejected {
                        kind: rejection.kind,
                        accepted_at,
                        raw: message.into(),
                        detail: rejection.detail,
                    }),
                });
            }
            self.intake.metrics.intake_records.with_label_values(&[queue.label()]).inc_by(counts[n] as u64);
            self.known[n] += counts[n];
            self.positions[n] += counts[n] as u64;
            recent.queues[queue as usize] = taken;
        }
        let has_events = entries.iter().any(|entry| entry.kind() == Kind::Completed);
        let committed = self.intake.outbox.append(entries, Some((self.number, recent))).await?;
        self.batches.push_back(Batch { committed, counts, watermark, has_events });
        Ok(())
    }

    /// Notes every commit that has been answered already.
    fn collect_committed(&mut self) -> Result<(), SourceError> {
        while let Some(batch) = self.batches.front_mut() {
            match batch.committed.try_recv() {
                Ok(answer) => self.committed(answer)?,
                Err(oneshot::error::TryRecvError::Empty) => break,
                Err(oneshot::error::TryRecvError::Closed) => self.committed(Err(AppendError::Closed))?,
            }
        }
        Ok(())
    }

    /// The oldest batch is durable (or it failed, which ends the conversation: it will be taken again).
    fn committed(&mut self, answer: Result<u64, AppendError>) -> Result<(), SourceError> {
        let last = answer?;
        let Some(batch) = self.batches.pop_front() else { return Ok(()) };
        for n in 0..ORDER.len() {
            self.to_ack[n] += batch.counts[n];
        }
        self.usage_committed += batch.counts[1] as u64;
        if batch.has_events {
            self.waits.push_back((last + 1, batch.watermark));
        }
        self.release();
        Ok(())
    }

    /// Moves the horizon over the events whose usage is all in the outbox.
    fn release(&mut self) {
        let mut free = None;
        while let Some((event, _)) = self.waits.front().filter(|(_, usage)| *usage <= self.usage_committed) {
            free = Some(*event);
            self.waits.pop_front();
        }
        if let Some(completed) = free {
            let usage = *self.intake.outbox.last().borrow() + 1;
            self.intake.horizon.send_modify(|horizon| {
                *horizon =
                    Horizon { completed: horizon.completed.max(completed), usage: horizon.usage.max(usage) };
            });
        }
    }

    fn tell_depths(&self, given: &[Given; 3]) {
        let fault = given.iter().zip(ORDER).find_map(|(given, queue)| {
            given.fault.as_ref().map(|fault| format!("{}: {fault}", self.intake.settings.names.queue(queue)))
        });
        let mut depths = [0; 3];
        for (given, queue) in given.iter().zip(ORDER) {
            depths[queue as usize] = given.left;
            self.intake.metrics.queue_depth(self.intake.settings.names.queue(queue), given.left as i64);
        }
        let (mut came_back, mut new_fault) = (false, None);
        self.intake.status.send_if_modified(|status| {
            came_back = !status.connected;
            if status.fault != fault {
                new_fault.clone_from(&fault);
            }
            let now = RedisStatus { connected: true, fault, depths };
            let changed = *status != now;
            *status = now;
            changed
        });
        if came_back {
            self.intake.metrics.redis_up(true);
            tracing::info!("Redis is connected");
        }
        if let Some(fault) = new_fault {
            tracing::warn!(fault, "a queue cannot be read");
        }
    }

    fn tell_paused(&self, reason: Option<&str>) {
        let paused = &self.intake.metrics.intake_paused;
        for known in ["full", "disk_low", "storage", "stopping"] {
            paused.with_label_values(&[known]).set(i64::from(reason == Some(known)));
        }
    }
}

async fn first_commit(batches: &mut VecDeque<Batch>) -> Result<u64, AppendError> {
    match batches.front_mut() {
        Some(batch) => (&mut batch.committed).await.unwrap_or(Err(AppendError::Closed)),
        None => std::future::pending().await,
    }
}

fn wake<'a>(mut connection: redis::aio::MultiplexedConnection, names: &Names, queue: Queue) -> Wake<'a> {
    let mut command = redis::cmd("BLMOVE");
    command.arg(names.queue(queue)).arg(names.in_flight(queue)).arg("RIGHT").arg("LEFT").arg(BLOCK.as_secs());
    Box::pin(async move {
        let woken = command.query_async(&mut connection).await;
        if woken.as_ref().is_err_and(|error: &redis::RedisError| error.code() == Some("WRONGTYPE")) {
            // The round says so; asking at once again would spin.
            tokio::time::sleep(BLOCK).await;
            return Ok(redis::Value::Nil);
        }
        woken
    })
}

async fn armed(wake: &mut Option<Wake<'_>>) -> redis::RedisResult<redis::Value> {
    match wake {
        Some(waiting) => {
            let woken = waiting.await;
            *wake = None;
            woken
        }
        None => std::future::pending().await,
    }
}

/// After a wake-up a round looks what there is: also after a blocking move that timed out, which keeps the
/// measurements fresh and notices a dead connection.
fn keep_idle(woken: redis::RedisResult<redis::Value>) -> Result<bool, SourceError> {
    woken?;
    Ok(false)
}
