//! The drain's public state: whether requests flow, and if not, why.

use tokio::time::Instant;

use super::DrainLoop;
use super::link::Circuit;
use super::queues::kind_of;
use super::verdict::Trouble;
use crate::record::Kind;

/// Whether requests flow. The numbers are those of the metric.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LinkState {
    /// They flow: the circuit breaker is closed.
    #[default]
    Up = 0,
    /// A single request probes: the circuit breaker is half-open.
    Probing = 1,
    /// No request before the next probe: the circuit breaker is open. Or a kind of records is held.
    Down = 2,
}

impl LinkState {
    /// The public name.
    pub fn label(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Probing => "probing",
            Self::Down => "down",
        }
    }
}

/// The drain's public state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkStatus {
    /// Whether requests flow.
    pub state: LinkState,
    /// Why it is down, for all types or for the held ones.
    pub trouble: Option<Trouble>,
    /// Whether it is down for all kinds.
    pub is_down: bool,
    /// The answer that showed it.
    pub cause: Option<String>,
    /// When the next probe is sent.
    pub next_probe: Option<Instant>,
    /// The held record types, in sending order.
    pub held: Vec<HeldKind>,
    /// The drain is paused, by an operator or an export, and sends no more. Requests in flight may still be answered.
    pub holds: bool,
    /// It is paused, and holds no records.
    pub parked: bool,
}

/// A kind of records that the `ControlPlane` does not accept, while others may be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldKind {
    /// The kind.
    pub kind: Kind,
    /// The reason.
    pub trouble: Trouble,
    /// The answer that showed it.
    pub cause: String,
}

impl DrainLoop {
    /// Exports a sample for every reason from the start: alerts miss a series that appears with its first fault.
    pub(super) fn tell_trouble(&self, now: &[Trouble]) {
        for trouble in Trouble::ALL {
            let is_it = i64::from(now.contains(&trouble));
            self.drain.metrics.link_trouble.with_label_values(&[trouble.label()]).set(is_it);
        }
    }

    fn held_kinds(&self) -> Vec<HeldKind> {
        let held = self.routes.all_held().map(|(log, held)| HeldKind {
            kind: kind_of(log),
            trouble: held.trouble,
            cause: held.cause.clone(),
        });
        held.collect()
    }

    /// Publishes the link's state.
    pub(super) fn tell(&self) {
        let (state, next_probe) = match self.link.circuit() {
            Circuit::Closed => (LinkState::Up, None),
            // Before the first request there is no known trouble.
            Circuit::Open { .. } if self.link.trouble().is_none() => (LinkState::Up, None),
            Circuit::HalfOpen => (LinkState::Probing, None),
            Circuit::Open { until } => (LinkState::Down, Some(until)),
        };
        let (trouble, cause, parked) = (self.link.trouble(), self.cause.clone(), self.parked);
        let (held, is_down, holds) = (self.held_kinds(), trouble.is_some(), self.orders.holds());
        let mut status = LinkStatus { state, trouble, is_down, cause, next_probe, held, holds, parked };
        // While the link itself is up, held kinds are reported as down.
        if let (None, Some(held)) = (trouble, status.held.first()) {
            status.trouble = Some(held.trouble);
            status.cause = Some(format!("{}: {}", held.kind.name(), held.cause));
            (status.state, status.next_probe) = (LinkState::Down, self.routes.next_probe(|_| true));
        }
        let metrics = &self.drain.metrics;
        let changed = self.drain.status.send_if_modified(|now| {
            let changed = *now != status;
            now.clone_from(&status);
            changed
        });
        if changed {
            metrics.link_state.with_label_values(&[] as &[&str]).set(status.state as i64);
            let troubles = status.trouble.into_iter().chain(status.held.iter().map(|held| held.trouble));
            self.tell_trouble(&troubles.collect::<Vec<_>>());
        }
        let limit = self.link.limit(Instant::now()) as i64;
        metrics.concurrency.with_label_values(&[] as &[&str]).set(limit);
        let (rate, round_trip) = self.link.measured();
        metrics.link_rate.set(rate);
        metrics.link_round_trip.set(round_trip.unwrap_or_default().as_secs_f64());
    }
}
