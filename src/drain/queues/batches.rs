//! Fills a batch: which lanes take part, and how many records of each.

use std::num::NonZeroUsize;

use super::Lanes;
use super::key::LaneKey;
use super::lane::ReadyQueue;
use super::logs::{COMPLETED, LOGS, QUOTA, STARTED, USAGE};
use super::parcel::{Group, Parcel, Room};
use crate::drain::batch::layout;

/// Limits of one batch.
#[derive(Clone, Copy, Debug)]
pub(in crate::drain) struct BatchLimits {
    pub records: usize,
    /// Bytes before compression.
    pub bytes: usize,
    /// Limit per session, if any.
    pub of_a_session: Option<NonZeroUsize>,
    /// Whether only one kind is allowed.
    pub of_one_kind: bool,
    /// Requests that share the lanes: each takes its part, so no batch takes all sessions.
    pub pipes: usize,
}

impl Lanes {
    /// The number of lanes with records in flight or ready for a batch.
    pub(in crate::drain) fn sendable(&self) -> usize {
        let ready = (0..LOGS.len()).filter(|at| *at != QUOTA && !self.held[*at]);
        self.flying + ready.map(|at| self.ready[at].len()).sum::<usize>()
    }

    /// The lanes for a batch that starts with this queue: its share of all.
    fn batch_lanes(&mut self, first: ReadyQueue, limits: &BatchLimits) -> Vec<LaneKey> {
        let all_logs = [first.at, STARTED, COMPLETED, USAGE];
        let logs = if limits.of_one_kind { &all_logs[..1] } else { &all_logs[..] };
        let (held, is_suspect) = (self.held, first.is_suspect);
        let may = |at: &usize| *at != QUOTA && !held[*at];
        let queues = if is_suspect { &mut self.suspects } else { &mut self.ready };
        let waiting: usize = (0..LOGS.len()).filter(may).map(|at| queues[at].len()).sum();
        let all = if is_suspect { waiting } else { waiting + self.flying };
        let share = all.div_ceil(limits.pipes.max(1)).clamp(1, limits.records.max(1));
        let mut keys = Vec::with_capacity(share.min(waiting));
        for at in logs.iter().copied().filter(may) {
            while keys.len() < share
                && let Some(key) = queues[at].pop_front()
            {
                keys.push(key);
            }
        }
        keys
    }

    pub(super) fn pick_batch(&mut self, first: ReadyQueue, limits: BatchLimits) -> Parcel {
        let keys = self.batch_lanes(first, &limits);
        let mut room = Room::of(limits.records, limits.bytes.saturating_sub(layout::EMPTY));
        let mut groups = Vec::with_capacity(keys.len());
        let mut lanes_left = keys.len();
        let mut left_over = Vec::new();
        for key in keys {
            let mut share = room.share(lanes_left);
            share.most = limits.of_a_session.map_or(usize::MAX, NonZeroUsize::get);
            lanes_left -= 1;
            let others = std::array::from_fn(|at| at != first.at);
            let stops = if limits.of_one_kind { others } else { self.held };
            let Some(lane) = self.lanes.get_mut(&key) else { continue };
            lane.queued = None;
            let was_flying = lane.in_flight > 0;
            let items = lane.pop_run(first.is_suspect, stops, share, &mut room);
            if items.is_empty() {
                left_over.push(key);
                continue;
            }
            self.flying += usize::from(!was_flying);
            groups.push(Group { lane: key, items });
        }
        // Lanes that found no room go first next time.
        for key in left_over.into_iter().rev() {
            self.queue_first(key);
        }
        groups
    }

    fn queue_first(&mut self, key: LaneKey) {
        self.queue(key);
        if let Some(queue) = self.lanes.get(&key).and_then(|lane| lane.queued) {
            let lanes = self.queue_of(queue);
            if lanes.back() == Some(&key) {
                lanes.rotate_right(1);
            }
        }
    }
}
