//! Who may go next: order within a session, priority between kinds, and no waiting between sessions.
//!
//! A lane is a session's records in the order in which they must go; only its head is ever in flight. Started
//! events come before the session's usage, `completed` after it. A quota request is a lane of its own.
//!
//! Memory is bounded: a lane holds at most [`LANE_MOST`] records of a log; when more come, or when the lane waits and
//! room is needed, it is cut off and remembers from which number on its records must be read again ([`room`]).

mod lane;
mod room;

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};

use tokio::time::Instant;

use super::batch::{self, Batching};
use crate::outbox::{Leased, Log, Ticket};
use crate::record::{Kind, Record};

use lane::Lane;
pub(super) use lane::Unknown;
use room::Asking;
pub(super) use room::Window;

#[cfg(test)]
mod tests;

/// The most records of one session and log in memory. Few under test, so that a short run cuts lanes off again and again.
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
            _ => Self::of_session(record.session()),
        }
    }

    pub(super) fn of_session(session: &str) -> Self {
        Self(xxhash_rust::xxh3::xxh3_128(session.as_bytes()))
    }
}

/// How often the `ControlPlane` could do what it was asked to, and how often it failed with 5xx.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Fares {
    pub passes: u64,
    pub failures: u64,
}

/// What has happened to a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tries {
    pub attempts: u32,
    /// Attempts that failed with 5xx while other records passed.
    pub poisoned: u32,
    /// How many of its kind had been delivered when it was last tried.
    pub deliveries: u64,
    /// How many of any kind.
    pub any_deliveries: u64,
    /// How its kind had fared when it was first tried.
    pub first: Fares,
    /// How many of the failures since then were those of its own requests.
    pub own_failures: u64,
    /// The most records that it may travel with: halved when a batch fails as a whole, so that a record at fault is
    /// alone in the end.
    pub batch_most: usize,
}

impl Tries {
    pub(super) const NONE: Self = Self {
        attempts: 0,
        poisoned: 0,
        deliveries: 0,
        any_deliveries: 0,
        first: Fares { passes: 0, failures: 0 },
        own_failures: 0,
        batch_most: usize::MAX,
    };
}

/// A record in hand.
#[derive(Debug)]
pub(super) struct Item {
    pub ticket: Ticket,
    pub record: Record,
    pub tries: Tries,
}

/// What goes in one request: one record, or a batch of usage records, each the head of its lane.
pub(super) type Parcel = Vec<(LaneKey, Item)>;

/// The logs that are sent, in the order in which a session's records go. A quota request is alone in its lane.
pub(super) const LOGS: [Log; 4] = [Log::Quota, Log::Started, Log::Usage, Log::Completed];

/// Where a log is in [`LOGS`], and its line in a lane. What was rejected is never sent.
pub(super) fn place(log: Log) -> Option<usize> {
    LOGS.iter().position(|other| *other == log)
}

/// The place of each kind in [`LOGS`].
pub(super) fn place_of(kind: Kind) -> usize {
    match kind {
        Kind::Quota => 0,
        Kind::Started | Kind::Lifecycle => 1,
        Kind::Usage => 2,
        Kind::Completed => 3,
    }
}

/// Of which kind a log's records are.
pub(super) fn kind_of(log: Log) -> Kind {
    match log {
        Log::Quota => Kind::Quota,
        Log::Started => Kind::Started,
        Log::Usage | Log::Rejected => Kind::Usage,
        Log::Completed => Kind::Completed,
    }
}

/// The lanes, and which of them may go.
#[derive(Default)]
pub(super) struct Lanes {
    lanes: HashMap<LaneKey, Lane>,
    /// Lanes that may go, by the log of their head.
    ready: [VecDeque<LaneKey>; LOGS.len()],
    /// Logs of which nothing goes but a probe.
    held: [bool; LOGS.len()],
    /// Of started and completed events, which share a class, one goes after the other.
    completed_next: bool,
    /// Lanes that wait, and until when.
    waiting: BTreeSet<(Instant, LaneKey)>,
    /// Those of them that have given up all their records.
    resting: BTreeSet<(Instant, LaneKey)>,
    streaks: [u32; 2],
    counts: [usize; LOGS.len()],
    bytes: [usize; LOGS.len()],
    /// Lanes that wait may hold more of a log than when room was last made of them.
    grown: [bool; LOGS.len()],
    /// Lanes whose wait has just ended.
    woken: Vec<LaneKey>,
    /// Lanes that want a log to be read again.
    asking: Asking,
    /// The lanes for which a log is being read again.
    refilling: [Vec<LaneKey>; LOGS.len()],
    /// Lanes that ran empty while a log was being read again.
    emptied: Vec<LaneKey>,
    /// Lanes that rest until what they are held for is let go.
    laid_off: Vec<LaneKey>,
}

