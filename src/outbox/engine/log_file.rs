//! Reads sled's log in the file `db` without sled.
//!
//! sled treats the first unreadable part as the torn end of its log, and overwrites everything after it with zeros. After a
//! power cut that is right, but after a flipped bit it destroys everything committed since. So a log is examined before
//! sled opens it ([`hole`]), and the readable part of a damaged log is read here ([`RecoveredPairs`]).
//!
//! # Format
//!
//! The format is that of sled 0.34 (`pagecache/logger.rs`, `serialization.rs`), which is frozen. The file is a sequence of
//! sled's segments, in no particular order; each begins with its log sequence number and contains messages:
//!
//! ```text
//! segment   crc32 of the rest of the header, !lsn, !stable lsn; messages; a cap, or too little room for another
//! message   crc32 of the body and of the rest of the header, kind, length, segment's number, page; the body
//! node      a whole page: neighbours, the keys' common prefix, its bounds, and the keys and values of a leaf
//! link      a change of a page: a key, without that prefix, set to a value or removed
//! manifest  the following messages, up to a sequence number, are one batch
//! ```

mod message;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{ErrorKind, Result};
use std::ops::{Bound, ControlFlow};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::database::SLED_SEGMENT_BYTES;
use message::{Leaf, LogMessage, kind, link};

const SEGMENT: usize = SLED_SEGMENT_BYTES;
const SEGMENT_HEADER: usize = 20;
/// No message begins closer to a segment's end than this.
const LARGEST_HEADER: usize = 32;

/// Found while walking through the log, in the order of its sequence numbers.
enum LogItem<'a> {
    Message(LogMessage<'a>),
    /// From here to the next find, nothing can be read.
    Hole,
}

/// A position in the log: its offset in the file, and its sequence number.
#[derive(Clone, Copy)]
struct LogPosition {
    at: u64,
    lsn: u64,
}

