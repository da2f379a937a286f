//! sled's log as it lies in the file `db`, read without sled.
//!
//! sled takes the first thing that it cannot read for the torn end of its log, and overwrites all that lies behind it
//! with zeros. After a power cut that is right. After a flipped bit it destroys everything that was committed since. So
//! a log is looked through before sled opens it ([`hole`]), and what can be read of a damaged one is read here
//! ([`RecoveredPairs`]).
//!
//! # Format
//!
//! That of sled 0.34 (`pagecache/logger.rs`, `serialization.rs`), which is frozen. The file is a sequence of sled's segments,
//! in no order; each begins with its log sequence number and holds messages:
//!
//! ```text
//! segment   crc32 of the rest of the header, !lsn, !stable lsn; messages; a cap, or too little room for another
//! message   crc32 of the body and of the rest of the header, kind, length, segment's number, page; the body
//! node      a whole page: neighbours, the keys' common prefix, its bounds, and the keys and values of a leaf
//! link      a change of a page: a key, without that prefix, set to a value or removed
//! manifest  what follows, up to a sequence number, is one batch
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
/// No message begins closer than this to a segment's end.
const LARGEST_HEADER: usize = 32;

/// An item of the log, in the order of its sequence numbers.
enum LogItem<'a> {
    Message(LogMessage<'a>),
    /// From here on, up to the next item, nothing can be read.
    Hole,
}

/// A place in the log: where it lies in the file, and its sequence number.
#[derive(Clone, Copy)]
struct LogPosition {
    at: u64,
    lsn: u64,
}

/// Goes through the log in the order of its sequence numbers. Gives the highest number that a header calls stable.
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
        // Of two of one number, one was about to be written anew.
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

/// Loads `len` bytes, or as many as there are.
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

/// The segment's number, and whether its header says so; else the first message that can be read does. `None` of one
/// that nothing can be read in.
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

/// What a segment's header says of the log: up to this sequence number it had been written.
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
            // sled has begun to use the place anew: what was here is not needed any more.
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

/// How far a log goes, and what is missing of it.
///
/// A batch is begun when the one before it is on the disk, so only the last one can be torn. Of a segment that is not
/// there the log does not say whether it was never written or is not needed any more: sled fills with zeros what it does
/// not need when it opens a database, once its snapshot is on the disk. So below the sequence number in the name of a
/// snapshot, or the one that a header calls stable, nothing is missing because it was not written.
#[derive(Default)]
struct Survey {
    /// Where the last batch begins, and its last byte.
    begin: u64,
    end: u64,
    /// Behind the last thing in it.
    next: u64,
    /// Where something cannot be read, or a segment is not there, from the last batch's beginning on.
    missing: Vec<u64>,
    stable: u64,
    snapshot: Option<u64>,
    first_hole: Option<LogPosition>,
    /// The last segment that is not there, and where the one behind it lies; and the last such before the last batch.
    gap: Option<LogPosition>,
    gap_before_batch: Option<LogPosition>,
    /// A batch begins behind something that cannot be read.
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

    /// Where it is damaged, as far as it says so itself. What cannot be read may be what nobody needs any more.
    fn damage(&self) -> Option<u64> {
        let is_hole = |hole: &LogPosition| self.has_batch_behind_hole || hole.lsn < self.stable;
        let hole = self.first_hole.filter(is_hole).map(|hole| hole.at);
        // Near a segment's end sled counts from the next one on.
        let is_short = self.snapshot.is_some_and(|snapshot| self.next + (LARGEST_HEADER as u64) < snapshot);
        // What was opened before and has lost its snapshot: sled takes this for a torn end, though a batch lies behind it.
        let is_end = |gap: &LogPosition| self.snapshot.is_none() && gap.lsn >= self.stable;
        let gap = self.gap_before_batch.filter(is_end).map(|gap| gap.at);
        hole.or(gap).or(is_short.then_some(self.next))
    }

    fn is_torn(&self, from: u64) -> bool {
        self.end >= self.stable && from.min(self.next) <= self.end
    }

