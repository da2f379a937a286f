//! Lists or streams: the differences, for tests about both.

use super::{RedisServer, Stage, load};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    List,
    Stream,
}

impl Mode {
    /// The value for `SOURCE_MODE`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::List => "list",
            Self::Stream => "stream",
        }
    }

    /// Pushes messages as producers do.
    pub(crate) async fn push(self, redis: &RedisServer, queue: &str, messages: &[String]) {
        match self {
            Self::List => redis.push(queue, messages).await,
            Self::Stream => redis.add(queue, messages).await,
        }
    }

    /// Pushes whole sessions. Returns the number of records.
    pub(crate) async fn push_sessions(
        self,
        redis: &RedisServer,
        prefix: &str,
        sessions: u32,
        usage_each: u32,
    ) -> u64 {
        match self {
            Self::List => load::push_sessions(redis, prefix, sessions, usage_each).await,
            Self::Stream => load::add_sessions(redis, prefix, sessions, usage_each).await,
        }
    }

    /// The number of messages in a queue.
    pub(crate) async fn len(self, redis: &RedisServer, queue: &str) -> u64 {
        match self {
            Self::List => redis.len(queue).await,
            Self::Stream => redis.entries(queue).await,
        }
    }

    /// Waits until Redis and the outbox are empty.
    pub(crate) async fn drained(self, stage: &mut Stage) {
        match self {
            Self::List => stage.drained().await,
            Self::Stream => stage.streams_drained().await,
        }
    }
}
