//! Goal: the simulated Redis answers the agent's scripts as a real one does. Method: the same random calls to both, and the
//! same contents after each.

use std::collections::VecDeque;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use dataplane_agent::intake::simulated::SCRIPTS;
use redis::{ConnectionLike as _, Value};

use super::{Words, words};
use crate::chance::Chance;
use crate::plan::Plan;
use crate::world::World;

const START_WITHIN: Duration = Duration::from_secs(60);
const LEASE: &str = "queue:lease";
const AGENTS: &str = "queue:agents";
const OURS: &str = "outbox/session";
/// Far more than any message here: none is oversized.
const MESSAGE_BYTES: &str = "1000000";

/// A redis-server on a socket in its own folder.
struct RealRedis {
    process: Child,
    connection: redis::Connection,
    _dir: tempfile::TempDir,
}

impl RealRedis {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("redis.sock");
        let process = Command::new("redis-server")
            .args(["--port", "0", "--save", "", "--unixsocket"])
            .arg(&socket)
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server can be started: `make redis` installs it");
        let connection = connected(&socket);
        Self { process, connection, _dir: dir }
    }
}

fn connected(socket: &Path) -> redis::Connection {
    let client = redis::Client::open(format!("redis+unix://{}", socket.display())).unwrap();
    let begun = std::time::Instant::now();
    loop {
        match client.get_connection() {
            Ok(connection) => return connection,
            Err(error) => assert!(begun.elapsed() < START_WITHIN, "redis-server does not answer: {error}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

impl Drop for RealRedis {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The real and the simulated Redis.
struct Both {
    real: RealRedis,
    world: World,
    calls: u64,
}

impl Both {
    fn start() -> Self {
        Self { real: RealRedis::start(), world: World::new(Plan::of(1), None, false), calls: 0 }
    }

    fn real(&mut self, words: &[&str]) -> Value {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        self.real.connection.req_command(&command).unwrap()
    }

    /// The answer to a script call, which is the same from both.
    fn call(&mut self, script: &str, keys: &[&str], args: &[String]) -> Result<Value, String> {
        let text = SCRIPTS.iter().find(|(name, _)| *name == script).unwrap().1.concat();
        let mut command = redis::cmd("EVAL");
        command.arg(text).arg(keys.len()).arg(keys).arg(args);
        let words: Words = words(&command);
        let simulated = self.world.state().perform(&words).extract_error();
        let real = self.real.connection.req_command(&command).and_then(Value::extract_error);
        let of = |answer: redis::RedisResult<Value>| {
            answer.map_err(|error| error.code().unwrap_or("no code").to_owned())
        };
        let (simulated, real) = (of(simulated), of(real));
        assert_eq!(simulated, real, "{script} {keys:?} {args:?}");
        real
    }

    fn acquire(&mut self) {
        self.calls += 1;
        let held = format!("{OURS}/{}", self.calls);
        let args = ["outbox".to_owned(), held, "600000".to_owned(), "edge-1".to_owned()];
        assert_eq!(self.call("acquire", &[LEASE, AGENTS], &args), Ok(Value::Nil));
    }

    /// Calls a script that checks the lease, which is stale at times.
    fn fenced(
        &mut self,
        script: &str,
        keys: &[&str],
        args: &[String],
        is_stale: bool,
    ) -> Result<Value, String> {
        let held = format!("{OURS}/{}", self.calls - u64::from(is_stale));
        let next = format!("{OURS}/{}", self.calls + 1);
        let keys: Vec<&str> = [LEASE, AGENTS].into_iter().chain(keys.iter().copied()).collect();
        let all = [held, "600000".into(), "edge-1".into(), next];
        let answer = self.call(script, &keys, &[&all[..], args].concat());
        self.calls += u64::from(!is_stale);
        answer
    }
}

fn numbers(numbers: impl IntoIterator<Item = usize>) -> Vec<String> {
    numbers.into_iter().map(|number| number.to_string()).collect()
}

/// Bytes that a round may return; 0: one message.
fn allowance(chance: &mut Chance) -> usize {
    chance.of(&[0, 50, 500, 1 << 20])
}

fn message(chance: &mut Chance, number: u64) -> String {
    format!("message {number} {}", "x".repeat(chance.size(1, 300) as usize))
}

fn array(value: Value) -> Vec<Value> {
    let Value::Array(values) = value else { panic!("not an array: {value:?}") };
    values
}

fn text(value: &Value) -> String {
    let Value::BulkString(text) = value else { panic!("not a string: {value:?}") };
    String::from_utf8(text.clone()).unwrap()
}

const LIST_KEYS: [[&str; 5]; 3] = [
    ["events", "events:processing", "events:acked", "events:oversize", "events:wakeup"],
    ["usage", "usage:processing", "usage:acked", "usage:oversize", "usage:wakeup"],
    ["quota", "quota:processing", "quota:acked", "quota:oversize", "quota:wakeup"],
];

#[test]
fn list_scripts_have_the_same_effect_on_both() {
    let (mut both, chance) = (Both::start(), &mut Chance::new(1, 100));
    let keys = LIST_KEYS.as_flattened();
    let (mut known, mut pushed) = ([0; 3], 0);
    both.acquire();
    for _ in 0..1000 {
        match chance.within(0, 19) {
            0..=8 => {
                let queue = LIST_KEYS[chance.within(0, 2) as usize][0];
                for _ in 0..chance.size(1, 60) {
                    pushed += 1;
                    let message = message(chance, pushed);
                    both.real(&["LPUSH", queue, &message]);
                    both.world.state().redis.push(queue, message.into_bytes());
                }
            }
            // A restart or a lost connection: what is in flight is unknown to the agent.
            9 => {
                known = [0; 3];
                both.acquire();
                let list = LIST_KEYS[chance.within(0, 2) as usize][1];
                let args = [chance.within(0, 9) as usize, chance.within(1, 99) as usize, allowance(chance)];
                both.call("in_flight", &[list], &[&numbers(args)[..], &[MESSAGE_BYTES.into()]].concat())
                    .unwrap();
            }
            10 => {
                known = [0; 3];
                both.acquire();
                let pairs = LIST_KEYS.map(|keys| [keys[4], keys[0], keys[1], keys[0]]);
                let keys: Vec<&str> = [AGENTS].into_iter().chain(pairs.into_iter().flatten()).collect();
                let args = [chance.size(1, 100) as usize, chance.size(1, 5000) as usize];
                both.call("give_back", &keys, &numbers(args)).unwrap();
            }
            11 => {
                let set = both.fenced("set", &["events:acked"], &["7".into()], false);
                assert_eq!(set, Ok(Value::Nil));
            }
            fate => {
                let acks = known.map(|known| chance.within(0, known as u64) as usize);
                // Somebody else took from the list.
                let missing = usize::from(fate == 12) * 1000;
                let asks = (0..3)
                    .flat_map(|q| [acks[q], known[q] - acks[q] + missing, chance.size(1, 50) as usize - 1]);
                let args = [numbers(asks), numbers([allowance(chance)]), vec![MESSAGE_BYTES.into()]].concat();
                match both.fenced("list", keys, &args, fate == 13) {
                    Ok(reply) => {
                        for (q, queue) in array(reply).into_iter().enumerate() {
                            known[q] = known[q] - acks[q] + array(array(queue).remove(2)).len();
                        }
                    }
                    Err(code) => {
                        assert!(code == "FENCED" && matches!(fate, 12 | 13), "{code}");
                        known = [0; 3];
                        both.acquire();
                    }
                }
            }
        }
        for keys in LIST_KEYS {
            for list in [keys[0], keys[1]] {
                let real = array(both.real(&["LRANGE", list, "0", "-1"]));
                let state = both.world.state();
                let simulated = state.redis.lists.get(list).into_iter().flat_map(VecDeque::iter);
                assert!(simulated.map(|message| Value::BulkString(message.clone())).eq(real), "{list}");
            }
            let acked = both.world.state().perform(&vec![b"GET".to_vec(), keys[2].into()]);
            assert_eq!(acked, both.real(&["GET", keys[2]]), "{}", keys[2]);
        }
    }
    assert!(both.call("release", &[LEASE, AGENTS], &["another".into(), "edge-1".into()]).is_ok());
    let held = format!("{OURS}/{}", both.calls);
    assert_eq!(both.call("release", &[LEASE, AGENTS], &[held, "edge-1".into()]), Ok(Value::Int(1)));
    assert!(pushed > 3_000, "{pushed}");
}

/// What an agent knows of a stream.
#[derive(Clone, Default)]
struct Reading {
    from: String,
    in_hand: Vec<String>,
}

#[test]
fn the_stream_script_has_the_same_effect_on_both() {
    let (mut both, chance) = (Both::start(), &mut Chance::new(2, 100));
    let streams = ["events", "usage", "quota"];
    let keys = ["events", "events:oversize", "usage", "usage:oversize", "quota", "quota:oversize"];
    let again = || std::array::from_fn(|_| Reading { from: "0".into(), in_hand: Vec::new() });
    let (mut readings, mut added): ([Reading; 3], _) = (again(), [0; 3]);
    both.acquire();
    for _ in 0..1000 {
        match chance.within(0, 19) {
            0..=8 => {
                let q = chance.within(0, 2) as usize;
                for _ in 0..chance.size(1, 60) {
                    added[q] += 1;
                    let message = message(chance, added[q]);
                    both.real(&["XADD", streams[q], &format!("{}-0", added[q]), "data", &message]);
                    both.world.state().redis.add(streams[q], message.into_bytes());
                }
            }
            9 | 10 => {
                readings = again();
                both.acquire();
            }
            fate => {
                let mut args = vec!["group".to_owned(), "edge-1".to_owned()];
                args.extend(numbers([allowance(chance)]));
                args.push(MESSAGE_BYTES.into());
                // Everything pending has been pending for longer than this, or nothing has.
                let idle = chance.of(&[0, 0, 0, 1, 600_000]);
                std::thread::sleep(Duration::from_millis(if idle == 1 { 5 } else { 0 }));
                let before = readings.clone();
                for reading in &mut readings {
                    let acks = chance.within(0, reading.in_hand.len() as u64) as usize;
                    args.extend([chance.size(1, 50) - 1, idle].map(|number| number.to_string()));
                    args.insert(args.len() - 1, reading.from.clone());
                    args.push(acks.to_string());
                    args.extend(reading.in_hand.drain(..acks));
                }
                match both.fenced("stream", &keys, &args, fate == 11) {
                    Ok(reply) => {
                        for (reading, stream) in readings.iter_mut().zip(array(reply)) {
                            let stream = array(stream);
                            reading.from = text(&stream[3]);
                            // Each ID is followed by its message.
                            for entry in array(stream[4].clone()).chunks_exact(2) {
                                let id = text(&entry[0]);
                                // Claiming returns again what is in hand.
                                if !reading.in_hand.contains(&id) {
                                    reading.in_hand.push(id);
                                }
                            }
                        }
                    }
                    Err(code) => {
                        assert!(code == "FENCED" && fate == 11, "{code}");
                        readings = before;
                    }
                }
            }
        }
        for stream in streams {
            let real = both.real(&["XLEN", stream]);
            assert_eq!(Value::Int(both.world.state().redis.len(stream) as i64), real, "{stream}");
        }
    }
    assert!(added.iter().sum::<u64>() > 3_000, "{added:?}");
}
