//! Picks what the link, or a held log, is probed with.

use super::Lanes;
use super::key::LaneKey;
use super::lane::ReadyQueue;
use super::logs::{COMPLETED, LOGS, QUOTA, STARTED, USAGE, place};
use super::parcel::Parcel;
use crate::outbox::Log;

impl Lanes {
    /// A record to probe the link with: the one with the fewest attempts, of the kind that failed least. So neither a bad
    /// record nor a bad kind keeps the link down.
    pub(in crate::drain) fn pick_probe(&mut self, failed: impl Fn(Log) -> u64) -> Option<Parcel> {
        let order = [QUOTA, STARTED, COMPLETED, USAGE];
        let least = order.into_iter().filter(|at| self.may_go(*at)).min_by_key(|at| failed(LOGS[*at]));
        match least {
            Some(at) => self.pick_least_tried(ReadyQueue::fresh(at)),
            None => self.pick_least_tried(ReadyQueue::suspects(self.suspect_log()?)),
        }
    }

    /// A record to probe a held log with: preferably the head of a lane that was never refused, if possible of a session
    /// with delivered records; else one that was refused once; else, of those refused twice, the one with the fewest
    /// attempts. If the probe `walks`, every second one is a step of the [`super::walk`], or every one if no other head is left.
    pub(in crate::drain) fn pick_probe_of(&mut self, log: Log, walks: bool) -> Option<Parcel> {
        let at = place(log)?;
        let has_untried_heads = !self.ready[at].is_empty() || self.has_unconfirmed_head(at);
        let just_now = self.walk.begin_probe(at);
        if walks && (just_now || !has_untried_heads || self.walk.is_its_turn()) {
            let step = self.pick_walk(at, just_now);
            if step.is_some() {
                return step;
            }
        }
        let fresh = self.pick_least_tried(ReadyQueue::fresh(at));
        fresh.or_else(|| self.pick_least_tried(ReadyQueue::suspects(at)))
    }

    fn pick_least_tried(&mut self, queue: ReadyQueue) -> Option<Parcel> {
        let rank = |key: &LaneKey| {
            let lane = self.lanes.get(key)?;
            let (_, head) = lane.head()?;
            Some((head.history.is_confirmed(), head.history.attempts, !lane.is_proven))
        };
        let keys = if queue.is_suspect { &self.suspects[queue.at] } else { &self.ready[queue.at] };
        let (n, _) = keys.iter().enumerate().min_by_key(|(_, key)| rank(key))?;
        let key = self.queue_of(queue).remove(n)?;
        self.take_one(key)
    }
}
