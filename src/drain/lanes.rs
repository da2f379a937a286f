//! Who may go next: order within a session, priority between kinds, and no waiting between sessions.
//!
//! A lane is a session's records in the order in which they must go; only its head is ever in flight. Started
//! events come before the session's usage, `completed` after it. A quota request is a lane of its own.
//!
//! Memory is bounded: a lane holds at most [`LANE_MOST`] records; when more come, or when the lane waits and
//! room is needed, it is cut off and remembers from which number on its records must be read again.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use super::batch::{self, Batching};
use crate::outbox::{Leased, Log, Ticket};
use crate::record::{Kind, Record};

#[cfg(test)]
mod tests;

/// The most records of one session in memory. Few under test, so that a short run cuts lanes off again and again.
const LANE_MOST: usize = if cfg!(test) { 8 } else { 256 };
/// After so many quota requests, or lifecycle events, in a row one of the next kind goes, so that none starves.
const STREAK: u32 = 16;

/// What a lane is found by: a hash of its session, or a quota request's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct LaneKey(u128);

impl LaneKey {
    #[cfg(test)]
    pub(super) fn of_test(number: u128) -> Self {
        Self(number)
    }

    fn of(ticket: &Ticket, record: &Record) -> Self {
        match ticket.kind {
            Kind::Quota => Self(u128::from(ticket.seq)),
            _ => Self(xxhash_rust::xxh3::xxh3_128(record.session().as_bytes())),
        }
    }
}

/// A record in hand, and what has happened to it.
#[derive(Debug)]
pub(super) struct Item {
    pub ticket: Ticket,
    pub record: Record,
    pub attempts: u32,
    /// Attempts that failed with 5xx while other records passed.
    pub poisoned: u32,
    /// The link's count of deliveries when it was last tried.
    pub deliveries: u64,
    /// The most records that it may travel with: halved when a batch fails as a whole, so that a record at fault is
    /// alone in the end.
    pub batch_most: usize,
}

/// What goes in one request: one record, or a batch of usage records, each the head of its lane.
pub(super) type Parcel = Vec<(LaneKey, Item)>;

#[derive(Default)]
struct Lane {
    /// Started events and usage.
    items: VecDeque<Item>,
    /// They go when no usage of the session is left, in memory or cut off.
    completed: VecDeque<Item>,
    busy: bool,
    queued: bool,
    not_before: Option<Instant>,
    /// Usage up to this number is, or was, in `items`.
    loaded: u64,
    /// Usage from this number on was passed over and must be read again.
    cut: Option<u64>,
    /// It is being read again just now.
    refilling: bool,
    /// The link's clock of delivering when the session was first found unknown.
    unknown_since: Option<Duration>,
}

impl Lane {
    fn head(&self) -> Option<&Item> {
        let last = || self.completed.front().filter(|_| self.cut.is_none() && !self.refilling);
        self.items.front().or_else(last)
    }

    fn pop(&mut self) -> Option<Item> {
        if self.items.is_empty() && self.head().is_some() {
            self.completed.pop_front()
        } else {
            self.items.pop_front()
        }
    }

    fn wants_refill(&self) -> bool {
        self.items.len() <= LANE_MOST / 4 && self.cut.is_some()
    }

    fn is_empty(&self) -> bool {
        self.items.is_empty() && self.completed.is_empty() && self.cut.is_none() && !self.refilling
    }
}

/// The lanes, and which of them may go.
#[derive(Default)]
pub(super) struct Lanes {
    lanes: HashMap<LaneKey, Lane>,
    ready: [VecDeque<LaneKey>; 3],
    waiting: BTreeSet<(Instant, LaneKey)>,
    streaks: [u32; 2],
    counts: [usize; 3],
    bytes: [usize; 3],
    /// The usage log must be read again, because lanes that were cut off have room now.
    wants_refill: bool,
    /// The lanes that are being read again.
    refilling: Vec<LaneKey>,
    /// Lanes that ran empty while usage was being read again.
    emptied: Vec<LaneKey>,
}

fn class_of(kind: Kind) -> usize {
    match kind {
        Kind::Quota => 0,
        Kind::Started | Kind::Completed | Kind::Lifecycle => 1,
        Kind::Usage => 2,
    }
}

impl Lanes {
    /// Records in hand of this kind's class.
    pub(super) fn count(&self, kind: Kind) -> usize {
        self.counts[class_of(kind)]
    }

    /// Bytes of these.
    pub(super) fn bytes(&self, kind: Kind) -> usize {
        self.bytes[class_of(kind)]
    }

