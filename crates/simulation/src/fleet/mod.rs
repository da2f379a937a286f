//! A fleet of agents meets a `ControlPlane` that cannot serve them all at once, in virtual time.
//!
//! Each agent has an hour's backlog, accepts new records at its usual rate, and occasionally has a quota request for which a
//! session waits. The agent's own [`Link`](dataplane_agent::drain::Link), or one of three common strategies ([`peers`]),
//! decides what is sent when. Records are only bytes here, and the path is a round trip and an uplink: the contents and the
//! order of records and the disk are not simulated.

pub mod chart;
mod ours;
mod peers;
mod plane;
mod work;

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, SystemTime};

use dataplane_agent::time::{self, simulate};
use tokio::time::Instant;

use crate::chance::Chance;
use plane::{Done, Plane};
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
/// The range of an agent's round trip, in seconds.
const ROUND_TRIP: (f64, f64) = (0.02, 0.2);
/// An agent's uplink, in bytes per second.
const UPLINK: f64 = 1.25e6;
/// The end of the run, in seconds, if an agent is never drained.
const LONGEST: u64 = 3_600;
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

/// One second at the `ControlPlane`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Second {
    /// Requests it took.
    pub served: u32,
    /// Requests it shed.
    pub shed: u32,
    /// Bytes received, without those of shed requests.
    pub bytes: f64,
}

/// The outcome of a fleet.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The `ControlPlane`'s seconds.
    pub seconds: Vec<Second>,
    /// When each agent was drained, in seconds, sorted. Agents that never were are missing.
    pub drained: Vec<f64>,
    /// Waiting times of the first minute's quota requests, in seconds, sorted.
    pub early_quota: Vec<f64>,
    /// Those of later quota requests.
    pub later_quota: Vec<f64>,
    /// The scenario.
    pub scenario: Scenario,
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

/// What happens, and to which agent or request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Happens {
    /// An agent may send.
    Turn(u32),
    /// An agent has a quota request.
    QuotaComes(u32),
    /// A request has passed its agent's uplink.
    Arrives(u32),
    /// A request may be complete, according to this reckoning.
    Received(u64),
    /// A request is answered at the agent.
    Answered(u32, Answered),
    /// A new second begins: the capacity may change.
    Second,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Answered {
    Taken,
    Shed,
}

struct Request<T> {
    agent: u32,
    bytes: u64,
    quota: Option<Quota>,
    ticket: Option<T>,
}

struct Agent<C> {
    client: C,
    work: Work,
    round_trip: f64,
    /// When to ask it next, in microseconds.
    wakes: u64,
    drained: Option<f64>,
}

struct Fleet<C: Client> {
    scenario: Scenario,
    begin: Instant,
    now: u64,
    number: u64,
    events: BinaryHeap<Reverse<(u64, u64, Happens)>>,
    agents: Vec<Agent<C>>,
    requests: Vec<Request<C::Ticket>>,
    free: Vec<u32>,
    plane: Plane,
    chance: Chance,
    outcome: Outcome,
}

fn micros(seconds: f64) -> u64 {
    (seconds * 1e6) as u64
}

impl<C: Client> Fleet<C> {
    fn new(scenario: Scenario, clients: Vec<C>, begin: Instant) -> Self {
        let mut chance = Chance::new(scenario.seed, 1);
        let agents = clients.into_iter().map(|client| Agent {
            client,
            work: Work::new(BACKLOG, INTAKE),
            round_trip: ROUND_TRIP.0 + (ROUND_TRIP.1 - ROUND_TRIP.0) * chance.part(),
            wakes: 0,
            drained: None,
        });
        let agents: Vec<_> = agents.collect();
        let outcome = Outcome {
            seconds: Vec::new(),
            drained: Vec::new(),
            early_quota: Vec::new(),
            later_quota: Vec::new(),
            scenario,
        };
        let mut fleet = Self {
            plane: Plane::new(&scenario),
            begin,
            now: 0,
            number: 0,
            events: BinaryHeap::new(),
            agents,
            requests: Vec::new(),
            free: Vec::new(),
            chance,
            outcome,
            scenario,
        };
        for agent in 0..scenario.agents {
            let first_quota = fleet.chance.part() * QUOTA_EVERY;
            fleet.happens(0, Happens::Turn(agent));
            fleet.happens(micros(first_quota), Happens::QuotaComes(agent));
        }
        fleet.happens(0, Happens::Second);
        fleet
    }

    fn happens(&mut self, at: u64, what: Happens) {
        self.number += 1;
        self.events.push(Reverse((at.max(self.now), self.number, what)));
    }

