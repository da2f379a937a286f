//! Verifies an outbox in use: every checksum and every count, in short steps between maintenance's other work.
//!
//! Counts change while they are checked. Appended records only increase, up to an end determined first; settled ones only
//! increase, so the result must lie between two readings; a segment that leaves the catalog meanwhile was settled, or is
//! met again in its successor.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::verify::{SegmentCheck, Verified, compare_sums, quarantined};
use crate::outbox::api::handle::Outbox;
use crate::outbox::format::log::Log;
use crate::outbox::format::schema::Tally;
use crate::outbox::segments::segment::{ReadError, Segment};
use crate::outbox::state::shared::Shared;

/// Duration of a step, and of the pause for maintenance before the next.
const STEP: Duration = Duration::from_millis(5);
/// Dead letters per step.
const LETTERS_AT_ONCE: u64 = 500;

impl Outbox {
    /// Reads and checks everything, and changes nothing. `progress` gets the number of records read so far.
    pub async fn inspect(&self, mut progress: impl FnMut(u64)) -> Result<Verified, ReadError> {
        let mut found = Verified::default();
        let last = self.shared.state().segments.last().map_or(0, |listed| listed.segment.id);
        let mut behind = 0;
        while let Some(mut pass) = Pass::after(&self.shared, behind, last) {
            behind = pass.check.id;
            let mut is_through = false;
            while !is_through {
                (pass, is_through) = self.step(move |shared| pass.read_on(shared)).await?;
                progress(found.records + pass.check.records);
            }
            // If it left the catalog it was settled, or carried into the next segment.
            if let Some(listed) = self.shared.state().listed(behind) {
                pass.check.compare(&listed.info);
                found.add(pass.check);
            }
        }
        self.inspect_letters(&mut found).await?;
        let (waiting, problems) = self.step(sums).await?;
        found.waiting = waiting;
        found.problems.extend(problems);
        Ok(found)
    }

    async fn inspect_letters(&self, found: &mut Verified) -> Result<(), ReadError> {
        let count = |shared: &Shared| {
            // During a save the letters to save are nowhere.
            shared.wait_for_save();
            let state = shared.state();
            // Letters that are not in the ledger yet are not expected; removed ones that still are there are.
            let (coming, going) = (state.letters.len() as u64, state.dropped.len() as u64);
            let counted = (state.counters.dead_letters + going).saturating_sub(coming);
            (state.counters.next_dead_letter - coming, counted)
        };
        let (next, counted) = self.step(count).await?;
        let mut from = Some(0);
        while let Some(at) = from {
            let (read, next_from, problems) = self.step(move |shared| read_letters(shared, at, next)).await?;
            found.dead_letters += read;
            found.problems.extend(problems);
            from = next_from;
        }
        let state = self.shared.state();
        let come = state.counters.next_dead_letter - next;
        let gone = (counted + come).saturating_sub(state.counters.dead_letters);
        // Some of the deleted ones may have been read before.
        if found.dead_letters > counted || found.dead_letters + gone < counted {
            found.problems.push(format!("dead letters: {counted} counted, {} found", found.dead_letters));
        }
        Ok(())
    }

    /// Works in maintenance, then rests as long.
    async fn step<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Shared) -> T + Send + 'static,
    ) -> Result<T, ReadError> {
        let begun = Instant::now();
        let done = self.look(work).await;
        tokio::time::sleep(begun.elapsed().min(STEP)).await;
        done.ok_or(ReadError::Closed)
    }
}

/// The reading of one segment.
struct Pass {
    check: SegmentCheck,
    segment: Arc<Segment>,
    /// The end of its numbers when reading began.
    end: u64,
    log: usize,
    from: u64,
}

impl Pass {
    /// For the next segment of the catalog after `behind`, up to `last`.
    fn after(shared: &Shared, behind: u64, last: u64) -> Option<Self> {
        let state = shared.state();
        let listed = state.segments.iter().find(|listed| (behind + 1..=last).contains(&listed.segment.id))?;
        let info = listed.info.clone();
        let (end, from) = (info.end.unwrap_or(state.totals.next), info.base);
        let (check, segment) = (SegmentCheck::new(listed.segment.id, info), Arc::clone(&listed.segment));
        Some(Self { check, segment, end, log: 0, from })
    }

    /// Reads for a while. True when the segment is finished.
    fn read_on(mut self, shared: &Shared) -> (Self, bool) {
        if shared.state().listed(self.check.id).is_none() {
            return (self, true);
        }
        let begun = Instant::now();
        while begun.elapsed() < STEP {
            let Some(log) = Log::ALL.get(self.log) else { return (self, true) };
            if let Err(error) = self.read_log(shared, *log, begun) {
                self.check.problem(error);
                return (self, true);
            }
        }
        (self, false)
    }

    fn read_log(&mut self, shared: &Shared, log: Log, begun: Instant) -> Result<(), ReadError> {
        let Self { check, segment, .. } = self;
        if self.log == 0 && self.from == check.info.base {
            segment.begin()?;
            segment.totals()?;
            segment.recent()?;
        }
        let (mut next, end) = (None, self.end);
        segment.read(log, self.from, |first, pack| {
            if first >= end {
                return false;
            }
            if begun.elapsed() >= STEP {
                next = Some(first);
                return false;
            }
            check.pack(&shared.state().settled[log.index()], log, first, pack);
            true
        })?;
        match next {
            Some(first) => self.from = first,
            None => (self.log, self.from) = (self.log + 1, check.info.base),
        }
        Ok(())
    }
}

/// Some dead letters below `next`: their number, where to continue, and read errors.
fn read_letters(shared: &Shared, from: u64, next: u64) -> (u64, Option<u64>, Vec<String>) {
    let (mut found, mut seen, mut at, mut problems) = (0, 0, None, Vec::new());
    let begun = Instant::now();
    let read = shared.ledger.letters(from, |(id, letter, _)| {
        if id >= next {
            return false;
        }
        if seen >= LETTERS_AT_ONCE || seen > 0 && begun.elapsed() >= STEP {
            at = Some(id);
            return false;
        }
        seen += 1;
        match letter {
            Ok(_) => found += 1,
            Err(error) => problems.push(format!("dead letter {id}: {error}")),
        }
        true
    });
    if let Err(error) = read {
        problems.push(format!("ledger: {error}"));
    }
    (found, at, problems)
}

/// The waiting records by the segments' counts, any disagreement with the counters, and the contents of the quarantine.
fn sums(shared: &Shared) -> (u64, Vec<String>) {
    let (waiting, mut problems) = {
        let state = shared.state();
        let waiting =
            state.segments.iter().fold(Tally::default(), |sum, listed| sum.plus(&listed.info.waiting()));
        let enqueued = state.counters.enqueued(&state.totals);
        (waiting.total(), compare_sums(enqueued, &state.counters, &waiting))
    };
    problems.extend(quarantined(&shared.settings.dir));
    (waiting, problems)
}
