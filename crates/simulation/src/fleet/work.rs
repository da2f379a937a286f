//! What an agent of the fleet has to send.

use std::collections::VecDeque;

use tokio::time::Instant;

/// A quota request.
#[derive(Clone, Copy, Debug)]
pub struct Quota {
    /// Since when it waits, in seconds of the run.
    pub since: f64,
    /// It was shed, and is not sent again before this.
    pub not_before: Instant,
    /// How often it was shed.
    pub attempts: u32,
}

/// A request that goes out.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<T> {
    /// On the wire.
    pub bytes: u64,
    /// If it is one.
    pub quota: Option<Quota>,
    /// What its client knows of it.
    pub ticket: T,
}

/// What a client hears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The `ControlPlane` took it.
    Taken,
    /// 503, with a `Retry-After` or without.
    Shed {
        /// Whether it says for how long.
        told: bool,
    },
}

/// What waits.
pub(super) struct Work {
    /// Bytes of records.
    backlog: f64,
    /// Bytes that are under way.
    under_way: u64,
    intake: f64,
    taken_in: f64,
    pub(super) quotas: VecDeque<Quota>,
    /// Requests under way.
    pub(super) in_flight: usize,
}

impl Work {
    pub(super) fn new(backlog: u64, intake: u64) -> Self {
        Self {
            backlog: backlog as f64,
            under_way: 0,
            intake: intake as f64,
            taken_in: 0.0,
            quotas: VecDeque::new(),
            in_flight: 0,
        }
    }

    /// What came in until now.
    pub(super) fn take_in(&mut self, seconds: f64) {
        self.backlog += (seconds - self.taken_in) * self.intake;
        self.taken_in = seconds;
    }

    /// The quota request that may go now, if one may.
    pub(super) fn take_quota(&mut self, now: Instant) -> Option<Quota> {
        let due = self.quotas.iter().position(|quota| quota.not_before <= now)?;
        self.in_flight += 1;
        self.quotas.remove(due)
    }

    /// Whether one may.
    pub(super) fn has_quota(&self, now: Instant) -> bool {
        self.quotas.iter().any(|quota| quota.not_before <= now)
    }

    /// When one may that was shed.
    pub(super) fn next_quota(&self, now: Instant) -> Option<Instant> {
        self.quotas.iter().map(|quota| quota.not_before).filter(|at| *at > now).min()
    }

    /// Some records, at most so many bytes of them.
    pub(super) fn take_records(&mut self, most: u64) -> Option<u64> {
        let bytes = (self.backlog as u64).min(most).min(super::LARGEST);
        if bytes < super::RECORD {
            return None;
        }
        self.backlog -= bytes as f64;
        self.under_way += bytes;
        self.in_flight += 1;
        Some(bytes)
    }

    /// Whether there are any.
    pub(super) fn has_records(&self) -> bool {
        self.backlog as u64 >= super::RECORD
    }

    /// These were delivered.
    pub(super) fn sent(&mut self, bytes: u64) {
        self.under_way -= bytes;
    }

    /// These were not.
    pub(super) fn came_back(&mut self, bytes: u64) {
        self.under_way -= bytes;
        self.backlog += bytes as f64;
    }

    /// Nothing waits but what came in within the last seconds.
    pub(super) fn has_caught_up(&self) -> bool {
        self.backlog + self.under_way as f64 <= 5.0 * self.intake
    }

    /// Nothing is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.in_flight == 0
    }
}
