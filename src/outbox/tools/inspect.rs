//! Verifies an outbox in use: every checksum and every count, in short steps between maintenance's other work.
//!
//! Counts change while they are checked. Appended records only increase, up to an end determined first; settled ones only
//! increase, so the result must lie between two readings; a segment that leaves the catalog meanwhile was settled, or is
//! met again in its successor.

use std::time::{Duration, Instant};

use super::verify::Verified;
use crate::outbox::api::handle::Outbox;
use crate::outbox::format::log::Log;
use crate::outbox::format::schema::{SegmentInfo, Tally};
use crate::outbox::recovery::quarantine;
use crate::outbox::segments::segment::{ReadError, Segment};
use crate::outbox::state::shared::Shared;
use crate::record::Kind;

/// Duration of a step, and of the pause for maintenance before the next.
const STEP: Duration = Duration::from_millis(5);
/// Dead letters per step.
const LETTERS_AT_ONCE: u64 = 500;

/// A verification in progress. Dropping it ends it; it changes nothing.
pub struct Inspection {
    outbox: Outbox,
    found: Verified,
    stage: InspectionStage,
}

enum InspectionStage {
    /// Continue with the next segment, unless this was the last.
    Next {
        behind: u64,
        last: u64,
    },
    Segment {
        pass: Box<Pass>,
        last: u64,
    },
    Letters(DeadLetterPass),
    Sums,
    Done,
}

/// The verification of one segment.
struct Pass {
    id: u64,
    /// As it was when reading began.
    info: SegmentInfo,
    /// The end of its numbers, then or now.
    end: u64,
    log: usize,
    from: u64,
    records: u64,
    appended: Tally,
    settled: Tally,
    problems: Vec<String>,
}

struct DeadLetterPass {
    from: u64,
    /// The counters at the beginning: the next number, and the number of letters.
    next: u64,
    counted: u64,
    found: u64,
}

impl Outbox {
    /// Starts reading and checking everything. See [`Inspection::step`].
    pub fn inspect(&self) -> Inspection {
        let last = self.shared.state().segments.last().map_or(0, |listed| listed.segment.id);
        let stage = InspectionStage::Next { behind: 0, last };
        Inspection { outbox: self.clone(), found: Verified::default(), stage }
    }
}

impl Inspection {
    /// The number of records read so far.
    pub fn records(&self) -> u64 {
        let reading = if let InspectionStage::Segment { pass, .. } = &self.stage { pass.records } else { 0 };
        self.found.records + reading
    }

    /// Works for some milliseconds, then rests as long. Returns the result when everything has been read.
    pub async fn step(&mut self) -> Result<Option<Verified>, ReadError> {
        let stage = std::mem::replace(&mut self.stage, InspectionStage::Done);
        let begun = Instant::now();
        self.stage = match stage {
            InspectionStage::Next { behind, last } => {
                self.outbox.look(move |shared| begin(shared, behind, last)).await?
            }
            InspectionStage::Segment { pass, last } => {
                let (pass, all_read) = self.outbox.look(move |shared| pass.read_on(shared)).await?;
                if all_read {
                    self.end_of_segment(*pass, last)
                } else {
                    InspectionStage::Segment { pass, last }
                }
            }
            InspectionStage::Letters(letters) => self.letters(letters).await?,
            InspectionStage::Sums => {
                let (waiting, problems) = self.outbox.look(sums).await?;
                self.found.waiting = waiting;
                self.found.problems.extend(problems);
                InspectionStage::Done
            }
            InspectionStage::Done => return Ok(Some(self.found.clone())),
        };
        tokio::time::sleep(begun.elapsed().min(STEP)).await;
        Ok(None)
    }

    fn end_of_segment(&mut self, mut pass: Pass, last: u64) -> InspectionStage {
        let id = pass.id;
        {
            let state = self.outbox.shared.state();
            let listed = state.segments.iter().find(|listed| listed.segment.id == id);
            if let Some(listed) = listed {
                pass.compare(&listed.info);
                self.found.segments += 1;
                self.found.records += pass.records;
                self.found.problems.append(&mut pass.problems);
            }
        }
        InspectionStage::Next { behind: id, last }
    }

    async fn letters(&mut self, mut letters: DeadLetterPass) -> Result<InspectionStage, ReadError> {
        let (from, next) = (letters.from, letters.next);
        let (found, at, problems) = self.outbox.look(move |shared| read_letters(shared, from, next)).await?;
        letters.found += found;
        self.found.problems.extend(problems);
        if let Some(at) = at {
            return Ok(InspectionStage::Letters(DeadLetterPass { from: at, ..letters }));
        }
        self.found.dead_letters = letters.found;
        let state = self.outbox.shared.state();
        let come = state.counters.next_dead_letter - letters.next;
        let gone = (letters.counted + come).saturating_sub(state.counters.dead_letters);
        // Some of the deleted ones may have been read before.
        if letters.found > letters.counted || letters.found + gone < letters.counted {
            let (counted, found) = (letters.counted, letters.found);
            self.found.problems.push(format!("dead letters: {counted} counted, {found} found"));
        }
        Ok(InspectionStage::Sums)
    }
}

