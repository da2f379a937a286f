//! zstd, with a context per thread.
//!
//! A new context queries the processor's features, which takes some twenty microseconds in a virtual machine:
//! longer than compressing a whole pack.

use std::cell::RefCell;
use std::io::Result;

use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::CParameter;

/// For packs. Within 4 % of level 3 for packs of usage records, in two thirds of the time.
pub(crate) const PACK: i32 = 1;
/// For values compressed individually: for some hundred bytes, level 1 spends more time on its code tables than on
/// everything else, and saves a fifth.
pub(crate) const SINGLE: i32 = -1;

thread_local! {
    static COMPRESSOR: RefCell<Option<Compressor<'static>>> = const { RefCell::new(None) };
    static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

pub(crate) fn compress(raw: &[u8], level: i32) -> Result<Vec<u8>> {
    COMPRESSOR.with_borrow_mut(|kept| {
        let kept = match kept {
            Some(kept) => kept,
            None => kept.insert(Compressor::new(level)?),
        };
        kept.set_parameter(CParameter::CompressionLevel(level))?;
        kept.compress(raw)
    })
}

/// Decompresses. An error if the data is invalid, or longer than `raw_len`.
pub(crate) fn decompress(compressed: &[u8], raw_len: usize) -> Result<Vec<u8>> {
    DECOMPRESSOR.with_borrow_mut(|kept| match kept {
        Some(kept) => kept.decompress(compressed, raw_len),
        None => kept.insert(Decompressor::new()?).decompress(compressed, raw_len),
    })
}
