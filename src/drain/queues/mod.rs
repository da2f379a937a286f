//! Decides which record is sent next: order within a session, priority between kinds, and no waiting between sessions.
//!
//! A lane holds a session's records in sending order: started events before the session's usage, `completed` after it. A
//! quota request has its own lane. A lane has at most one request in flight, which carries one record or, in a batch, a run
//! of them. With [`SessionOrder::Boundaries`] several requests with a lane's usage may be in flight; the events are still
//! sent before and after all of them.
//!
//! A refused record that waits for confirmation is a *suspect*. Lanes whose head is a suspect have separate queues, so bad
//! records never delay good ones.
//!
//! Memory is bounded: a lane holds at most [`QueueSettings::session_records`] records per log. When more arrive, or when
//! the lane waits and room is needed, it is cut off and remembers the number from which its records must be read again
//! ([`memory`]).

mod batches;
mod key;
mod lane;
mod line;
mod logs;
mod memory;
mod parcel;
mod pick;
mod priority;
mod probes;
mod read_ahead;
mod refill;
mod walk;
mod watermark;

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::hash::BuildHasherDefault;

use tokio::time::Instant;

use crate::outbox::{Entry, Unsettled};
use crate::record::Kind;

pub(super) use batches::BatchLimits;
use key::KeyHasher;
pub(super) use key::LaneKey;
pub(super) use lane::Unknown;
use lane::{Lane, ReadyQueue};
pub(super) use logs::{LOGS, kind_of, place, place_of};
use logs::{QUOTA, USAGE};
pub use memory::QueueSettings;
pub use parcel::SessionOrder;
pub(super) use parcel::{
    AttemptHistory, CONFIRMED, Group, Item, Outcomes, Parcel, items, items_mut, lanes_of, last_first,
    records_in,
};
use priority::Turns;
pub(super) use read_ahead::{ReadAhead, ReadRange};
use walk::Walk;

#[cfg(test)]
mod tests;

/// All lanes, and those that are ready.
#[derive(Default)]
pub(super) struct Lanes {
    settings: QueueSettings,
    lanes: HashMap<LaneKey, Lane, BuildHasherDefault<KeyHasher>>,
    /// Ready lanes, by the log of their head.
    ready: [VecDeque<LaneKey>; LOGS.len()],
    /// Ready lanes whose head is a suspect.
    suspects: [VecDeque<LaneKey>; LOGS.len()],
    order: SessionOrder,
    /// Held logs, which send only probes.
    held: [bool; LOGS.len()],
    /// Waiting lanes, and until when they wait.
    waiting: BTreeSet<(Instant, LaneKey)>,
    /// Waiting lanes that have released all their records.
    resting: BTreeSet<(Instant, LaneKey)>,
    turns: Turns,
    counts: [usize; LOGS.len()],
    bytes: [usize; LOGS.len()],
    /// The number of lanes with records in flight.
    flying: usize,
    /// Logs of which waiting lanes may hold more than when room was last made.
    grown: [bool; LOGS.len()],
    /// Lanes whose wait has just ended.
    woken: Vec<LaneKey>,
    /// Lanes that need a log to be read again.
    asking: [HashSet<LaneKey>; LOGS.len()],
    /// Lanes for which a log is being read again.
    refilling: [Vec<LaneKey>; LOGS.len()],
    /// Lanes that became empty while a log was being read again.
    emptied: Vec<LaneKey>,
    /// Lanes that rest until their held kind is released.
    evicted: Vec<LaneKey>,
    walk: Walk,
}

impl Lanes {
    pub(super) fn new(settings: QueueSettings) -> Self {
        Self { settings, ..Self::default() }
    }

    /// Sets the order of a session's records.
    pub(super) fn set_order(&mut self, order: SessionOrder) {
        self.order = order;
    }

    /// The number of records in hand of this kind.
    #[cfg(test)]
    pub(super) fn count(&self, kind: Kind) -> usize {
        self.counts[place_of(kind)]
    }

    /// Their bytes.
    #[cfg(test)]
    pub(super) fn bytes(&self, kind: Kind) -> usize {
        self.bytes[place_of(kind)]
    }

    /// Loads a record that was read. Skips it if it is in memory already or there is no room.
    pub(super) fn load(&mut self, unsettled: Unsettled) {
        let Entry::Record(record) = unsettled.entry else { return };
        let ticket = unsettled.ticket;
        let key = LaneKey::of(&ticket, &record);
        let bytes = record.data().len();
        let at = place_of(ticket.kind);
        let lane = self.lanes.entry(key).or_default();
        let item = Item { ticket, record, history: AttemptHistory::NONE, refusal: None };
        if lane.load(item, self.settings.session_records) {
            let head = lane.turn();
            self.grown[at] |= lane.not_before.is_some() || head.is_some_and(|head| self.held[head]);
            self.counts[at] += 1;
            self.bytes[at] += bytes;
            if lane.queued.is_some_and(|queue| Some(queue.at) != head) {
                // It goes before the previous head.
                self.dequeue(key);
            }
            self.queue(key);
        }
    }

    fn queue_of(&mut self, queue: ReadyQueue) -> &mut VecDeque<LaneKey> {
        if queue.is_suspect { &mut self.suspects[queue.at] } else { &mut self.ready[queue.at] }
    }

    /// Makes a lane ready if its head may be sent.
    fn queue(&mut self, key: LaneKey) {
        let order = self.order;
        let Some(lane) = self.lanes.get_mut(&key) else { return };
        if lane.queued.is_some() || lane.not_before.is_some() {
            return;
        }
        let Some((at, head)) = lane.head() else { return };
        let may_join = order == SessionOrder::Boundaries && at == USAGE && lane.line_in_flight == Some(USAGE);
        if lane.in_flight > 0 && !may_join {
            return;
        }
        let queue = ReadyQueue { at, is_suspect: head.history.is_suspect() };
        lane.queued = Some(queue);
        self.queue_of(queue).push_back(key);
    }

