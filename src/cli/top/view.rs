//! The state of all agents over time.

use std::collections::VecDeque;
use std::time::Duration;

use super::snapshot::Snapshot;
use crate::http::requests::{Requests, RouteBody};

/// Samples kept for the charts.
const HISTORY: usize = 240;
/// Samples over which rates are averaged for a forecast of our own, and the shortest time that says something.
const SMOOTH: usize = 10;
const MEASURED: Duration = Duration::from_secs(5);

/// One sample of an agent: its time, and the answer.
pub(super) type AgentSample = (Duration, Result<Snapshot, String>);

/// All agents.
pub(super) struct View {
    pub agents: Vec<WatchedAgent>,
    /// The agent shown in full.
    pub selected: usize,
    pub help: bool,
}

/// One agent.
pub(super) struct WatchedAgent {
    pub address: String,
    /// The last known state.
    pub snapshot: Option<Snapshot>,
    /// Why there is no current state.
    pub trouble: Option<String>,
    /// When it went offline, and how long ago.
    away: Option<(Duration, Duration)>,
    last: Option<Duration>,
    /// Records per second, oldest first.
    pub come: VecDeque<f64>,
    pub gone: VecDeque<f64>,
    /// The start of each of these intervals, and the end of the last.
    since: VecDeque<Duration>,
    looked: Option<Duration>,
    /// The newest of these intervals in which records were sent all the time.
    sending: usize,
    requests: Requests,
}

/// When the backlog will be empty.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Drained {
    /// No backlog.
    Now,
    /// In this many seconds, at the current rate.
    In(f64),
    /// The backlog grows.
    Growing,
    /// Nothing is being delivered.
    Never,
    /// The agent says why there is no forecast.
    NoForecast(String),
    /// Too few samples.
    Unknown,
}

impl View {
    pub(super) fn new(addresses: impl Iterator<Item = String>) -> Self {
        let watched = |address| WatchedAgent {
            address,
            snapshot: None,
            trouble: None,
            away: None,
            last: None,
            come: VecDeque::new(),
            gone: VecDeque::new(),
            since: VecDeque::new(),
            looked: None,
            sending: 0,
            requests: Requests::default(),
        };
        Self { agents: addresses.map(watched).collect(), selected: 0, help: false }
    }

    pub(super) fn select(&mut self, by: isize) {
        let count = self.agents.len().max(1);
        self.selected = (self.selected + count).wrapping_add_signed(by) % count;
    }

    /// Adds a sample of one agent.
    pub(super) fn seen(&mut self, agent: usize, (at, said): AgentSample) {
        if let Some(agent) = self.agents.get_mut(agent) {
            agent.seen(at, said);
        }
    }
}

impl WatchedAgent {
    fn seen(&mut self, at: Duration, said: Result<Snapshot, String>) {
        let since = self.looked.replace(at).unwrap_or(at);
        match said {
            Ok(snapshot) => {
                let sent = self.trouble.is_none() && self.snapshot.as_ref().is_some_and(Snapshot::sends);
                self.sending = if sent && snapshot.sends() { self.sending + 1 } else { 0 };
                if let Some(told) = &snapshot.told {
                    if let Some((come, gone)) = told.rates {
                        push(&mut self.come, come);
                        push(&mut self.gone, gone);
                        push(&mut self.since, since);
                    }
                } else if let (Some(last), Some(before)) = (self.last, &self.snapshot) {
                    let seconds = at.saturating_sub(last).as_secs_f64().max(0.001);
                    // Another outbox behind this address starts from zero.
                    let rate = |now: f64, before: f64| ((now - before) / seconds).max(0.0);
                    let (come, gone) =
                        (rate(snapshot.enqueued, before.enqueued), rate(snapshot.settled, before.settled));
                    push(&mut self.come, come);
                    push(&mut self.gone, gone);
                    push(&mut self.since, since);
                }
                self.requests.push(at.as_secs_f64(), snapshot.routes.clone());
                (self.snapshot, self.last) = (Some(snapshot), Some(at));
                (self.trouble, self.away) = (None, None);
            }
            Err(why) => {
                let away_since = self.away.map_or(at, |(away_since, _)| away_since);
                self.away = Some((away_since, at));
                self.trouble = Some(why);
                self.sending = 0;
                // A gap in the charts: the rates in between are unknown.
                if self.snapshot.is_some() {
                    push(&mut self.come, 0.0);
                    push(&mut self.gone, 0.0);
                    push(&mut self.since, since);
                }
            }
        }
    }

    /// Its name, or its address.
    pub(super) fn name(&self) -> &str {
        self.snapshot.as_ref().map_or(&self.address, |snapshot| &snapshot.server_id)
    }

    /// How long it has been offline.
    pub(super) fn away_for(&self) -> Option<Duration> {
        self.away.map(|(since, now)| now.saturating_sub(since))
    }

    /// The time spanned by the newest `count` rates.
    pub(super) fn span_of(&self, count: usize) -> Duration {
        let first = self.since.len().checked_sub(count).and_then(|first| self.since.get(first));
        first.zip(self.looked).map(|(first, last)| last.saturating_sub(*first)).unwrap_or_default()
    }

    /// Records per second, in and out, while it is online.
    pub(super) fn rates(&self) -> Option<(f64, f64)> {
        if self.trouble.is_some() {
            return None;
        }
        Some((*self.come.back()?, *self.gone.back()?))
    }

    /// The routes with recent requests, busiest first.
    pub(super) fn routes(&self) -> Vec<RouteBody> {
        let told = self.snapshot.as_ref().and_then(|snapshot| snapshot.told.as_ref());
        told.map_or_else(|| self.requests.routes(), |told| told.routes.clone())
    }

    /// When the backlog will be empty: as the agent says, or, if it does not, by our own measurement.
    pub(super) fn drained(&self) -> Drained {
        let Some(snapshot) = self.snapshot.as_ref().filter(|_| self.trouble.is_none()) else {
            return Drained::Unknown;
        };
        if let Some(told) = &snapshot.told {
            return match (told.drained, &told.no_forecast) {
                (Some(seconds), _) if seconds <= 0.0 => Drained::Now,
                (Some(seconds), _) => Drained::In(seconds),
                (None, Some(why)) => Drained::NoForecast(why.clone()),
                (None, None) => Drained::Unknown,
            };
        }
        let depth = snapshot.total_depth();
        if depth < 1.0 {
            return Drained::Now;
        }
        if !snapshot.sends() {
            return Drained::Never;
        }
        // Time in which nothing could be sent says nothing about how fast it goes now.
        if self.span_of(self.sending) < MEASURED {
            return Drained::Unknown;
        }
        let count = self.sending.min(SMOOTH);
        let mean = |rates: &VecDeque<f64>| rates.iter().rev().take(count).sum::<f64>() / count as f64;
        let (come, gone) = (mean(&self.come), mean(&self.gone));
        let delivers = self.gone.back().is_some_and(|gone| *gone > 0.0);
        match gone - come {
            faster if faster > 0.0 && delivers => Drained::In(depth / faster),
            slower if slower < 0.0 => Drained::Growing,
            _ => Drained::Never,
        }
    }
}

fn push<T>(values: &mut VecDeque<T>, value: T) {
    if values.len() >= HISTORY {
        values.pop_front();
    }
    values.push_back(value);
}
