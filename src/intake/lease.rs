//! The lease of a `SERVER_ID`: one agent at a time uses an ID, in one session at a time.
//!
//! A lease is an expiring key. It holds the outbox's ID, the session's number, and the number of its last call. A restarted
//! agent continues at once, because its folder's lock proves that the previous process is gone; an agent with another
//! outbox must wait until the lease expires. Every script of a session checks the lease first, and changes it
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
/// The longest time between rounds, each of which renews the lease.
pub(super) const RENEW: Duration = Duration::from_secs(3);

/// A lease, as of the last call.
pub(super) struct Lease {
    keys: LeaseKeys,
    server_id: String,
    /// The outbox and the session.
    holder: String,
    calls: u64,
}

impl Lease {
    /// Takes the lease for a new session. Late calls of this outbox's earlier sessions then have no effect.
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

    /// The key's current value.
    fn held(&self) -> String {
        format!("{}/{}", self.holder, self.calls)
    }

    /// A call of a script that begins with `lease.lua`, with the lease's keys and arguments. Invoke it only once:
    /// afterwards the lease has changed, or the session is over.
    pub(super) fn call<'a>(&mut self, script: &'a Script) -> Call<'a> {
        let before = self.held();
        self.calls += 1;
        let mut call = script.call();
        call.key(&self.keys.lease).key(&self.keys.agents);
        call.arg(before).arg(LEASE.as_millis() as u64).arg(&self.server_id).arg(self.held());
        call
    }

    /// Releases the lease, so that another agent can start at once.
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
