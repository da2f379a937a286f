//! Segments, their settlement, and recent packs that are still in memory.

pub(crate) mod segment;
pub(crate) mod settlement;
pub(crate) mod tail_cache;
