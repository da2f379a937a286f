//! Another Redis than one behind a socket: a simulation's. It is asked for what a connection is asked for: commands, and
//! scripts by their digests or texts.

use std::sync::Arc;
use std::time::Duration;

use redis::{Cmd, Pipeline, RedisFuture, Value};

/// A Redis.
pub trait Redis: Send + Sync {
    /// Connects. What is asked over the connection is to be answered within this time.
    fn connect(&self, patience: Duration) -> RedisFuture<'_, Arc<dyn RedisConnection>>;
}

/// A connection to it; clones of one share it.
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

/// The scripts by which lists are worked on, each as its parts are put together.
pub const SCRIPTS: [(&str, &[&str]); 6] = [
    ("acquire", &[include_str!("acquire.lua")]),
    ("release", &[include_str!("release.lua")]),
    ("give_back", &[include_str!("give_back.lua")]),
    ("in_flight", &[include_str!("in_flight.lua")]),
    ("round", &[include_str!("lease.lua"), include_str!("oversize.lua"), include_str!("list.lua")]),
    ("set", &[include_str!("lease.lua"), "redis.call('SET', KEYS[3], ARGV[5])"]),
];
