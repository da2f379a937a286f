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

mod lane;
mod memory;
mod parcel;
mod read_ahead;
mod walk;
mod watermark;

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::num::NonZeroUsize;

use tokio::time::Instant;

use super::batch;
use crate::outbox::{Log, Ticket, Unsettled};
use crate::record::{Kind, Record};

use lane::Lane;
pub(super) use lane::Unknown;
use memory::Asking;
pub use memory::QueueSettings;
pub use parcel::SessionOrder;
pub(super) use parcel::{AttemptHistory, CONFIRMED, Group, Item, Outcomes, Parcel, lanes_of, records_in};
pub(super) use read_ahead::ReadAhead;
use walk::Walk;

#[cfg(test)]
mod tests;

/// After this many quota requests, lifecycle events, or suspects in a row, the next class gets a turn: none starves.
const STREAKS: [u32; 3] = [16, 16, 1];

/// A lane's key: a hash of its session, or a quota request's number.
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

/// Hasher for lane keys, which are hashes already: hashing them again, several times per record, took a twentieth of the
/// drain's time.
#[derive(Default)]
struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn write_u128(&mut self, key: u128) {
        // Quota requests have consecutive numbers: an odd factor spreads them over all bits.
        self.0 = ((key >> 64) as u64 ^ key as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxhash_rust::xxh3::xxh3_64_with_seed(bytes, self.0);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// The logs that are sent, in sending order. A quota request is alone in its lane.
pub(super) const LOGS: [Log; 4] = [Log::Quota, Log::Started, Log::Usage, Log::Completed];
/// Indices into it.
const QUOTA: usize = 0;
const STARTED: usize = 1;
const USAGE: usize = 2;
const COMPLETED: usize = 3;

/// A log's index in [`LOGS`], which is its line in a lane. Rejected messages are never sent.
pub(super) fn place(log: Log) -> Option<usize> {
    LOGS.iter().position(|other| *other == log)
}

/// The index of each kind in [`LOGS`].
pub(super) fn place_of(kind: Kind) -> usize {
    match kind {
        Kind::Quota => QUOTA,
        Kind::Started | Kind::Lifecycle => STARTED,
        Kind::Usage => USAGE,
        Kind::Completed => COMPLETED,
    }
}

/// The kind of a log's records.
pub(super) fn kind_of(log: Log) -> Kind {
    match log {
        Log::Quota => Kind::Quota,
        Log::Started => Kind::Started,
        Log::Usage | Log::Rejected => Kind::Usage,
        Log::Completed => Kind::Completed,
    }
}

/// Limits of one batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct BatchLimits {
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

/// A queue of ready lanes: the log of their head, and whether the head is a suspect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ReadyQueue {
    at: usize,
    is_suspect: bool,
}

/// The classes in order of priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PriorityClass {
    Quota,
    Lifecycle,
    Suspects,
    Usage,
}

