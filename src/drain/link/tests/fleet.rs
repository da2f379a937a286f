//! A fleet meets a recovered `ControlPlane` with less capacity than the fleet's demand.
//!
//! Goal: its capacity is used well, and it is not overloaded again. Method: fifty links, a server of fixed capacity, and
//! virtual time; for comparison, plain exponential retry.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::*;

const AGENTS: usize = 50;
/// Requests per second; the rest is shed with 429.
const CAPACITY: f64 = 500.0;
const LATENCY: Duration = Duration::from_millis(20);
const SECONDS: u64 = 60;
/// Seconds at the start that do not count.
const SETTLING: u64 = 10;

/// The server's view after these seconds: the shares of its capacity used and of the requests shed.
#[derive(Debug)]
struct Outcome {
    goodput: f64,
    shed: f64,
}

/// Serves a fixed number of requests per second, a tenth of a second's worth at once.
struct Server {
    tokens: f64,
    filled: Instant,
    served: u32,
    shed: u32,
}

impl Server {
    fn serves(&mut self, now: Instant, counts: bool) -> bool {
        let filled = now.saturating_duration_since(self.filled).as_secs_f64() * CAPACITY;
        (self.tokens, self.filled) = ((self.tokens + filled).min(CAPACITY / 10.0), now);
        let serves = self.tokens >= 1.0;
        if serves {
            self.tokens -= 1.0;
        }
        if counts && serves {
            self.served += 1;
        } else if counts {
            self.shed += 1;
        }
        serves
    }
}

/// A client's behaviour: when it sends next, and how it handles answers.
trait Sender {
    /// How many requests to send now, and when to ask again if no answer arrives.
    fn send(&mut self, now: Instant) -> (usize, Option<Instant>);
    fn answered(&mut self, served: bool, sent: Instant, now: Instant);
}

fn simulate(mut agents: Vec<impl Sender>, begin: Instant) -> Outcome {
    let mut plane = Server { tokens: 0.0, filled: begin, served: 0, shed: 0 };
    // The time, a tie-breaker, the agent, and the answer arriving then with the time its request was sent.
    let mut events = BinaryHeap::new();
    let mut number = 0;
    for agent in 0..agents.len() {
        events.push(Reverse((begin, number, agent, None)));
        number += 1;
    }
    let end = begin + Duration::from_secs(SECONDS);
    while let Some(Reverse((now, _, agent, answer))) = events.pop().filter(|Reverse((now, ..))| *now < end) {
        if let Some((served, sent)) = answer {
            agents[agent].answered(served, sent, now);
        }
        let (requests, again) = agents[agent].send(now);
        for _ in 0..requests {
            let served = plane.serves(now, now >= begin + Duration::from_secs(SETTLING));
            events.push(Reverse((now + LATENCY, number, agent, Some((served, now)))));
            number += 1;
        }
        if let Some(again) = again {
            events.push(Reverse((again.max(now + Duration::from_millis(1)), number, agent, None)));
            number += 1;
        }
    }
    let (served, shed) = (f64::from(plane.served), f64::from(plane.shed));
    Outcome { goodput: served / (CAPACITY * (SECONDS - SETTLING) as f64), shed: shed / (served + shed) }
}

/// Our link, with an inexhaustible backlog.
struct Ours {
    link: Link,
    in_flight: usize,
    asked_until: Option<Instant>,
}

impl Sender for Ours {
    fn send(&mut self, now: Instant) -> (usize, Option<Instant>) {
        let mut requests = 0;
        let mut again = None;
        while self.in_flight < self.link.limit(now) {
            if let Some(until) = self.link.rate_limited_until(now) {
                again = Some(until);
                break;
            }
            self.link.sent(0, 0, now);
            self.in_flight += 1;
            requests += 1;
        }
        if let Circuit::Open { until } = self.link.circuit() {
            again = Some(until);
        }
        // One wake-up at a time is enough.
        if self.asked_until.is_some_and(|asked| asked > now) {
            again = None;
        }
        self.asked_until = again.or(self.asked_until);
        (requests, again)
    }

    fn answered(&mut self, served: bool, sent: Instant, now: Instant) {
        self.in_flight -= 1;
        if served {
            self.link.delivered(Flight::of_test(sent, 0), now);
        } else {
            self.link.failed(Trouble::Overloaded, None, Flight::of_test(sent, 0), now);
        }
    }
}

/// A worker that retries after an exponential backoff with full jitter.
struct Plain {
    attempts: i32,
    idle: bool,
    not_before: Instant,
}

impl Sender for Plain {
    fn send(&mut self, now: Instant) -> (usize, Option<Instant>) {
        let sends = self.idle && self.not_before <= now;
        self.idle &= !sends;
        (usize::from(sends), self.idle.then_some(self.not_before))
    }

    fn answered(&mut self, served: bool, _: Instant, now: Instant) {
        self.idle = true;
        self.attempts = if served { 0 } else { self.attempts + 1 };
        if !served {
            let most = (0.5 * 2f64.powi(self.attempts.min(6))).min(30.0);
            self.not_before = now + Duration::from_secs_f64(rand::random_range(0.0..most));
        }
    }
}

#[test]
fn a_fleet_uses_a_recovered_control_plane_without_overloading_it() {
    let begin = Instant::now();
    let settings = Settings {
        failures_to_open: 3,
        initial_delay: Duration::from_secs(1),
        max_backoff: Duration::from_secs(30),
        multiplier: 2.0,
        concurrency: 32,
        refusal_brake: 100,
    };
    let ours = |_| {
        let mut link = Link::new(settings.clone(), begin);
        link.sent(0, 0, begin);
        link.failed(Trouble::Unreachable, None, Flight::of_test(begin, 0), begin);
        Ours { link, in_flight: 0, asked_until: None }
    };
    let ours = simulate((0..AGENTS).map(ours).collect(), begin);
    let plain = |_| Plain { attempts: 0, idle: true, not_before: begin };
    let plain = simulate((0..AGENTS * 32).map(plain).collect(), begin);
    println!("ours: {ours:?}, plain exponential retry: {plain:?}");
    assert!(ours.goodput >= 0.8, "{ours:?}");
    assert!(ours.shed <= 0.1, "{ours:?}");
}
