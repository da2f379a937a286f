//! Streams: each entry is delivered to one consumer of the group, and stays pending until it is acknowledged.
//!
//! The checkpoint holds a 128-bit digest of each entry's id and data. Entries delivered earlier are compared with it one by
//! one, because entries of other consumers lie between them.

mod apart;
#[cfg(test)]
mod tests;

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use redis::{RedisWrite, ToRedisArgs, Value};

use super::allowance::Allowance;
use super::connection::Connection;
use super::fault::RedisRefusal;
use super::lease::Lease;
use super::oversize;
use super::script::Script;
use super::source::{Ask, Given, ORDER, SourceMessage};
use super::wakeup::Wait;
use super::{BLOCK, Names, SourceError};
use crate::outbox::Taken;
use crate::record::Queue;

/// The consumer group of all agents.
pub(super) const GROUP: &str = "dataplane-agent";
const NO_FIELD: &str = "the stream's entry has no field \"data\"";

/// An entry's digest, as stored in the checkpoint.
type Digest = [u32; 4];

/// An entry's ID: milliseconds, and a number within them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct EntryId(u64, u64);

/// The read position in one stream.
#[derive(Default)]
struct StreamPosition {
    /// Where to continue reading entries delivered earlier; empty when done.
    from: String,
    /// The last id delivered by the stream.
    last: String,
    /// In-flight entries, oldest first.
    in_hand: VecDeque<EntryId>,
    known: HashSet<EntryId>,
    /// Further entries to acknowledge: committed by an earlier conversation, or deleted from the stream.
    done: Vec<EntryId>,
    committed: HashSet<Digest>,
    /// Whether the last attempt to read failed.
    is_faulty: bool,
}

pub(super) struct Stream {
    connection: Connection,
    /// One lease for all streams; in a cluster one per stream, in its slot.
    leases: Vec<Lease>,
    names: Names,
    round: Script,
    readings: [StreamPosition; 3],
    /// Usage taken but held back until the events before it are read.
    held: Given,
    /// Pending time after which another consumer's entries are claimed.
    gone_for: Duration,
    reclaim: bool,
}

impl Stream {
    pub(super) fn new(connection: Connection, leases: Vec<Lease>, names: Names, gone_for: Duration) -> Self {
        let parts = [include_str!("lease.lua"), include_str!("oversize.lua"), include_str!("stream.lua")];
        let round = Script::new(&parts);
        let reading = || StreamPosition { from: "0".into(), last: "0-0".into(), ..StreamPosition::default() };
        let readings = [reading(), reading(), reading()];
        let held = Given::default();
        Self { connection, leases, names, round, readings, held, gone_for, reclaim: false }
    }

    /// Nothing is in hand yet. Committed entries are recognised when they are read again.
    pub(super) fn recover(&mut self, queue: Queue, taken: &[Taken]) -> (usize, u64) {
        for (reading, of) in self.readings.iter_mut().zip(ORDER) {
            if of == queue {
                let digests = taken.iter().flat_map(|taken| taken.digests.chunks_exact(4));
                reading.committed = digests.filter_map(|words| Digest::try_from(words).ok()).collect();
            }
        }
        (0, taken.last().map_or(0, |last| last.position + last.digests.len() as u64 / 4))
    }

    /// Whether each stream has its lease and oversized messages in its own slot.
    fn are_apart(&self) -> bool {
        self.leases.len() == ORDER.len()
    }

    pub(super) async fn round(
        &mut self,
        asks: &[Ask; 3],
        allowance: Allowance,
    ) -> Result<[Given; 3], SourceError> {
        let reclaims = self.reclaim && asks.iter().any(|ask| ask.want > 0);
        let given = if self.are_apart() {
            self.round_apart(asks, reclaims, allowance).await?
        } else {
            self.call(0, [0, 1, 2], *asks, reclaims, allowance).await?
        };
        self.reclaim &= !reclaims;
        Ok(given)
    }

    /// Calls the script once, for these streams.
    async fn call<const N: usize>(
        &mut self,
        lease: usize,
        streams: [usize; N],
        asks: [Ask; N],
        reclaims: bool,
        allowance: Allowance,
    ) -> Result<[Given; N], SourceError> {
        let are_apart = self.are_apart();
        let mut call = self.leases[lease].call(&self.round);
        for n in streams {
            call.key(self.names.queue(ORDER[n])).key(self.names.oversize(ORDER[n], are_apart));
        }
        call.arg(GROUP).arg(&self.names.server_id).arg(allowance.bytes()).arg(allowance.message_bytes);
        let idle = if reclaims { self.gone_for.as_millis() as u64 } else { 0 };
        for (n, ask) in streams.into_iter().zip(asks) {
            let reading = &self.readings[n];
            call.arg(ask.want).arg(&reading.from).arg(idle).arg(ask.ack + reading.done.len());
            for id in reading.in_hand.iter().take(ask.ack).chain(&reading.done) {
                call.arg(id);
            }
        }
        let reply: Value = call.invoke(&mut self.connection).await?;
        let bad = || SourceError::Answer("expected one reply per stream");
        let Value::Array(replies) = reply else { return Err(bad()) };
        let Ok(replies) = <[Value; N]>::try_from(replies) else { return Err(bad()) };
        let mut given = std::array::from_fn(|_| Given::default());
        for (n, reply) in replies.into_iter().enumerate() {
            given[n] = self.readings[streams[n]].take(reply, asks[n].ack)?;
        }
        Ok(given)
    }

    /// Requests reclaiming in the next round that takes messages.
    pub(super) fn reclaim(&mut self) {
        self.reclaim = true;
    }

    /// Whether more can be taken without waiting.
    pub(super) fn has_more(&self) -> bool {
        // Held usage does not count: it is released once the events before it are read, and those count by themselves.
        self.readings.iter().any(StreamPosition::has_more)
    }