impl PriorityClass {
    const ALL: [Self; 4] = [Self::Quota, Self::Lifecycle, Self::Suspects, Self::Usage];
}

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
    /// Alternates started and completed events, which share a class.
    completed_next: bool,
    /// Waiting lanes, and until when they wait.
    waiting: BTreeSet<(Instant, LaneKey)>,
    /// Waiting lanes that have released all their records.
    resting: BTreeSet<(Instant, LaneKey)>,
    streaks: [u32; STREAKS.len()],
    counts: [usize; LOGS.len()],
    bytes: [usize; LOGS.len()],
    /// The number of lanes with records in flight.
    flying: usize,
    /// Logs of which waiting lanes may hold more than when room was last made.
    grown: [bool; LOGS.len()],
    /// Lanes whose wait has just ended.
    woken: Vec<LaneKey>,
    /// Lanes that need a log to be read again.
    asking: Asking,
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
        let crate::outbox::Entry::Record(record) = unsettled.entry else { return };
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

    /// Whether any record may be sent.
    pub(super) fn has_ready(&self) -> bool {
        PriorityClass::ALL.into_iter().any(|class| self.has(class))
    }

    /// Whether a quota request may be sent.
    pub(super) fn has_ready_quota(&self) -> bool {
        self.may_go(QUOTA)
    }

    /// Whether a held log could be probed now.
    pub(super) fn has_held(&self, log: Log) -> bool {
        place(log)
            .is_some_and(|at| self.held[at] && !(self.ready[at].is_empty() && self.suspects[at].is_empty()))
    }

    fn may_go(&self, at: usize) -> bool {
        !self.held[at] && !self.ready[at].is_empty()
    }

    fn suspect_log(&self) -> Option<usize> {
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
    pub(super) fn pick(&mut self, batch: Option<BatchLimits>) -> Option<Parcel> {
        let queue = match self.next_class()? {
            PriorityClass::Quota => ReadyQueue { at: QUOTA, is_suspect: false },
            PriorityClass::Suspects => ReadyQueue { at: self.suspect_log()?, is_suspect: true },
            PriorityClass::Usage => ReadyQueue { at: USAGE, is_suspect: false },
            PriorityClass::Lifecycle => {
                let in_turn = if self.completed_next { [COMPLETED, STARTED] } else { [STARTED, COMPLETED] };
                let at = in_turn.into_iter().find(|at| self.may_go(*at))?;
                self.completed_next = at == STARTED;
                ReadyQueue { at, is_suspect: false }
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
    pub(super) fn pick_quota(&mut self) -> Option<Parcel> {
        let key = self.ready[QUOTA].pop_front()?;
        self.take_one(key)
    }

    fn next_class(&mut self) -> Option<PriorityClass> {
        let waiting = PriorityClass::ALL.map(|class| self.has(class));
        for (class, most) in STREAKS.into_iter().enumerate() {
            let streak = &mut self.streaks[class];
            let others_wait = waiting[class + 1..].contains(&true);
            if waiting[class] && (*streak < most || !others_wait) {
                *streak = streak.saturating_add(1);
                return Some(PriorityClass::ALL[class]);
            }
            *streak = 0;
        }
        waiting[STREAKS.len()].then_some(PriorityClass::Usage)
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

    fn pick_batch(&mut self, first: ReadyQueue, limits: BatchLimits) -> Parcel {
        let keys = self.batch_lanes(first, &limits);
        let mut room = parcel::Room::of(limits.records, limits.bytes.saturating_sub(batch::EMPTY));
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

    /// A record to probe the link with: the one with the fewest attempts, of the kind that failed least. So neither a bad
    /// record nor a bad kind keeps the link down.
    pub(super) fn pick_probe(&mut self, failed: impl Fn(Log) -> u64) -> Option<Parcel> {
        let order = [QUOTA, STARTED, COMPLETED, USAGE];
        let least = order.into_iter().filter(|at| self.may_go(*at)).min_by_key(|at| failed(LOGS[*at]));
        match least {
            Some(at) => self.pick_least_tried(ReadyQueue { at, is_suspect: false }),
            None => self.pick_least_tried(ReadyQueue { at: self.suspect_log()?, is_suspect: true }),
        }
    }

    /// A record to probe a held log with: preferably the head of a lane that was never refused, if possible of a session
    /// with delivered records; else one that was refused once; else, of those refused twice, the one with the fewest
    /// attempts. If the probe `walks`, every second one is a step of the [`walk`], or every one if no other head is left.
    pub(super) fn pick_probe_of(&mut self, log: Log, walks: bool) -> Option<Parcel> {
        let at = place(log)?;
        let (fresh, suspect) = (ReadyQueue { at, is_suspect: false }, ReadyQueue { at, is_suspect: true });
        let has_untried_heads = !self.ready[at].is_empty() || self.has_unconfirmed_head(at);
        let just_now = self.walk.begin_probe(at);
        if walks && (just_now || !has_untried_heads || self.walk.is_its_turn()) {
            let step = self.pick_walk(at, just_now);
            if step.is_some() {
                return step;
            }
        }
        self.pick_least_tried(fresh).or_else(|| self.pick_least_tried(suspect))
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

    /// Takes the head of a lane that has just left its queue.
    fn take_one(&mut self, key: LaneKey) -> Option<Parcel> {
        let lane = self.lanes.get_mut(&key)?;
        lane.queued = None;
        let was_flying = lane.in_flight > 0;
        let item = lane.pop()?;
        self.flying += usize::from(!was_flying);
        self.queue(key);
        Some(vec![Group { lane: key, items: vec![item] }])
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