    fn dequeue(&mut self, key: LaneKey) {
        if let Some(queue) = self.lanes.get_mut(&key).and_then(|lane| lane.queued.take()) {
            self.queue_of(queue).retain(|other| *other != key);
        }
    }

    /// Holds these logs: from now on they send only probes.
    pub(super) fn hold(&mut self, held: [bool; LOGS.len()]) {
        let before = std::mem::replace(&mut self.held, held);
        if before != held {
            self.grown = [true; LOGS.len()];
        }
        if before.iter().zip(held).any(|(before, now)| *before && !now) {
            self.end_walk();
            self.readmit();
        }
    }

    /// Makes lanes ready whose wait is over, or has them ask for their released records.
    pub(super) fn wake(&mut self, now: Instant) {
        for set in [&mut self.waiting, &mut self.resting] {
            while let Some((_, key)) = set.first().copied().filter(|(until, _)| *until <= now) {
                set.pop_first();
                self.woken.push(key);
            }
        }
        for key in std::mem::take(&mut self.woken) {
            if let Some(lane) = self.lanes.get_mut(&key) {
                lane.not_before = None;
                if lane.head().is_none() {
                    self.ask(key);
                }
            }
            self.queue(key);
        }
    }

    /// When [`Self::wake`] has something to do next.
    pub(super) fn next_wake(&self) -> Option<Instant> {
        let first = |set: &BTreeSet<(Instant, LaneKey)>| set.first().map(|(until, _)| *until);
        first(&self.waiting).into_iter().chain(first(&self.resting)).min()
    }

    /// A record in flight is settled. The next of its lane may be sent when none of the lane is in flight.
    pub(super) fn settle(&mut self, key: LaneKey, item: &Item) {
        let at = place_of(item.ticket.kind);
        self.counts[at] -= 1;
        self.bytes[at] -= item.record.data().len();
        let Some(lane) = self.lanes.get_mut(&key) else { return };
        lane.landed();
        let (is_empty, has_landed) = (lane.is_empty(), lane.in_flight == 0);
        if has_landed {
            self.flying -= 1;
            if lane.not_before.is_some() {
                self.grown = [true; LOGS.len()];
            }
        }
        if !is_empty {
            self.ask(key);
            self.queue(key);
        } else if has_landed && !self.is_refilling() {
            self.lanes.remove(&key);
        } else if has_landed {
            // IMPORTANT: a pending read may have found this record before it was settled. Only the lane still knows that it
            // was in memory.
            self.emptied.push(key);
        }
    }

    /// All records read have been loaded. Later reads exclude what is settled by now.
    pub(super) fn forget_emptied(&mut self) {
        for key in std::mem::take(&mut self.emptied) {
            if self.lanes.get(&key).is_some_and(|lane| lane.is_empty() && lane.in_flight == 0) {
                self.lanes.remove(&key);
            }
        }
    }

    /// Since when this lane's session has been unknown: `now` if it was not before.
    pub(super) fn unknown_since(&mut self, key: LaneKey, now: Unknown) -> Unknown {
        self.lanes.get_mut(&key).map_or(now, |lane| **lane.unknown_since.get_or_insert_with(|| Box::new(now)))
    }

    /// Ends the wait of every lane, by order of an operator.
    pub(super) fn wake_all(&mut self) {
        let last = [&self.waiting, &self.resting].into_iter().filter_map(|set| set.last());
        if let Some(last) = last.map(|(until, _)| *until).max() {
            self.wake(last);
        }
    }

    /// A record of this lane was delivered: its session is known.
    pub(super) fn delivered(&mut self, key: LaneKey) {
        if let Some(lane) = self.lanes.get_mut(&key) {
            lane.unknown_since = None;
            lane.is_proven = true;
        }
    }

    /// Returns a record in flight to its place. Its lane waits until `not_before`, or longer if another of its records
    /// requires it.
    pub(super) fn put_back(&mut self, key: LaneKey, item: Item, not_before: Instant) {
        self.dequeue(key);
        let Some(lane) = self.lanes.get_mut(&key) else { return };
        lane.landed();
        self.flying -= usize::from(lane.in_flight == 0);
        lane.put_back(item);
        let until = lane.not_before.map_or(not_before, |before| before.max(not_before));
        if let Some(before) = lane.not_before.replace(until) {
            self.waiting.remove(&(before, key));
        }
        self.waiting.insert((until, key));
        self.grown = [true; LOGS.len()];
    }

    /// Takes quota requests that are older than the deadline and not in flight.
    pub(super) fn take_expired(&mut self, before: i64) -> Vec<(LaneKey, Item)> {
        let is_expired = |lane: &Lane| {
            let head = lane.head().map(|(_, item)| item.ticket);
            lane.in_flight == 0 && head.is_some_and(|it| it.kind == Kind::Quota && it.accepted_at.0 < before)
        };
        let expired: HashSet<LaneKey> =
            self.lanes.iter().filter(|(_, lane)| is_expired(lane)).map(|(key, _)| *key).collect();
        for queue in [&mut self.ready[QUOTA], &mut self.suspects[QUOTA]] {
            queue.retain(|key| !expired.contains(key));
        }
        let mut taken = Vec::with_capacity(expired.len());
        for key in expired {
            if let Some(until) = self.lanes.get(&key).and_then(|lane| lane.not_before) {
                self.waiting.remove(&(until, key));
            }
            for group in self.take_one(key).into_iter().flatten() {
                taken.extend(group.items.into_iter().map(|item| (group.lane, item)));
            }
        }
        taken
    }
}
