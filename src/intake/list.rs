//! Lists: messages taken stay in this agent's in-flight list until they are acknowledged, oldest on the right.

use std::time::Duration;

use redis::Value;

use super::allowance::Allowance;
use super::connection::Connection;
use super::fault::RedisRefusal;
use super::lease::{LEASE, Lease};
use super::oversize;
use super::script::Script;
use super::source::{Ask, Given, ORDER, SourceMessage};
use super::wakeup::Wait;
use super::{BLOCK, Names, SourceError};
use crate::outbox::Taken;
use crate::record::Queue;

/// Most messages returned per call: Redis serves nobody else meanwhile.
const GIVE_BACK: usize = 4096;
const GIVE_BACK_BYTES: usize = 16 << 20;

pub(super) struct List {
    connection: Connection,
    lease: Lease,
    names: Names,
    round: Script,
}

impl List {
    pub(super) fn new(connection: Connection, lease: Lease, names: Names) -> Self {
        let parts = [include_str!("lease.lua"), include_str!("oversize.lua"), include_str!("list.lua")];
        let round = Script::new(&parts);
        Self { connection, lease, names, round }
    }

    /// Returns the previous agent's in-flight messages to the queue, once, in their old order, to be taken next.
    pub(super) async fn adopt_previous(&mut self) -> Result<u64, SourceError> {
        let give_back = Script::new(&[include_str!("give_back.lua")]);
        let mut adopted = 0;
        loop {
            let mut call = give_back.call();
            call.key(self.names.agents());
            for queue in ORDER {
                let name = self.names.queue(queue);
                call.key(format!("{name}:processing")).key(name);
            }
            call.arg(GIVE_BACK).arg(GIVE_BACK_BYTES);
            let (moved, _left): (u64, u64) = call.invoke(&mut self.connection).await?;
            if moved == 0 {
                return Ok(adopted);
            }
            adopted += moved;
        }
    }

    /// Returns the in-flight messages of agents that have been gone this long to the queues. If several agents do so, each
    /// message is returned once: the script checks again that the agent is gone.
    pub(super) async fn reclaim(&mut self, gone_for: Duration) -> Result<u64, SourceError> {
        let gone_for = (LEASE + gone_for).as_secs();
        let gone = "return redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', redis.call('TIME')[1] - ARGV[1])";
        let gone = Script::new(&[gone]);
        let mut call = gone.call();
        call.key(self.names.agents()).arg(gone_for);
        let agents: Vec<String> = call.invoke(&mut self.connection).await?;
        let give_back = Script::new(&[include_str!("give_back.lua")]);
        let mut reclaimed = 0;
        for agent in agents {
            loop {
                let mut call = give_back.call();
                call.key(self.names.agents());
                for queue in ORDER {
                    // Newest first: the message returned last is taken first.
                    call.key(self.names.wakeup_of(queue, &agent)).key(self.names.queue(queue));
                    call.key(self.names.in_flight_of(queue, &agent)).key(self.names.queue(queue));
                }
                call.key(self.names.lease(&agent));
                call.arg(GIVE_BACK).arg(GIVE_BACK_BYTES).arg(&agent).arg(gone_for);
                let (moved, left): (u64, u64) = call.invoke(&mut self.connection).await?;
                if moved > 0 {
                    tracing::info!(agent, moved, "reclaimed the messages in flight of an agent that is gone");
                }
                reclaimed += moved;
                if moved == 0 || left == 0 {
                    break;
                }
            }
        }
        Ok(reclaimed)
    }

    pub(super) async fn recover(
        &mut self,
        queue: Queue,
        taken: &[Taken],
        allowance: Allowance,
    ) -> Result<(usize, u64), SourceError> {
        let acked: Option<u64> =
            redis::cmd("GET").arg(self.names.acked(queue)).query_async(&mut self.connection).await?;
        let committed = taken.last().map_or(0, |last| last.position + last.digests.len() as u64);
        let digests: Vec<u32> = taken.iter().flat_map(|taken| taken.digests.iter().copied()).collect();
        let list = self.in_flight(queue, digests.len(), allowance).await?;
        let done = already_committed(&digests, committed, acked, &list);
        // Restores the count if Redis has lost it.
        let position = committed.max(acked.unwrap_or(0));
        let before = position.saturating_sub(done as u64);
        if acked.unwrap_or(0) != before {
            let set = Script::new(&[include_str!("lease.lua"), "redis.call('SET', KEYS[3], ARGV[5])"]);
            let mut call = self.lease.call(&set);
            call.key(self.names.acked(queue)).arg(before);
            let _: Value = call.invoke(&mut self.connection).await?;
        }
        Ok((done, position))
    }