/// The next segment of the catalog, or the dead letters.
fn begin(shared: &Shared, behind: u64, last: u64) -> InspectionStage {
    {
        let state = shared.state();
        let next =
            state.segments.iter().find(|listed| listed.segment.id > behind && listed.segment.id <= last);
        if let Some(listed) = next {
            let info = listed.info.clone();
            let (end, from) = (info.end.unwrap_or(state.totals.next), info.base);
            let pass = Pass {
                id: listed.segment.id,
                info,
                end,
                log: 0,
                from,
                records: 0,
                appended: Tally::default(),
                settled: Tally::default(),
                problems: Vec::new(),
            };
            return InspectionStage::Segment { pass: Box::new(pass), last };
        }
    }
    let state = shared.state();
    // Letters that are not in the ledger yet are not expected; removed ones that still are there are.
    let (coming, going) = (state.letters.len() as u64, state.dropped.len() as u64);
    let next = state.counters.next_dead_letter - coming;
    let counted = (state.counters.dead_letters + going).saturating_sub(coming);
    InspectionStage::Letters(DeadLetterPass { from: 0, next, counted, found: 0 })
}

impl Pass {
    /// Reads for a while. True when the segment is finished.
    fn read_on(mut self: Box<Self>, shared: &Shared) -> (Box<Self>, bool) {
        let segment = {
            let state = shared.state();
            let listed = state.segments.iter().find(|listed| listed.segment.id == self.id);
            listed.map(|listed| std::sync::Arc::clone(&listed.segment))
        };
        // It left the catalog: settled, or carried into the next segment.
        let Some(segment) = segment else { return (self, true) };
        let begun = Instant::now();
        while begun.elapsed() < STEP {
            let Some(log) = Log::ALL.get(self.log) else { return (self, true) };
            if let Err(error) = self.read_log(shared, &segment, *log, begun) {
                self.problems.push(format!("segment {}: {error}", self.id));
                return (self, true);
            }
        }
        (self, false)
    }

    fn read_log(
        &mut self,
        shared: &Shared,
        segment: &Segment,
        log: Log,
        begun: Instant,
    ) -> Result<(), ReadError> {
        if self.log == 0 && self.from == self.info.base {
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
            match pack {
                Ok((_, entries)) => {
                    let state = shared.state();
                    let settled = &state.settled[log.index()];
                    for (seq, entry) in (first..).zip(&entries) {
                        self.appended.add(log, entry.kind(), 1);
                        if settled.is_settled(seq) {
                            self.settled.add(log, entry.kind(), 1);
                        }
                    }
                    self.records += entries.len() as u64;
                }
                Err(error) => {
                    let id = self.id;
                    self.problems.push(format!("segment {id}: {} pack {first}: {error}", log.label()));
                }
            }
            true
        })?;
        match next {
            Some(first) => self.from = first,
            None => (self.log, self.from) = (self.log + 1, self.info.base),
        }
        Ok(())
    }

    /// Compares what was found with the counts, then and now.
    fn compare(&mut self, now: &SegmentInfo) {
        for (kind, name) in Kind::ALL.map(Kind::name).into_iter().enumerate() {
            let of = |tally: &Tally| tally.by_kind()[kind];
            let (counted, found) = (of(&self.info.appended), of(&self.appended));
            if counted != found {
                self.problems.push(format!("segment {}: {counted} {name} counted, {found} found", self.id));
            }
            let (least, most, found) = (of(&self.info.settled), of(&now.settled), of(&self.settled));
            if found < least || found > most {
                let counted = if least == most { least.to_string() } else { format!("{least} to {most}") };
                let id = self.id;
                self.problems.push(format!("segment {id}: {counted} settled {name} counted, {found} found"));
            }
        }
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
    let mut problems = Vec::new();
    let waiting = {
        let state = shared.state();
        let waiting =
            state.segments.iter().fold(Tally::default(), |sum, listed| sum.plus(&listed.info.waiting()));
        for (kind, enqueued) in state.enqueued().into_iter().enumerate() {
            let (gone, waits) = (state.counters.gone(kind), waiting.by_kind()[kind]);
            if enqueued != gone + waits {
                let name = Kind::ALL[kind].name();
                problems.push(format!("{name}: {enqueued} enqueued, but {gone} gone and {waits} waiting"));
            }
        }
        waiting.total()
    };
    for (folder, report) in quarantine::list(&shared.settings.dir).unwrap_or_default() {
        if report.salvaged_at.is_none() {
            problems.push(format!("{}: {} records set aside", folder.display(), report.records));
        }
    }
    (waiting, problems)
}