    fn instant(&self) -> Instant {
        self.begin + Duration::from_micros(self.now)
    }

    fn seconds(&self) -> f64 {
        self.now as f64 / 1e6
    }

    fn run(mut self) -> Outcome {
        while let Some(Reverse((at, _, what))) = self.events.pop() {
            self.now = at;
            let all_drained = self.outcome.drained.len() == self.agents.len();
            if all_drained || at > LONGEST * 1_000_000 {
                break;
            }
            match what {
                Happens::Turn(agent) => self.turn(agent),
                Happens::QuotaComes(agent) => {
                    let quota = Quota { since: self.seconds(), not_before: self.instant(), attempts: 0 };
                    self.agents[agent as usize].work.quotas.push_back(quota);
                    // At random intervals that agents do not share.
                    let next = QUOTA_EVERY * -(1.0 - self.chance.part()).ln();
                    self.happens(self.now + micros(next), Happens::QuotaComes(agent));
                    self.turn(agent);
                }
                Happens::Arrives(request) => {
                    self.plane.enter(request, self.requests[request as usize].bytes, self.seconds());
                    self.next_received();
                }
                Happens::Received(reckoning) => self.received(reckoning),
                Happens::Answered(request, answered) => self.answered(request, answered),
                Happens::Second => {
                    self.plane.scale(self.scenario.capacity(self.seconds()), self.seconds());
                    let came_in = self.plane.came_in();
                    if let Some(second) = self.outcome.seconds.last_mut() {
                        second.bytes += came_in;
                    }
                    self.outcome.seconds.push(Second::default());
                    self.next_received();
                    self.happens(self.now + 1_000_000, Happens::Second);
                }
            }
        }
        // Requests without an answer have waited at least until now.
        let under_way =
            self.requests.iter().filter(|request| request.ticket.is_some()).filter_map(|r| r.quota);
        let waiting = self.agents.iter().flat_map(|agent| &agent.work.quotas).copied();
        let ages = under_way.chain(waiting).map(|quota| (quota.since, self.now as f64 / 1e6 - quota.since));
        for (since, age) in ages.collect::<Vec<_>>() {
            let waits = if since < SETTLING as f64 {
                &mut self.outcome.early_quota
            } else {
                &mut self.outcome.later_quota
            };
            waits.push(age);
        }
        self.outcome.drained.sort_by(f64::total_cmp);
        self.outcome.early_quota.sort_by(f64::total_cmp);
        self.outcome.later_quota.sort_by(f64::total_cmp);
        self.outcome
    }

    /// Lets an agent send what it may.
    fn turn(&mut self, number: u32) {
        let (now, seconds) = (self.instant(), self.seconds());
        loop {
            let agent = &mut self.agents[number as usize];
            agent.work.take_in(seconds);
            let Some(outgoing) = agent.client.next(&mut agent.work, now) else { break };
            let arrives = seconds + agent.round_trip / 2.0 + outgoing.bytes as f64 / UPLINK;
            let (bytes, quota) = (outgoing.bytes, outgoing.quota);
            let request = Request { agent: number, bytes, quota, ticket: Some(outgoing.ticket) };
            let id = match self.free.pop() {
                Some(id) => {
                    self.requests[id as usize] = request;
                    id
                }
                None => {
                    self.requests.push(request);
                    self.requests.len() as u32 - 1
                }
            };
            self.happens(micros(arrives), Happens::Arrives(id));
        }
        let agent = &mut self.agents[number as usize];
        let client_wakes = agent.client.wakes(&agent.work, now);
        // Records accepted while nothing is in flight are sent within a second.
        let fresh = agent.work.is_idle().then(|| now + Duration::from_secs(1));
        if let Some(at) = client_wakes.into_iter().chain(fresh).min() {
            let at = (at - self.begin).as_micros() as u64 + 1;
            if agent.wakes <= self.now || at < agent.wakes {
                agent.wakes = at;
                self.happens(at, Happens::Turn(number));
            }
        }
    }

    fn next_received(&mut self) {
        if let Some((at, reckoning)) = self.plane.next_received() {
            self.happens(micros(at) + 1, Happens::Received(reckoning));
        }
    }

