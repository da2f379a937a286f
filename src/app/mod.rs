//! The composition root: builds the agent, runs its stages, and tells systemd how it is.

mod agent;
mod confirmed_time;
mod settings;
mod stages;
pub mod systemd;

pub use agent::Agent;
pub(crate) use settings::intake_settings;
