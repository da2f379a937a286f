//! The walk: probing past a log's heads when one after another is refused.
//!
//! Bad records at the head of every session look like a bad release, and the brake does not make dead letters to find out.
//! So one lane is walked, alternating with the heads of others: the first record after its suspects is sent. If it is
//! delivered, the suspects are bad records, and the brake is released. If it is refused twice, over different connections,
//! it becomes another suspect.
//!
//! IMPORTANT: a record sent ahead of its predecessors may be delivered before them. A recovered `ControlPlane` must get the
//! head first: so each step sends the head once more, and the record behind it follows at once or not at all. If that
//! record is delivered anyway, its predecessors, each refused twice, become dead letters and are not sent after it.

use super::Lanes;
use super::key::LaneKey;
use super::logs::place;
use super::parcel::{Group, Item, Parcel};
use crate::outbox::Log;

/// The last probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WalkStep {
    /// The head of the walked lane: the second half of the step follows at once.
    Head,
    /// The record after its suspects, or the last suspect for confirmation.
    Behind,
}

/// The walked lane, and the state of the step.
#[derive(Debug, Default)]
pub(super) struct Walk {
    lane: Option<LaneKey>,
    /// The log that is walked.
    at: usize,
    step: Option<WalkStep>,
    /// Whether the head was just refused: then the record behind it may be sent.
    is_head_refused: bool,
    /// Whether the last probe was an untried head: then the next is a step of the walk.
    is_next: bool,
}

impl Walk {
    /// Starts another probe of this log. True if the last probe was the first half of a step in it, and was refused.
    pub(super) fn begin_probe(&mut self, at: usize) -> bool {
        self.step = None;
        std::mem::take(&mut self.is_head_refused) && self.at == at
    }

    /// Whether it is the walk's turn while untried heads are left.
    pub(super) fn is_its_turn(&mut self) -> bool {
        self.is_next = !self.is_next;
        !self.is_next
    }
}

impl Lanes {
    /// Whether the last probe was part of a walk.
    pub(in crate::drain) fn is_walking(&self) -> bool {
        self.walk.step.is_some()
    }

    /// Whether the last probe went past refused records of this lane.
    pub(in crate::drain) fn has_walked_past(&self, key: LaneKey) -> bool {
        self.walk.step == Some(WalkStep::Behind) && self.walk.lane == Some(key)
    }

    /// Notes that a record of this lane was refused while its kind was braked. If it was the first half of a step, the
    /// second may follow.
    pub(in crate::drain) fn note_refusal(&mut self, key: LaneKey) {
        self.walk.is_head_refused = self.walk.step == Some(WalkStep::Head) && self.walk.lane == Some(key);
    }

    /// Whether the second half of a step must follow at once.
    pub(in crate::drain) fn is_mid_step(&self) -> bool {
        self.walk.is_head_refused
    }

    /// Whether a lane of this log has a head that was refused once and may be sent.
    pub(super) fn has_unconfirmed_head(&self, at: usize) -> bool {
        let is_unconfirmed = |key| {
            let head = self.lanes.get(key).and_then(|lane| lane.lines[at].items.front());
            head.is_some_and(|head| !head.history.is_confirmed())
        };
        self.suspects[at].iter().any(is_unconfirmed)
    }

    /// The next probe of the walk. `just_now`: the first half of the last step was refused just now. `None` if there is
    /// nothing after the refused records.
    pub(super) fn pick_walk(&mut self, at: usize, just_now: bool) -> Option<Parcel> {
        let behind = |key: &LaneKey| self.lanes.get(key).and_then(|lane| lane.behind_confirmed(at));
        let is_confirmed = |key: &LaneKey| {
            let head = self.lanes.get(key).and_then(|lane| lane.lines[at].items.front());
            head.is_some_and(|head| head.history.is_confirmed())
        };
        let is_proven = |key: &LaneKey| self.lanes.get(key).is_some_and(|lane| lane.is_proven);
        let lanes = || self.suspects[at].iter().copied();
        // One lane to its end: each of many lanes would need as many steps.
        let rank = |key: &LaneKey| (self.walk.lane != Some(*key), !is_confirmed(key), !is_proven(key));
        let Some(key) = lanes().filter(|key| behind(key).is_some()).min_by_key(rank) else {
            // All records in memory are suspects. There may be more to read.
            lanes().collect::<Vec<_>>().into_iter().for_each(|key| self.ask(key));
            return None;
        };
        let goes_behind = just_now && self.walk.lane == Some(key) && is_confirmed(&key);
        let index = behind(&key).filter(|_| goes_behind).unwrap_or_default();
        (self.walk.lane, self.walk.at) = (Some(key), at);
        self.walk.step = Some(if goes_behind { WalkStep::Behind } else { WalkStep::Head });
        self.take_at(key, at, index)
    }

    /// Takes the next record of this lane and log that was refused twice and precedes this number, since a later one was
    /// delivered. It is in flight until it is settled.
    pub(in crate::drain) fn take_refused_before(
        &mut self,
        key: LaneKey,
        log: Log,
        number: u64,
    ) -> Option<Item> {
        let at = place(log)?;
        let first = self.lanes.get(&key)?.lines[at].items.front()?;
        if first.ticket.seq >= number || !first.history.is_confirmed() {
            return None;
        }
        let parcel = self.take_at(key, at, 0)?;
        parcel.into_iter().flat_map(|group| group.items).next()
    }

    fn take_at(&mut self, key: LaneKey, at: usize, index: usize) -> Option<Parcel> {
        self.dequeue(key);
        let lane = self.lanes.get_mut(&key)?;
        self.flying += usize::from(lane.in_flight == 0);
        let item = lane.pop_at(at, index)?;
        self.queue(key);
        Some(vec![Group { lane: key, items: vec![item] }])
    }

    /// The kind was released: the next walk starts with a head. A record in flight past refused ones keeps that state.
    pub(super) fn end_walk(&mut self) {
        let lane = self.walk.lane.and_then(|key| self.lanes.get(&key));
        if self.walk.step != Some(WalkStep::Behind) || lane.is_none_or(|lane| lane.in_flight == 0) {
            self.walk = Walk::default();
        }
    }
}
