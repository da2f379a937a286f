//! How far a log goes, and what of it is missing.

use std::fs::File;
use std::io::Result;
use std::ops::ControlFlow;
use std::path::Path;

use super::message::kind;
use super::{LARGEST_HEADER, LogItem, LogPosition, SEGMENT, walk};

/// The extent of a log, and its missing parts.
///
/// A batch begins only once the previous one is on disk, so only the last batch can be torn. The log does not show whether
/// a missing segment was never written or is no longer needed: when sled opens a database, it zeroes unneeded segments as
/// soon as its snapshot is on disk. So below the sequence number in a snapshot's name, or the one that a header calls
/// stable, a missing part does not mean unwritten data.
#[derive(Default)]
pub(super) struct Survey {
    /// The start of the last batch, and its last byte.
    begin: u64,
    end: u64,
    /// The end of its last readable part.
    next: u64,
    /// Unreadable parts and missing segments from the start of the last batch on.
    missing: Vec<u64>,
    stable: u64,
    snapshot: Option<u64>,
    first_hole: Option<LogPosition>,
    /// The last missing segment, with the position of the next one; and the last such gap before the last batch.
    gap: Option<LogPosition>,
    gap_before_batch: Option<LogPosition>,
    /// A batch begins after something unreadable.
    has_batch_behind_hole: bool,
}

impl Survey {
    pub(super) fn of(file: &File, path: &Path) -> Result<Self> {
        let mut survey = Self::default();
        let mut last_segment = None;
        let stable = walk(file, |place, item| {
            survey.note(place, &item, last_segment.replace(place.lsn / SEGMENT as u64));
            ControlFlow::Continue(())
        })?;
        survey.snapshot = newest_snapshot(path)?;
        survey.stable = stable.max(survey.snapshot.unwrap_or(0));
        Ok(survey)
    }

    fn note(&mut self, place: LogPosition, item: &LogItem<'_>, last_segment: Option<u64>) {
        if let Some(missed) =
            last_segment.map(|last| last + 1).filter(|next| *next < place.lsn / SEGMENT as u64)
        {
            let gap = LogPosition { lsn: missed * SEGMENT as u64, ..place };
            self.missing.push(gap.lsn);
            self.gap = Some(gap);
        }
        self.next = place.lsn;
        match item {
            LogItem::Hole => {
                self.missing.push(place.lsn);
                self.first_hole.get_or_insert(place);
            }
            LogItem::Message(message) => {
                self.next += (message.body_at + message.body.len()) as u64 - place.at % SEGMENT as u64;
                if message.kind == kind::MANIFEST
                    && let Some(end) = message.body.first_chunk()
                {
                    (self.begin, self.end) = (place.lsn, u64::from_le_bytes(*end));
                    self.missing.clear();
                    self.gap_before_batch = self.gap;
                    self.has_batch_behind_hole |= self.first_hole.is_some();
                }
            }
        }
    }

    /// Where the log is damaged, as far as it shows. An unreadable part may also be one that is no longer needed.
    pub(super) fn damage(&self) -> Option<u64> {
        let is_hole = |hole: &LogPosition| self.has_batch_behind_hole || hole.lsn < self.stable;
        let hole = self.first_hole.filter(is_hole).map(|hole| hole.at);
        // Near a segment's end sled counts from the next segment on.
        let is_short = self.snapshot.is_some_and(|snapshot| self.next + (LARGEST_HEADER as u64) < snapshot);
        // The database was opened before and lost its snapshot: sled would see a torn end here, although a batch follows.
        let is_end = |gap: &LogPosition| self.snapshot.is_none() && gap.lsn >= self.stable;
        let gap = self.gap_before_batch.filter(is_end).map(|gap| gap.at);
        hole.or(gap).or(is_short.then_some(self.next))
    }

    fn is_torn(&self, from: u64) -> bool {
        self.end >= self.stable && from.min(self.next) <= self.end
    }

    /// The position from which nothing counts: the start of the last batch if part of it is missing, otherwise the first
    /// gap after it.
    pub(super) fn end_of_whole_batches(&self) -> u64 {
        let cut = self.missing.iter().find(|missing| **missing >= self.stable).copied().unwrap_or(u64::MAX);
        if self.is_torn(cut) { self.begin } else { cut }
    }

    /// The same for a damaged log: a gap within the last batch counts as damage if the batch's end is present.
    pub(super) fn end_of_damaged(&self) -> u64 {
        let behind =
            self.missing.iter().find(|missing| **missing >= self.stable.max(self.end.saturating_add(1)));
        if self.is_torn(u64::MAX) { self.begin } else { behind.copied().unwrap_or(u64::MAX) }
    }
}

/// The sequence number up to which sled had read the log in `path` at the last opening: the name of its snapshot. The
/// snapshot's contents may be damaged.
fn newest_snapshot(path: &Path) -> Result<Option<u64>> {
    let mut newest = None;
    for entry in std::fs::read_dir(path.parent().unwrap_or(Path::new(".")))? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("snap.")?.split('.').next());
        newest = newest.max(number.and_then(|number| u64::from_str_radix(number, 16).ok()));
    }
    Ok(newest)
}
