//! zstd, with contexts that each thread keeps.
//!
//! A new context asks the processor what it can do, which a virtual machine's host answers in some twenty microseconds:
//! longer than compressing a whole pack takes.

use std::cell::RefCell;
use std::io::Result;

use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::CParameter;

/// Of packs. Within 4 % of level 3 on those of usage records, in two thirds of the time.
pub(crate) const PACK: i32 = 1;
/// Of what is compressed by itself: the code tables that level 1 makes for some hundred bytes take longer than all the
/// rest, and save a fifth.
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

/// What was compressed. An error if it is no such thing, or longer than `raw_len`.
pub(crate) fn decompress(compressed: &[u8], raw_len: usize) -> Result<Vec<u8>> {
    DECOMPRESSOR.with_borrow_mut(|kept| match kept {
        Some(kept) => kept.decompress(compressed, raw_len),
        None => kept.insert(Decompressor::new()?).decompress(compressed, raw_len),
    })
}
