//! The memory of the lanes: which records they release when it is full. [`super::refill`] has them read again.
//!
//! A waiting lane, whose session is unknown or whose record failed, releases all records except the first. If waiting lanes
//! still hold much of the window, they release the first record too. A lane remembers that record's history, and the number
//! from which its log must be read again. So any number of sessions may wait indefinitely while other records pass them.
//!
//! A lane whose head is of a held kind releases the records behind that head, so it takes no room from other kinds. When
//! such heads fill their own window, which also limits how far other logs are read, all but a few lanes, kept for probing,
//! release their heads as well and rest until the kind is released. So any kind may be held for as long as it takes, and
//! records that need not follow its records pass them.
//!
//! Such a lane takes about 400 bytes. It asks for its records when its wait is over.

use std::time::Duration;

use tokio::time::Instant;

use super::Lanes;
use super::key::LaneKey;
use super::lane::Lane;
use super::logs::{LOGS, STARTED, USAGE, place_of};
use crate::record::Kind;

/// How much of the backlog is kept in memory.
#[derive(Clone, Copy, Debug)]
pub struct QueueSettings {
    /// Records in memory, at least four. Quota requests have a window of their own; started and completed events get a quarter each, and
    /// usage gets what these leave, so that none waits for room held by another.
    pub records: usize,
    /// The bytes of these records, likewise.
    pub bytes: usize,
    /// Records per session and log, at least one.
    pub session_records: usize,
    /// Lanes that keep the head of a held log for probing.
    pub held_lanes: usize,
}

impl Default for QueueSettings {
    fn default() -> Self {
        Self {
            // On a long path most of these are in flight: at 100 ms this suffices for some 100,000 records per second.
            records: 14_336,
            bytes: 12 << 20,
            // What a fast link carries of one session in a few round trips.
            session_records: 4096,
            held_lanes: 64,
        }
    }
}

/// Limits of records and bytes in memory per log.
#[derive(Clone, Copy, Debug)]
pub(super) struct MemoryLimits {
    pub(in crate::drain) records: usize,
    pub(in crate::drain) bytes: usize,
}

impl MemoryLimits {
    fn is_exceeded_by(self, records: usize, bytes: usize) -> bool {
        records > self.records || bytes > self.bytes
    }

    /// The part of the window not used by `others`, at least half.
    pub(super) fn without(self, others: Self) -> Self {
        let left = |all: usize, others: usize| all - others.min(all / 2);
        Self { records: left(self.records, others.records), bytes: left(self.bytes, others.bytes) }
    }

    pub(in crate::drain) fn share(self, of: usize) -> Self {
        Self { records: self.records / of, bytes: self.bytes / of }
    }
}

/// Waiting lanes may keep 1/4 of a full window; if they hold more, they are cut to half of that.
const WAITING_SHARE: usize = 4;
/// A rest that only another event ends.
const EVICTED: Duration = Duration::from_hours(24 * 365);
/// The logs that limit how far others are read, see [`crate::drain`]: started events, and usage.
const READ_BEHIND: [usize; 2] = [STARTED, USAGE];

impl Lanes {
    /// Records and bytes in hand of these kinds.
    pub(super) fn in_hand(&self, kinds: &[Kind]) -> MemoryLimits {
        let places = || kinds.iter().map(|kind| place_of(*kind));
        let (records, bytes) =
            (places().map(|at| self.counts[at]).sum(), places().map(|at| self.bytes[at]).sum());
        MemoryLimits { records, bytes }
    }

    /// Whether no more records of this kind may be read.
    pub(super) fn is_full(&self, kind: Kind, window: MemoryLimits) -> bool {
        let at = place_of(kind);
        self.counts[at] >= window.records || self.bytes[at] >= window.bytes
    }

