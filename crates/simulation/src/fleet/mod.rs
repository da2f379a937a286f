//! A fleet of agents meets a `ControlPlane` that cannot serve them all at once, in virtual time.
//!
//! Each agent has an hour's backlog, accepts new records at its usual rate, and occasionally has a quota request for which a
//! session waits. The agent's own [`Link`](dataplane_agent::drain::Link), or one of three common strategies ([`peers`]),
//! decides what is sent when. Records are only bytes here, and the path is a round trip and an uplink: the contents and the
//! order of records and the disk are not simulated.

pub mod chart;
mod ours;
mod outcome;
mod peers;
mod plane;
mod play;
mod work;

use std::cell::RefCell;
use std::time::{Duration, SystemTime};

use dataplane_agent::time::{self, simulate};
use tokio::time::Instant;

use crate::chance::Chance;
pub use outcome::{Outcome, Second, quantile};
use play::Fleet;
use work::Work;
pub use work::{Answer, Outgoing, Quota};

/// Bytes of a record on the wire, in a large batch.
pub const RECORD: u64 = 69;
/// The largest batch: 2,000 records.
pub const LARGEST: u64 = 2_000 * RECORD;
/// An agent's backlog at the beginning: an hour of ten records per second.
pub const BACKLOG: u64 = 3_600 * 10 * RECORD;
/// New records, in bytes per second.
pub const INTAKE: u64 = 10 * RECORD;
/// Bytes of a quota request including its headers, and the mean interval of an agent's quota requests in seconds.
const QUOTA: u64 = 700;
const QUOTA_EVERY: f64 = 30.0;
/// The first seconds, which are reported separately.
pub const SETTLING: u64 = 60;

/// A retry strategy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// The agent's own link.
    Agent,
    /// Eight workers, each with plain exponential backoff from 1 s to 30 s.
    Exponential,
    /// The same with full jitter.
    FullJitter,
    /// Adaptive request concurrency, as Vector documents it.
    AdaptiveConcurrency,
}

impl Strategy {
    /// All strategies.
    pub const ALL: [Self; 4] = [Self::Agent, Self::Exponential, Self::FullJitter, Self::AdaptiveConcurrency];

    /// Its name in tables.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Agent => "dataplane-agent",
            Self::Exponential => "exponential backoff",
            Self::FullJitter => "exponential, full jitter",
            Self::AdaptiveConcurrency => "adaptive concurrency",
        }
    }
}

/// The event that the fleet meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The `ControlPlane` comes back after an hour. Each agent notices at its next probe.
    Outage,
    /// All agents start in the same second.
    Restart,
    /// As after an outage, but `Retry-After` is a date, and half of the agents' clocks are wrong by up to an hour.
    WrongClocks,
    /// As after an outage, but a third of the capacity is missing from the third minute to the fifth.
    NodeLost,
}

impl Event {
    /// All events.
    pub const ALL: [Self; 4] = [Self::Outage, Self::Restart, Self::WrongClocks, Self::NodeLost];

    /// Its name in tables.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Outage => "back after an hour",
            Self::Restart => "all start at once",
            Self::WrongClocks => "half of the clocks wrong",
            Self::NodeLost => "one node of three lost",
        }
    }
}

/// A fleet and its event.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// The number of agents.
    pub agents: u32,
    /// Requests per second that the `ControlPlane` takes.
    pub requests: f64,
    /// Bytes per second that it takes.
    pub bytes: f64,
    /// The event.
    pub event: Event,
    /// The seed.
    pub seed: u64,
}

impl Scenario {
    /// The time in seconds that the `ControlPlane` needs at best to take everything.
    pub fn ideal(&self) -> f64 {
        let agents = f64::from(self.agents);
        let quota = agents / QUOTA_EVERY;
        let (requests, bytes) = (self.requests - quota, self.bytes - quota * QUOTA as f64);
        let fresh = agents * INTAKE as f64;
        let by_bytes = agents * BACKLOG as f64 / (bytes - fresh);
        by_bytes.max(agents * BACKLOG as f64 / (requests * LARGEST as f64 - fresh))
    }

    /// The available share of the capacity at this time.
    fn capacity(&self, seconds: f64) -> f64 {
        if self.event == Event::NodeLost && (180.0..300.0).contains(&seconds) { 2.0 / 3.0 } else { 1.0 }
    }
}

/// An agent's strategy.
trait Client {
    /// What it remembers of a request in flight.
    type Ticket;

    /// The next request to send now, if any.
    fn next(&mut self, work: &mut Work, now: Instant) -> Option<Outgoing<Self::Ticket>>;

    /// When to ask it again unless an answer or a quota request arrives earlier.
    fn wakes(&mut self, work: &Work, now: Instant) -> Option<Instant>;

    /// Handles the answer to a request. After a failure, returns how long a quota request with this many attempts waits.
    fn answered(&mut self, ticket: Self::Ticket, attempts: u32, answer: Answer, now: Instant) -> Duration;
}

/// Plays a scenario with one strategy.
pub fn run(scenario: Scenario, strategy: Strategy) -> Outcome {
    // The link's randomness comes from the seed as well; its clocks are arguments.
    simulate(Some(Box::new(Machine(RefCell::new(Chance::new(scenario.seed, 2))))));
    // The clock does not start with the run: agents have a past.
    let begin = Instant::now() + Duration::from_secs(3_600);
    let agents = 0..scenario.agents;
    let outcome = match strategy {
        Strategy::Agent => {
            let new = |agent| ours::Ours::new(&scenario, agent, begin);
            Fleet::new(scenario, agents.map(new).collect(), begin).run()
        }
        Strategy::Exponential | Strategy::FullJitter => {
            let jitter = strategy == Strategy::FullJitter;
            let new = |agent| peers::Workers::new(&scenario, agent, jitter, begin);
            Fleet::new(scenario, agents.map(new).collect(), begin).run()
        }
        Strategy::AdaptiveConcurrency => {
            let new = |agent| peers::Adaptive::new(&scenario, agent, begin);
            Fleet::new(scenario, agents.map(new).collect(), begin).run()
        }
    };
    simulate(None);
    outcome
}

/// The source of the link's randomness.
struct Machine(RefCell<Chance>);

impl time::Machine for Machine {
    fn wall_clock(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH
    }

    fn random(&self) -> u64 {
        self.0.borrow_mut().bits()
    }
}
