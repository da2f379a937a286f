//! Frees disk space: deletes settled segments, carries the last records of a large segment forward, and quarantines a
//! segment with missing records once its other records are settled.

use std::sync::Arc;

use tokio::time::Instant;

use super::Maintenance;
use super::reading::OPEN_SEGMENTS;
use crate::outbox::engine::batch::WriteBatch;
use crate::outbox::format::log::Log;
use crate::outbox::segments::segment::{self, Listed, ReadError, Segment};
use crate::outbox::segments::settlement::Settled;
use crate::outbox::state::space::FULL;
use crate::time::Moment;

const QUARANTINING: &str = "quarantining a damaged segment";
const CARRYING: &str = "carrying on the last records of a segment";
/// A sealed segment at least this large (as a fraction of a full one) ...
const LARGE: u64 = 4;
/// ... with at most this fraction still waiting is emptied into the next one.
const STRAGGLERS: u64 = 16;

/// A segment to be emptied, its successor, and the packs with waiting records.
type Straggler = (Arc<Segment>, Arc<Segment>, Vec<(Log, u64)>);

/// The action for a sealed segment.
enum SegmentStatus {
    Stays,
    Settled,
    Missing,
}

fn status_of(listed: &Listed, settled: &[Settled; Log::COUNT]) -> SegmentStatus {
    let (info, waiting) = (&listed.info, listed.info.waiting());
    let of = |log: Log| &settled[log.index()];
    if waiting.total() == 0 {
        // The counts say so; the marks must agree before anything is deleted.
        let is_covered = |log: &Log| {
            info.ranges[log.index()].is_none_or(|(first, last)| of(*log).covers(first.max(info.base), last))
        };
        return if Log::ALL.iter().all(is_covered) { SegmentStatus::Settled } else { SegmentStatus::Stays };
    }
    let has_all_been_read = |log: &Log| {
        waiting.of(*log) == 0
            || of(*log).frontier() >= info.end() && of(*log).open_in(info.base, info.end()).next().is_none()
    };
    if Log::ALL.iter().all(has_all_been_read) { SegmentStatus::Missing } else { SegmentStatus::Stays }
}

impl Maintenance {
    pub(super) fn tidy(&mut self) {
        // While the folder is missing, nothing in it is deleted or quarantined.
        if !self.shared.dir_lock.is_in_place() {
            return;
        }
        let mut missing = Vec::new();
        {
            let mut guard = self.shared.state();
            let state = &mut *guard;
            let newest = state.segments.last().map(|listed| listed.segment.id);
            let is_newest = |listed: &Listed| Some(listed.segment.id) == newest;
            let (mut stay, mut leave) = (Vec::new(), Vec::new());
            for listed in std::mem::take(&mut state.segments) {
                match status_of(&listed, &state.settled) {
                    SegmentStatus::Settled if !is_newest(&listed) && listed.faults.is_empty() => {
                        leave.push(listed.segment);
                    }
                    // All of it is settled, but not all of it is readable: it is kept for analysis.
                    SegmentStatus::Settled | SegmentStatus::Missing if !is_newest(&listed) => {
                        missing.push(listed.segment.id);
                        stay.push(listed);
                    }
                    _ => stay.push(listed),
                }
            }
            state.segments = stay;
            state.leaving.extend(leave);
        }
        for id in missing {
            self.quarantine(id, "not all of its records can be read");
        }
    }

    /// Quarantines a damaged segment. False if that is impossible now.
    pub(super) fn quarantine(&mut self, id: u64, why: &str) -> bool {
        match self.shared.quarantine(id, why) {
            Ok(()) => {
                self.troubles.over(QUARANTINING);
                true
            }
            Err(error) => {
                if self.troubles.met(QUARANTINING, &error) {
                    tracing::error!(%error, segment = id, "a damaged segment cannot be quarantined");
                }
                false
            }
        }
    }

    /// Work that is not done at every tick.
    pub(crate) fn chores(&mut self) {
        (self.chores_at, self.copies_totals) = (Instant::now(), true);
        self.shared.dead_letter_log.tick(Instant::now());
        // While the folder is missing, nothing is created in its place, and open files stay open: they can still be read.
        if !self.shared.dir_lock.is_in_place() {
            return;
        }
        self.expire_letters(Moment::now());
        self.shared.reserve.take_back(self.shared.settings.min_free_bytes);
        if self.newest_should_end() {
            self.ask_for_new_segment();
        }
        match self.carry_forward() {
            Ok(()) => self.troubles.over(CARRYING),
            Err(error) => {
                if self.troubles.met(CARRYING, &error) {
                    tracing::warn!(%error, "the last records of a segment cannot be carried on");
                }
            }
        }
        self.shared.delete_lingering();
        self.close_unread(OPEN_SEGMENTS);
    }

