//! One session's records of all logs: which is next, and which may travel together.

use std::time::Duration;

use tokio::time::Instant;

use super::line::LaneQueue;
use super::logs::{LOGS, place};
use super::parcel::{Item, Room};
use crate::drain::batch::layout;
use crate::outbox::Log;

/// A queue of ready lanes: the log of their head, and whether the head is a suspect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ReadyQueue {
    pub(super) at: usize,
    pub(super) is_suspect: bool,
}

impl ReadyQueue {
    pub(super) fn fresh(at: usize) -> Self {
        Self { at, is_suspect: false }
    }

    pub(super) fn suspects(at: usize) -> Self {
        Self { at, is_suspect: true }
    }
}

/// A session's records, or one quota request.
#[derive(Default)]
pub(super) struct Lane {
    /// In the order of [`LOGS`], which is the sending order.
    pub(super) lines: [LaneQueue; LOGS.len()],
    /// Records in flight, and their line if it is only one.
    pub(super) in_flight: usize,
    pub(super) line_in_flight: Option<usize>,
    /// The ready queue that contains the lane.
    pub(super) queued: Option<ReadyQueue>,
    pub(super) not_before: Option<Instant>,
    /// Whether a record of it was delivered.
    pub(super) is_proven: bool,
    pub(super) unknown_since: Option<Box<Unknown>>,
}

/// Each kind's progress when a session was first found unknown, in the order of [`LOGS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::drain) struct Unknown {
    /// How long records had been delivered.
    pub(in crate::drain) delivering: [Duration; LOGS.len()],
    /// How many had been delivered.
    pub(in crate::drain) deliveries: [u64; LOGS.len()],
}

impl Lane {
    /// The next line to send from. `None` while earlier records must be read again.
    pub(super) fn turn(&self) -> Option<usize> {
        let at = self.lines.iter().position(|line| !line.is_done())?;
        (!self.lines[at].items.is_empty()).then_some(at)
    }

    /// The next record, and its line.
    pub(super) fn head(&self) -> Option<(usize, &Item)> {
        let turn = self.turn()?;
        Some((turn, self.lines[turn].items.front()?))
    }

    /// Takes the next record. It is in flight until [`Self::landed`].
    pub(super) fn pop(&mut self) -> Option<Item> {
        let turn = self.turn()?;
        self.pop_at(turn, 0)
    }

    /// The same for a record further back in its line.
    pub(super) fn pop_at(&mut self, line: usize, index: usize) -> Option<Item> {
        let item = self.lines[line].items.remove(index)?;
        let is_the_only = self.in_flight == 0 || self.line_in_flight == Some(line);
        self.line_in_flight = is_the_only.then_some(line);
        self.in_flight += 1;
        Some(item)
    }

    /// Takes as many records as may travel together and fit in this lane's `share` of a batch, either suspects or others,
    /// up to the first line that `stops` it.
    pub(super) fn pop_run(
        &mut self,
        suspects: bool,
        stops: [bool; LOGS.len()],
        mut share: Room,
        batch: &mut Room,
    ) -> Vec<Item> {
        let (is_alone, first) = (self.in_flight == 0, self.turn());
        let in_hand: usize = self.lines.iter().map(|line| line.items.len()).sum();
        let of_its_size = self.head().map_or(0, |(_, item)| 1 + share.bytes / layout::size(&item.record));
        let mut items = Vec::with_capacity(in_hand.min(share.records).min(of_its_size));
        while let Some((line, item)) = self.head().filter(|(line, _)| is_alone || first == Some(*line)) {
            let most = item.history.batch_most;
            let around = if items.is_empty() { layout::group_size(&item.record) } else { 0 };
            let bytes = around + layout::size(&item.record);
            // Never more than the share, except a single record, which only has to fit in the batch.
            let fits = batch.fits(bytes) && share.fits(bytes) && share.admits(most);
            if stops[line] || item.history.is_suspect() != suspects || !fits || !batch.admits(most) {
                break;
            }
            batch.take(bytes, most);
            share.take(bytes, most);
            items.extend(self.pop());
        }
        items
    }

    /// The index in this line of the first record, after the head, whose refusal is not confirmed.
    pub(super) fn behind_confirmed(&self, line: usize) -> Option<usize> {
        let mut behind = self.lines[line].items.iter().skip(1);
        behind.position(|item| !item.history.is_confirmed()).map(|index| index + 1)
    }

    /// A record in flight has come back or is settled.
    pub(super) fn landed(&mut self) {
        self.in_flight -= 1;
    }

    /// Returns a record to its place.
    pub(super) fn put_back(&mut self, item: Item) {
        if let Some(at) = place(item.ticket.log) {
            self.lines[at].put_back(item);
        }
    }

    /// Loads a record, if there is room: `most` per log.
    ///
    /// Does not load it while its predecessors must be read again: it could not be sent, and would take the room they need.
    pub(super) fn load(&mut self, item: Item, most: usize) -> bool {
        let Some(at) = place(item.ticket.log) else { return false };
        let before_it = &self.lines[..at];
        let has_room = before_it.iter().all(|line| line.is_whole() || !line.items.is_empty());
        self.lines[at].load(item, if has_room { most } else { 0 })
    }

    /// The log that must be read again before the lane can continue, unless it is already being read.
    pub(super) fn wants_refill(&self, most: usize) -> Option<Log> {
        let at = self.lines.iter().position(|line| !line.is_done())?;
        self.lines[at].wants_refill(most).then(|| LOGS[at])
    }

    pub(super) fn holds_any(&self) -> bool {
        self.lines.iter().any(|line| !line.items.is_empty())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lines.iter().all(LaneQueue::is_done)
    }
}