    /// Takes in a record that was read. Quietly passes over what is in hand already.
    pub(super) fn load(&mut self, leased: Leased) {
        let crate::outbox::Entry::Record(record) = leased.entry else { return };
        let ticket = leased.ticket;
        let key = LaneKey::of(&ticket, &record);
        let lane = self.lanes.entry(key).or_default();
        let bytes = record.data().len();
        let item = Item { ticket, record, attempts: 0, poisoned: 0, deliveries: 0, batch_most: usize::MAX };
        match ticket.log {
            Log::Usage => {
                if ticket.seq <= lane.loaded || lane.cut.is_some() {
                    return;
                }
                if lane.items.len() >= LANE_MOST {
                    lane.cut = Some(ticket.seq);
                    return;
                }
                lane.loaded = ticket.seq;
                lane.items.push_back(item);
            }
            // Before the usage of its session, whatever is in hand already, and behind other such events: one of them
            // may stand behind usage that was put back.
            Log::Started => {
                let started = lane.items.iter().rposition(|other| other.ticket.kind == Kind::Started);
                lane.items.insert(started.map_or(0, |last| last + 1), item);
            }
            Log::Completed => lane.completed.push_back(item),
            Log::Quota | Log::Rejected => lane.items.push_back(item),
        }
        self.counts[class_of(ticket.kind)] += 1;
        self.bytes[class_of(ticket.kind)] += bytes;
        self.queue(key);
    }

    /// Makes a lane ready if its head may go.
    fn queue(&mut self, key: LaneKey) {
        let Some(lane) = self.lanes.get_mut(&key) else { return };
        if lane.busy || lane.queued || lane.not_before.is_some() {
            return;
        }
        if let Some(head) = lane.head() {
            let class = class_of(head.ticket.kind);
            lane.queued = true;
            self.ready[class].push_back(key);
        }
    }

    /// Lanes whose wait is over become ready.
    pub(super) fn wake(&mut self, now: Instant) {
        while let Some((until, key)) = self.waiting.first().copied().filter(|(until, _)| *until <= now) {
            self.waiting.remove(&(until, key));
            if let Some(lane) = self.lanes.get_mut(&key) {
                lane.not_before = None;
            }
            self.queue(key);
        }
    }

    /// When [`Self::wake`] has something to do.
    pub(super) fn next_wake(&self) -> Option<Instant> {
        self.waiting.first().map(|(until, _)| *until)
    }

    /// Whether any record may go.
    pub(super) fn has_ready(&self) -> bool {
        self.ready.iter().any(|queue| !queue.is_empty())
    }

    /// Whether a quota request may go.
    pub(super) fn has_ready_quota(&self) -> bool {
        !self.ready[class_of(Kind::Quota)].is_empty()
    }

    /// What to send next: its lanes are busy until [`Self::settle`] or [`Self::put_back`].
    ///
    /// With `batching`, usage goes in batches of one record a lane: a second one could be taken while the first is
    /// to be sent again.
    pub(super) fn pick(&mut self, batching: Option<&Batching>) -> Option<Parcel> {
        let class = self.next_class()?;
        let first = self.ready[class].pop_front()?;
        let Some(batching) =
            batching.filter(|_| class == class_of(Kind::Usage) && self.goes_in_a_batch(first))
        else {
            return Some(vec![self.take(first)?]);
        };
        let mut parcel = vec![self.take(first)?];
        let mut most = batching.records(self.ready[class].len() + 1).min(parcel[0].1.batch_most);
        let mut bytes = parcel[0].1.record.body().len();
        while let Some(&key) = self.ready[class].front() {
            let Some(head) = self.lanes.get(&key).and_then(Lane::head) else { break };
            bytes += head.record.body().len();
            most = most.min(head.batch_most);
            if parcel.len() >= most || bytes > batching.max_bytes() || !self.goes_in_a_batch(key) {
                break;
            }
            self.ready[class].pop_front();
            parcel.extend(self.take(key));
        }
        Some(parcel)
    }

    fn goes_in_a_batch(&self, key: LaneKey) -> bool {
        let head = self.lanes.get(&key).and_then(Lane::head);
        head.is_some_and(|item| item.ticket.kind == Kind::Usage && batch::fits(item.record.body()))
    }

    fn next_class(&mut self) -> Option<usize> {
        let waiting = |class: usize| !self.ready[class].is_empty();
        let lower = |class: usize| (class + 1..3).any(waiting);
        for class in 0..2 {
            if waiting(class) && (self.streaks[class] < STREAK || !lower(class)) {
                self.streaks[class] = self.streaks[class].saturating_add(1);
                return Some(class);
            }
            self.streaks[class] = 0;
        }
        waiting(2).then_some(2)
    }

    /// A record to probe the link with: the one that was tried least, so that no bad record holds the link down.
    pub(super) fn pick_probe(&mut self) -> Option<Parcel> {
        const LOOK_AT: usize = 64;
        for class in 0..3 {
            let tried =
                |key: &LaneKey| self.lanes.get(key).and_then(Lane::head).map_or(0, |item| item.attempts);
            let least =
                (0..self.ready[class].len().min(LOOK_AT)).min_by_key(|at| tried(&self.ready[class][*at]));
            if let Some(key) = least.and_then(|at| self.ready[class].remove(at)) {
                return Some(vec![self.take(key)?]);
            }
        }
        None
    }

    fn take(&mut self, key: LaneKey) -> Option<(LaneKey, Item)> {
        let lane = self.lanes.get_mut(&key)?;
        let item = lane.pop()?;
        (lane.busy, lane.queued) = (true, false);
        Some((key, item))
    }

