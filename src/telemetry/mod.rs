//! What the agent says about itself: metrics and logs.

pub(crate) mod failpoint;
pub mod finding;
pub mod log;
pub mod metrics;
pub mod notify;
