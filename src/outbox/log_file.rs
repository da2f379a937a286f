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

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{ErrorKind, Result};
use std::ops::{Bound, ControlFlow};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::database::SLED_SEGMENT_BYTES;

const SEGMENT: usize = SLED_SEGMENT_BYTES;
const SEGMENT_HEADER: usize = 20;
/// No message begins closer than this to a segment's end.
const LARGEST_HEADER: usize = 32;

const CAP: u8 = 2;
const MANIFEST: u8 = 3;
const FREE: u8 = 4;
const NODE: u8 = 8;
const LINK: u8 = 10;
const KINDS: std::ops::RangeInclusive<u8> = 1..=11;

/// What stands in a segment's or link's first byte.
const LEAF: u8 = 0;
const SET: u8 = 0;
const REMOVE: u8 = 1;

/// A message that is whole.
struct Message<'a> {
    kind: u8,
    segment: u64,
    page: u64,
    body: &'a [u8],
    /// Where the body lies in its segment.
    body_at: usize,
}

impl<'a> Message<'a> {
    /// The message at `at`, if there is one, of that segment if a number is given, and its checksum is right.
    fn read(segment: &'a [u8], at: usize, of: Option<u64>) -> Option<Self> {
        let bytes = segment.get(at..)?;
        let crc32 = u32::from_le_bytes(*bytes.first_chunk()?);
        let mut rest = Bytes(&bytes[4..]);
        let kind = rest.byte().filter(|kind| KINDS.contains(kind))?;
        let len = usize::try_from(rest.number()?).ok()?;
        let (number, page) = (rest.number()?, rest.number()?);
        if of.is_some_and(|of| of != number) {
            return None;
        }
        let header = bytes.len() - rest.0.len();
        let body = rest.0.get(..len)?;
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(body);
        hasher.update(&bytes[4..header]);
        (hasher.finalize() ^ u32::MAX == crc32).then_some(Self {
            kind,
            segment: number,
            page,
            body,
            body_at: at + header,
        })
    }
}

