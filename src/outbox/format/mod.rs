//! What is persisted, and how: every byte of the segments' and the ledger's values. It knows nothing of databases.

pub(crate) mod codec;
pub(crate) mod compression;
pub(crate) mod dead_letter;
pub(crate) mod log;
pub(crate) mod schema;

/// The version of everything on the disk.
pub(crate) const FORMAT: u32 = 1;
