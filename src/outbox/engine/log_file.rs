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
mod pairs;
mod survey;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Result};
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::database::SLED_SEGMENT_BYTES;
use message::{LogMessage, kind};
pub(crate) use pairs::RecoveredPairs;
use survey::Survey;

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

/// Where in `path` something is unreadable although data follows, or where the log ends before its snapshot does. `None` if
/// there is no such position: a torn end does not count.
pub(crate) fn hole(path: &Path) -> Result<Option<u64>> {
    Ok(Survey::of(&File::open(path)?, path)?.damage())
}
