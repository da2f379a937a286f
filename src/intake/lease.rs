//! The lease of a `SERVER_ID`: one agent at a time works under a name, and one conversation at a time for it.
//!
//! A lease is a key that ends by itself. It holds the outbox's id and the conversation's number: an agent that starts
//! again goes on at once, since its folder's lock says that the process before it is gone; one with another outbox
//! has to wait until the lease has ended. Every script of a conversation shows the lease first (`lease.lua`).

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Script, ScriptInvocation, Value};
use uuid::Uuid;

use super::{Names, SourceError};

/// How long a lease lasts that is not renewed.
pub(super) const LEASE: Duration = Duration::from_secs(10);
/// It is renewed with every round, and there is one at least this often.
pub(super) const RENEW: Duration = Duration::from_secs(3);

/// A lease that was held when it was last looked at.
pub(super) struct Lease {
    key: String,
    agents: String,
    server_id: String,
    holder: String,
}

impl Lease {
    /// Takes the lease for a new conversation; whatever an earlier one of this outbox still has on its way is void then.
    pub(super) async fn acquire(
        connection: &mut MultiplexedConnection,
        names: &Names,
        outbox: Uuid,
    ) -> Result<Self, SourceError> {
        let conversation = Uuid::new_v4().simple().to_string();
        let lease = Self {
            key: names.lease(&names.server_id),
            agents: names.agents(),
            server_id: names.server_id.clone(),
            holder: format!("{outbox}/{conversation}"),
        };
        let holder: Option<String> = Script::new(include_str!("acquire.lua"))
            .key(&lease.key)
            .key(&lease.agents)
            .arg(outbox.to_string())
            .arg(conversation)
            .arg(LEASE.as_millis() as u64)
            .arg(&lease.server_id)
            .invoke_async(connection)
            .await?;
        match holder {
            None => Ok(lease),
            Some(holder) => {
                let holder = holder.split('/').next().unwrap_or_default().to_owned();
                Err(SourceError::Held { server_id: lease.server_id, holder })
            }
        }
    }

    /// A call of a script that begins with `lease.lua`, its first keys and arguments filled in.
    pub(super) fn call<'a>(&self, script: &'a Script) -> ScriptInvocation<'a> {
        let mut call = script.prepare_invoke();
        call.key(&self.key).key(&self.agents);
        call.arg(&self.holder).arg(LEASE.as_millis() as u64).arg(&self.server_id);
        call
    }

    /// Gives it up, so that another may begin at once.
    pub(super) async fn release(
        &self,
        connection: &mut MultiplexedConnection,
        in_flight: &[String],
    ) -> redis::RedisResult<()> {
        let script = Script::new(include_str!("release.lua"));
        let mut call = script.key(&self.key);
        call.key(&self.agents);
        for list in in_flight {
            call.key(list);
        }
        let _: Value = call.arg(&self.holder).arg(&self.server_id).invoke_async(connection).await?;
        Ok(())
    }
}
