//! The fleet's `ControlPlane`: it takes a fixed number of bytes and requests per second, and sheds the rest.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::Scenario;

/// Seconds of queued work beyond which a request is shed.
const LONGEST_QUEUE: f64 = 0.25;
/// The cost of shedding a request, as a fraction of taking it.
const SHEDDING: f64 = 0.1;

/// The fate of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Done {
    Taken,
    Shed,
}

/// A server behind a pipe. The pipe shares its bytes per second equally among incoming requests, roughly as TCP does; the
/// server takes one request after another.
pub(super) struct Plane {
    requests: f64,
    bytes: f64,
    share: f64,
    /// Bytes that each request in the pipe has received since the beginning, and the time of this reckoning.
    level: f64,
    reckoned: f64,
    /// Bytes received since the last query.
    came_in: f64,
    /// The level at which each request is complete.
    coming_in: BinaryHeap<Reverse<(u64, u32)>>,
    /// Counts entries and exits, which invalidate earlier forecasts.
    reckoning: u64,
    /// When the server has finished everything it has taken.
    free_at: f64,
}

/// Levels are stored as whole numbers, with this many units per byte.
const FINE: f64 = 1e4;

impl Plane {
    pub(super) fn new(scenario: &Scenario) -> Self {
        Self {
            requests: scenario.requests,
            bytes: scenario.bytes,
            share: 1.0,
            level: 0.0,
            reckoned: 0.0,
            came_in: 0.0,
            coming_in: BinaryHeap::new(),
            reckoning: 0,
            free_at: 0.0,
        }
    }

    fn reckon(&mut self, now: f64) {
        if !self.coming_in.is_empty() {
            let bytes = (now - self.reckoned) * self.bytes * self.share;
            self.level += bytes / self.coming_in.len() as f64;
            self.came_in += bytes;
        }
        self.reckoned = now;
        self.reckoning += 1;
    }

    /// Sets the available share of the capacity from now on.
    pub(super) fn scale(&mut self, share: f64, now: f64) {
        self.reckon(now);
        self.share = share;
    }

    /// Bytes received since the last call.
    pub(super) fn came_in(&mut self) -> f64 {
        std::mem::take(&mut self.came_in)
    }

    /// A request starts to arrive.
    pub(super) fn enter(&mut self, request: u32, bytes: u64, now: f64) {
        self.reckon(now);
        let whole_at = self.level + bytes as f64;
        self.coming_in.push(Reverse(((whole_at * FINE) as u64, request)));
    }

    /// When the next request will be complete if no other arrives first.
    pub(super) fn next_received(&self) -> Option<(f64, u64)> {
        let Reverse((whole_at, _)) = self.coming_in.peek()?;
        let missing = (*whole_at as f64 / FINE - self.level).max(0.0);
        let at = self.reckoned + missing * self.coming_in.len() as f64 / (self.bytes * self.share);
        Some((at, self.reckoning))
    }

    /// A request that is now complete, its fate, and when it is answered. `None` if something arrived first.
    pub(super) fn received(&mut self, reckoning: u64, now: f64) -> Option<(u32, Done, f64)> {
        if reckoning != self.reckoning {
            return None;
        }
        let Reverse((_, request)) = *self.coming_in.peek()?;
        self.reckon(now);
        self.coming_in.pop();
        let begins = self.free_at.max(now);
        let cost = 1.0 / (self.requests * self.share);
        if begins - now > LONGEST_QUEUE {
            self.free_at = begins + cost * SHEDDING;
            return Some((request, Done::Shed, now));
        }
        self.free_at = begins + cost;
        Some((request, Done::Taken, self.free_at))
    }
}
