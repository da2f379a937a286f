//! Redis and the path to it. The agent's scripts are reimplemented here, each as one atomic step; connections can be slow, cut
//! before or after a command, or refused.

mod scripts;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dataplane_agent::intake::simulated::{Redis, RedisConnection};
use redis::{Arg, Cmd, Pipeline, RedisError, RedisFuture, RedisResult, Value};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use crate::plan::What;
use crate::streams::{Stream, id_of};
use crate::world::{State, World};
pub use scripts::Call;

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
