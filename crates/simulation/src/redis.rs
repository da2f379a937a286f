//! Redis and the path to it. The agent's scripts are reimplemented here, each as one atomic step; connections can be slow, cut
//! before or after a command, or refused.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dataplane_agent::intake::simulated::{Redis, RedisConnection, SCRIPTS};
use redis::{Arg, Cmd, Pipeline, RedisError, RedisFuture, RedisResult, Value};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use crate::bugs::Bug;
use crate::plan::What;
use crate::streams::{Stream, id_of};
use crate::world::{State, World};

/// One-way delay without a fault.
const WAY: (Duration, Duration) = (Duration::from_micros(200), Duration::from_millis(3));

/// The contents of Redis.
#[derive(Default)]
pub struct Store {
    /// Streams.
    pub streams: BTreeMap<String, Stream>,
    /// Lists; the left end is the front.
    pub lists: BTreeMap<String, VecDeque<Vec<u8>>>,
    texts: BTreeMap<String, (Vec<u8>, Option<Instant>)>,
    /// The scripts it has cached, by digest.
    scripts: BTreeSet<String>,
    /// How often it was started: connections to an earlier instance are broken.
    pub starts: u64,
    /// The number of acknowledged messages.
    pub acknowledged: u64,
    pushed: Arc<Notify>,
}

impl Store {
    fn text(&self, key: &str) -> Option<&Vec<u8>> {
        let (text, until) = self.texts.get(key)?;
        until.is_none_or(|until| until > Instant::now()).then_some(text)
    }

    fn set(&mut self, key: &str, text: &[u8], millis: Option<u64>) {
        let until = millis.map(|millis| Instant::now() + Duration::from_millis(millis));
        self.texts.insert(key.to_owned(), (text.to_vec(), until));
    }

    /// Pushes to the left, as producers do.
    pub fn push(&mut self, key: &str, message: Vec<u8>) {
        self.lists.entry(key.to_owned()).or_default().push_front(message);
        self.pushed.notify_waiters();
    }

    /// Appends to a stream, as producers do.
    pub fn add(&mut self, key: &str, message: Vec<u8>) {
        self.streams.entry(key.to_owned()).or_default().add(message);
        self.pushed.notify_waiters();
    }

    /// The length of a list or stream.
    pub fn len(&self, key: &str) -> usize {
        self.lists.get(key).map_or(0, VecDeque::len) + self.streams.get(key).map_or(0, Stream::length)
    }

    /// Restarts it with its contents.
    pub fn restart(&mut self) {
        self.starts += 1;
        self.scripts.clear();
        self.pushed.notify_waiters();
    }
}

fn error(text: &str) -> Value {
    redis::parse_redis_value(format!("-{text}\r\n").as_bytes()).unwrap_or(Value::Nil)
}

fn broken(kind: ErrorKind) -> RedisError {
    std::io::Error::from(kind).into()
}

/// The words of a command.
type Words = Vec<Vec<u8>>;

fn words(command: &Cmd) -> Words {
    let word = |arg: Arg<&[u8]>| match arg {
        Arg::Simple(word) => word.to_vec(),
        Arg::Cursor => b"0".to_vec(),
        _ => Vec::new(),
    };
    command.args_iter().map(word).collect()
}

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
    fn perform(&mut self, words: &Words) -> Value {
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

/// The path to Redis.
pub struct SimulatedRedis(pub World);

struct Line {
    world: World,
    patience: Duration,
    starts: u64,
    is_dead: AtomicBool,
    /// Commands arrive in order.
    free_at: std::sync::Mutex<Instant>,
}

/// The fate of a command on its way.
struct CommandTransit {
    there: Duration,
    back: Duration,
    is_cut_before: bool,
    is_cut_behind: bool,
    refusal: Option<&'static str>,
}

impl CommandTransit {
    fn of(state: &mut State) -> Self {
        let faults: Vec<What> = state.faults().collect();
        let chance = &mut state.redis_chance;
        let mut transit = Self {
            there: chance.time(WAY.0, WAY.1),
            back: chance.time(WAY.0, WAY.1),
            is_cut_before: false,
            is_cut_behind: false,
            refusal: None,
        };
        for fault in faults {
            match fault {
                What::RedisDown => transit.is_cut_before = true,
                What::RedisSlow(most) => {
                    transit.there += most.mul_f64(chance.part());
                    transit.back += most.mul_f64(chance.part());
                }
                // Delayed beyond every timeout.
                What::RedisLate(likely) if chance.happens(likely) => transit.there += Duration::from_secs(12),
                What::RedisCutBefore(likely) => transit.is_cut_before |= chance.happens(likely),
                What::RedisCutAfter(likely) => transit.is_cut_behind |= chance.happens(likely),
                What::RedisRefuses(likely) if chance.happens(likely) => {
                    let said = [
                        "LOADING Redis is loading the dataset in memory",
                        "READONLY You can't write against a read only replica.",
                        "OOM command not allowed when used memory > 'maxmemory'.",
                    ];
                    transit.refusal = Some(chance.of(&said));
                }
                _ => {}
            }
        }
        transit
    }
}

impl Redis for SimulatedRedis {
    fn connect(&self, patience: Duration) -> RedisFuture<'_, Arc<dyn RedisConnection>> {
        Box::pin(async move {
            let (is_down, way, starts) = {
                let mut state = self.0.state();
                let is_down = state.fault(|what| (what == What::RedisDown).then_some(())).is_some();
                (is_down, state.redis_chance.time(WAY.0, WAY.1), state.redis.starts)
            };
            tokio::time::sleep(way).await;
            if is_down {
                return Err(broken(ErrorKind::ConnectionRefused));
            }
            let line = Line {
                world: self.0.clone(),
                patience,
                starts,
                is_dead: AtomicBool::new(false),
                free_at: std::sync::Mutex::new(Instant::now()),
            };
            Ok(Arc::new(line) as Arc<dyn RedisConnection>)
        })
    }
}

