//! A simulated Redis in place of a socket. It receives what a connection would: commands, and scripts by digest or text.

use std::sync::Arc;
use std::time::Duration;

use redis::{Cmd, Pipeline, RedisFuture, Value};

/// A Redis.
pub trait Redis: Send + Sync {
    /// Connects. Answers over the connection are due within this time.
    fn connect(&self, patience: Duration) -> RedisFuture<'_, Arc<dyn RedisConnection>>;
}

/// A connection; its clones share it.
pub trait RedisConnection: Send + Sync {
    /// The answer to one command.
    fn command<'a>(&'a self, command: &'a Cmd) -> RedisFuture<'a, Value>;
    /// The answers to `count` of the commands of a pipeline, from `offset` on.
    fn commands<'a>(
        &'a self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>>;
}

/// The scripts for lists and streams, each with its parts.
pub const SCRIPTS: [(&str, &[&str]); 7] = [
    ("acquire", &[include_str!("acquire.lua")]),
    ("release", &[include_str!("release.lua")]),
    ("give_back", &[include_str!("give_back.lua")]),
    ("in_flight", &[include_str!("in_flight.lua")]),
    ("list", &[include_str!("lease.lua"), include_str!("oversize.lua"), include_str!("list.lua")]),
    ("stream", &[include_str!("lease.lua"), include_str!("oversize.lua"), include_str!("stream.lua")]),
    ("set", &[include_str!("lease.lua"), "redis.call('SET', KEYS[3], ARGV[5])"]),
];
