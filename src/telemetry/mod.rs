//! The agent's metrics and logs.

pub(crate) mod failpoint;
pub mod finding;
pub mod log;
pub mod metrics;
pub mod notify;