/// Walks through the log in the order of sequence numbers. Returns the highest number that a header calls stable.
fn walk(file: &File, mut visit: impl FnMut(LogPosition, LogItem<'_>) -> ControlFlow<()>) -> Result<u64> {
    let (mut segment, mut order, mut stable) = (Vec::new(), BTreeMap::new(), 0);
    let len = file.metadata()?.len();
    for offset in (0..len).step_by(SEGMENT) {
        load(file, offset, SEGMENT_HEADER, &mut segment)?;
        let mut number = number_of(&segment);
        if number.is_none() {
            load(file, offset, SEGMENT, &mut segment)?;
            number = number_of(&segment);
        }
        let Some((number, is_sure)) = number else { continue };
        if is_sure {
            stable = stable.max(stable_of(&segment));
        }
        // If two have the same number, one was about to be rewritten.
        let place = order.entry(number).or_insert((offset, is_sure));
        if is_sure && !place.1 {
            *place = (offset, is_sure);
        }
    }
    for (number, (offset, is_sure)) in order {
        load(file, offset, SEGMENT, &mut segment)?;
        let place =
            |at: usize| LogPosition { at: offset + at as u64, lsn: number * SEGMENT as u64 + at as u64 };
        if !is_sure && visit(place(0), LogItem::Hole).is_break()
            || walk_segment(&segment, number, |at, item| visit(place(at), item)).is_break()
        {
            break;
        }
    }
    Ok(stable)
}

/// Loads `len` bytes, or as many as exist.
fn load(file: &File, offset: u64, len: usize, segment: &mut Vec<u8>) -> Result<()> {
    segment.resize(len, 0);
    let mut filled = 0;
    while filled < len {
        match file.read_at(&mut segment[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    segment.truncate(filled);
    Ok(())
}

/// The segment's number, and whether its header is the source; otherwise the first readable message is. `None` if nothing
/// in the segment is readable.
fn number_of(segment: &[u8]) -> Option<(u64, bool)> {
    let header = segment.first_chunk::<SEGMENT_HEADER>()?;
    let crc32 = u32::from_le_bytes(*header.first_chunk()?) ^ u32::MAX;
    let lsn = i64::from_le_bytes(*header[4..].first_chunk()?) ^ i64::MAX;
    let number =
        u64::try_from(lsn).ok().filter(|lsn| lsn % SEGMENT as u64 == 0).map(|lsn| lsn / SEGMENT as u64);
    if let Some(number) = number.filter(|_| crc32fast::hash(&header[4..]) == crc32) {
        return Some((number, true));
    }
    if is_blank(segment) {
        return None;
    }
    (SEGMENT_HEADER..segment.len())
        .find_map(|at| LogMessage::read(segment, at, None))
        .map(|first| (first.segment, false))
}

/// The log's state according to a segment's header: the sequence number up to which it was written.
fn stable_of(segment: &[u8]) -> u64 {
    let stable = segment.get(12..).and_then(<[u8]>::first_chunk).map(|stable| i64::from_le_bytes(*stable));
    stable.map_or(0, |stable| u64::try_from(stable ^ i64::MAX).unwrap_or(0))
}

fn is_blank(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

fn walk_segment(
    segment: &[u8],
    number: u64,
    mut visit: impl FnMut(usize, LogItem<'_>) -> ControlFlow<()>,
) -> ControlFlow<()> {
    let mut at = SEGMENT_HEADER;
    while at + LARGEST_HEADER <= SEGMENT {
        let Some(message) = LogMessage::read(segment, at, None) else {
            visit(at, LogItem::Hole)?;
            let rest = segment.get(at..).unwrap_or_default();
            if is_blank(rest) {
                break;
            }
            let next =
                (at + 1..segment.len()).find(|at| LogMessage::read(segment, *at, Some(number)).is_some());
            match next {
                Some(next) => at = next,
                None => break,
            }
            continue;
        };
        if message.segment != number {
            // sled has begun to reuse the space: the old contents are no longer needed.
            break;
        }
        let (is_cap, next) = (message.kind == kind::CAP, message.body_at + message.body.len());
        visit(at, LogItem::Message(message))?;
        if is_cap {
            break;
        }
        at = next;
    }
    ControlFlow::Continue(())
}

/// The extent of a log, and its missing parts.
///
/// A batch begins only once the previous one is on disk, so only the last batch can be torn. The log does not show whether
/// a missing segment was never written or is no longer needed: when sled opens a database, it zeroes unneeded segments as
/// soon as its snapshot is on disk. So below the sequence number in a snapshot's name, or the one that a header calls
/// stable, a missing part does not mean unwritten data.
#[derive(Default)]
struct Survey {
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
    fn of(file: &File, path: &Path) -> Result<Self> {
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
    fn damage(&self) -> Option<u64> {
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
    fn end_of_whole_batches(&self) -> u64 {
        let cut = self.missing.iter().find(|missing| **missing >= self.stable).copied().unwrap_or(u64::MAX);
        if self.is_torn(cut) { self.begin } else { cut }
    }

    /// The same for a damaged log: a gap within the last batch counts as damage if the batch's end is present.
    fn end_of_damaged(&self) -> u64 {
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

/// Where in `path` something is unreadable although data follows, or where the log ends before its snapshot does. `None` if
/// there is no such position: a torn end does not count.
pub(crate) fn hole(path: &Path) -> Result<Option<u64>> {
    Ok(Survey::of(&File::open(path)?, path)?.damage())
}

/// The offset of a value in the file, and its length.
type Lies = (u64, usize);

/// A leaf as last written, with its later changes.
struct LeafPage {
    lsn: u64,
    /// The leaf to the right, if any.
    next: Option<u64>,
    bounds: (Bound<Vec<u8>>, Bound<Vec<u8>>),
    prefix: Vec<u8>,
    /// The keys without the prefix.
    pairs: BTreeMap<Vec<u8>, Lies>,
}

/// The leaves from the leftmost on. A split interrupted by a kill or power cut leaves a leaf that no other leads to: it is
/// excluded, however often sled rewrites it. `None` if the chain ends before the last leaf.
fn in_use(pages: &HashMap<u64, LeafPage>) -> Option<Vec<&LeafPage>> {
    let is_first = |page: &&LeafPage| matches!(&page.bounds.0, Bound::Included(low) if low.is_empty());
    let mut chain = vec![pages.values().filter(is_first).max_by_key(|page| page.lsn)?];
    while let Some(next) = chain.last().and_then(|page| page.next) {
        // Longer than the number of pages: the chain is a cycle.
        chain.push(pages.get(&next).filter(|_| chain.len() < pages.len())?);
    }
    Some(chain)
}

/// The contents of these pages. If they overlap, as may happen in a damaged log, the latest one wins.
fn merge(mut pages: Vec<&LeafPage>, is_key: impl Fn(&[u8]) -> bool) -> BTreeMap<Vec<u8>, Lies> {
    pages.sort_by_key(|page| page.lsn);
    let mut values: BTreeMap<Vec<u8>, Lies> = BTreeMap::new();
    for page in pages {
        let gone = values.range::<Vec<u8>, _>(page.bounds.clone()).map(|(key, _)| key.clone());
        for key in gone.collect::<Vec<_>>() {
            values.remove(&key);
        }
        let whole = page.pairs.iter().map(|(key, lies)| ([&page.prefix[..], key].concat(), *lies));
        values.extend(whole.filter(|(key, _)| is_key(key)));
    }
    values
}

/// The readable keys and values of a log.
pub(crate) struct RecoveredPairs {
    file: File,
    values: BTreeMap<Vec<u8>, Lies>,
}

impl RecoveredPairs {
    /// Reads everything readable in a log that may be damaged. A key counts only if `is_key` recognises it: next to an
    /// unreadable page, the remains of a key may form an invalid one.
    pub(crate) fn read(path: &Path, is_key: impl Fn(&[u8]) -> bool) -> Result<Self> {
        let file = File::open(path)?;
        let end = Survey::of(&file, path)?.end_of_damaged();
        let pages = Self::pages(&file, end)?;
        Ok(Self { file, values: merge(pages.values().collect(), is_key) })
    }

    /// Reads an undamaged log as sled would: a torn batch was never committed.
    pub(crate) fn read_whole_batches(path: &Path, is_key: impl Fn(&[u8]) -> bool) -> Result<Self> {
        let file = File::open(path)?;
        let end = Survey::of(&file, path)?.end_of_whole_batches();
        let pages = Self::pages(&file, end)?;
        let chain = in_use(&pages).unwrap_or_else(|| pages.values().collect());
        Ok(Self { file, values: merge(chain, is_key) })
    }

    /// The leaves of the log up to a sequence number, each as last written.
    fn pages(file: &File, end: u64) -> Result<HashMap<u64, LeafPage>> {
        let mut pages: HashMap<u64, LeafPage> = HashMap::new();
        walk(file, |LogPosition { at, lsn }, item| {
            if lsn >= end {
                return ControlFlow::Break(());
            }
            let LogItem::Message(message) = item else { return ControlFlow::Continue(()) };
            let place_of = |value: &[u8]| {
                let within = value.as_ptr() as usize - message.body.as_ptr() as usize;
                let body_at = at - at % SEGMENT as u64 + message.body_at as u64;
                (body_at + within as u64, value.len())
            };
            match message.kind {
                kind::NODE => {
                    pages.remove(&message.page);
                    if let Some(leaf) = Leaf::read(message.body) {
                        let pairs = leaf.pairs.iter().map(|(key, value)| (key.to_vec(), place_of(value)));
                        let (low, high) = leaf.bounds();
                        let page = LeafPage {
                            lsn,
                            next: leaf.next,
                            bounds: (low.map(<[u8]>::to_vec), high.map(<[u8]>::to_vec)),
                            prefix: leaf.prefix.to_vec(),
                            pairs: pairs.collect(),
                        };
                        pages.insert(message.page, page);
                    }
                }
                kind::LINK => {
                    let Some(page) = pages.get_mut(&message.page) else { return ControlFlow::Continue(()) };
                    match link(message.body) {
                        Some((key, Some(value))) => {
                            page.pairs.insert(key.to_vec(), place_of(value));
                        }
                        Some((key, None)) => {
                            page.pairs.remove(key);
                        }
                        None => {}
                    }
                }
                kind::FREE => drop(pages.remove(&message.page)),
                _ => {}
            }
            ControlFlow::Continue(())
        })?;
        Ok(pages)
    }

    /// Passes the pairs whose keys begin with `prefix`, from `from` on, to `visit` until it returns false.
    pub(crate) fn scan(
        &self,
        prefix: &[u8],
        from: &[u8],
        mut visit: impl FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<()> {
        let mut value = Vec::new();
        for (key, (at, len)) in self.values.range(from.to_vec()..) {
            if !key.starts_with(prefix) {
                break;
            }
            value.resize(*len, 0);
            self.file.read_exact_at(&mut value, *at)?;
            if !visit(key, &value) {
                break;
            }
        }
        Ok(())
    }
}
