//! The commands and scripts, each as one atomic step.

use std::collections::{BTreeMap, VecDeque};

use dataplane_agent::intake::simulated::SCRIPTS;
use redis::Value;

use super::{Words, error};
use crate::bugs::Bug;
use crate::world::State;

/// A script call: keys and arguments.
pub struct Call {
    /// The keys.
    pub keys: Vec<String>,
    /// The arguments.
    pub args: Vec<Vec<u8>>,
}

impl Call {
    /// An argument as a number.
    pub fn number(&self, at: usize) -> usize {
        std::str::from_utf8(&self.args[at]).ok().and_then(|text| text.parse().ok()).unwrap_or(0)
    }
}

impl State {
    /// Executes a command.
    pub(super) fn perform(&mut self, words: &Words) -> Value {
        let text =
            |at: usize| String::from_utf8_lossy(words.get(at).map_or(&[][..], |word| &word[..])).into_owned();
        match text(0).to_ascii_uppercase().as_str() {
            "INFO" if text(1) == "memory" => {
                Value::BulkString(b"maxmemory:0\r\nmaxmemory_policy:noeviction\r\n".to_vec())
            }
            "INFO" => Value::BulkString(b"redis_version:7.0.15\r\n".to_vec()),
            "GET" => self.redis.text(&text(1)).map_or(Value::Nil, |text| Value::BulkString(text.clone())),
            "LPUSH" => {
                if !self.has(Bug::ForgetQuotaReply) || text(1) != crate::agent::QUOTA_RESPONSE {
                    words[2..].iter().for_each(|value| self.redis.push(&text(1), value.clone()));
                }
                if self.has(Bug::RepeatQuotaReply) && text(1) == crate::agent::QUOTA_RESPONSE {
                    words[2..].iter().for_each(|value| self.redis.push(&text(1), value.clone()));
                }
                Value::Int(self.redis.len(&text(1)) as i64)
            }
            "LTRIM" | "CLIENT" => Value::Okay,
            "TYPE" => Value::SimpleString("stream".into()),
            name @ ("EVAL" | "EVALSHA") => {
                let count: usize = text(2).parse().unwrap_or(0);
                let keys = (3..3 + count).map(text).collect();
                let call = Call { keys, args: words[3 + count..].to_vec() };
                let digest =
                    if name == "EVAL" { redis::Script::new(&text(1)).get_hash().to_owned() } else { text(1) };
                if name == "EVAL" {
                    self.redis.scripts.insert(digest.clone());
                } else if !self.redis.scripts.contains(&digest) {
                    return error("NOSCRIPT No matching script. Please use EVAL.");
                }
                let script = SCRIPTS
                    .iter()
                    .find(|(_, parts)| redis::Script::new(&parts.concat()).get_hash() == digest);
                match script.map(|(name, _)| *name) {
                    Some("acquire") => self.acquire(&call),
                    Some("release") => self.release(&call),
                    Some("give_back") => self.give_back(&call),
                    Some("in_flight") => self.in_flight(&call),
                    Some("list") => self.fenced(&call, Self::round),
                    Some("stream") => self.fenced(&call, Self::stream_round),
                    Some("set") => self.fenced(&call, |state, call| {
                        state.redis.set(&call.keys[2], &call.args[4], None);
                        Value::Nil
                    }),
                    _ => error("ERR this script is not simulated"),
                }
            }
            other => error(&format!("ERR unknown command '{other}'")),
        }
    }

    fn acquire(&mut self, call: &Call) -> Value {
        let holder = self.redis.text(&call.keys[0]).cloned();
        let own = [&call.args[0][..], b"/"].concat();
        if let Some(holder) = holder.filter(|holder| !holder.starts_with(&own)) {
            return Value::BulkString(holder);
        }
        let millis = call.number(2) as u64;
        self.redis.set(&call.keys[0], &call.args[1], Some(millis));
        Value::Nil
    }

    fn release(&mut self, call: &Call) -> Value {
        let is_held = self.redis.text(&call.keys[0]).is_some_and(|held| *held == call.args[0]);
        if is_held {
            self.redis.texts.remove(&call.keys[0]);
        }
        Value::Int(i64::from(is_held))
    }

    /// Runs a script that checks the lease first, and renews it.
    fn fenced(&mut self, call: &Call, script: impl FnOnce(&mut Self, &Call) -> Value) -> Value {
        let is_held = self.redis.text(&call.keys[0]).is_some_and(|held| *held == call.args[0]);
        if !is_held {
            return error("FENCED the lease of this SERVER_ID is held otherwise, or has ended");
        }
        let millis = call.number(1) as u64;
        self.redis.set(&call.keys[0], &call.args[3], Some(millis));
        script(self, call)
    }