impl Line {
    async fn ask(&self, asked: Vec<Words>) -> RedisResult<Vec<Value>> {
        if self.is_dead.load(Ordering::Relaxed) {
            return Err(broken(ErrorKind::BrokenPipe));
        }
        let transit = CommandTransit::of(&mut self.world.state());
        let arrives = {
            let mut free_at = self.free_at.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            *free_at = (Instant::now() + transit.there).max(*free_at);
            *free_at
        };
        let (answer, answered) = oneshot::channel();
        let (world, starts) = (self.world.clone(), self.starts);
        // A command in transit arrives, even if its sender is gone.
        tokio::spawn(async move {
            tokio::time::sleep_until(arrives).await;
            let done = {
                let mut state = world.state();
                if state.redis.starts != starts || transit.is_cut_before {
                    Err(broken(ErrorKind::ConnectionReset))
                } else if let Some(refusal) = transit.refusal {
                    Ok(asked.iter().map(|_| error(refusal)).collect())
                } else {
                    let done: Vec<Value> = asked.iter().map(|words| state.perform(words)).collect();
                    let name = asked.first().map(|words| String::from_utf8_lossy(&words[0]).into_owned());
                    let bytes: usize = asked.iter().flatten().map(Vec::len).sum();
                    let told = xxhash_rust::xxh3::xxh3_64(format!("{done:?}").as_bytes());
                    state.note(&format!("redis {} of {bytes} bytes: {told:016x}", name.unwrap_or_default()));
                    if transit.is_cut_behind { Err(broken(ErrorKind::ConnectionReset)) } else { Ok(done) }
                }
            };
            tokio::time::sleep(transit.back).await;
            let _ = answer.send(done);
        });
        let answer = tokio::time::timeout(self.patience, answered).await;
        let answer = match answer {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(broken(ErrorKind::BrokenPipe)),
            Err(_) => Err(broken(ErrorKind::TimedOut)),
        };
        if answer.is_err() {
            self.is_dead.store(true, Ordering::Relaxed);
        }
        answer
    }

    /// Waits until the queue is not empty, then moves a message unless the destination is not a list.
    async fn move_one(&self, words: &Words) -> RedisResult<Value> {
        let text = |at: usize| String::from_utf8_lossy(&words[at]).into_owned();
        let (queue, destination) = (text(1), text(2));
        let patience = Duration::from_secs(text(5).parse().unwrap_or(5));
        self.wait(patience, |redis| {
            if redis.len(&queue) > 0 && redis.text(&destination).is_some() {
                return Some(error("WRONGTYPE Operation against a key holding the wrong kind of value"));
            }
            let message = redis.lists.get_mut(&queue).and_then(VecDeque::pop_back)?;
            redis.push(&destination, message.clone());
            Some(Value::BulkString(message))
        })
        .await
    }

    /// Waits for an entry after the given ID in any of the streams. The answer is that of the PING behind the XREAD.
    async fn look_out(&self, words: &Words) -> RedisResult<Value> {
        let text = |at: usize| String::from_utf8_lossy(&words[at]).into_owned();
        let named = &words[6..];
        let count = named.len() / 2;
        let places: Vec<(String, u64)> =
            (0..count).map(|n| (text(6 + n), id_of(&named[count + n]))).collect();
        let patience = Duration::from_millis(text(4).parse().unwrap_or(5000));
        self.wait(patience, |redis| {
            let has_come = |(stream, id): &(String, u64)| {
                redis.streams.get(stream).is_some_and(|stream| stream.has_after(*id))
            };
            places.iter().any(has_come).then_some(Value::Okay)
        })
        .await
    }

    /// Waits for what `look` finds.
    async fn wait(
        &self,
        patience: Duration,
        mut look: impl FnMut(&mut Store) -> Option<Value>,
    ) -> RedisResult<Value> {
        self.ask(vec![vec![b"INFO".to_vec(), b"server".to_vec()]]).await?;
        let until = Instant::now() + patience;
        loop {
            let pushed = {
                let mut state = self.world.state();
                if state.redis.starts != self.starts
                    || state.fault(|what| (what == What::RedisDown).then_some(())).is_some()
                {
                    self.is_dead.store(true, Ordering::Relaxed);
                    return Err(broken(ErrorKind::ConnectionReset));
                }
                if let Some(found) = look(&mut state.redis) {
                    return Ok(found);
                }
                Arc::clone(&state.redis.pushed)
            };
            let look_again = (Instant::now() + Duration::from_millis(500)).min(until);
            let _ = tokio::time::timeout_at(look_again, pushed.notified()).await;
            if Instant::now() >= until {
                return Ok(Value::Nil);
            }
        }
    }
}

impl RedisConnection for Line {
    fn command<'a>(&'a self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        Box::pin(async move {
            let words = words(command);
            if words.first().is_some_and(|word| word == b"BLMOVE") {
                return self.move_one(&words).await?.extract_error();
            }
            self.ask(vec![words]).await?.pop().unwrap_or(Value::Nil).extract_error()
        })
    }

    fn commands<'a>(
        &'a self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        Box::pin(async move {
            let asked: Vec<Words> = pipeline.cmd_iter().map(words).collect();
            if let Some(read) = asked.iter().find(|words| words[0] == b"XREAD") {
                return Ok(vec![self.look_out(read).await?]);
            }
            let answers = self.ask(asked).await?;
            Ok(answers.into_iter().skip(offset).take(count).collect())
        })
    }
}

#[cfg(test)]
mod tests;
