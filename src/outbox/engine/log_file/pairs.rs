//! The readable keys and values of a log, from its leaves and their changes.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Result;
use std::ops::{Bound, ControlFlow};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::message::{Leaf, kind, link};
use super::survey::Survey;
use super::{LogItem, LogPosition, SEGMENT, walk};

/// The offset of a value in the file, and its length.
pub(super) type Lies = (u64, usize);

/// A leaf as last written, with its later changes.
pub(super) struct LeafPage {
    pub(super) lsn: u64,
    /// The leaf to the right, if any.
    pub(super) next: Option<u64>,
    pub(super) bounds: (Bound<Vec<u8>>, Bound<Vec<u8>>),
    pub(super) prefix: Vec<u8>,
    /// The keys without the prefix.
    pub(super) pairs: BTreeMap<Vec<u8>, Lies>,
}

/// The leaves from the leftmost on. A split interrupted by a kill or power cut leaves a leaf that no other leads to: it is
/// excluded, however often sled rewrites it. `None` if the chain ends before the last leaf.
pub(super) fn in_use(pages: &HashMap<u64, LeafPage>) -> Option<Vec<&LeafPage>> {
    let is_first = |page: &&LeafPage| matches!(&page.bounds.0, Bound::Included(low) if low.is_empty());
    let mut chain = vec![pages.values().filter(is_first).max_by_key(|page| page.lsn)?];
    while let Some(next) = chain.last().and_then(|page| page.next) {
        // Longer than the number of pages: the chain is a cycle.
        chain.push(pages.get(&next).filter(|_| chain.len() < pages.len())?);
    }
    Some(chain)
}

/// The contents of these pages. If they overlap, as may happen in a damaged log, the latest one wins.
pub(super) fn merge(mut pages: Vec<&LeafPage>, is_key: impl Fn(&[u8]) -> bool) -> BTreeMap<Vec<u8>, Lies> {
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
    pub(super) values: BTreeMap<Vec<u8>, Lies>,
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
    pub(super) fn pages(file: &File, end: u64) -> Result<HashMap<u64, LeafPage>> {
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
