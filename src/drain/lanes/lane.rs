//! One session's records: what is in hand of each log, and from where on a log must be read again for it.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::{Item, LANE_MOST, LOGS, Tries, place};
use crate::outbox::Log;

/// What a lane has of one log, in order.
#[derive(Default)]
pub(super) struct Line {
    pub(super) items: VecDeque<Item>,
    /// Records up to this number are, or were, in `items`.
    loaded: u64,
    /// Records from this number on were passed over, or given up for room, and must be read again.
    pub(super) cut: Option<u64>,
    /// The last of these.
    passed: u64,
    /// It is being read again just now.
    pub(super) refilling: bool,
    /// What has happened to a record that was given up, and its number.
    tried: Option<Box<(u64, Tries)>>,
}

impl Line {
    /// Whether none of it has to be read again.
    fn is_whole(&self) -> bool {
        self.cut.is_none() && !self.refilling
    }

    fn is_done(&self) -> bool {
        self.items.is_empty() && self.is_whole()
    }

    pub(super) fn wants_refill(&self) -> bool {
        self.items.len() <= LANE_MOST / 4 && self.cut.is_some()
    }

    /// Whether reading again brings it nothing more, from `next` on.
    pub(super) fn is_refilled(&self, next: u64) -> bool {
        self.cut.is_some() || self.passed < next
    }

    /// Takes a record in, unless it was in hand before or there is no room for it.
    fn load(&mut self, mut item: Item, has_room: bool) -> bool {
        let seq = item.ticket.seq;
        if seq <= self.loaded {
            return false;
        }
        if self.cut.is_some() || !has_room || self.items.len() >= LANE_MOST {
            self.cut.get_or_insert(seq);
            self.passed = self.passed.max(seq);
            return false;
        }
        if let Some(tried) = self.tried.take_if(|tried| tried.0 == seq) {
            item.tries = tried.1;
        }
        self.loaded = seq;
        self.items.push_back(item);
        true
    }

    /// Gives up its last record, to be read again.
    pub(super) fn give_up_last(&mut self) -> Option<Item> {
        let item = self.items.pop_back()?;
        let seq = item.ticket.seq;
        self.cut = Some(seq);
        self.loaded = seq - 1;
        self.passed = self.passed.max(seq);
        if item.tries.attempts > 0 {
            self.tried = Some(Box::new((seq, item.tries)));
        }
        Some(item)
    }
}

/// A session's records, or one quota request.
#[derive(Default)]
pub(super) struct Lane {
    /// In the order of [`LOGS`], which is the order in which they go.
    pub(super) lines: [Line; LOGS.len()],
    pub(super) busy: bool,
    /// In which queue of those that may go it is.
    pub(super) queued: Option<usize>,
    pub(super) not_before: Option<Instant>,
    pub(super) unknown_since: Option<Box<Unknown>>,
}

/// How far each kind had come when a session was first found unknown, in the order of [`LOGS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::drain) struct Unknown {
    /// For how long it had been delivered.
    pub(in crate::drain) delivering: [Duration; LOGS.len()],
    /// How many had been delivered.
    pub(in crate::drain) deliveries: [u64; LOGS.len()],
}

impl Lane {
    /// The line whose turn it is. None while records that must go before the others have to be read again.
    pub(super) fn turn(&self) -> Option<usize> {
        let at = self.lines.iter().position(|line| !line.is_done())?;
        (!self.lines[at].items.is_empty()).then_some(at)
    }

    pub(super) fn head(&self) -> Option<&Item> {
        self.lines[self.turn()?].items.front()
    }

    pub(super) fn pop(&mut self) -> Option<Item> {
        let turn = self.turn()?;
        self.lines[turn].items.pop_front()
    }

    /// Takes a record in, if there is room for it.
    ///
    /// Not while what goes before it has to be read again: it could not go, and would hold the room that this needs.
    pub(super) fn load(&mut self, item: Item) -> bool {
        let Some(at) = place(item.ticket.log) else { return false };
        let before_it = &self.lines[..at];
        let has_room = before_it.iter().all(|line| line.is_whole() || !line.items.is_empty());
        self.lines[at].load(item, has_room)
    }

    /// Which log must be read again before the lane can go on, if one must and is not being read already.
    pub(super) fn wants_refill(&self) -> Option<Log> {
        let at = self.lines.iter().position(|line| !line.is_done())?;
        self.lines[at].wants_refill().then(|| LOGS[at])
    }

    pub(super) fn holds_any(&self) -> bool {
        self.lines.iter().any(|line| !line.items.is_empty())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lines.iter().all(Line::is_done)
    }
}
