//! One connection's conversation with Redis: start-up checks, recovery, and the rounds.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, RedisError, Script, Value};

use super::{Names, Settings};
use crate::outbox::Taken;
use crate::record::Queue;

/// The queues in the order of `round.lua`.
pub(super) const ORDER: [Queue; 3] = [Queue::Lifecycle, Queue::Usage, Queue::Quota];
/// Bytes of messages in one round at the most, and one chunk of the script more.
const ROUND_BYTES: usize = 1 << 20;
/// The oldest Redis that can be used: it has `LMOVE` and `BLMOVE`.
const OLDEST: (u32, u32) = (6, 2);
/// How long a blocking move waits before it is asked again.
pub(super) const BLOCK: Duration = Duration::from_secs(5);

/// What Redis could not do for us.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// Redis is away or said no.
    #[error("{0}")]
    Redis(#[from] RedisError),
    /// Redis is too old.
    #[error("Redis {0} is too old: this agent needs 6.2 or newer")]
    TooOld(String),
    /// The answer is not what was asked for.
    #[error("Redis answered what was not asked: {0}")]
    Answer(&'static str),
    /// The outbox takes nothing at present.
    #[error(transparent)]
    Append(#[from] crate::outbox::AppendError),
}

/// What one round is to do for one queue.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ask {
    pub ack: usize,
    pub known: usize,
    pub want: usize,
}

/// What one round gave of one queue.
#[derive(Debug, Default)]
pub(super) struct Given {
    /// Oldest first.
    pub messages: Vec<Vec<u8>>,
    /// What is still in Redis and not in hand.
    pub left: u64,
    /// Why this queue cannot be read.
    pub fault: Option<String>,
}

pub(super) struct Source {
    connection: MultiplexedConnection,
    round: Script,
}

/// Connects with time-outs; `patience` is added for commands that block.
pub(super) async fn connect(
    client: &Client,
    settings: &Settings,
    patience: Duration,
) -> Result<MultiplexedConnection, RedisError> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(settings.timeout))
        .set_response_timeout(Some(settings.timeout + patience));
    client.get_multiplexed_async_connection_with_config(&config).await
}

impl Source {
    /// Connects and checks the version.
    pub(super) async fn open(client: &Client, settings: &Settings) -> Result<Self, SourceError> {
        let mut connection = connect(client, settings, Duration::ZERO).await?;
        let info: String = redis::cmd("INFO").arg("server").query_async(&mut connection).await?;
        check_version(&info)?;
        Ok(Self { connection, round: Script::new(include_str!("round.lua")) })
    }

    /// Gives back to the queue, once, what the previous agent had in flight: in its old order, to be taken next.
    pub(super) async fn adopt_previous(&mut self, names: &Names) -> Result<u64, SourceError> {
        let mut adopted = 0;
        for queue in ORDER {
            let name = names.queue(queue);
            loop {
                // Its newest is at the left; pushed to the right one by one, its oldest is the next to be taken.
                let moved: Value = redis::cmd("LMOVE")
                    .arg(format!("{name}:processing"))
                    .arg(name)
                    .arg("LEFT")
                    .arg("RIGHT")
                    .query_async(&mut self.connection)
                    .await?;
                if moved == Value::Nil {
                    break;
                }
                adopted += 1;
            }
        }
        Ok(adopted)
    }

    /// How many messages at the old end of the in-flight list are committed already, judged by the checkpoint;
    /// and the position of what follows them.
    pub(super) async fn recover(
        &mut self,
        names: &Names,
        queue: Queue,
        taken: &[Taken],
    ) -> Result<(usize, u64), SourceError> {
        let acked: Option<u64> =
            redis::cmd("GET").arg(names.acked(queue)).query_async(&mut self.connection).await?;
        let committed = taken.last().map_or(0, |last| last.position + last.digests.len() as u64);
        let digests: Vec<u32> = taken.iter().flat_map(|taken| taken.digests.iter().copied()).collect();
        let list: Vec<Vec<u8>> = redis::cmd("LRANGE")
            .arg(names.in_flight(queue))
            .arg(-(digests.len().max(1) as i64))
            .arg(-1)
            .query_async(&mut self.connection)
            .await?;
        let list: Vec<u32> = list.iter().rev().map(|message| super::digest(message)).collect();
        let done = already_committed(&digests, committed, acked, &list);
        // The count says from now on what it has to, also where it was lost.
        let position = committed.max(acked.unwrap_or(0));
        let before = position.saturating_sub(done as u64);
        if acked != Some(before) {
            let () = redis::cmd("SET")
                .arg(names.acked(queue))
                .arg(before)
                .query_async(&mut self.connection)
                .await?;
        }
        Ok((done, position))
    }

