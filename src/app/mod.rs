//! The composition root: builds the agent, runs its stages, and notifies systemd.

mod agent;
mod confirmed_time;
mod reload;
mod settings;
mod stages;
pub mod systemd;
mod wiring;

pub use agent::Agent;
pub(crate) use settings::intake_settings;
