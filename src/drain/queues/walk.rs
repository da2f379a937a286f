//! The walk: how a log is probed of which every head in hand was refused, and refused again.
//!
//! Bad records in front of every session and a bad release look the same, and the brake gives up no record to find out. So
//! one lane is walked: the first record behind its suspects is sent. If it is delivered, the suspects are bad records, and
//! the brake is released. If it is refused, and again on another connection, it is one more suspect.
//!
//! IMPORTANT: a record that goes before its predecessors may be delivered before them. A `ControlPlane` that is well again
//! must meet the head first: each step asks for the head once more, and the record behind follows at once, or not at all.

use super::{Group, LaneKey, Lanes, Parcel};

/// What the last probe was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The head of the lane that is walked: the second half of the step follows at once.
    Head,
    /// The record behind its suspects, or the last suspect for its confirmation.
    Behind,
}

/// The lane that is walked, and how far the step has come.
#[derive(Debug, Default)]
pub(super) struct Walk {
    lane: Option<LaneKey>,
    pub(super) step: Option<Step>,
    /// The head was refused just now: the record behind may go.
    is_head_refused: bool,
}

impl Lanes {
    /// Whether the last probe was part of a walk.
    pub(in crate::drain) fn is_walking(&self) -> bool {
        self.walk.step.is_some()
    }

    /// A record of this lane was refused while its kind was braked. As the first half of a step it lets the second go.
    pub(in crate::drain) fn note_refusal(&mut self, key: LaneKey) {
        self.walk.is_head_refused = self.walk.step == Some(Step::Head) && self.walk.lane == Some(key);
    }

    /// Whether the second half of a step is to follow at once.
    pub(in crate::drain) fn is_mid_step(&self) -> bool {
        self.walk.is_head_refused
    }

    /// Whether the head of a lane of this log was refused once, and may go.
    pub(super) fn has_unconfirmed_head(&self, at: usize) -> bool {
        let is_unconfirmed = |key| {
            let head = self.lanes.get(key).and_then(|lane| lane.lines[at].items.front());
            head.is_some_and(|head| !head.history.is_confirmed())
        };
        self.suspects[at].iter().any(is_unconfirmed)
    }

    /// The next probe of the walk.
    pub(super) fn pick_walk(&mut self, at: usize) -> Option<Parcel> {
        let is_proven = |key: &LaneKey| self.lanes.get(key).is_some_and(|lane| lane.is_proven);
        let lanes = &self.suspects[at];
        let same = lanes.iter().position(|key| self.walk.lane == Some(*key));
        let n = same.or_else(|| lanes.iter().position(is_proven)).unwrap_or_default();
        let key = *lanes.get(n)?;
        let is_next = self.walk.lane == Some(key) && std::mem::take(&mut self.walk.is_head_refused);
        let behind = self.lanes.get(&key).and_then(|lane| lane.behind_confirmed(at)).filter(|_| is_next);
        self.walk.lane = Some(key);
        if is_next && behind.is_none() {
            // What is in hand is all suspect. There may be more to be read.
            self.ask(key);
        }
        self.walk.step = Some(if behind.is_some() { Step::Behind } else { Step::Head });
        self.suspects[at].remove(n);
        let lane = self.lanes.get_mut(&key)?;
        lane.queued = None;
        self.flying += usize::from(lane.in_flight == 0);
        let item = lane.pop_at(at, behind.unwrap_or_default())?;
        self.queue(key);
        Some(vec![Group { lane: key, items: vec![item] }])
    }

    /// The kind was let go: the next walk begins with a head.
    pub(super) fn end_walk(&mut self) {
        self.walk = Walk::default();
    }
}