    /// Takes room from waiting lanes. Called whenever the window is full; scans the lanes only if they may hold more than
    /// at the last scan.
    pub(super) fn make_room(&mut self, kind: Kind, window: MemoryLimits) {
        let at = place_of(kind);
        if !std::mem::take(&mut self.grown[at]) {
            return;
        }
        self.make_room_behind_held(at);
        if self.held[at] && READ_BEHIND.contains(&at) {
            self.evict(at);
        }
        let (mut records, mut bytes) = (0, 0);
        for (_, key) in &self.waiting {
            let Some(lane) = self.lanes.get_mut(key).filter(|lane| lane.in_flight == 0) else { continue };
            while lane.lines[at].items.len() > 1 {
                let Some(item) = lane.lines[at].give_up_last() else { break };
                self.counts[at] -= 1;
                self.bytes[at] -= item.record.data().len();
            }
            records += lane.lines[at].items.len();
            bytes += lane.lines[at].items.front().map_or(0, |item| item.record.data().len());
        }
        if !window.share(WAITING_SHARE).is_exceeded_by(records, bytes) {
            return;
        }
        let keep = window.share(2 * WAITING_SHARE);
        // Lanes with the longest wait first.
        let waiting: Vec<_> = self.waiting.iter().rev().copied().collect();
        for (until, key) in waiting {
            if !keep.is_exceeded_by(records, bytes) {
                break;
            }
            // Records in flight are among them and would be read again.
            let Some(lane) = self.lanes.get_mut(&key).filter(|lane| lane.in_flight == 0) else { continue };
            if lane.lines[at].items.is_empty() {
                continue;
            }
            // Its successors are released too: they could not be sent, and would take room for nothing.
            let before = (self.counts[at], self.bytes[at]);
            give_up_from(at, lane, &mut self.counts, &mut self.bytes);
            records -= before.0 - self.counts[at];
            bytes -= before.1 - self.bytes[at];
            if !lane.holds_any() {
                self.waiting.remove(&(until, key));
                self.resting.insert((until, key));
            }
        }
    }

    /// Makes lanes held at an earlier log release their records of this log and later ones.
    fn make_room_behind_held(&mut self, at: usize) {
        for head in (0..at).filter(|head| self.held[*head]) {
            for key in self.ready[head].iter().chain(&self.suspects[head]) {
                let Some(lane) = self.lanes.get_mut(key).filter(|lane| lane.in_flight == 0) else { continue };
                give_up_from(at, lane, &mut self.counts, &mut self.bytes);
            }
        }
    }

    /// Makes all but a few of the lanes held at this log release everything and rest. Lanes with delivered records are
    /// kept: they are the best probes.
    fn evict(&mut self, at: usize) {
        let until = Instant::now() + EVICTED;
        let may_rest = |key: &LaneKey, proven| {
            self.lanes.get(key).is_some_and(|lane| lane.in_flight == 0 && lane.is_proven == proven)
        };
        let mut excess =
            (self.ready[at].len() + self.suspects[at].len()).saturating_sub(self.settings.held_lanes);
        let mut resting = Vec::with_capacity(excess);
        for (is_suspect, proven) in [(true, false), (false, false), (true, true), (false, true)] {
            let lanes = if is_suspect { &mut self.suspects[at] } else { &mut self.ready[at] };
            let mut n = lanes.len();
            while n > 0 && excess > 0 {
                n -= 1;
                if may_rest(&lanes[n], proven) {
                    resting.extend(lanes.remove(n));
                    excess -= 1;
                }
            }
        }
        for key in resting {
            let Some(lane) = self.lanes.get_mut(&key) else { continue };
            give_up_from(at, lane, &mut self.counts, &mut self.bytes);
            lane.queued = None;
            lane.not_before = Some(until);
            self.resting.insert((until, key));
            self.evicted.push(key);
        }
    }

    /// Readmits evicted lanes: the next [`Self::wake`] has them read again.
    pub(super) fn readmit(&mut self) {
        for key in std::mem::take(&mut self.evicted) {
            let rests_until = self.lanes.get(&key).and_then(|lane| lane.not_before);
            // Others were woken meanwhile.
            if rests_until.is_some_and(|until| self.resting.remove(&(until, key))) {
                self.woken.push(key);
            }
        }
    }
}

/// Makes a lane release its records of this log and later ones.
fn give_up_from(
    at: usize,
    lane: &mut Lane,
    counts: &mut [usize; LOGS.len()],
    bytes: &mut [usize; LOGS.len()],
) {
    for (line, of) in lane.lines[at..].iter_mut().zip(at..) {
        while let Some(item) = line.give_up_last() {
            counts[of] -= 1;
            bytes[of] -= item.record.data().len();
        }
    }
}
