//! The lease of a `SERVER_ID`: one agent at a time uses an ID, with one conversation at a time.
//!
//! A lease is a key that expires. It holds the outbox's ID, the conversation's, and the number of its last call. An agent
//! that restarts continues at once, since its folder's lock proves that the previous process is gone; one with another
//! outbox has to wait until the lease expires. Every script of a conversation presents the lease first, and changes it
//! (`lease.lua`).

use std::time::Duration;

use redis::Value;
use uuid::Uuid;

use super::SourceError;
use super::connection::Connection;
use super::names::LeaseKeys;
use super::script::{Call, Script};

/// Lifetime of a lease that is not renewed.
pub(super) const LEASE: Duration = Duration::from_secs(10);
/// Maximum time between rounds, which renew it.
pub(super) const RENEW: Duration = Duration::from_secs(3);

/// A lease, held as of the last call.
pub(super) struct Lease {
    keys: LeaseKeys,
    server_id: String,
    /// The outbox and the conversation.
    holder: String,
    calls: u64,
}

impl Lease {
    /// Takes the lease for a new conversation, which voids late calls of earlier ones of this outbox.
    pub(super) async fn acquire(
        connection: &mut Connection,
        keys: LeaseKeys,
        server_id: &str,
        outbox: Uuid,
    ) -> Result<Self, SourceError> {
        let holder = format!("{outbox}/{}", crate::time::random_uuid().simple());
        let lease = Self { keys, server_id: server_id.to_owned(), holder, calls: 0 };
        let script = Script::new(&[include_str!("acquire.lua")]);
        let mut call = script.call();
        call.key(&lease.keys.lease).key(&lease.keys.agents);
        call.arg(outbox.to_string()).arg(lease.held()).arg(LEASE.as_millis() as u64).arg(&lease.server_id);
        let holder: Option<String> = call.invoke(connection).await?;
        match holder {
            None => Ok(lease),
            Some(holder) => {
                let holder = holder.split('/').next().unwrap_or_default().to_owned();
                Err(SourceError::Held { server_id: lease.server_id, holder })
            }
        }
    }

    /// What the key holds now.
    fn held(&self) -> String {
        format!("{}/{}", self.holder, self.calls)
    }

    /// A call of a script that begins with `lease.lua`, with its first keys and arguments. Make it only once: afterwards the
    /// lease has changed, or the conversation is over.
    pub(super) fn call<'a>(&mut self, script: &'a Script) -> Call<'a> {
        let before = self.held();
        self.calls += 1;
        let mut call = script.call();
        call.key(&self.keys.lease).key(&self.keys.agents);
        call.arg(before).arg(LEASE.as_millis() as u64).arg(&self.server_id).arg(self.held());
        call
    }

    /// Releases it, so that another agent can start at once.
    pub(super) async fn release(
        &self,
        connection: &mut Connection,
        in_flight: &[String],
    ) -> redis::RedisResult<()> {
        let script = Script::new(&[include_str!("release.lua")]);
        let mut call = script.call();
        call.key(&self.keys.lease).key(&self.keys.agents);
        for list in in_flight {
            call.key(list);
        }
        let _: Value = call.arg(self.held()).arg(&self.server_id).invoke(connection).await?;
        Ok(())
    }
}
