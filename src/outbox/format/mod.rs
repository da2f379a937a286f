//! The persistent format: every byte of the values in segments and ledger. It knows nothing of databases.

pub(crate) mod codec;
pub(crate) mod compression;
pub(crate) mod dead_letter;
pub(crate) mod log;
pub(crate) mod schema;

/// The version of everything on disk.
pub(crate) const FORMAT: u32 = 1;