/// The classes in the order of their priority, each with its logs.
const CLASSES: [&[usize]; 3] = [&[0], &[1, 3], &[2]];

impl Lanes {
    /// Records in hand of this kind.
    #[cfg(test)]
    pub(super) fn count(&self, kind: Kind) -> usize {
        self.counts[place_of(kind)]
    }

    /// Bytes of these.
    #[cfg(test)]
    pub(super) fn bytes(&self, kind: Kind) -> usize {
        self.bytes[place_of(kind)]
    }

    /// Takes in a record that was read. Quietly passes over what is in hand already, or has no room.
    pub(super) fn load(&mut self, leased: Leased) {
        let crate::outbox::Entry::Record(record) = leased.entry else { return };
        let ticket = leased.ticket;
        let key = LaneKey::of(&ticket, &record);
        let bytes = record.data().len();
        let at = place_of(ticket.kind);
        let lane = self.lanes.entry(key).or_default();
        if lane.load(Item { ticket, record, tries: Tries::NONE }) {
            let head = lane.turn();
            self.grown[at] |= lane.not_before.is_some() || head.is_some_and(|head| self.held[head]);
            self.counts[at] += 1;
            self.bytes[at] += bytes;
            if lane.queued != head
                && let Some(before) = lane.queued.take()
            {
                // It goes before what was the head.
                self.ready[before].retain(|other| *other != key);
            }
            self.queue(key);
        }
    }

    /// Makes a lane ready if its head may go.
    fn queue(&mut self, key: LaneKey) {
        let Some(lane) = self.lanes.get_mut(&key) else { return };
        if lane.busy || lane.queued.is_some() || lane.not_before.is_some() {
            return;
        }
        if let Some(head) = lane.turn() {
            lane.queued = Some(head);
            self.ready[head].push_back(key);
        }
    }

    /// Of these logs nothing goes from now on but a probe.
    pub(super) fn hold(&mut self, held: [bool; LOGS.len()]) {
        let before = std::mem::replace(&mut self.held, held);
        if before != held {
            self.grown = [true; LOGS.len()];
        }
        if before.iter().zip(held).any(|(before, now)| *before && !now) {
            self.call_back();
        }
    }

    /// Lanes whose wait is over become ready, or ask for what they gave up.
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

    /// When [`Self::wake`] has something to do.
    pub(super) fn next_wake(&self) -> Option<Instant> {
        let first = |set: &BTreeSet<(Instant, LaneKey)>| set.first().map(|(until, _)| *until);
        first(&self.waiting).into_iter().chain(first(&self.resting)).min()
    }

    /// Whether any record may go.
    pub(super) fn has_ready(&self) -> bool {
        (0..LOGS.len()).any(|at| self.may_go(at))
    }

    /// Whether a quota request may go.
    pub(super) fn has_ready_quota(&self) -> bool {
        self.may_go(place_of(Kind::Quota))
    }

    /// Whether a log is held that could be probed now.
    pub(super) fn has_held(&self, log: Log) -> bool {
        place(log).is_some_and(|at| self.held[at] && !self.ready[at].is_empty())
    }

    fn may_go(&self, at: usize) -> bool {
        !self.held[at] && !self.ready[at].is_empty()
    }

    /// What to send next: its lanes are busy until [`Self::settle`] or [`Self::put_back`].
    ///
    /// With `batching`, usage goes in batches of one record a lane: a second one could be taken while the first is
    /// to be sent again.
    pub(super) fn pick(&mut self, batching: Option<&Batching>) -> Option<Parcel> {
        let at = self.next_log()?;
        let first = self.ready[at].pop_front()?;
        let Some(batching) = batching.filter(|_| at == place_of(Kind::Usage) && self.goes_in_a_batch(first))
        else {
            return Some(vec![self.take(first)?]);
        };
        let mut parcel = vec![self.take(first)?];
        let mut most = batching.records(self.ready[at].len() + 1).min(parcel[0].1.tries.batch_most);
        let mut bytes = batch::EMPTY + batch::size(&parcel[0].1.record);
        while let Some(&key) = self.ready[at].front() {
            let Some(head) = self.lanes.get(&key).and_then(Lane::head) else { break };
            bytes += batch::size(&head.record);
            most = most.min(head.tries.batch_most);
            if parcel.len() >= most || bytes > batching.max_bytes() || !self.goes_in_a_batch(key) {
                break;
            }
            self.ready[at].pop_front();
            parcel.extend(self.take(key));
        }
        Some(parcel)
    }

