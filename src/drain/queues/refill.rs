//! Reading again what lanes released, or had no room for.

use super::Lanes;
use super::key::LaneKey;
use super::lane::Lane;
use super::logs::place;
use crate::outbox::Log;

impl Lanes {
    /// Notes whether the lane needs records that it released or that were skipped.
    pub(super) fn ask(&mut self, key: LaneKey) {
        let Some(lane) = self.lanes.get(&key) else { return };
        if let Some(at) = lane.wants_refill(self.settings.session_records).and_then(place) {
            self.asking[at].insert(key);
        }
    }

    /// The number from which this log must be read again, if any: the lanes that asked load what comes now; their later
    /// lines wait for [`Self::refilled`].
    pub(in crate::drain) fn begin_refill(&mut self, log: Log) -> Option<u64> {
        let at = place(log)?;
        let mut from = None;
        for key in std::mem::take(&mut self.asking[at]) {
            let Some(lane) = self.lanes.get_mut(&key) else { continue };
            // A lane that waits once more asks again later: until then it would only release the records again.
            if lane.not_before.is_none() && lane.lines[at].wants_refill(self.settings.session_records) {
                // IMPORTANT: from the lowest number of all participants: records before `from` are never read again.
                from = from.into_iter().chain(lane.lines[at].cut.take()).min();
                lane.lines[at].refilling = true;
                self.refilling[at].push(key);
            }
        }
        from
    }

    /// Whether no lane would load any record from `next` on: each has its skipped records, or is full and cut off once
    /// more.
    pub(in crate::drain) fn refill_is_done(&self, log: Log, next: u64) -> bool {
        let Some(at) = place(log) else { return true };
        let is_refilled = |lane: &Lane| lane.lines[at].is_refilled(next);
        self.refilling[at].iter().all(|key| self.lanes.get(key).is_none_or(is_refilled))
    }

    /// The log has been read again up to its old position, or as far as lanes can load.
    pub(in crate::drain) fn refilled(&mut self, log: Log) {
        let Some(at) = place(log) else { return };
        for key in std::mem::take(&mut self.refilling[at]) {
            let Some(lane) = self.lanes.get_mut(&key) else { continue };
            lane.lines[at].refilling = false;
            if lane.is_empty() && lane.in_flight == 0 {
                self.lanes.remove(&key);
            } else if lane.in_flight == 0 && lane.not_before.is_none() {
                self.ask(key);
                self.queue(key);
            }
        }
    }

    /// Whether a log is being read again.
    pub(super) fn is_refilling(&self) -> bool {
        self.refilling.iter().any(|lanes| !lanes.is_empty())
    }
}
