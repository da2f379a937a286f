//! An agent's outstanding work in the fleet.

use std::collections::VecDeque;

use tokio::time::Instant;

/// A quota request.
#[derive(Clone, Copy, Debug)]
pub struct Quota {
    /// When it started waiting, in seconds of the run.
    pub since: f64,
    /// After it was shed: not to be sent again before this.
    pub not_before: Instant,
    /// How often it was shed.
    pub attempts: u32,
}

/// An outgoing request.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<T> {
    /// Bytes on the wire.
    pub bytes: u64,
    /// The quota request in it, if it is one.
    pub quota: Option<Quota>,
    /// The client's data about it.
    pub ticket: T,
}

/// An answer as a client sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The `ControlPlane` took it.
    Taken,
    /// 503, with or without `Retry-After`.
    Shed {
        /// Whether it has a `Retry-After`.
        told: bool,
    },
}

/// Waiting work.
pub(super) struct Work {
    /// Bytes of waiting records.
    backlog: f64,
    /// Bytes of records in flight.
    under_way: u64,
    intake: f64,
    taken_in: f64,
    pub(super) quotas: VecDeque<Quota>,
    /// Requests in flight.
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

    /// Adds the records accepted until now.
    pub(super) fn take_in(&mut self, seconds: f64) {
        self.backlog += (seconds - self.taken_in) * self.intake;
        self.taken_in = seconds;
    }

    /// Takes a quota request that may be sent now, if any.
    pub(super) fn take_quota(&mut self, now: Instant) -> Option<Quota> {
        let due = self.quotas.iter().position(|quota| quota.not_before <= now)?;
        self.in_flight += 1;
        self.quotas.remove(due)
    }

    /// Whether a quota request may be sent now.
    pub(super) fn has_quota(&self, now: Instant) -> bool {
        self.quotas.iter().any(|quota| quota.not_before <= now)
    }

    /// When a shed quota request may next be sent.
    pub(super) fn next_quota(&self, now: Instant) -> Option<Instant> {
        self.quotas.iter().map(|quota| quota.not_before).filter(|at| *at > now).min()
    }

    /// Takes some records, at most this many bytes.
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

    /// Whether records are waiting.
    pub(super) fn has_records(&self) -> bool {
        self.backlog as u64 >= super::RECORD
    }

    /// Removes delivered records.
    pub(super) fn sent(&mut self, bytes: u64) {
        self.under_way -= bytes;
    }

    /// Returns undelivered records.
    pub(super) fn came_back(&mut self, bytes: u64) {
        self.under_way -= bytes;
        self.backlog += bytes as f64;
    }

    /// Whether only records of the last seconds are waiting.
    pub(super) fn has_caught_up(&self) -> bool {
        self.backlog + self.under_way as f64 <= 5.0 * self.intake
    }

    /// Whether nothing is in flight.
    pub(super) fn is_idle(&self) -> bool {
        self.in_flight == 0
    }
}