/// Bytes that are taken off one after the other. `None` behind their end.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    /// sled's own variable-length integer.
    fn number(&mut self) -> Option<u64> {
        Some(match self.byte()? {
            small @ 0..=240 => u64::from(small),
            high @ 241..=248 => 240 + 256 * (u64::from(high) - 241) + u64::from(self.byte()?),
            249 => 2288 + 256 * u64::from(self.byte()?) + u64::from(self.byte()?),
            longer => {
                let mut bytes = [0; 8];
                let len = usize::from(longer) - 247;
                bytes[..len].copy_from_slice(self.take(len)?);
                u64::from_le_bytes(bytes)
            }
        })
    }

    fn string(&mut self) -> Option<&'a [u8]> {
        let len = usize::try_from(self.number()?).ok()?;
        self.take(len)
    }

    fn strings(&mut self, count: u64) -> Option<Vec<&'a [u8]>> {
        (0..count).map(|_| self.string()).collect()
    }
}

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
        let (kind, next) = (message.kind, message.body_at + message.body.len());
        visit(at, Met::Message(message))?;
        if kind == CAP {
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
        Met::Message(message) if message.kind == MANIFEST && first.is_some() => {
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
                NODE => {
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
                LINK => {
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
                FREE => {
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

/// A whole page of keys and values.
struct Leaf<'a> {
    low: &'a [u8],
    /// Empty if there is none.
    high: &'a [u8],
    /// Of each key.
    prefix: &'a [u8],
    pairs: Vec<(&'a [u8], &'a [u8])>,
}

impl<'a> Leaf<'a> {
    /// `None` if it is no leaf.
    fn read(node: &'a [u8]) -> Option<Self> {
        let mut node = Bytes(node);
        let (_next, _merging_child, _is_merging) = (node.number()?, node.number()?, node.byte()?);
        let prefix_len = usize::from(node.byte()?);
        let (low, high) = (node.string()?, node.string()?);
        if node.byte()? != LEAF {
            return None;
        }
        let count = node.number()?;
        let (keys, values) = (node.strings(count)?, node.strings(count)?);
        Some(Self {
            low,
            high,
            prefix: low.get(..prefix_len)?,
            pairs: keys.into_iter().zip(values).collect(),
        })
    }

    fn bounds(&self) -> (Bound<&'a [u8]>, Bound<&'a [u8]>) {
        let is_bounded = !self.high.is_empty() && self.high > self.low;
        (Bound::Included(self.low), if is_bounded { Bound::Excluded(self.high) } else { Bound::Unbounded })
    }
}

/// The key that a link sets or removes, and the value that it sets.
fn link(link: &[u8]) -> Option<(&[u8], Option<&[u8]>)> {
    let mut link = Bytes(link);
    match link.byte()? {
        SET => Some((link.string()?, Some(link.string()?))),
        REMOVE => Some((link.string()?, None)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::database::{Batch, Database, Durability};
    use super::*;

    /// Writes, overwrites and removes; opened now and then, so that sled moves its pages and uses its segments again.
    #[test]
    fn a_log_is_read_as_sled_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let mut dice = 7_u64;
        let mut roll = |below: u64| {
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (dice >> 33) % below
        };
        drop(Database::create(&path, Durability::Process, 1 << 20).unwrap());
        for _ in 0..6 {
            let database = Database::open(&path, Durability::Process, 1 << 20).unwrap();
            for _ in 0..60 {
                let mut batch = Batch::default();
                for _ in 0..20 {
                    let key = [b"key".as_slice(), &roll(3_000).to_be_bytes()].concat();
                    if roll(3) == 0 {
                        batch.remove(&key);
                    } else {
                        batch.put(&key, vec![roll(256) as u8; roll(5_000) as usize]);
                    }
                }
                database.commit(batch).unwrap();
            }
            assert_eq!(hole(&path.join("db")).unwrap(), None);
            let mut held = BTreeMap::new();
            database
                .scan(b"key", b"key", |key, value| held.insert(key.to_vec(), value.to_vec()).is_none())
                .unwrap();
            let pairs =
                Pairs::read(&path.join("db"), |key| key.starts_with(b"key") && key.len() == 11).unwrap();
            let mut read = BTreeMap::new();
            pairs
                .scan(b"key", b"key", |key, value| read.insert(key.to_vec(), value.to_vec()).is_none())
                .unwrap();
            assert!(held.len() > 500 && read == held, "{} and {}", read.len(), held.len());
        }
    }

    #[test]
    fn a_torn_end_is_no_hole_and_a_flipped_bit_before_it_is_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let database = Database::create(&path, Durability::Process, 1 << 20).unwrap();
        for n in 0..100_u64 {
            let mut batch = Batch::default();
            batch.put(&n.to_be_bytes(), vec![1; 1000]);
            database.commit(batch).unwrap();
        }
        drop(database);
        let file = path.join("db");
        let bytes = std::fs::read(&file).unwrap();
        let end = bytes.iter().rposition(|byte| *byte != 0).unwrap();
        for cut in [end, end - 10, end - 900] {
            std::fs::write(&file, &bytes[..cut]).unwrap();
            assert_eq!(hole(&file).unwrap(), None, "{cut}");
        }
        for at in [10, 40, 3_000, end / 2, end - 10_000] {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1;
            std::fs::write(&file, &flipped).unwrap();
            assert!(hole(&file).unwrap().is_some_and(|found| found <= at as u64), "{at}");
        }
    }

    #[test]
    fn what_is_no_log_is_read_without_a_panic() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("db");
        for len in [0, 1, 19, 20, 21, 600, SEGMENT, SEGMENT + 7] {
            for byte in [0, 1, 10, 250, 255] {
                std::fs::write(&file, vec![byte; len]).unwrap();
                assert_eq!(hole(&file).unwrap(), None);
                assert!(Pairs::read(&file, |_| true).unwrap().values.is_empty());
            }
        }
    }
}
