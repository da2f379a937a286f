//! Splits values that are too long for sled into chunks, and joins them again.

/// The longest value passed to sled: 20 of them stay below a quarter of its segment.
pub(crate) const CHUNK: usize = 5 << 10;
/// Bytes before a chunked value: its length.
const FRAME: usize = 4;

/// Passes the chunks of `value`, with their numbers, to `put`.
pub(crate) fn cut(value: &[u8], mut put: impl FnMut(usize, &[u8])) {
    let framed = [&(value.len() as u32).to_be_bytes(), value].concat();
    framed.chunks(CHUNK).enumerate().for_each(|(n, chunk)| put(n, chunk));
}

/// The number of chunks of a value of `len` bytes.
pub(crate) fn count(len: usize) -> usize {
    (len + FRAME).div_ceil(CHUNK)
}

/// The key of chunk `n` of the value under `key`.
pub(crate) fn key(key: &[u8], n: usize) -> Vec<u8> {
    let mut full = key.to_vec();
    full.extend_from_slice(&(n as u16).to_be_bytes());
    full
}

/// Joins values: `scan` passes chunks in the order of their keys until it gets false, and `visit` gets each value under its
/// key without the chunk number until it returns false; `None` for a value with a missing part.
pub(crate) fn join<E>(
    scan: impl FnOnce(&mut dyn FnMut(&[u8], &[u8]) -> bool) -> Result<(), E>,
    mut visit: impl FnMut(&[u8], Option<&[u8]>) -> bool,
) -> Result<(), E> {
    let (mut value, mut done) = (Chunks::default(), false);
    scan(&mut |key, chunk| {
        done = !value.next(key, chunk, &mut visit);
        !done
    })?;
    if !done && value.is_open() {
        visit(&value.key, None);
    }
    Ok(())
}

/// A value being joined.
#[derive(Default)]
struct Chunks {
    key: Vec<u8>,
    bytes: Vec<u8>,
    next: u16,
    is_broken: bool,
}

impl Chunks {
    /// Adds the next chunk, and passes on the value that it completes, or the previous value if that was incomplete. False
    /// if `visit` wants no more.
    fn next(
        &mut self,
        key: &[u8],
        chunk: &[u8],
        mut visit: impl FnMut(&[u8], Option<&[u8]>) -> bool,
    ) -> bool {
        let (name, number) = key.split_at(key.len().saturating_sub(2));
        if self.is_open() && self.key != name {
            let goes_on = visit(&self.key, None);
            self.clear();
            if !goes_on {
                return false;
            }
        }
        self.push(name, number, chunk);
        if !self.is_whole() {
            return true;
        }
        let goes_on = visit(name, Some(&self.bytes[FRAME..]));
        self.clear();
        goes_on
    }

    fn is_open(&self) -> bool {
        self.next > 0
    }

    fn push(&mut self, key: &[u8], number: &[u8], chunk: &[u8]) {
        if !self.is_open() {
            self.key.extend_from_slice(key);
        }
        self.is_broken |= number != self.next.to_be_bytes();
        self.next = self.next.saturating_add(1);
        self.bytes.extend_from_slice(chunk);
    }

    fn is_whole(&self) -> bool {
        let len = self.bytes.first_chunk::<FRAME>().map(|len| u32::from_be_bytes(*len) as usize);
        !self.is_broken && len.is_some_and(|len| self.bytes.len() == len + FRAME)
    }

    fn clear(&mut self) {
        self.key.clear();
        self.bytes.clear();
        (self.next, self.is_broken) = (0, false);
    }
}
