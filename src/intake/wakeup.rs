//! Wakes the intake when all queues are empty: commands that block until a message arrives.
//!
//! None of them takes a message or answers with one, whatever its size: a [`Wait`] says how. The rounds take. So there is
//! nothing in flight of an agent that has stopped, and no answer that is too large.

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

/// Retry interval of a refused command; meanwhile rounds run at the same interval.
pub(super) const REFUSED: Duration = Duration::from_secs(1);
/// Poll interval where no blocking command works.
const POLL: Duration = Duration::from_millis(100);
/// Waited for before the next command if those before it woke the intake for nothing: the first time, and then twice as long
/// each time, up to [`REFUSED`].
const IN_VAIN: Duration = Duration::from_millis(10);
/// Other agents may take the message that woke this one: this many empty rounds mean nothing.
const IN_VAIN_FREE: u32 = 2;

/// How to wait with a command.
pub(super) enum Wait {
    /// It is answered with `WRONGTYPE` when a message arrives, because its destination is not a list.
    ForRefusal(Cmd),
    /// Its answer, which holds what came, is suppressed by `CLIENT REPLY SKIP`; that of the `PING` behind it is the signal.
    Silently {
        /// The key that it waits for.
        key: String,
        command: Cmd,
    },
}

/// Whether something is to have come.
type WakeupFuture = Pin<Box<dyn Future<Output = RedisResult<bool>> + Send>>;

/// A connection for each command.
pub(super) struct Wakeup {
    waiters: Vec<Waiter>,
    /// Rounds in a row that found nothing after a wake-up.
    in_vain: u32,
}

struct Waiter {
    connection: Connection,
    waiting: Option<WakeupFuture>,
    /// Why Redis refuses the command.
    refused: Option<RedisError>,
    /// Answers can be suppressed.
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

    /// Starts waiting, unless it waits already.
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

    /// Done when something may have come: a round has to look. Also after a while in which nothing came, which keeps
    /// the measurements fresh and notices a dead connection.
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
                    // Out of memory, no permission: the rounds go on, and asking at once again would spin.
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

    /// A round found something.
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
                        // Where the key has moved meanwhile: the answer that would say so is suppressed.
                        let _: Value = cmd("TYPE").arg(&key).query_async(&mut connection).await?;
                    }
                    let mut commands = redis::pipe();
                    commands.cmd("CLIENT").arg("REPLY").arg("SKIP");
                    commands.add_command(command).cmd("PING");
                    let begun = Instant::now();
                    // One answer of three commands.
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

/// Whether Redis lets answers be suppressed: before 7 that takes a right that an ACL may withhold, and a managed one may have
/// renamed the command.
pub(super) async fn can_be_silent(connection: &mut Connection, key: &str) -> RedisResult<bool> {
    let mut commands = redis::pipe();
    // The second one says which node it is about.
    commands.cmd("CLIENT").arg("REPLY").arg("ON").cmd("TYPE").arg(key);
    match commands.query_async::<(Value, Value)>(connection).await {
        Ok(_) => Ok(true),
        Err(error) if is_refusal(&error) => Ok(false),
        Err(error) => Err(error),
    }
}