    /// One round: acknowledge, take, measure.
    pub(super) async fn round(&mut self, names: &Names, asks: &[Ask; 3]) -> Result<[Given; 3], SourceError> {
        let mut call = self.round.prepare_invoke();
        for queue in ORDER {
            call.key(names.queue(queue)).key(names.in_flight(queue)).key(names.acked(queue));
        }
        for ask in asks {
            call.arg(ask.ack).arg(ask.known).arg(ask.want);
        }
        call.arg(ROUND_BYTES);
        let reply: Value = call.invoke_async(&mut self.connection).await?;
        let Value::Array(queues) = reply else { return Err(SourceError::Answer("a round is a list")) };
        let mut given = queues.into_iter().map(parse_given);
        let mut next = || given.next().unwrap_or(Err(SourceError::Answer("a round is three queues")));
        Ok([next()?, next()?, next()?])
    }
}

fn parse_given(value: Value) -> Result<Given, SourceError> {
    let bad = || SourceError::Answer("a queue is a fault, a count and messages");
    let Value::Array(parts) = value else { return Err(bad()) };
    let Ok([fault, Value::Int(left), Value::Array(items)]) = <[Value; 3]>::try_from(parts) else {
        return Err(bad());
    };
    let fault: String = redis::from_redis_value(fault).map_err(|_| bad())?;
    let messages = items
        .into_iter()
        .rev()
        .map(|item| if let Value::BulkString(bytes) = item { Ok(bytes) } else { Err(bad()) })
        .collect::<Result<_, _>>()?;
    Ok(Given { messages, left: left.max(0) as u64, fault: Some(fault).filter(|fault| !fault.is_empty()) })
}

fn check_version(info: &str) -> Result<(), SourceError> {
    let version =
        info.lines().find_map(|line| line.strip_prefix("redis_version:")).unwrap_or("unknown").trim();
    let mut parts = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let found = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    if found < OLDEST { Err(SourceError::TooOld(version.to_owned())) } else { Ok(()) }
}

/// How many of the oldest in-flight messages are committed (invariant 9).
///
/// `digests` are those of the last commits, of which the last ended at position `committed`; `acked` is Redis' own
/// count. Acknowledging removes from the old end only, so the list is some tail of what was committed, then what was
/// not. The count says how long that tail is; where it was lost, or contradicts the digests, the longest match is
/// taken: two messages that cannot be told apart are the same record to the `ControlPlane`, too.
fn already_committed(digests: &[u32], committed: u64, acked: Option<u64>, list: &[u32]) -> usize {
    let matches =
        |n: usize| n <= digests.len() && n <= list.len() && list[..n] == digests[digests.len() - n..];
    if let Some(acked) = acked
        && let Some(n) = committed.checked_sub(acked).and_then(|n| usize::try_from(n).ok())
        && matches(n)
    {
        return n;
    }
    (0..=digests.len().min(list.len())).rev().find(|n| matches(*n)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_committed_is_told_from_what_is_not() {
        /// Digests, position, Redis' count, in-flight list; how many are committed.
        type Case<'a> = (&'a [u32], u64, Option<u64>, &'a [u32], usize);
        let table: [Case<'_>; 9] = [
            (&[], 0, None, &[1, 2], 0),
            (&[1, 2, 3], 3, Some(3), &[4, 5], 0),
            (&[1, 2, 3], 3, Some(0), &[1, 2, 3, 4], 3),
            (&[1, 2, 3], 103, Some(102), &[3, 4], 1),
            // The same message again and again: only the count can tell.
            (&[7, 7, 7], 3, Some(3), &[7], 0),
            (&[7, 7, 7], 3, Some(1), &[7, 7, 7], 2),
            // The count is lost: the longest match.
            (&[1, 2, 3], 3, None, &[2, 3, 9], 2),
            (&[1, 2, 3], 3, Some(50), &[3, 9], 1),
            (&[1, 2, 3], 3, None, &[9], 0),
        ];
        for (digests, committed, acked, list, expected) in table {
            assert_eq!(
                already_committed(digests, committed, acked, list),
                expected,
                "{digests:?} {acked:?} {list:?}"
            );
        }
    }

    #[test]
    fn an_old_redis_is_told_by_its_version() {
        assert!(check_version("# Server\r\nredis_version:6.2.0\r\n").is_ok());
        assert!(check_version("redis_version:7.0.15\r\n").is_ok());
        let error = check_version("redis_version:6.0.16\r\n").unwrap_err().to_string();
        assert!(error.contains("6.0.16"), "{error}");
    }
}
