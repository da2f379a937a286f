//! Segments, what of them is settled, and the packs of a moment ago that are still in memory.

pub(crate) mod segment;
pub(crate) mod settlement;
pub(crate) mod tail_cache;