    /// Reads past the group with suppressed answers; the next round returns the messages.
    pub(super) fn waits(&self) -> Vec<Wait> {
        if self.are_apart() {
            return (0..ORDER.len()).map(|n| self.wait(n..n + 1)).collect();
        }
        vec![self.wait(0..ORDER.len())]
    }

    fn wait(&self, streams: std::ops::Range<usize>) -> Wait {
        let key = self.names.queue(ORDER[streams.start]).to_owned();
        let mut command = redis::cmd("XREAD");
        command.arg("COUNT").arg(1).arg("BLOCK").arg(BLOCK.as_millis() as u64).arg("STREAMS");
        for queue in &ORDER[streams.clone()] {
            command.arg(self.names.queue(*queue));
        }
        for reading in &self.readings[streams] {
            command.arg(&reading.last);
        }
        Wait::Silently { key, command }
    }

    pub(super) async fn release(&mut self) -> redis::RedisResult<()> {
        for lease in &self.leases {
            lease.release(&mut self.connection, &[]).await?;
        }
        Ok(())
    }
}

impl StreamPosition {
    /// A stream that cannot be read is retried with the others, not repeatedly on its own.
    fn has_more(&self) -> bool {
        let is_done = self.from.is_empty() && self.done.is_empty();
        !is_done && !self.is_faulty
    }

    /// Whether all entries delivered earlier are in hand.
    fn is_caught_up(&self) -> bool {
        self.from.is_empty()
    }

    /// Processes the result of a round that has acknowledged the oldest `acked` entries in hand.
    fn take(&mut self, stream: Value, acked: usize) -> Result<Given, SourceError> {
        let bad = || SourceError::Answer("malformed reply for a stream");
        let Value::Array(parts) = stream else { return Err(bad()) };
        let Ok(
            [
                fault,
                Value::Int(left),
                last,
                from,
                Value::Array(entries),
                Value::Int(looked),
                Value::Int(trimmed),
            ],
        ) = <[Value; 7]>::try_from(parts)
        else {
            return Err(bad());
        };
        let text = |value| redis::from_redis_value::<String>(value).map_err(|_| bad());
        let fault = RedisRefusal::found(text(fault)?);
        self.is_faulty = fault.is_some();
        if looked == 1 {
            for id in self.in_hand.drain(..acked.min(self.in_hand.len())) {
                self.known.remove(&id);
            }
            self.done.clear();
            (self.last, self.from) = (text(last)?, text(from)?);
        }
        let trimmed = trimmed.max(0) as u64;
        let mut given = Given { left: left.max(0) as u64, fault, trimmed, ..Given::default() };
        given.messages.reserve(entries.len() / 2);
        given.digests.reserve(entries.len() * 2);
        let mut parts = entries.into_iter();
        while let Some(id) = parts.next() {
            let (Value::BulkString(text), Some(content)) = (id, parts.next()) else { return Err(bad()) };
            let id = EntryId::parse(&text).ok_or_else(bad)?;
            let (message, digest) = match content {
                // Delivered again while in hand: its group was created anew, or entries of others were claimed.
                _ if self.known.contains(&id) => continue,
                // Deleted while it was pending.
                Value::Nil => {
                    given.trimmed += 1;
                    self.done.push(id);
                    continue;
                }
                Value::BulkString(body) => {
                    let digest = digest(&text, &body);
                    (SourceMessage { body, defect: None }, digest)
                }
                Value::Array(fields) => without_data(&text, fields),
                _ => return Err(bad()),
            };
            if self.committed.contains(&digest) {
                self.done.push(id);
                continue;
            }
            given.messages.push(message);
            given.digests.extend(digest);
            self.known.insert(id);
            self.in_hand.push_back(id);
        }
        Ok(given)
    }
}

impl EntryId {
    /// Redis writes IDs without leading zeros, so that each has one text.
    fn parse(text: &[u8]) -> Option<Self> {
        let (millis, number) = std::str::from_utf8(text).ok()?.split_once('-')?;
        Some(Self(millis.parse().ok()?, number.parse().ok()?))
    }
}

impl ToRedisArgs for EntryId {
    fn write_redis_args<W: ?Sized + RedisWrite>(&self, out: &mut W) {
        out.write_arg_fmt(format_args!("{}-{}", self.0, self.1));
    }
}

/// The message of an entry without the expected field, and its digest.
fn without_data(id: &[u8], mut fields: Vec<Value>) -> (SourceMessage, Digest) {
    if let [Value::BulkString(note)] = &mut fields[..] {
        let digest = digest(id, note);
        return (oversize::message(std::mem::take(note)), digest);
    }
    let message = SourceMessage { body: render(&fields), defect: Some(NO_FIELD.into()) };
    let digest = digest(id, &message.body);
    (message, digest)
}

/// An entry without the expected field, rendered as a JSON object for inspection.
fn render(fields: &[Value]) -> Vec<u8> {
    let text = |value: &Value| match value {
        Value::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        _ => String::new(),
    };
    let fields: serde_json::Map<_, _> =
        fields.chunks_exact(2).map(|pair| (text(&pair[0]), text(&pair[1]).into())).collect();
    serde_json::Value::Object(fields).to_string().into_bytes()
}

/// Persisted: the algorithm must never change.
fn digest(id: &[u8], data: &[u8]) -> Digest {
    let mut hasher = xxhash_rust::xxh3::Xxh3::new();
    hasher.update(id);
    hasher.update(b"\0");
    hasher.update(data);
    let digest = hasher.digest128();
    [digest as u32, (digest >> 32) as u32, (digest >> 64) as u32, (digest >> 96) as u32]
}
