//! The composition root: builds the agent, runs its stages, takes in new settings, and tells systemd how it is.

mod agent;
mod confirmed_time;
pub mod reload;
mod settings;
mod stages;
pub mod systemd;

pub use agent::Agent;
pub(crate) use settings::intake_settings;