    /// The next quota request.
    pub(super) fn pick_quota(&mut self) -> Option<Parcel> {
        let key = self.ready[place_of(Kind::Quota)].pop_front()?;
        Some(vec![self.take(key)?])
    }

    fn goes_in_a_batch(&self, key: LaneKey) -> bool {
        let head = self.lanes.get(&key).and_then(Lane::head);
        head.is_some_and(|item| item.ticket.kind == Kind::Usage && batch::fits(item.record.body()))
    }

    fn next_log(&mut self) -> Option<usize> {
        let class = self.next_class()?;
        let in_turn = if self.completed_next { [3, 1] } else { [1, 3] };
        let logs: &[usize] = if class == 1 { &in_turn } else { CLASSES[class] };
        let at = logs.iter().copied().find(|at| self.may_go(*at))?;
        if class == 1 {
            self.completed_next = at == 1;
        }
        Some(at)
    }

    fn next_class(&mut self) -> Option<usize> {
        let waiting = CLASSES.map(|logs| logs.iter().any(|at| self.may_go(*at)));
        for (class, streak) in self.streaks.iter_mut().enumerate() {
            let lower = waiting[class + 1..].contains(&true);
            if waiting[class] && (*streak < STREAK || !lower) {
                *streak = streak.saturating_add(1);
                return Some(class);
            }
            *streak = 0;
        }
        waiting[2].then_some(2)
    }

    /// A record to probe the link with: of the kind that failed least, the one that was tried least, so that neither a bad
    /// record nor one bad kind holds the link down.
    pub(super) fn pick_probe(&mut self, failed: impl Fn(Log) -> u64) -> Option<Parcel> {
        let may_go = CLASSES.into_iter().flatten().copied().filter(|at| self.may_go(*at));
        self.pick_least_tried(may_go.min_by_key(|at| failed(LOGS[*at]))?)
    }

    /// A record to probe a log with that is held, likewise.
    pub(super) fn pick_probe_of(&mut self, log: Log) -> Option<Parcel> {
        self.pick_least_tried(place(log)?)
    }

    fn pick_least_tried(&mut self, at: usize) -> Option<Parcel> {
        const LOOK_AT: usize = 64;
        let tried =
            |key: &LaneKey| self.lanes.get(key).and_then(Lane::head).map_or(0, |item| item.tries.attempts);
        let looked_at = 0..self.ready[at].len().min(LOOK_AT);
        let least = looked_at.min_by_key(|n| tried(&self.ready[at][*n]))?;
        let key = self.ready[at].remove(least)?;
        Some(vec![self.take(key)?])
    }

    fn take(&mut self, key: LaneKey) -> Option<(LaneKey, Item)> {
        let lane = self.lanes.get_mut(&key)?;
        lane.queued = None;
        let item = lane.pop()?;
        lane.busy = true;
        Some((key, item))
    }

    /// The record in flight is done with: the next of its lane may go.
    pub(super) fn settle(&mut self, key: LaneKey, item: &Item) {
        let at = place_of(item.ticket.kind);
        self.counts[at] -= 1;
        self.bytes[at] -= item.record.data().len();
        let Some(lane) = self.lanes.get_mut(&key) else { return };
        lane.busy = false;
        if !lane.is_empty() {
            self.ask(key);
            self.queue(key);
        } else if !self.is_refilling() {
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

    /// Since when this lane's session has been unknown: since `now` if not before.
    pub(super) fn unknown_since(&mut self, key: LaneKey, now: Unknown) -> Unknown {
        self.lanes.get_mut(&key).map_or(now, |lane| **lane.unknown_since.get_or_insert_with(|| Box::new(now)))
    }

    /// Every lane that waits may go: somebody knows that it is time.
    pub(super) fn wake_all(&mut self) {
        let last = [&self.waiting, &self.resting].into_iter().filter_map(|set| set.last());
        if let Some(last) = last.map(|(until, _)| *until).max() {
            self.wake(last);
        }
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
        if let Some(at) = place(item.ticket.log) {
            lane.lines[at].items.push_front(item);
        }
        lane.not_before = Some(not_before);
        self.waiting.insert((not_before, key));
        self.grown = [true; LOGS.len()];
    }

    /// Lanes of quota requests older than the deadline that are not in flight.
    pub(super) fn take_expired(&mut self, before: i64) -> Vec<(LaneKey, Item)> {
        let expired: HashSet<LaneKey> = self
            .lanes
            .iter()
            .filter(|(_, lane)| {
                !lane.busy
                    && lane.head().is_some_and(|item| {
                        item.ticket.kind == Kind::Quota && item.ticket.accepted_at.0 < before
                    })
            })
            .map(|(key, _)| *key)
            .collect();
        self.ready[place_of(Kind::Quota)].retain(|key| !expired.contains(key));
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