    fn received(&mut self, reckoning: u64) {
        let now = self.seconds();
        let mut came = false;
        while let Some((request, done, at)) = self.plane.received(reckoning, now) {
            came = true;
            let Request { agent, bytes, .. } = self.requests[request as usize];
            let second = self.outcome.seconds.last_mut().expect("the first second begins before any request");
            let answered = match done {
                Done::Taken => {
                    second.served += 1;
                    Answered::Taken
                }
                Done::Shed => {
                    second.shed += 1;
                    second.bytes -= bytes as f64;
                    Answered::Shed
                }
            };
            let at = at + self.agents[agent as usize].round_trip / 2.0;
            self.happens(micros(at), Happens::Answered(request, answered));
        }
        if came {
            self.next_received();
        }
    }

    fn answered(&mut self, id: u32, answered: Answered) {
        let (now, seconds) = (self.instant(), self.seconds());
        let request = &mut self.requests[id as usize];
        let (number, bytes, quota) = (request.agent, request.bytes, request.quota);
        let ticket = request.ticket.take().expect("a request is answered once");
        self.free.push(id);
        // Half of the shed requests get a `Retry-After`.
        let answer = match answered {
            Answered::Taken => Answer::Taken,
            Answered::Shed => Answer::Shed { told: self.chance.happens(0.5) },
        };
        let attempts = quota.map_or(0, |quota| quota.attempts) + 1;
        let agent = &mut self.agents[number as usize];
        let delay = agent.client.answered(ticket, attempts, answer, now);
        agent.work.in_flight -= 1;
        match (answered, quota) {
            (Answered::Taken, Some(quota)) => {
                let waits = if quota.since < SETTLING as f64 {
                    &mut self.outcome.early_quota
                } else {
                    &mut self.outcome.later_quota
                };
                waits.push(seconds - quota.since);
            }
            (Answered::Taken, None) => {
                agent.work.sent(bytes);
                if agent.drained.is_none() && agent.work.has_caught_up() {
                    agent.drained = Some(seconds);
                    self.outcome.drained.push(seconds);
                }
            }
            (Answered::Shed, Some(quota)) => {
                agent.work.quotas.push_back(Quota { not_before: now + delay, attempts, ..quota });
            }
            (Answered::Shed, None) => agent.work.came_back(bytes),
        }
        self.turn(number);
    }
}

/// The value at this share of sorted values.
pub fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    sorted.get(((sorted.len() as f64 * share) as usize).min(sorted.len().checked_sub(1)?)).copied()
}

impl Outcome {
    /// The share of the capacity used for what was taken, from the first minute until nine of ten agents were drained; and the
    /// share of requests shed in that time.
    pub fn goodput_and_shed(&self) -> (f64, f64) {
        let end = self.drained(0.9).map_or(self.seconds.len(), |at| at as usize);
        let busy = SETTLING as usize..end.max(SETTLING as usize + 1).min(self.seconds.len());
        let (mut used, mut there, mut served, mut shed) = (0.0, 0.0, 0.0, 0.0);
        for (at, second) in busy.clone().zip(&self.seconds[busy]) {
            let capacity = self.scenario.capacity(at as f64);
            let requests = f64::from(second.served) / (self.scenario.requests * capacity);
            let bytes = second.bytes / (self.scenario.bytes * capacity);
            (used, there) = (used + requests.max(bytes), there + 1.0);
            (served, shed) = (served + f64::from(second.served), shed + f64::from(second.shed));
        }
        (used / there, shed / f64::max(served + shed, 1.0))
    }

    /// When this share of the agents was drained, in seconds.
    pub fn drained(&self, share: f64) -> Option<f64> {
        let place = (f64::from(self.scenario.agents) * share).ceil() as usize;
        self.drained.get(place.max(1) - 1).copied()
    }

    /// The requirements that were missed.
    pub fn shortcomings(&self) -> Vec<String> {
        let (goodput, shed) = self.goodput_and_shed();
        let last = self.drained(1.0).unwrap_or(f64::INFINITY);
        let fair = last / self.drained(0.5).unwrap_or(f64::INFINITY);
        let quota = quantile(&self.later_quota, 0.99).unwrap_or(f64::INFINITY);
        let asked = [
            (goodput >= 0.9, format!("goodput {goodput:.2}, asked 0.9")),
            (shed < 0.05, format!("{shed:.3} of the requests shed, asked 0.05")),
            (
                last <= 1.3 * self.scenario.ideal(),
                format!("drained after {last:.0} s, ideal {:.0} s", self.scenario.ideal()),
            ),
            (fair <= 1.5, format!("the last agent takes {fair:.2} times as long as the median, asked 1.5")),
            (quota < 2.0, format!("quota requests wait {quota:.2} s (p99), asked 2 s")),
        ];
        asked.into_iter().filter(|(holds, _)| !holds).map(|(_, what)| what).collect()
    }
}
