//! The intake: takes messages from Redis, has the outbox make them durable, and only then acknowledges them.
//!
//! The only module that uses redis. One task owns the session ([`session`]). Each *round* is one script call that
//! acknowledges committed messages, takes more, and counts the rest. While the outbox commits one batch, the next is parsed
//! and the one after it is taken. When all queues are empty, connections block until something arrives ([`wakeup`]). They
//! only wake the task: the next round takes the messages, so one atomic snapshot decides their order. Each queue is a
//! [`list`] or a [`stream`]; [`source`] is what both have in common. In a Redis Cluster, where each stream has its own
//! slot, a round is one script call per stream ([`stream`]'s `apart`).
//!
//! # Keys
//!
//! All keys besides the queues are named after a queue: an ACL for `queue:*` covers them.
//!
//! | key | holds |
//! |---|---|
//! | `<queue>:processing:<SERVER_ID>` | messages that this agent has taken and not acknowledged, oldest on the right (lists) |
//! | `<queue>:acked:<SERVER_ID>` | the number of messages it has acknowledged (lists) |
//! | `<queue>:wakeup:<SERVER_ID>` | nothing: the destination of its blocking command (lists) |
//! | `<queue>:oversize` | complete messages that are too large to fetch ([`oversize`]) |
//! | `<usage queue>:lease:<SERVER_ID>` | the agent that uses this ID; expires by itself ([`lease`]) |
//! | `<usage queue>:agents` | when each agent was last seen, by Redis' clock |
//!
//! In a cluster each stream has its own lease, agents and list of oversized messages, in its slot:
//! `{<stream>}:lease:<SERVER_ID>`, or without the braces if the stream's name has a hash tag.
//!
//! # Crash safety
//!
//! A message is in the queue, or in flight with this agent, until its batch is durable. The commit of a batch carries a
//! digest of each message. Before anything is taken, the in-flight messages are compared with the digests, so a message
//! that was committed but not acknowledged is not taken twice. Scripts in transit when a connection is given up may arrive
//! late: by then the next session has taken the lease, and they do nothing. A script that arrives twice (a cluster client
//! repeats a call whose answer was lost) does nothing the second time, because each call changes the lease.
//!
//! # Size
//!
//! A message of more than 1 MiB never leaves Redis: the script moves it aside and returns a note instead ([`oversize`]).
//! The note takes the message's place, so a crash between the move and the commit finds it again, and it becomes the dead
//! letter. All other reads are limited in bytes ([`allowance`]), and blocking commands return no data.
//!
//! # Assumptions
//!
//! A script is atomic. Acknowledged data may still be lost with Redis' disk or in a fail-over: a record that reappears is
//! taken again, and the `ControlPlane` recognises it by its key.

mod address;
mod allowance;
mod connection;
mod fault;
mod lease;
mod list;
mod names;
mod oversize;
mod probe;
mod push;
mod script;
mod session;
#[cfg(feature = "simulation")]
pub mod simulated;
mod source;
mod stream;
mod wakeup;

use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::outbox::Outbox;
use crate::outbox::Watermark;
use crate::record::Acceptor;
use crate::telemetry::metrics::Metrics;

pub use address::ServerSettings;
pub(crate) use address::{ClusterUrl, SentinelUrl, hash_tag};
use allowance::Allowances;
pub use connection::{PreparedServer, RedisClientError, RedisServer, server};
pub use fault::SourceError;
pub use names::Names;
pub use probe::probe;
pub use push::{Mirror, push_quota_answers};
use session::Session;

/// How long a blocking command waits before it is sent again.
const BLOCK: Duration = Duration::from_secs(5);
/// Delays between connection attempts. A session shorter than the longest delay does not reset them.
const RECONNECT_FIRST: Duration = Duration::from_millis(100);
const RECONNECT_MOST: Duration = Duration::from_secs(5);
/// How long to wait for another holder of the lease; a crashed agent's lease has expired by then.
const HELD_PATIENCE: Duration = Duration::from_secs(20);

/// How producers hand over records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SourceMode {
    /// Lists: `LPUSH`.
    List,
    /// Streams: `XADD`.
    Stream,
}

/// The source of the records.
#[derive(Clone)]
pub struct Settings {
    /// The Redis server.
    pub server: RedisServer,
    /// The names of the keys.
    pub names: Names,
    /// Timeout of an answer.
    pub timeout: Duration,
    /// The type of the queues.
    pub mode: SourceMode,
    /// Time after which the in-flight messages of a vanished agent are reclaimed; zero: never.
    pub orphan_reclaim: Duration,
}

/// The state of the session with Redis.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RedisStatus {
    /// Whether Redis answers.
    pub connected: bool,
    /// The current problem, if any.
    pub fault: Option<String>,
    /// Messages in each queue, in the order of [`Queue::ALL`](crate::record::Queue::ALL); `None` while Redis does not say.
    pub depths: [Option<u64>; 3],
    /// The holder of the `SERVER_ID`.
    pub name: NameHolder,
}

