//! Other retry strategies in the fleet. Their requests never time out, which flatters them: a large batch may take minutes.

use std::time::Duration;

use tokio::time::Instant;

use super::work::Work;
use super::{Answer, Client, Event, LARGEST, Outgoing, QUOTA, Scenario, ours};
use crate::chance::Chance;

/// When a worker or agent starts: within its longest backoff after an outage, within a second after a start.
fn first_turn(scenario: &Scenario, chance: &mut Chance, longest: f64) -> Duration {
    let within = if scenario.event == Event::Restart { 1.0 } else { longest };
    Duration::from_secs_f64(within * chance.part())
}

/// How far an agent's wall clock is ahead, which matters when `Retry-After` is a date.
fn clock_error(scenario: &Scenario, chance: &mut Chance) -> f64 {
    let wrong = scenario.event == Event::WrongClocks && chance.happens(0.5);
    if wrong { 3_600.0 * (2.0 * chance.part() - 1.0) } else { 0.0 }
}

/// The effective delay of a `Retry-After` with this clock error, at most five minutes.
fn asked(error: f64) -> Duration {
    Duration::from_secs_f64((ours::RETRY_AFTER.as_secs_f64() - error).clamp(0.0, 300.0))
}

/// Workers that each send a batch and double their delay after a failure.
pub(super) struct Workers {
    /// When each idle worker may continue, and its failures in a row.
    idle: Vec<(Instant, i32)>,
    has_jitter: bool,
    clock_error: f64,
    chance: Chance,
}

const WORKERS: usize = 8;
const SHORTEST: f64 = 1.0;
const LONGEST: f64 = 30.0;

impl Workers {
    pub(super) fn new(scenario: &Scenario, agent: u32, has_jitter: bool, begin: Instant) -> Self {
        let mut chance = Chance::new(scenario.seed, 1_000 + u64::from(agent));
        let starts = begin + first_turn(scenario, &mut chance, LONGEST);
        let clock_error = clock_error(scenario, &mut chance);
        Self { idle: vec![(starts, 0); WORKERS], has_jitter, clock_error, chance }
    }
}

impl Client for Workers {
    /// The worker's failures in a row.
    type Ticket = i32;

    fn next(&mut self, work: &mut Work, now: Instant) -> Option<Outgoing<i32>> {
        let free = self.idle.iter().position(|(at, _)| *at <= now)?;
        let (bytes, quota) = match work.take_quota(now) {
            Some(quota) => (QUOTA, Some(quota)),
            None => (work.take_records(LARGEST)?, None),
        };
        let (_, failed) = self.idle.swap_remove(free);
        Some(Outgoing { bytes, quota, ticket: failed })
    }

    fn wakes(&mut self, work: &Work, now: Instant) -> Option<Instant> {
        let workers = self.idle.iter().map(|(at, _)| *at).filter(|at| *at > now);
        workers.chain(work.next_quota(now)).min()
    }

    fn answered(&mut self, failed: i32, _: u32, answer: Answer, now: Instant) -> Duration {
        let Answer::Shed { told } = answer else {
            self.idle.push((now, 0));
            return Duration::ZERO;
        };
        let most = (SHORTEST * 2f64.powi(failed)).min(LONGEST);
        let wait = if self.has_jitter { most * self.chance.part() } else { most };
        let wait =
            Duration::from_secs_f64(wait).max(if told { asked(self.clock_error) } else { Duration::ZERO });
        self.idle.push((now + wait, (failed + 1).min(10)));
        wait
    }
}

/// Adaptive request concurrency. After each round trip that filled the limit and was not slower than usual, one more request
/// may be in flight; after a shed or slow one, a tenth fewer. A shed batch waits by Fibonacci numbers with full jitter. See
/// <https://vector.dev/docs/about/concepts/#adaptive-request-concurrency> and the defaults of its HTTP sinks.
pub(super) struct Adaptive {
    limit: f64,
    in_flight: usize,
    /// Whether the limit has been reached since the last decision.
    was_full: bool,
    /// The mean round trip and its deviation, in seconds, and the samples since the last decision.
    mean: f64,
    deviation: f64,
    rtts: (f64, u32),
    was_shed: bool,
    decides: Instant,
    not_before: Instant,
    /// The last two waits, in seconds.
    waits: (f64, f64),
    clock_error: f64,
    chance: Chance,
}

const DECREASE: f64 = 0.9;
const EWMA: f64 = 0.4;
const DEVIATIONS: f64 = 2.5;
const LIMIT: f64 = 200.0;

impl Adaptive {
    pub(super) fn new(scenario: &Scenario, agent: u32, begin: Instant) -> Self {
        let mut chance = Chance::new(scenario.seed, 1_000 + u64::from(agent));
        let not_before = begin + first_turn(scenario, &mut chance, LONGEST);
        Self {
            limit: 1.0,
            in_flight: 0,
            was_full: false,
            mean: 0.0,
            deviation: 0.0,
            rtts: (0.0, 0),
            was_shed: false,
            decides: begin,
            not_before,
            waits: (0.0, SHORTEST),
            clock_error: clock_error(scenario, &mut chance),
            chance,
        }
    }

    /// Adapts the limit once per mean round trip.
    fn decide(&mut self, now: Instant) {
        let (sum, count) = std::mem::take(&mut self.rtts);
        let current = if count == 0 { self.mean } else { sum / f64::from(count) };
        if self.mean == 0.0 {
            self.mean = current;
        }
        let is_slow = current > self.mean + DEVIATIONS * self.deviation.max(0.05 * self.mean);
        if self.was_shed || is_slow {
            self.limit = (self.limit * DECREASE).max(1.0);
        } else if self.was_full && count > 0 {
            self.limit = (self.limit + 1.0).min(LIMIT);
        }
        self.deviation += EWMA * ((current - self.mean).abs() - self.deviation);
        self.mean += EWMA * (current - self.mean);
        (self.was_shed, self.was_full) = (false, false);
        self.decides = now + Duration::from_secs_f64(self.mean);
    }
}

impl Client for Adaptive {
    /// When the request was sent.
    type Ticket = Instant;

    fn next(&mut self, work: &mut Work, now: Instant) -> Option<Outgoing<Instant>> {
        if self.in_flight >= self.limit as usize || now < self.not_before {
            return None;
        }
        let (bytes, quota) = match work.take_quota(now) {
            Some(quota) => (QUOTA, Some(quota)),
            None => (work.take_records(LARGEST)?, None),
        };
        self.in_flight += 1;
        self.was_full |= self.in_flight >= self.limit as usize;
        Some(Outgoing { bytes, quota, ticket: now })
    }

    fn wakes(&mut self, work: &Work, now: Instant) -> Option<Instant> {
        [Some(self.not_before), work.next_quota(now)].into_iter().flatten().filter(|at| *at > now).min()
    }

    fn answered(&mut self, sent: Instant, _: u32, answer: Answer, now: Instant) -> Duration {
        self.in_flight -= 1;
        self.rtts.0 += (now - sent).as_secs_f64();
        self.rtts.1 += 1;
        let mut wait = Duration::ZERO;
        match answer {
            Answer::Taken => self.waits = (0.0, SHORTEST),
            Answer::Shed { told } => {
                self.was_shed = true;
                self.waits = (self.waits.1, (self.waits.0 + self.waits.1).min(LONGEST));
                wait = Duration::from_secs_f64(self.waits.1 * self.chance.part());
                if told {
                    wait = wait.max(asked(self.clock_error));
                }
            }
        }
        if now >= self.decides {
            self.decide(now);
        }
        wait
    }
}