    /// The record in flight is done with: the next of its lane may go.
    pub(super) fn settle(&mut self, key: LaneKey, item: &Item) {
        self.counts[class_of(item.ticket.kind)] -= 1;
        self.bytes[class_of(item.ticket.kind)] -= item.record.data().len();
        let Some(lane) = self.lanes.get_mut(&key) else { return };
        lane.busy = false;
        self.wants_refill |= lane.wants_refill();
        if !lane.is_empty() {
            self.queue(key);
        } else if self.refilling.is_empty() {
            self.lanes.remove(&key);
        } else {
            // IMPORTANT: the read that is under way may have found this record before it was settled. Only the lane
            // still knows that it has been in hand.
            self.emptied.push(key);
        }
    }

    /// All that was read has been loaded. What is read from now on lacks what is settled by now.
    pub(super) fn forget_emptied(&mut self) {
        for key in std::mem::take(&mut self.emptied) {
            if self.lanes.get(&key).is_some_and(|lane| lane.is_empty() && !lane.busy) {
                self.lanes.remove(&key);
            }
        }
    }

    /// Since when, by the link's clock of delivering, this lane's session has been unknown: since `clock` if not before.
    pub(super) fn unknown_since(&mut self, key: LaneKey, clock: Duration) -> Duration {
        self.lanes.get_mut(&key).map_or(clock, |lane| *lane.unknown_since.get_or_insert(clock))
    }

    /// This lane's session is known.
    pub(super) fn known(&mut self, key: LaneKey) {
        if let Some(lane) = self.lanes.get_mut(&key) {
            lane.unknown_since = None;
        }
    }

    /// The record in flight goes back to the head of its lane, until `not_before`.
    pub(super) fn put_back(&mut self, key: LaneKey, item: Item, not_before: Instant) {
        let Some(lane) = self.lanes.get_mut(&key) else { return };
        lane.busy = false;
        if item.ticket.log == Log::Completed {
            lane.completed.push_front(item);
        } else {
            lane.items.push_front(item);
        }
        lane.not_before = Some(not_before);
        self.waiting.insert((not_before, key));
    }

    /// Makes room: lanes that wait keep only their head. Called when the window is full.
    pub(super) fn cut_waiting(&mut self) {
        for (_, key) in &self.waiting {
            let Some(lane) = self.lanes.get_mut(key) else { continue };
            while lane.items.len() > 1 && lane.items.back().is_some_and(|item| item.ticket.log == Log::Usage)
            {
                let Some(item) = lane.items.pop_back() else { break };
                self.counts[class_of(item.ticket.kind)] -= 1;
                self.bytes[class_of(item.ticket.kind)] -= item.record.data().len();
                lane.cut = Some(item.ticket.seq);
                lane.loaded = item.ticket.seq - 1;
            }
        }
    }

    /// From which number on the usage log must be read again, if it must: the lanes that have room take in what comes
    /// now; their `completed` wait for [`Self::refilled`].
    pub(super) fn begin_refill(&mut self) -> Option<u64> {
        if !std::mem::take(&mut self.wants_refill) {
            return None;
        }
        let mut from = None;
        for (key, lane) in &mut self.lanes {
            // One that waits for its head asks when that is settled: until then it would only be cut off again.
            if lane.wants_refill() && lane.not_before.is_none() {
                // IMPORTANT: from the first cut of all that take part, whichever of them asked: what lies before
                // `from` is passed over for good.
                from = from.into_iter().chain(lane.cut.take()).min();
                lane.refilling = true;
                self.refilling.push(*key);
            }
        }
        from
    }

    /// Whether no lane takes in more of what is being read again: each is full, and cut off once more. The rest of it
    /// holds nothing for the other lanes either, which have had it.
    pub(super) fn refill_is_done(&self) -> bool {
        self.refilling.iter().all(|key| self.lanes.get(key).is_none_or(|lane| lane.cut.is_some()))
    }

    /// The usage log has been read again up to where it had been read before, or as far as anyone takes it in.
    pub(super) fn refilled(&mut self) {
        for key in std::mem::take(&mut self.refilling) {
            let Some(lane) = self.lanes.get_mut(&key) else { continue };
            lane.refilling = false;
            if lane.is_empty() && !lane.busy {
                self.lanes.remove(&key);
            } else {
                self.queue(key);
            }
        }
    }

    /// Lanes of quota requests older than the deadline that are not in flight.
    pub(super) fn take_expired(&mut self, accepted_before: i64) -> Vec<(LaneKey, Item)> {
        let expired: HashSet<LaneKey> = self
            .lanes
            .iter()
            .filter(|(_, lane)| {
                !lane.busy
                    && lane.head().is_some_and(|item| {
                        item.ticket.kind == Kind::Quota && item.ticket.accepted_at.0 < accepted_before
                    })
            })
            .map(|(key, _)| *key)
            .collect();
        self.ready[class_of(Kind::Quota)].retain(|key| !expired.contains(key));
        expired
            .into_iter()
            .filter_map(|key| {
                if let Some(until) = self.lanes.get(&key)?.not_before {
                    self.waiting.remove(&(until, key));
                }
                self.take(key)
            })
            .collect()
    }
}
