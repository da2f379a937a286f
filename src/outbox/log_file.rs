//! sled's log as it lies in the file `db`, read without sled.
//!
//! sled takes the first thing that it cannot read for the torn end of its log, and overwrites all that lies behind it
//! with zeros. After a power cut that is right. After a flipped bit it destroys everything that was committed since. So
//! a log is looked through before sled opens it ([`hole`]), and what can be read of a damaged one is read here
//! ([`Pairs`]).
//!
//! # Format
//!
//! That of sled 0.34 (`pagecache/logger.rs`, `serialization.rs`), which is frozen. The file is a row of sled's segments,
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
use message::{Leaf, Message, kind, link};

const SEGMENT: usize = SLED_SEGMENT_BYTES;
const SEGMENT_HEADER: usize = 20;
/// No message begins closer than this to a segment's end.
const LARGEST_HEADER: usize = 32;

/// What is met on the way through the log.
enum Met<'a> {
    Message(Message<'a>),
    /// From here on, up to the next thing that is met, nothing can be read.
    Hole,
}

/// A place in the log: where it lies in the file, and its sequence number.
#[derive(Clone, Copy)]
struct Place {
    at: u64,
    lsn: u64,
}

/// Goes through the log in the order of its sequence numbers. Gives the highest number that a header calls stable.
fn walk(file: &File, mut visit: impl FnMut(Place, Met<'_>) -> ControlFlow<()>) -> Result<u64> {
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
        let place = |at: usize| Place { at: offset + at as u64, lsn: number * SEGMENT as u64 + at as u64 };
        if !is_sure && visit(place(0), Met::Hole).is_break()
            || walk_segment(&segment, number, |at, met| visit(place(at), met)).is_break()
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
        .find_map(|at| Message::read(segment, at, None))
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
    mut visit: impl FnMut(usize, Met<'_>) -> ControlFlow<()>,
) -> ControlFlow<()> {
    let mut at = SEGMENT_HEADER;
    while at + LARGEST_HEADER <= SEGMENT {
        let Some(message) = Message::read(segment, at, None) else {
            visit(at, Met::Hole)?;
            let rest = segment.get(at..).unwrap_or_default();
            if is_blank(rest) {
                break;
            }
            let next = (at + 1..segment.len()).find(|at| Message::read(segment, *at, Some(number)).is_some());
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
        visit(at, Met::Message(message))?;
        if is_cap {
            break;
        }
        at = next;
    }
    ControlFlow::Continue(())
}

/// The sequence number from which on nothing counts: there the last batch begins, if a part of it is missing, or else
/// something is missing behind it. `u64::MAX` where nothing is.
///
/// A batch is begun when the one before it is on the disk, so only the last one can be torn. Of a segment that is not
/// there the log does not say whether it was never written or is not needed any more: sled fills with zeros what it does
/// not need when it opens a database, once its snapshot is on the disk. So below the sequence number in the name of a
/// snapshot, or the one that a header calls stable, nothing is missing. A snapshot may be damaged: its content is not used.
fn end_of_whole_batches(file: &File, path: &Path) -> Result<u64> {
    // Where the last batch begins, the number of its last byte, and what is missing from there on.
    let (mut begin, mut end, mut missing) = (0, 0, Vec::new());
    let mut next = 0;
    let stable = walk(file, |place, met| {
        if matches!(met, Met::Hole) {
            missing.push(place.lsn);
        } else if place.lsn / SEGMENT as u64 > next / SEGMENT as u64 + 1 {
            missing.push(next);
        }
        next = place.lsn;
        if let Met::Message(message) = met {
            if message.kind == kind::MANIFEST
                && let Some(last) = message.body.first_chunk()
            {
                (begin, end) = (place.lsn, u64::from_le_bytes(*last));
                missing.clear();
            }
            next += (message.body_at + message.body.len()) as u64 - place.at % SEGMENT as u64;
        }
        ControlFlow::Continue(())
    })?;
    let stable = stable.max(newest_snapshot(path)?);
    let cut = missing.into_iter().find(|missing| *missing >= stable).unwrap_or(u64::MAX);
    Ok(if cut.min(next) <= end { begin } else { cut })
}

/// The sequence number up to which sled had read the log in `path` when it opened it last.
fn newest_snapshot(path: &Path) -> Result<u64> {
    let mut newest = 0;
    for entry in std::fs::read_dir(path.parent().unwrap_or(Path::new(".")))? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("snap.")?.split('.').next());
        newest = newest.max(number.and_then(|number| u64::from_str_radix(number, 16).ok()).unwrap_or(0));
    }
    Ok(newest)
}

/// Where in `path` something cannot be read though batches behind it can. `None` where there is no such place.
///
/// A batch is begun when the one before it is on the disk. So this is damage; a torn end is not met here.
pub(super) fn hole(path: &Path) -> Result<Option<u64>> {
    let file = File::open(path)?;
    let (mut first, mut is_hole) = (None, false);
    walk(&file, |place, met| match met {
        Met::Hole => {
            first.get_or_insert(place.at);
            ControlFlow::Continue(())
        }
        Met::Message(message) if message.kind == kind::MANIFEST && first.is_some() => {
            is_hole = true;
            ControlFlow::Break(())
        }
        Met::Message(_) => ControlFlow::Continue(()),
    })?;
    Ok(first.filter(|_| is_hole))
}

/// Where a value lies in the file, and its length.
type Lies = (u64, usize);

/// A leaf as it was written last, and what was changed of it since.
struct Page {
    lsn: u64,
    bounds: (Bound<Vec<u8>>, Bound<Vec<u8>>),
    prefix: Vec<u8>,
    /// The keys without that prefix.
    pairs: BTreeMap<Vec<u8>, Lies>,
}

/// What all pages hold. Where pages overlap, which only those of a damaged log do, the one that was written last is right.
fn merge(pages: impl Iterator<Item = Page>, is_key: impl Fn(&[u8]) -> bool) -> BTreeMap<Vec<u8>, Lies> {
    let mut pages: Vec<Page> = pages.collect();
    pages.sort_by_key(|page| page.lsn);
    let mut values: BTreeMap<Vec<u8>, Lies> = BTreeMap::new();
    for page in pages {
        let gone = values.range::<Vec<u8>, _>(page.bounds).map(|(key, _)| key.clone());
        for key in gone.collect::<Vec<_>>() {
            values.remove(&key);
        }
        let whole = page.pairs.into_iter().map(|(key, lies)| ([&page.prefix[..], &key].concat(), lies));
        values.extend(whole.filter(|(key, _)| is_key(key)));
    }
    values
}

/// The keys and values of a log, as far as they can be read.
pub(super) struct Pairs {
    file: File,
    values: BTreeMap<Vec<u8>, Lies>,
}

impl Pairs {
    /// Reads all that can be read of the log in `path`, also of a batch that is torn. A key counts only if `is_key` knows
    /// it: where a page cannot be read, what is left of a key of it may be made to no key at all.
    pub(super) fn read(path: &Path, is_key: impl Fn(&[u8]) -> bool) -> Result<Self> {
        Self::read_to(File::open(path)?, u64::MAX, is_key)
    }

    /// Reads a log that is not damaged as sled does: a batch that is torn was never committed.
    pub(super) fn read_whole_batches(path: &Path, is_key: impl Fn(&[u8]) -> bool) -> Result<Self> {
        let file = File::open(path)?;
        let end = end_of_whole_batches(&file, path)?;
        Self::read_to(file, end, is_key)
    }

    /// Reads the log up to a sequence number, page by page: a page is what was written of it last.
    fn read_to(file: File, end: u64, is_key: impl Fn(&[u8]) -> bool) -> Result<Self> {
        let mut pages: HashMap<u64, Page> = HashMap::new();
        walk(&file, |Place { at, lsn }, met| {
            if lsn >= end {
                return ControlFlow::Break(());
            }
            let Met::Message(message) = met else { return ControlFlow::Continue(()) };
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
                        let page = Page {
                            lsn,
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
        Ok(Self { file, values: merge(pages.into_values(), is_key) })
    }

    /// Hands over the pairs whose keys begin with `prefix`, from `from` on, until `visit` answers false.
    pub(super) fn scan(
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