    /// Digests of the oldest in-flight messages; `None` for a message too large to fetch.
    async fn in_flight(
        &mut self,
        queue: Queue,
        most: usize,
        allowance: Allowance,
    ) -> Result<Vec<Option<u32>>, SourceError> {
        let script = Script::new(&[include_str!("in_flight.lua")]);
        let mut list = Vec::new();
        while list.len() < most {
            let mut call = script.call();
            call.key(self.names.in_flight(queue));
            call.arg(list.len()).arg(most - list.len()).arg(allowance.bytes()).arg(allowance.message_bytes);
            let some: Vec<Option<Vec<u8>>> = call.invoke(&mut self.connection).await?;
            if some.is_empty() {
                break;
            }
            list.extend(some.iter().map(|message| message.as_deref().map(digest)));
        }
        Ok(list)
    }

    pub(super) async fn round(
        &mut self,
        asks: &[Ask; 3],
        allowance: Allowance,
    ) -> Result<[Given; 3], SourceError> {
        let mut call = self.lease.call(&self.round);
        for queue in ORDER {
            call.key(self.names.queue(queue)).key(self.names.in_flight(queue)).key(self.names.acked(queue));
            call.key(self.names.oversize(queue, false));
            call.key(self.names.wakeup_of(queue, &self.names.server_id));
        }
        for ask in asks {
            call.arg(ask.ack).arg(ask.known).arg(ask.want);
        }
        call.arg(allowance.bytes()).arg(allowance.message_bytes);
        let reply: Value = call.invoke(&mut self.connection).await?;
        let Value::Array(queues) = reply else {
            return Err(SourceError::Answer("expected a list for a round"));
        };
        let mut given = queues.into_iter().map(parse_given);
        let mut next =
            || given.next().unwrap_or(Err(SourceError::Answer("expected three queues in a round")));
        Ok([next()?, next()?, next()?])
    }

    /// Waits for a message without moving it. The destination is not a list, so Redis answers `WRONGTYPE` when a message
    /// arrives. The message stays in the queue and never appears in the answer.
    pub(super) fn waits(&self) -> Vec<Wait> {
        let wait = |queue| {
            let mut command = redis::cmd("BLMOVE");
            command.arg(self.names.queue(queue)).arg(self.names.wakeup_of(queue, &self.names.server_id));
            command.arg("RIGHT").arg("LEFT").arg(BLOCK.as_secs());
            Wait::ForRefusal(command)
        };
        ORDER.into_iter().map(wait).collect()
    }

    pub(super) async fn release(&mut self) -> redis::RedisResult<()> {
        let in_flight = ORDER.map(|queue| self.names.in_flight(queue));
        self.lease.release(&mut self.connection, &in_flight).await
    }
}

/// A digest for the checkpoint. Persisted: the algorithm must never change.
fn digest(message: &[u8]) -> u32 {
    xxhash_rust::xxh3::xxh3_64(message) as u32
}

fn parse_given(value: Value) -> Result<Given, SourceError> {
    let bad = || SourceError::Answer("malformed reply for a queue");
    let Value::Array(parts) = value else { return Err(bad()) };
    let Ok([fault, Value::Int(left), Value::Array(items), Value::Array(notes)]) =
        <[Value; 4]>::try_from(parts)
    else {
        return Err(bad());
    };
    let fault: String = redis::from_redis_value(fault).map_err(|_| bad())?;
    let mut given = Given {
        messages: Vec::with_capacity(items.len()),
        digests: Vec::with_capacity(items.len()),
        left: left.max(0) as u64,
        fault: RedisRefusal::found(fault),
        trimmed: 0,
    };
    for item in items {
        let Value::BulkString(body) = item else { return Err(bad()) };
        given.digests.push(digest(&body));
        given.messages.push(SourceMessage { body, defect: None });
    }
    for place in notes {
        // Lua counts from one.
        let Value::Int(place @ 1..) = place else { return Err(bad()) };
        let note = given.messages.get_mut(place as usize - 1).ok_or_else(bad)?;
        *note = oversize::message(std::mem::take(&mut note.body));
    }
    Ok(given)
}