    /// Whether the newest segment must be sealed before it is full: if it is damaged; if all of it is settled and it is
    /// large or the outbox is full; or if an old segment waits to be emptied into its successor.
    fn newest_should_end(&self) -> bool {
        let mut state = self.shared.state();
        let large = self.shared.segment_bytes() / LARGE;
        let is_full = *self.shared.paused.borrow() == Some(FULL);
        let Some((newest, older)) = state.segments.split_last_mut() else { return false };
        let is_used = newest.info.appended.total() > 0;
        let is_settled = is_used && newest.info.waiting().total() == 0;
        let is_waited_for = is_used
            && older.last_mut().is_some_and(|before| is_straggling(before, self.shared.segment_bytes()));
        !newest.faults.is_empty() || is_waited_for || is_settled && (is_full || newest.disk_bytes() >= large)
    }

    /// Copies the few packs of an old segment that still wait to the next segment, with their numbers, and releases the old
    /// one.
    ///
    /// The packs keep their positions in their logs, so order, tickets and marks do not change. One segment per call.
    fn carry_forward(&mut self) -> Result<(), ReadError> {
        let Some((old, next, packs)) = self.straggler() else { return Ok(()) };
        let mut batch = WriteBatch::default();
        for (log, first) in &packs {
            let Some(value) = old.raw_pack(*log, *first)? else {
                // The missing pack is found and reported when the rest is settled.
                return Ok(());
            };
            segment::put_pack(&mut batch, *log, *first, &value);
        }
        // IMPORTANT: the copies must be durable before the ledger reassigns them. Until then nobody reads them, because
        // they are below the next segment's first number.
        next.commit(batch)?;
        let mut guard = self.shared.state();
        let state = &mut *guard;
        let Some(place) = state.segments.iter().position(|listed| listed.segment.id == old.id) else {
            return Ok(());
        };
        let old = state.segments.remove(place);
        let Some(next) = state.segments.get_mut(place) else { return Ok(()) };
        let (ours, theirs) = (&mut next.info, old.info);
        ours.base = theirs.base;
        ours.appended = ours.appended.plus(&theirs.appended);
        ours.settled = ours.settled.plus(&theirs.settled);
        ours.bytes += theirs.bytes;
        ours.settled_bytes += theirs.settled_bytes;
        for (log, first) in packs {
            let range = &mut ours.ranges[log.index()];
            *range = Some(range.map_or((first, first), |(begin, last)| (begin.min(first), last.max(first))));
        }
        (next.dirty, next.disk_bytes) = (true, None);
        state.leaving.push(old.segment);
        state.counters_dirty = true;
        Ok(())
    }

    /// The segment to be emptied, if any.
    fn straggler(&mut self) -> Option<Straggler> {
        let mut state = self.shared.state();
        let full = self.shared.segment_bytes();
        let sealed = state.segments.len().checked_sub(1)?;
        let seen = std::mem::take(&mut self.stragglers);
        for at in 0..sealed.saturating_sub(1) {
            let listed = &mut state.segments[at];
            if !is_straggling(listed, full) {
                continue;
            }
            let (id, waiting) = (listed.segment.id, listed.info.waiting().total());
            self.stragglers.push((id, waiting));
            let (base, end) = (listed.info.base, listed.info.end());
            // Only if nothing of it was settled since the last check: otherwise it may soon be done anyway.
            let has_settled_down = seen.contains(&(id, waiting));
            let waiting = listed.info.waiting();
            let has_been_read =
                |log: Log| waiting.of(log) == 0 || state.settled[log.index()].frontier() >= end;
            if has_settled_down && Log::ALL.into_iter().all(has_been_read) {
                let packs = Log::ALL.into_iter().flat_map(|log| {
                    state.settled[log.index()].open_in(base, end).map(move |(first, _)| (log, first))
                });
                let segments = (&state.segments[at].segment, &state.segments[at + 1].segment);
                return Some((Arc::clone(segments.0), Arc::clone(segments.1), packs.collect()));
            }
        }
        None
    }
}

fn is_straggling(listed: &mut Listed, full: u64) -> bool {
    listed.faults.is_empty()
        && listed.info.waiting().total() > 0
        && listed.info.waiting_bytes() <= full / STRAGGLERS
        && listed.disk_bytes() >= full / LARGE
}
