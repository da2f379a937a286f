//! Databases: the only module that names sled. It knows nothing of records.

pub(crate) mod batch;
pub(crate) mod chunks;
pub(crate) mod database;
pub(crate) mod error;
pub(crate) mod fault;
pub(crate) mod lazy_database;
pub(crate) mod log_file;
pub(crate) mod names;
pub(crate) mod repair;
#[cfg(feature = "simulation")]
pub(crate) mod simulated_disk;
