//! The fleet's events, one after another.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use tokio::time::Instant;

use super::outcome::{Outcome, Second};
use super::plane::{Done, Plane};
use super::work::{Answer, Quota, Work};
use super::{BACKLOG, Client, INTAKE, QUOTA_EVERY, SETTLING, Scenario};
use crate::chance::Chance;

/// The range of an agent's round trip, in seconds.
const ROUND_TRIP: (f64, f64) = (0.02, 0.2);
/// An agent's uplink, in bytes per second.
const UPLINK: f64 = 1.25e6;
/// The end of the run, in seconds, if an agent is never drained.
const LONGEST: u64 = 3_600;

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

pub(super) struct Fleet<C: Client> {
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
    pub(super) fn new(scenario: Scenario, clients: Vec<C>, begin: Instant) -> Self {
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

    pub(super) fn run(mut self) -> Outcome {
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
