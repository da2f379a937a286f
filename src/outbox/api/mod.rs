//! The outbox's public interface: the handle, and opening.

mod audit;
mod command_notes;
pub(crate) mod handle;
pub(crate) mod start;
