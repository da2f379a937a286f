//! Picks what is sent next: one record, or a batch.

use super::Lanes;
use super::batches::BatchLimits;
use super::key::LaneKey;
use super::lane::ReadyQueue;
use super::logs::{COMPLETED, LOGS, QUOTA, STARTED, USAGE, place};
use super::parcel::{Group, Parcel};
use super::priority::PriorityClass;
use crate::outbox::Log;

impl Lanes {
    /// Whether any record may be sent.
    pub(in crate::drain) fn has_ready(&self) -> bool {
        PriorityClass::ALL.into_iter().any(|class| self.has(class))
    }

    /// Whether a quota request may be sent.
    pub(in crate::drain) fn has_ready_quota(&self) -> bool {
        self.may_go(QUOTA)
    }

    /// Whether a held log could be probed now.
    pub(in crate::drain) fn has_held(&self, log: Log) -> bool {
        place(log)
            .is_some_and(|at| self.held[at] && !(self.ready[at].is_empty() && self.suspects[at].is_empty()))
    }

    pub(super) fn may_go(&self, at: usize) -> bool {
        !self.held[at] && !self.ready[at].is_empty()
    }

    pub(super) fn suspect_log(&self) -> Option<usize> {
        (0..LOGS.len()).find(|at| !self.held[*at] && !self.suspects[*at].is_empty())
    }

    fn has(&self, class: PriorityClass) -> bool {
        match class {
            PriorityClass::Quota => self.may_go(QUOTA),
            PriorityClass::Lifecycle => self.may_go(STARTED) || self.may_go(COMPLETED),
            PriorityClass::Suspects => self.suspect_log().is_some(),
            PriorityClass::Usage => self.may_go(USAGE),
        }
    }

    /// The next parcel to send. Its lanes are in flight until each record is settled or returned.
    ///
    /// One record without `batch`, and always one for quota requests.
    pub(in crate::drain) fn pick(&mut self, batch: Option<BatchLimits>) -> Option<Parcel> {
        let waiting = PriorityClass::ALL.map(|class| self.has(class));
        let queue = match self.turns.next(waiting)? {
            PriorityClass::Quota => ReadyQueue::fresh(QUOTA),
            PriorityClass::Suspects => ReadyQueue::suspects(self.suspect_log()?),
            PriorityClass::Usage => ReadyQueue::fresh(USAGE),
            PriorityClass::Lifecycle => {
                let may_go = [STARTED, COMPLETED].map(|at| self.may_go(at));
                ReadyQueue::fresh(self.turns.next_event(may_go)?)
            }
        };
        match batch {
            Some(limits) if queue.at != QUOTA => Some(self.pick_batch(queue, limits)),
            _ => {
                let key = self.queue_of(queue).pop_front()?;
                self.take_one(key)
            }
        }
    }

    /// The next quota request.
    pub(in crate::drain) fn pick_quota(&mut self) -> Option<Parcel> {
        let key = self.ready[QUOTA].pop_front()?;
        self.take_one(key)
    }

    /// Takes the head of a lane that has just left its queue.
    pub(super) fn take_one(&mut self, key: LaneKey) -> Option<Parcel> {
        let lane = self.lanes.get_mut(&key)?;
        lane.queued = None;
        let was_flying = lane.in_flight > 0;
        let item = lane.pop()?;
        self.flying += usize::from(!was_flying);
        self.queue(key);
        Some(vec![Group { lane: key, items: vec![item] }])
    }
}