    fn give_back(&mut self, call: &Call) -> Value {
        let (mut moved, most, mut bytes) = (0, call.number(0), call.number(1) as i64);
        let mut left = 0;
        let pairs: Vec<_> =
            call.keys[1..].chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect();
        for (from, to) in pairs {
            while moved < most
                && bytes > 0
                && let Some(message) = self.redis.lists.get_mut(&from).and_then(VecDeque::pop_front)
            {
                bytes -= message.len() as i64;
                self.redis.lists.entry(to.clone()).or_default().push_back(message);
                moved += 1;
            }
            left += self.redis.lists.get(&from).map_or(0, VecDeque::len);
        }
        Value::Array(vec![Value::Int(moved as i64), Value::Int(left as i64)])
    }

    fn in_flight(&mut self, call: &Call) -> Value {
        let (skip, most, mut give) = (call.number(0), call.number(1), call.number(2) as i64);
        let mut reply = Vec::new();
        let list = self.redis.lists.get(&call.keys[0]);
        for message in list.into_iter().flat_map(|list| list.iter().rev().skip(skip).take(most)) {
            if !reply.is_empty() && give <= 0 {
                break;
            }
            give -= message.len() as i64;
            reply.push(Value::BulkString(message.clone()));
        }
        Value::Array(reply)
    }

    /// Reimplements list.lua, except for oversized messages: none is pushed.
    fn round(&mut self, call: &Call) -> Value {
        let mut give = call.number(13) as i64;
        let is_single = give <= 0;
        let (mut is_blocked, mut is_ended) = (false, false);
        let mut reply = Vec::new();
        for q in 0..3 {
            let key = |n: usize| call.keys[2 + q * 5 + n].clone();
            let (queue, in_flight, acked, wakeup) = (key(0), key(1), key(2), key(4));
            let [ack, known, asked] = [0, 1, 2].map(|n| call.number(4 + q * 3 + n));
            let mut held = self.redis.len(&in_flight);
            if held < ack + known {
                return error("FENCED the list was changed by somebody else");
            }
            if ack > 0 {
                let times = if self.has(Bug::AcknowledgeTwice) { 2 } else { 1 };
                let list = self.redis.lists.entry(in_flight.clone()).or_default();
                list.truncate(list.len().saturating_sub(ack * times));
                held = list.len() + ack;
                let count = self
                    .redis
                    .text(&acked)
                    .and_then(|text| String::from_utf8_lossy(text).parse::<u64>().ok());
                let count = count.unwrap_or(0) + ack as u64;
                self.redis.set(&acked, count.to_string().as_bytes(), None);
                self.redis.acknowledged += ack as u64;
            }
            let list = |lists: &mut BTreeMap<String, VecDeque<Vec<u8>>>, key: &str| {
                lists.remove(key).unwrap_or_default()
            };
            let mut taken = list(&mut self.redis.lists, &in_flight);
            for message in list(&mut self.redis.lists, &wakeup).into_iter().rev() {
                taken.push_front(message);
                held += 1;
            }
            if asked > 0 {
                self.redis.set(&wakeup, b"", Some(60_000));
            }
            let want = if q == 1 && is_blocked { 0 } else { asked };
            let unknown = held - ack - known;
            let mut waiting = list(&mut self.redis.lists, &queue);
            let (mut given, mut fresh) = (Vec::new(), 0);
            while !is_ended && given.len() < want && (given.is_empty() || give > 0) {
                let message = if given.len() < unknown {
                    let at = taken.len() - 1 - known - given.len();
                    taken[at].clone()
                } else {
                    let Some(message) = waiting.pop_back() else { break };
                    taken.push_front(message.clone());
                    fresh += 1;
                    message
                };
                give -= message.len() as i64;
                given.push(Value::BulkString(message));
                is_ended |= is_single;
            }
            let left = waiting.len() + unknown + fresh - given.len();
            is_blocked |= q == 0 && left > 0;
            let told = if q == 1 && self.has(Bug::UsageLeftUntold) { 0 } else { left };
            self.redis.lists.insert(in_flight, taken);
            self.redis.lists.insert(queue, waiting);
            let fault = Value::BulkString(Vec::new());
            let notes = Value::Array(Vec::new());
            reply.push(Value::Array(vec![fault, Value::Int(told as i64), Value::Array(given), notes]));
        }
        Value::Array(reply)
    }
}
