//! Streams of the simulated Redis, with one group and one consumer, and the effect of `stream.lua` on them.

use std::collections::BTreeMap;
use std::time::Duration;

use redis::Value;
use tokio::time::Instant;

use crate::bugs::Bug;
use crate::redis::Call;
use crate::world::State;

/// As in `stream.lua`.
const CHUNK: usize = 16;
/// Arguments before the streams' own: the lease's, the group, the consumer, and two limits.
const ARGS_BEFORE: usize = 8;

/// A stream. An entry's number is the first half of its ID.
#[derive(Default)]
pub struct Stream {
    entries: BTreeMap<u64, Vec<u8>>,
    last: u64,
    /// The last entry delivered to the group.
    delivered: u64,
    /// Delivered entries that are not acknowledged, and when they were delivered.
    pending: BTreeMap<u64, Instant>,
}

impl Stream {
    /// Appends an entry.
    pub fn add(&mut self, message: Vec<u8>) {
        self.last += 1;
        self.entries.insert(self.last, message);
    }

    /// How many entries it has.
    pub fn length(&self) -> usize {
        self.entries.len()
    }

    /// Whether it has an entry after this one.
    pub fn has_after(&self, id: u64) -> bool {
        self.last > id
    }

    /// XACK and XDEL.
    fn acknowledge(&mut self, id: u64) -> u64 {
        self.pending.remove(&id);
        u64::from(self.entries.remove(&id).is_some())
    }

    /// XREADGROUP: pending entries after `place`, or new ones.
    fn read(&mut self, place: Option<u64>, count: usize) -> Vec<(u64, Vec<u8>)> {
        let entry = |(id, message): (&u64, &Vec<u8>)| (*id, message.clone());
        if let Some(after) = place {
            // Reading history renews the delivery time, as in Redis.
            let pending = self.pending.range_mut(after + 1..).take(count);
            let found = pending.map(|(id, given_at)| {
                *given_at = Instant::now();
                *id
            });
            let found: Vec<u64> = found.collect();
            return found.iter().filter_map(|id| self.entries.get_key_value(id)).map(entry).collect();
        }
        let found: Vec<_> = self.entries.range(self.delivered + 1..).take(count).map(entry).collect();
        for (id, _) in &found {
            self.delivered = *id;
            self.pending.insert(*id, Instant::now());
        }
        found
    }

    /// XAUTOCLAIM. Returns whether an entry was claimed.
    fn claim(&mut self, idle: Duration, most: usize) -> bool {
        let old = self.pending.values_mut().filter(|given_at| given_at.elapsed() >= idle).take(most);
        old.map(|given_at| *given_at = Instant::now()).count() > 0
    }
}

/// The first half of an ID.
pub fn id_of(text: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(text);
    text.split('-').next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

fn text_of(id: u64) -> Value {
    Value::BulkString(format!("{id}-0").into_bytes())
}

/// Where to read on; the beginning is "0", as the agent writes it.
fn place_of(id: u64) -> Value {
    if id == 0 { Value::BulkString(b"0".to_vec()) } else { text_of(id) }
}

/// What a round may still return, over all streams.
struct RoundAllowance {
    bytes: i64,
    is_single: bool,
    is_ended: bool,
}

/// What a round returns of one stream.
struct StreamRead {
    want: usize,
    chunk: usize,
    entries: Vec<(u64, Vec<u8>)>,
    /// Where to continue among pending entries; `None`: none are left.
    from: Option<u64>,
}

impl StreamRead {
    fn wants(&self, allowance: &RoundAllowance) -> bool {
        !allowance.is_ended
            && self.entries.len() < self.want
            && (self.entries.is_empty() || allowance.bytes > 0)
    }

    /// Reads some entries. Returns false if there are none.
    fn read(&mut self, stream: &mut Stream, place: Option<u64>, allowance: &mut RoundAllowance) -> bool {
        let found = stream.read(place, self.chunk.min(self.want - self.entries.len()));
        if found.is_empty() {
            return false;
        }
        self.chunk = (self.chunk * 2).min(CHUNK);
        let mut last = place.unwrap_or(0);
        for (n, (id, message)) in found.into_iter().enumerate() {
            if n > 0 && !self.wants(allowance) {
                self.from = Some(last);
                return true;
            }
            allowance.bytes -= message.len() as i64;
            self.entries.push((id, message));
            allowance.is_ended |= allowance.is_single;
            last = id;
        }
        if place.is_some() || allowance.is_ended {
            self.from = Some(last);
        }
        true
    }
}

impl State {
    /// The effect of `stream.lua`, without oversize messages: none is pushed.
    pub fn stream_round(&mut self, call: &Call) -> Value {
        let bytes = call.number(6) as i64;
        let mut allowance = RoundAllowance { bytes, is_single: bytes <= 0, is_ended: false };
        let mut is_blocked = false;
        let mut reply = Vec::new();
        let mut at = ARGS_BEFORE;
        for q in 0..3 {
            let want = if q == 1 && is_blocked { 0 } else { call.number(at) };
            let from = (!call.args[at + 1].is_empty()).then(|| id_of(&call.args[at + 1]));
            let idle = Duration::from_millis(call.number(at + 2) as u64);
            let acks = call.number(at + 3);
            let ids: Vec<u64> = call.args[at + 4..at + 4 + acks].iter().map(|id| id_of(id)).collect();
            at += 4 + acks;
            let forgets_usage = q == 1 && self.has(Bug::UsageLeftUntold);
            let stream = self.redis.streams.entry(call.keys[2 + q * 2].clone()).or_default();
            let acknowledged: u64 = ids.into_iter().map(|id| stream.acknowledge(id)).sum();
            let mut reading = StreamRead { want, chunk: 1, entries: Vec::new(), from };
            if !idle.is_zero() && want > 0 && stream.claim(idle, want) {
                reading.from = Some(0);
            }
            while let Some(from) = reading.from
                && reading.wants(&allowance)
            {
                if !reading.read(stream, Some(from), &mut allowance) {
                    reading.from = None;
                }
            }
            let mut is_dry = false;
            while reading.from.is_none() && reading.wants(&allowance) {
                if !reading.read(stream, None, &mut allowance) {
                    is_dry = true;
                    break;
                }
            }
            let mut left = if is_dry { 0 } else { stream.length().saturating_sub(stream.pending.len()) };
            if reading.from.is_some() {
                left += stream.pending.len();
            }
            is_blocked |= q == 0 && (left > 0 || reading.from.is_some());
            let flat = reading
                .entries
                .into_iter()
                .flat_map(|(id, message)| [text_of(id), Value::BulkString(message)]);
            let told = if forgets_usage { 0 } else { left };
            reply.push(Value::Array(vec![
                Value::BulkString(Vec::new()),
                Value::Int(told as i64),
                text_of(stream.delivered),
                reading.from.map_or(Value::BulkString(Vec::new()), place_of),
                Value::Array(flat.collect()),
                Value::Int(1),
                Value::Int(0),
            ]));
            self.redis.acknowledged += acknowledged;
        }
        Value::Array(reply)
    }
}