/// The number of the oldest in-flight messages that are already committed (invariant 9).
///
/// `digests` belong to the last commits, which ended at position `committed`; `acked` is Redis' own count. Acknowledging
/// removes from the old end only, so the list is a tail of the committed messages followed by uncommitted ones. The count
/// gives the tail's length. If the count is lost or contradicts the digests, the longest match counts: two messages that
/// cannot be told apart are the same record to the `ControlPlane` too. An oversized message has no digest: it was committed
/// by an older agent if the count says so, and otherwise counts as new.
fn already_committed(digests: &[u32], committed: u64, acked: Option<u64>, list: &[Option<u32>]) -> usize {
    let matches = |n: usize, is_counted: bool| {
        let same = |(digest, found): (&u32, &Option<u32>)| found.map_or(is_counted, |found| found == *digest);
        n <= digests.len() && n <= list.len() && digests[digests.len() - n..].iter().zip(list).all(same)
    };
    if let Some(acked) = acked
        && let Some(n) = committed.checked_sub(acked).and_then(|n| usize::try_from(n).ok())
        && matches(n, true)
    {
        return n;
    }
    (0..=digests.len().min(list.len())).rev().find(|n| matches(*n, false)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    #[test]
    fn a_note_among_messages_is_told_by_its_place() {
        let note = "a message 0123\n{\"length\":2000000,\"list\":\"q:oversize\",\"sha1\":\"ab\"}\nhead";
        let reply = |place| {
            let items = Value::Array(vec![text("one"), text(note), text("three")]);
            Value::Array(vec![text(""), Value::Int(7), items, Value::Array(vec![Value::Int(place)])])
        };
        let given = parse_given(reply(2)).unwrap();
        let bodies: Vec<_> = given.messages.iter().map(|message| &message.body[..]).collect();
        assert_eq!(bodies, [&b"one"[..], b"head", b"three"]);
        let defective: Vec<_> = given.messages.iter().map(|message| message.defect.is_some()).collect();
        assert_eq!(defective, [false, true, false]);
        assert_eq!(given.digests, ["one", note, "three"].map(|text| digest(text.as_bytes())));
        for place in [-1, 0, 4] {
            assert!(parse_given(reply(place)).is_err(), "{place}");
        }
    }

    #[test]
    fn what_is_committed_is_told_from_what_is_not() {
        /// Digests, position, Redis' count, in-flight list; and the number of committed messages.
        type Case<'a> = (&'a [u32], u64, Option<u64>, &'a [u32], usize);
        /// A message too large to fetch.
        const LARGE: u32 = 0;
        let table: [Case<'_>; 12] = [
            (&[], 0, None, &[1, 2], 0),
            (&[1, 2, 3], 3, Some(3), &[4, 5], 0),
            (&[1, 2, 3], 3, Some(0), &[1, 2, 3, 4], 3),
            (&[1, 2, 3], 103, Some(102), &[3, 4], 1),
            // The same message repeated: only the count can tell.
            (&[7, 7, 7], 3, Some(3), &[7], 0),
            (&[7, 7, 7], 3, Some(1), &[7, 7, 7], 2),
            // The count is lost: the longest match wins.
            (&[1, 2, 3], 3, None, &[2, 3, 9], 2),
            (&[1, 2, 3], 3, Some(50), &[3, 9], 1),
            (&[1, 2, 3], 3, None, &[9], 0),
            // An older agent may have committed messages that this one does not fetch: only the count can tell.
            (&[1, 2, 3], 3, Some(1), &[LARGE, 3, 9], 2),
            (&[1, 2, 3], 3, Some(3), &[LARGE, 9], 0),
            (&[1, 2, 3], 3, None, &[2, LARGE], 0),
        ];
        for (digests, committed, acked, list, expected) in table {
            let found: Vec<_> = list.iter().map(|digest| (*digest != LARGE).then_some(*digest)).collect();
            assert_eq!(
                already_committed(digests, committed, acked, &found),
                expected,
                "{digests:?} {acked:?} {list:?}"
            );
        }
    }
}
