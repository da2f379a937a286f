//! The contents of a commit.

use super::chunks::{self, CHUNK};

/// Writes that are applied and made durable together.
#[derive(Default)]
pub(crate) struct WriteBatch {
    pub(super) writes: sled::Batch,
    /// Keys of values that may be long.
    pub(super) packs: Vec<Vec<u8>>,
    pub(super) chunked: bool,
    /// The writes again: sled's batch does not expose them.
    #[cfg(feature = "simulation")]
    pub(super) shown: Vec<super::simulated_disk::Write>,
}

impl WriteBatch {
    /// Stores `value` under `key`, which must be at most [`CHUNK`] bytes.
    pub(crate) fn put(&mut self, key: &[u8], value: Vec<u8>) {
        debug_assert!(value.len() <= CHUNK);
        #[cfg(feature = "simulation")]
        self.shown.push((key.to_vec(), Some(value.clone())));
        self.writes.insert(key, value);
    }

    /// Stores `value` under `key` followed by chunk numbers; any length. Read it with [`Database::scan_chunked`](super::database::Database::scan_chunked).
    pub(crate) fn put_chunked(&mut self, key: &[u8], value: &[u8]) {
        chunks::cut(value, |n, chunk| {
            self.chunked |= n > 0;
            let key = chunks::key(key, n);
            self.put_found(&key, chunk);
            self.packs.push(key);
        });
    }

    /// Stores a pair found in a log.
    pub(crate) fn put_found(&mut self, key: &[u8], value: &[u8]) {
        self.writes.insert(key, value);
        #[cfg(feature = "simulation")]
        self.shown.push((key.to_vec(), Some(value.to_vec())));
    }

    /// Removes a value of `len` bytes stored by [`Self::put_chunked`].
    pub(crate) fn remove_chunked(&mut self, key: &[u8], len: usize) {
        for n in 0..chunks::count(len) {
            self.remove(&chunks::key(key, n));
        }
    }

    /// Removes `key`.
    pub(crate) fn remove(&mut self, key: &[u8]) {
        self.writes.remove(key);
        #[cfg(feature = "simulation")]
        self.shown.push((key.to_vec(), None));
    }
}
