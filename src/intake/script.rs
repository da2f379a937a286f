//! Lua scripts, with or without `EVALSHA`: managed Redis may rename it and ACLs may forbid it.

use std::sync::atomic::{AtomicBool, Ordering};

use redis::{Cmd, FromRedisValue, RedisError, RedisResult, ServerErrorKind, ToRedisArgs, cmd};

use super::connection::Connection;
use super::fault::refuses;

/// A script, sent by its digest if Redis has cached it.
pub(super) struct Script {
    text: String,
    digest: String,
    /// `EVALSHA` is missing or not allowed.
    is_sent_whole: AtomicBool,
}

/// A call with its keys and arguments.
pub(super) struct Call<'a> {
    script: &'a Script,
    keys: Vec<Vec<u8>>,
    arguments: Vec<Vec<u8>>,
}

impl Script {
    /// A script made of consecutive parts.
    pub(super) fn new(parts: &[&str]) -> Self {
        let text = parts.concat();
        let digest = redis::Script::new(&text).get_hash().to_owned();
        Self { text, digest, is_sent_whole: AtomicBool::new(false) }
    }

    /// Whether Redis turned out not to support digests.
    pub(super) fn is_sent_whole(&self) -> bool {
        self.is_sent_whole.load(Ordering::Relaxed)
    }

    pub(super) fn call(&self) -> Call<'_> {
        Call { script: self, keys: Vec::new(), arguments: Vec::new() }
    }
}

impl Call<'_> {
    pub(super) fn key(&mut self, key: impl ToRedisArgs) -> &mut Self {
        key.write_redis_args(&mut self.keys);
        self
    }

    pub(super) fn arg(&mut self, argument: impl ToRedisArgs) -> &mut Self {
        argument.write_redis_args(&mut self.arguments);
        self
    }

    /// Runs it once: it is sent again only if the first call was not executed.
    pub(super) async fn invoke<T: FromRedisValue>(&self, connection: &mut Connection) -> RedisResult<T> {
        let script = self.script;
        if !script.is_sent_whole() {
            match self.command("EVALSHA", &script.digest).query_async(connection).await {
                Err(error) if is_unknown_script(&error) => {}
                Err(error) if refuses(&error, "EVALSHA") => {
                    script.is_sent_whole.store(true, Ordering::Relaxed);
                }
                answer => return answer,
            }
        }
        // Redis caches it from now on.
        self.command("EVAL", &script.text).query_async(connection).await
    }

    fn command(&self, name: &str, script: &str) -> Cmd {
        let mut command = cmd(name);
        command.arg(script).arg(self.keys.len()).arg(&self.keys).arg(&self.arguments);
        command
    }
}

fn is_unknown_script(error: &RedisError) -> bool {
    error.kind() == redis::ErrorKind::Server(ServerErrorKind::NoScript)
}
