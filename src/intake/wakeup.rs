//! Wakes the intake when all queues are empty, with commands that block until a message arrives.
//!
//! None of them takes a message or returns one, whatever its size; see [`Wait`]. Rounds take messages. So a stopped agent
//! leaves nothing in flight, and no answer is too large.

use std::future::Future;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use redis::aio::ConnectionLike as _;
use redis::{Cmd, RedisError, RedisResult, Value, cmd};
use tokio::time::Instant;

use super::connection::{Connection, connect};
use super::fault::{is_refusal, reason_of};
use super::source::Source;
use super::{BLOCK, Settings};

/// Retry interval of a refused command, and the interval of rounds in the meantime.
pub(super) const REFUSED: Duration = Duration::from_secs(1);
/// Poll interval if no blocking command works.
const POLL: Duration = Duration::from_millis(100);
/// Delay before the next command after the previous ones woke the intake for nothing: first this, then doubled each time up
/// to [`REFUSED`].
const IN_VAIN: Duration = Duration::from_millis(10);
/// Empty rounds that cause no delay: other agents may have taken the message that woke this one.
const IN_VAIN_FREE: u32 = 2;

/// How a command waits.
pub(super) enum Wait {
    /// Answered with `WRONGTYPE` when a message arrives, because the destination is not a list.
    ForRefusal(Cmd),
    /// The answer, which contains the message, is suppressed by `CLIENT REPLY SKIP`; the answer to the following `PING` is
    /// the signal.
    Silently {
        /// The key that it waits for.
        key: String,
        command: Cmd,
    },
}

/// Resolves to whether a message should have arrived.
type WakeupFuture = Pin<Box<dyn Future<Output = RedisResult<bool>> + Send>>;

/// The blocking commands, each on its own connection.
pub(super) struct Wakeup {
    waiters: Vec<Waiter>,
    /// Consecutive rounds that found nothing after a wake-up.
    in_vain: u32,
}

struct Waiter {
    connection: Connection,
    waiting: Option<WakeupFuture>,
    /// Why Redis refuses the command.
    refused: Option<RedisError>,
    /// Whether answers can be suppressed.
    can_be_silent: bool,
}

impl Wakeup {
    pub(super) async fn open(settings: &Settings, source: &Source) -> RedisResult<Self> {
        let mut waiters = Vec::new();
        for wait in source.waits() {
            let mut connection = connect(settings, BLOCK).await?;
            let can_be_silent = match &wait {
                Wait::ForRefusal(_) => false,
                Wait::Silently { key, .. } => can_be_silent(&mut connection, key).await?,
            };
            waiters.push(Waiter { connection, waiting: None, refused: None, can_be_silent });
        }
        Ok(Self { waiters, in_vain: 0 })
    }

    /// Starts waiting, unless it already waits.
    pub(super) fn arm(&mut self, source: &Source) {
        if self.waiters.iter().all(|waiter| waiter.waiting.is_some()) {
            return;
        }
        let pause = match self.in_vain.saturating_sub(IN_VAIN_FREE) {
            0 => Duration::ZERO,
            n => (IN_VAIN * 2_u32.saturating_pow(n - 1)).min(REFUSED),
        };
        for (waiter, wait) in self.waiters.iter_mut().zip(source.waits()) {
            if waiter.waiting.is_none() {
                waiter.wait(wait, pause);
            }
        }
    }

    /// Resolves when a message may have arrived and a round must look. Also resolves after a while without messages, which
    /// keeps the measurements fresh and detects a dead connection.
    pub(super) async fn woken(&mut self) -> RedisResult<()> {
        std::future::poll_fn(|context| {
            for waiter in &mut self.waiters {
                let Some(waiting) = &mut waiter.waiting else { continue };
                let Poll::Ready(answer) = waiting.as_mut().poll(context) else { continue };
                waiter.waiting = None;
                match answer {
                    Ok(has_come) => {
                        waiter.refused = None;
                        self.in_vain = self.in_vain.saturating_add(u32::from(has_come));
                    }
                    // Out of memory, or no permission: rounds continue, and retrying at once would spin.
                    Err(error) if is_refusal(&error) => {
                        waiter.refused = Some(error);
                        waiter.waiting = Some(Box::pin(async {
                            tokio::time::sleep(REFUSED).await;
                            Ok(false)
                        }));
                    }
                    Err(error) => return Poll::Ready(Err(error)),
                }
                return Poll::Ready(Ok(()));
            }
            Poll::Pending
        })
        .await
    }

    /// Notes that a round found something.
    pub(super) fn found(&mut self) {
        self.in_vain = 0;
    }

    /// Why Redis refuses to wait, if it does.
    pub(super) fn refused(&self) -> Option<&RedisError> {
        self.waiters.iter().find_map(|waiter| waiter.refused.as_ref())
    }
}

impl Waiter {
    fn wait(&mut self, wait: Wait, pause: Duration) {
        let mut connection = self.connection.clone();
        let can_be_silent = self.can_be_silent;
        self.waiting = Some(Box::pin(async move {
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
            match wait {
                Wait::ForRefusal(command) => match command.query_async::<Value>(&mut connection).await {
                    Err(error) if reason_of(&error) == "wrong_type" => Ok(true),
                    answer => answer.map(|answer| answer != Value::Nil),
                },
                Wait::Silently { key, command } if can_be_silent => {
                    if matches!(connection, Connection::Cluster(_)) {
                        // The key may have moved to another node: the answer that would say so is suppressed.
                        let _: Value = cmd("TYPE").arg(&key).query_async(&mut connection).await?;
                    }
                    let mut commands = redis::pipe();
                    commands.cmd("CLIENT").arg("REPLY").arg("SKIP");
                    commands.add_command(command).cmd("PING");
                    let begun = Instant::now();
                    // One answer for three commands.
                    connection.req_packed_commands(&commands, 0, 1).await?;
                    Ok(begun.elapsed() < BLOCK)
                }
                Wait::Silently { .. } => {
                    tokio::time::sleep(POLL).await;
                    Ok(false)
                }
            }
        }));
    }
}

/// Whether Redis allows suppressing answers: before version 7 this needs a permission that an ACL may withhold, and a
/// managed Redis may have renamed the command.
pub(super) async fn can_be_silent(connection: &mut Connection, key: &str) -> RedisResult<bool> {
    let mut commands = redis::pipe();
    // The second command tells the cluster client which node is meant.
    commands.cmd("CLIENT").arg("REPLY").arg("ON").cmd("TYPE").arg(key);
    match commands.query_async::<(Value, Value)>(connection).await {
        Ok(_) => Ok(true),
        Err(error) if is_refusal(&error) => Ok(false),
        Err(error) => Err(error),
    }
}