    /// From where on nothing counts: there the last batch begins, if a part of it is missing, or else something is
    /// missing behind it.
    fn end_of_whole_batches(&self) -> u64 {
        let cut = self.missing.iter().find(|missing| **missing >= self.stable).copied().unwrap_or(u64::MAX);
        if self.is_torn(cut) { self.begin } else { cut }
    }

    /// The same of a damaged log: what is missing within the last batch was damaged, if its end is there.
    fn end_of_damaged(&self) -> u64 {
        let behind =
            self.missing.iter().find(|missing| **missing >= self.stable.max(self.end.saturating_add(1)));
        if self.is_torn(u64::MAX) { self.begin } else { behind.copied().unwrap_or(u64::MAX) }
    }
}

/// The sequence number up to which sled had read the log in `path` when it opened it last: the name of its snapshot. What
/// is in that may be damaged.
fn newest_snapshot(path: &Path) -> Result<Option<u64>> {
    let mut newest = None;
    for entry in std::fs::read_dir(path.parent().unwrap_or(Path::new(".")))? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("snap.")?.split('.').next());
        newest = newest.max(number.and_then(|number| u64::from_str_radix(number, 16).ok()));
    }
    Ok(newest)
}

/// Where in `path` something cannot be read though there is more behind it, or the log ends before what a snapshot saw.
/// `None` where there is no such place: a torn end is none.
pub(crate) fn hole(path: &Path) -> Result<Option<u64>> {
    Ok(Survey::of(&File::open(path)?, path)?.damage())
}

/// Where a value lies in the file, and its length.
type Lies = (u64, usize);

/// A leaf as it was written last, and what was changed of it since.
struct LeafPage {
    lsn: u64,
    /// The leaf to the right, if there is one.
    next: Option<u64>,
    bounds: (Bound<Vec<u8>>, Bound<Vec<u8>>),
    prefix: Vec<u8>,
    /// The keys without that prefix.
    pairs: BTreeMap<Vec<u8>, Lies>,
}

/// The leaves from the leftmost on. A split that a kill or power cut stopped half-way leaves a leaf that none leads to: it
/// is not among them, however often sled writes it anew. `None` where the chain has an end that is not the last leaf's.
fn in_use(pages: &HashMap<u64, LeafPage>) -> Option<Vec<&LeafPage>> {
    let is_first = |page: &&LeafPage| matches!(&page.bounds.0, Bound::Included(low) if low.is_empty());
    let mut chain = vec![pages.values().filter(is_first).max_by_key(|page| page.lsn)?];
    while let Some(next) = chain.last().and_then(|page| page.next) {
        // Longer than all pages there are: it goes in a circle.
        chain.push(pages.get(&next).filter(|_| chain.len() < pages.len())?);
    }
    Some(chain)
}

/// What these pages hold. Where they overlap, as those of a damaged log may, the one that was written last is right.
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

/// The keys and values of a log, as far as they can be read.
pub(crate) struct RecoveredPairs {
    file: File,
    values: BTreeMap<Vec<u8>, Lies>,
}

impl RecoveredPairs {
    /// Reads all that can be read of a log that may be damaged. A key counts only if `is_key` knows it: where a page cannot
    /// be read, what is left of a key of it may be made to no key at all.
    pub(crate) fn read(path: &Path, is_key: impl Fn(&[u8]) -> bool) -> Result<Self> {
        let file = File::open(path)?;
        let end = Survey::of(&file, path)?.end_of_damaged();
        let pages = Self::pages(&file, end)?;
        Ok(Self { file, values: merge(pages.values().collect(), is_key) })
    }

    /// Reads a log that is not damaged, as sled does: a batch that is torn was never committed.
    pub(crate) fn read_whole_batches(path: &Path, is_key: impl Fn(&[u8]) -> bool) -> Result<Self> {
        let file = File::open(path)?;
        let end = Survey::of(&file, path)?.end_of_whole_batches();
        let pages = Self::pages(&file, end)?;
        let chain = in_use(&pages).unwrap_or_else(|| pages.values().collect());
        Ok(Self { file, values: merge(chain, is_key) })
    }

    /// The leaves of the log up to a sequence number: each is what was written of it last.
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

    /// Hands over the pairs whose keys begin with `prefix`, from `from` on, until `visit` answers false.
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
