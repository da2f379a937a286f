//! Common to lists and streams: the request and the result of a round.

use std::borrow::Cow;

use super::allowance::Allowance;
use super::connection::{Connection, connect};
use super::fault::{RedisRefusal, refuses};
use super::lease::Lease;
use super::list::List;
use super::stream::Stream;
use super::wakeup::Wait;
use super::{Settings, SourceError, SourceMode};
use crate::outbox::{Outbox, Taken};
use crate::record::Queue;

/// The queues in the order of the scripts.
pub(super) const ORDER: [Queue; 3] = [Queue::Lifecycle, Queue::Usage, Queue::Quota];
/// The oldest supported Redis: it has `LMOVE`, `BLMOVE` and `XAUTOCLAIM`.
const OLDEST: (u32, u32) = (6, 2);

/// The request of a round for one queue.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ask {
    /// Acknowledge this many of the oldest in-flight messages.
    pub ack: usize,
    /// Further in-flight messages known to the agent.
    pub known: usize,
    /// Take this many.
    pub want: usize,
}

/// A message as found.
#[derive(Debug)]
pub(super) struct SourceMessage {
    /// Its bytes, or the first of them.
    pub body: Vec<u8>,
    /// Why this cannot be a record.
    pub defect: Option<Cow<'static, str>>,
}

/// The result of one round for one queue.
#[derive(Debug, Default)]
pub(super) struct Given {
    /// Oldest first.
    pub messages: Vec<SourceMessage>,
    /// Digests for the checkpoint, in order; the format depends on the source.
    pub digests: Vec<u32>,
    /// Messages left in Redis, not in flight.
    pub left: u64,
    /// Why this queue cannot be read.
    pub fault: Option<RedisRefusal>,
    /// Stream entries deleted before they were read.
    pub trimmed: u64,
}

/// A session's connection to Redis, for lists or streams.
pub(super) enum Source {
    List(Box<List>),
    Stream(Box<Stream>),
}

impl Source {
    /// Connects, checks the version, and takes the lease.
    pub(super) async fn open(
        settings: &Settings,
        outbox: &Outbox,
        is_first: bool,
    ) -> Result<Self, SourceError> {
        let mut connection = connect(settings, std::time::Duration::ZERO).await?;
        for version in versions(&mut connection).await? {
            check_version(&version)?;
        }
        if is_first && let Some(policy) = evicts(&mut connection).await {
            tracing::warn!(
                policy,
                "this Redis evicts whole queues when its memory is full: set maxmemory-policy noeviction"
            );
        }
        let names = settings.names.clone();
        match settings.mode {
            SourceMode::List => {
                let keys = names.lease_keys();
                let lease = Lease::acquire(&mut connection, keys, &names.server_id, outbox.id()).await?;
                Ok(Self::List(Box::new(List::new(connection, lease, names))))
            }
            SourceMode::Stream => {
                let mut leases = Vec::new();
                for keys in names.leases(settings.server.is_cluster()) {
                    leases.push(Lease::acquire(&mut connection, keys, &names.server_id, outbox.id()).await?);
                }
                Ok(Self::Stream(Box::new(Stream::new(connection, leases, names, settings.orphan_reclaim))))
            }
        }
    }

    /// Takes over the previous agent's in-flight messages, once.
    pub(super) async fn adopt_previous(&mut self) -> Result<u64, SourceError> {
        match self {
            Self::List(list) => list.adopt_previous().await,
            // The previous agent did not use streams.
            Self::Stream(_) => Ok(0),
        }
    }

    /// The number of the oldest in-flight messages that are already committed according to the checkpoint, and the position
    /// after them.
    pub(super) async fn recover(
        &mut self,
        queue: Queue,
        taken: &[Taken],
        allowance: Allowance,
    ) -> Result<(usize, u64), SourceError> {
        match self {
            Self::List(list) => list.recover(queue, taken, allowance).await,
            Self::Stream(stream) => Ok(stream.recover(queue, taken)),
        }
    }

    /// One round: acknowledge, take, measure.
    pub(super) async fn round(
        &mut self,
        asks: &[Ask; 3],
        allowance: Allowance,
    ) -> Result<[Given; 3], SourceError> {
        match self {
            Self::List(list) => list.round(asks, allowance).await,
            Self::Stream(stream) => stream.round(asks, allowance).await,
        }
    }

    /// Reclaims messages of vanished agents. Returns their number.
    pub(super) async fn reclaim(&mut self, gone_for: std::time::Duration) -> Result<u64, SourceError> {
        match self {
            Self::List(list) => list.reclaim(gone_for).await,
            Self::Stream(stream) => {
                stream.reclaim();
                Ok(0)
            }
        }
    }

    /// Whether more can be taken without waiting.
    pub(super) fn has_more(&self) -> bool {
        match self {
            // Messages left in a list are taken by the next round that returns something.
            Self::List(_) => false,
            Self::Stream(stream) => stream.has_more(),
        }
    }

    /// The blocking commands to wait with, one connection each.
    pub(super) fn waits(&self) -> Vec<Wait> {
        match self {
            Self::List(list) => list.waits(),
            Self::Stream(stream) => stream.waits(),
        }
    }

    /// Releases the lease.
    pub(super) async fn release(&mut self) -> redis::RedisResult<()> {
        match self {
            Self::List(list) => list.release().await,
            Self::Stream(stream) => stream.release().await,
        }
    }
}

/// A warning if Redis evicts keys when its memory is full; `None` if it does not say.
pub(super) async fn evicts(connection: &mut Connection) -> Option<String> {
    let infos = connection.info("memory").await.ok()?;
    infos.iter().find_map(|info| {
        let of = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let policy = of("maxmemory_policy:").filter(|policy| policy.starts_with("allkeys-"))?;
        (of("maxmemory:") != Some("0")).then(|| policy.to_owned())
    })
}

/// The servers' versions, asked with whichever command exists and is allowed. `Ok` and empty if there is none: missing
/// features are then found when they are used.
pub(super) async fn versions(connection: &mut Connection) -> Result<Vec<String>, SourceError> {
    match connection.info("server").await {
        Ok(infos) => {
            let version = |info: &String| {
                let version = info.lines().find_map(|line| line.strip_prefix("redis_version:"));
                version.unwrap_or("unknown").trim().to_owned()
            };
            return Ok(infos.iter().map(version).collect());
        }
        // An ACL may forbid INFO as dangerous, and a managed Redis may rename it, but both may still allow HELLO.
        Err(error) if refuses(&error, "INFO") => {}
        Err(error) => return Err(error.into()),
    }
    match redis::cmd("HELLO").arg(2).query_async(connection).await {
        Ok(hello) => {
            let hello: std::collections::HashMap<String, redis::Value> = hello;
            let version = hello.get("version").ok_or(SourceError::Answer("HELLO without a version"))?;
            Ok(vec![redis::from_redis_value_ref(version).map_err(redis::RedisError::from)?])
        }
        Err(error) if refuses(&error, "HELLO") => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

pub(super) fn check_version(version: &str) -> Result<(), SourceError> {
    let mut parts = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let found = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    if found < OLDEST { Err(SourceError::TooOld(version.to_owned())) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_redis_is_told_by_its_version() {
        assert!(check_version("6.2.0").is_ok());
        assert!(check_version("7.0.15").is_ok());
        let error = check_version("6.0.16").unwrap_err().to_string();
        assert!(error.contains("6.0.16"), "{error}");
    }
}