/// The holder of a `SERVER_ID`, as far as Redis has answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NameHolder {
    /// Redis has not been asked yet.
    #[default]
    Unasked,
    /// Unknown: Redis has been unreachable since the start.
    Untold,
    /// This agent, as of the last answer.
    Ours,
    /// Another agent.
    Another,
}

/// The intake, ready to run.
pub struct Intake {
    /// The source.
    pub settings: Settings,
    /// The destination.
    pub outbox: Outbox,
    /// Turns messages into records.
    pub acceptor: Acceptor,
    /// Tells the drain which completed events may be sent.
    pub watermark: watch::Sender<Watermark>,
    /// Publishes the state.
    pub status: watch::Sender<RedisStatus>,
    /// The metrics.
    pub metrics: Arc<Metrics>,
}

impl Intake {
    /// Runs until `stop` is true. Retries after all problems with Redis except two that waiting does not fix: a version
    /// that is too old at startup, and another agent with the same ID.
    pub async fn run(self, mut stop: watch::Receiver<bool>) -> Result<(), SourceError> {
        for reason in fault::REASONS {
            self.metrics.redis_failures.with_label_values(&[reason]).inc_by(0);
        }
        let mut delay = RECONNECT_FIRST;
        let mut number = 0;
        let (mut has_worked, mut held_since) = (false, None);
        let mut said = None;
        let mut allowances = Allowances::new(self.acceptor.max_bytes());
        while !*stop.borrow() {
            number += 1;
            let begun = Instant::now();
            let Err((error, worked)) = self.converse(&mut allowances, number, !has_worked, &mut stop).await
            else {
                return Ok(());
            };
            has_worked |= worked;
            if worked && begun.elapsed() > RECONNECT_MOST {
                (delay, said) = (RECONNECT_FIRST, None);
            }
            self.lost(&error, &mut said);
            if self.is_cut(&error) && allowances.cut() {
                // The next request asks for less: no need to wait.
                delay = RECONNECT_FIRST;
            }
            let held = matches!(error, SourceError::Held { .. });
            held_since = held.then(|| held_since.unwrap_or_else(Instant::now));
            let too_old = matches!(error, SourceError::TooOld(_)) && !has_worked;
            if too_old || held_since.is_some_and(|since| since.elapsed() > HELD_PATIENCE) {
                return Err(error);
            }
            tokio::select! {
                biased;
                () = tokio::time::sleep(delay) => {}
                _ = stop.changed() => {}
            }
            delay = (delay * 2).min(RECONNECT_MOST);
        }
        Ok(())
    }

    /// Whether an answer with messages may have been cut off. A cluster client repeats the call, which then fails because
    /// the lease has changed.
    fn is_cut(&self, error: &SourceError) -> bool {
        let is_cluster = self.settings.server.is_cluster();
        matches!(error, SourceError::Cut(_)) || (is_cluster && error.reason() == "lease_lost")
    }

    /// Reports what ended a session, in the log once per reason.
    fn lost(&self, error: &SourceError, said: &mut Option<&'static str>) {
        let (connected, reason) = (error.is_connected(), error.reason());
        debug_assert!(fault::REASONS.contains(&reason), "{reason} has no sample at startup");
        let of_outbox = matches!(error, SourceError::Append(_));
        self.status.send_modify(|status| {
            status.connected = connected;
            status.name = match (error, status.name) {
                (SourceError::Held { .. }, _) => NameHolder::Another,
                (_, NameHolder::Unasked) => NameHolder::Untold,
                (_, name) => name,
            };
            status.fault = match error {
                _ if of_outbox => None,
                SourceError::Held { .. } => Some(format!("waiting: {error}")),
                _ => Some(error.to_string()),
            };
            if !of_outbox {
                status.depths = [None; 3];
            }
        });
        self.metrics.redis_up(connected);
        self.metrics.server_id_taken.set(i64::from(matches!(error, SourceError::Held { .. })));
        if !of_outbox {
            self.metrics.redis_queue_depth.reset();
        }
        self.metrics.redis_failures.with_label_values(&[reason]).inc();
        // The outbox logs its own failures.
        if !of_outbox && *said != Some(reason) {
            *said = Some(reason);
            let address = self.settings.server.address();
            tracing::warn!(%error, reason, address, "cannot use Redis; records stay there");
        }
    }

    /// Runs one session. `Ok` if it was stopped; otherwise what ended it, and whether it had begun.
    async fn converse(
        &self,
        allowances: &mut Allowances,
        number: u64,
        is_first: bool,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<(), (SourceError, bool)> {
        let mut session = tokio::select! {
            biased;
            session = Session::begin(self, allowances, number, is_first) => session.map_err(|error| (error, false))?,
            _ = stop.changed() => return Ok(()),
        };
        self.status.send_modify(|status| status.name = NameHolder::Ours);
        self.metrics.server_id_taken.set(0);
        let end = session.run(stop).await;
        session.end().await;
        end.map_err(|error| (error, true))
    }
}
