//! The agent's own link in the fleet.

use std::time::Duration;

use dataplane_agent::drain::{Circuit, Flight, Link, LinkSettings, Trouble};
use tokio::time::Instant;

use super::work::Work;
use super::{Answer, Client, Event, LARGEST, Outgoing, QUOTA, Scenario};
use crate::chance::Chance;

/// The `Retry-After` of answers that have one.
pub(super) const RETRY_AFTER: Duration = Duration::from_secs(1);
/// A simultaneous start is spread over this time: systemd's own.
const START: f64 = 1.0;

pub(super) struct Ours {
    link: Link,
    /// Counts requests, whose endpoints have separate delays.
    sent: usize,
}

/// The default settings of the agent.
fn settings() -> LinkSettings {
    LinkSettings {
        failures_to_open: 3,
        initial_delay: Duration::from_secs(5),
        max_backoff: Duration::from_secs(30),
        multiplier: 2.0,
        concurrency: 32,
        refusal_brake: 100,
    }
}

impl Ours {
    pub(super) fn new(scenario: &Scenario, agent: u32, begin: Instant) -> Self {
        let mut chance = Chance::new(scenario.seed, 1_000 + u64::from(agent));
        let settings = settings();
        let link = if scenario.event == Event::Restart {
            // As in the agent: the first request goes out some time within the delay after an error.
            let starts = START * chance.part() + settings.initial_delay.as_secs_f64() * chance.part();
            Link::new(settings, begin + Duration::from_secs_f64(starts))
        } else {
            // An hour of failed probes, the last of them at a random time.
            let long_ago = begin - Duration::from_secs(60);
            let mut link = Link::new(settings, long_ago);
            let mut now = long_ago + Duration::from_secs_f64(30.0 * chance.part());
            while now <= begin {
                let flight = link.sent(0, LARGEST, now);
                link.landed(flight);
                link.failed(Trouble::Unreachable, None, flight, now);
                if let Circuit::Open { until } = link.circuit() {
                    now = until;
                }
            }
            link
        };
        Self { link, sent: 0 }
    }
}

impl Client for Ours {
    type Ticket = Flight;

    fn next(&mut self, work: &mut Work, now: Instant) -> Option<Outgoing<Flight>> {
        if self.sent >= self.link.limit(now) {
            return None;
        }
        // The hour's backlog has more sessions than an agent has requests.
        let room = self.link.room(self.link.pipes(LARGEST as f64, usize::MAX, now), now);
        let has_quota = work.has_quota(now);
        if !has_quota && (room.is_none() || !work.has_records()) {
            return None;
        }
        if !has_quota && self.link.rate_limited_until(now).is_some() {
            return None;
        }
        let (bytes, quota) = match work.take_quota(now) {
            Some(quota) => (QUOTA, Some(quota)),
            None => (work.take_records(room? as u64)?, None),
        };
        self.sent += 1;
        let ticket = match quota {
            Some(_) => self.link.sent_quota(3, bytes, now),
            None => self.link.sent(4, bytes, now),
        };
        Some(Outgoing { bytes, quota, ticket })
    }

    fn wakes(&mut self, work: &Work, now: Instant) -> Option<Instant> {
        let rate = work.has_records().then(|| self.link.rate_limited_until(now)).flatten();
        let probe = match self.link.circuit() {
            Circuit::Open { until } => Some(until),
            Circuit::Closed | Circuit::HalfOpen => None,
        };
        let others = [rate, probe, self.link.whole_again(now), work.next_quota(now)];
        others.into_iter().flatten().filter(|at| *at > now).min()
    }

    fn answered(&mut self, flight: Flight, attempts: u32, answer: Answer, now: Instant) -> Duration {
        self.sent -= 1;
        self.link.landed(flight);
        match answer {
            Answer::Taken => {
                let _ = self.link.delivered(flight, now);
            }
            Answer::Shed { told } => {
                let asked = told.then_some(RETRY_AFTER);
                let _ = self.link.failed(Trouble::Overloaded, asked, flight, now);
            }
        }
        self.link.quota_delay(attempts)
    }
}
