//! Builds the state from the folder: damaged parts are quarantined, and the rest continues.

pub(crate) mod catalog;
pub(crate) mod error;
pub(crate) mod manifest;
pub(crate) mod open;
pub(crate) mod quarantine;
