//! From the folder to the state: what is damaged is set aside, and the rest goes on.

pub(crate) mod catalog;
pub(crate) mod error;
pub(crate) mod manifest;
pub(crate) mod open;
pub(crate) mod quarantine;
