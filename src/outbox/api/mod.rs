//! What everybody else has of an outbox: the handle, and opening it.

mod audit;
mod command_notes;
pub(crate) mod handle;
pub(crate) mod start;
