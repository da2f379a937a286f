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
use std::ops::ControlFlow;
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

/// Goes through the log in the order of its sequence numbers, and tells where in the file each thing lies.
fn walk(file: &File, mut visit: impl FnMut(u64, Met<'_>) -> ControlFlow<()>) -> Result<()> {
    let mut segment = Vec::new();
    let mut order = BTreeMap::new();
    let len = file.metadata()?.len();
    for offset in (0..len).step_by(SEGMENT) {
        load(file, offset, SEGMENT_HEADER, &mut segment)?;
        let mut number = number_of(&segment);
        if number.is_none() {
            load(file, offset, SEGMENT, &mut segment)?;
            number = number_of(&segment);
        }
        let Some((number, is_sure)) = number else { continue };
        // Of two of one number, one was about to be written anew.
        let place = order.entry(number).or_insert((offset, is_sure));
        if is_sure && !place.1 {
            *place = (offset, is_sure);
        }
    }
    for (number, (offset, is_sure)) in order {
        load(file, offset, SEGMENT, &mut segment)?;
        if !is_sure && visit(offset, Met::Hole).is_break() {
            return Ok(());
        }
        if walk_segment(&segment, number, |at, met| visit(offset + at as u64, met)).is_break() {
            return Ok(());
        }
    }
    Ok(())
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

/// Where in `path` something cannot be read though batches behind it can. `None` where there is no such place.
///
/// A batch is begun when the one before it is on the disk. So this is damage; a torn end is not met here.
pub(super) fn hole(path: &Path) -> Result<Option<u64>> {
    let file = File::open(path)?;
    let (mut first, mut is_hole) = (None, false);
    walk(&file, |at, met| match met {
        Met::Hole => {
            first.get_or_insert(at);
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

/// The keys and values of a log, as far as they can be read.
pub(super) struct Pairs {
    file: File,
    /// Where the values lie.
    values: BTreeMap<Vec<u8>, (u64, usize)>,
}

impl Pairs {
    /// Reads the log in `path`. A key counts only if `is_key` knows it: where a page cannot be read, what is left of a
    /// key of it may be made to no key at all.
    pub(super) fn read(path: &Path, is_key: impl Fn(&[u8]) -> bool) -> Result<Self> {
        let file = File::open(path)?;
        let mut values: BTreeMap<Vec<u8>, (u64, usize)> = BTreeMap::new();
        let mut prefixes: HashMap<u64, Vec<u8>> = HashMap::new();
        walk(&file, |at, met| {
            let Met::Message(message) = met else { return ControlFlow::Continue(()) };
            let place_of = |value: &[u8]| {
                let within = value.as_ptr() as usize - message.body.as_ptr() as usize;
                let body_at = at - at % SEGMENT as u64 + message.body_at as u64;
                (body_at + within as u64, value.len())
            };
            match message.kind {
                kind::NODE => {
                    let Some(leaf) = Leaf::read(message.body) else {
                        prefixes.remove(&message.page);
                        return ControlFlow::Continue(());
                    };
                    // All that there is between its bounds: some links are never written, but the page with them is.
                    let gone = values.range::<[u8], _>(leaf.bounds()).map(|(key, _)| key.clone());
                    for key in gone.collect::<Vec<_>>() {
                        values.remove(&key);
                    }
                    for (key, value) in leaf.pairs {
                        let key = [leaf.prefix, key].concat();
                        if is_key(&key) {
                            values.insert(key, place_of(value));
                        }
                    }
                    prefixes.insert(message.page, leaf.prefix.to_vec());
                }
                kind::LINK => {
                    let Some(prefix) = prefixes.get(&message.page) else { return ControlFlow::Continue(()) };
                    match link(message.body) {
                        Some((key, Some(value))) => {
                            let key = [prefix, key].concat();
                            if is_key(&key) {
                                values.insert(key, place_of(value));
                            }
                        }
                        Some((key, None)) => {
                            values.remove([prefix, key].concat().as_slice());
                        }
                        None => {}
                    }
                }
                kind::FREE => {
                    prefixes.remove(&message.page);
                }
                _ => {}
            }
            ControlFlow::Continue(())
        })?;
        Ok(Self { file, values })
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
