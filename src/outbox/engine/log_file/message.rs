//! The messages of a segment and their contents.

use std::ops::Bound;

/// The kinds of messages.
pub(super) mod kind {
    pub(in super::super) const CAP: u8 = 2;
    pub(in super::super) const MANIFEST: u8 = 3;
    pub(in super::super) const FREE: u8 = 4;
    pub(in super::super) const NODE: u8 = 8;
    pub(in super::super) const LINK: u8 = 10;
}
/// All kinds.
const KINDS: std::ops::RangeInclusive<u8> = 1..=11;

/// The first byte of a node's data, and of a link.
const LEAF: u8 = 0;
const SET: u8 = 0;
const REMOVE: u8 = 1;

/// A complete message.
pub(super) struct LogMessage<'a> {
    pub(super) kind: u8,
    pub(super) segment: u64,
    pub(super) page: u64,
    pub(super) body: &'a [u8],
    /// The offset of the body in its segment.
    pub(super) body_at: usize,
}

impl<'a> LogMessage<'a> {
    /// The message at `at`, if there is one with a correct checksum and, if a number is given, of that segment.
    pub(super) fn read(segment: &'a [u8], at: usize, of: Option<u64>) -> Option<Self> {
        let bytes = segment.get(at..)?;
        let crc32 = u32::from_le_bytes(*bytes.first_chunk()?);
        let mut rest = ByteReader(&bytes[4..]);
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

/// Bytes that are consumed from the front. `None` beyond the end.
struct ByteReader<'a>(&'a [u8]);

impl<'a> ByteReader<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    /// sled's variable-length integer.
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

/// A complete page of keys and values.
pub(super) struct Leaf<'a> {
    /// The page to the right, if any.
    pub(super) next: Option<u64>,
    low: &'a [u8],
    /// Empty if unbounded.
    high: &'a [u8],
    /// Common to all keys.
    pub(super) prefix: &'a [u8],
    pub(super) pairs: Vec<(&'a [u8], &'a [u8])>,
}

impl<'a> Leaf<'a> {
    /// `None` if it is not a leaf.
    pub(super) fn read(node: &'a [u8]) -> Option<Self> {
        let mut node = ByteReader(node);
        let (next, _merging_child, _is_merging) = (node.number()?, node.number()?, node.byte()?);
        let prefix_len = usize::from(node.byte()?);
        let (low, high) = (node.string()?, node.string()?);
        if node.byte()? != LEAF {
            return None;
        }
        let count = node.number()?;
        let (keys, values) = (node.strings(count)?, node.strings(count)?);
        Some(Self {
            next: Some(next).filter(|next| *next != 0),
            low,
            high,
            prefix: low.get(..prefix_len)?,
            pairs: keys.into_iter().zip(values).collect(),
        })
    }

    pub(super) fn bounds(&self) -> (Bound<&'a [u8]>, Bound<&'a [u8]>) {
        let is_bounded = !self.high.is_empty() && self.high > self.low;
        (Bound::Included(self.low), if is_bounded { Bound::Excluded(self.high) } else { Bound::Unbounded })
    }
}

/// The key that a link sets or removes, and the value it sets.
pub(super) fn link(link: &[u8]) -> Option<(&[u8], Option<&[u8]>)> {
    let mut link = ByteReader(link);
    match link.byte()? {
        SET => Some((link.string()?, Some(link.string()?))),
        REMOVE => Some((link.string()?, None)),
        _ => None,
    }
}
