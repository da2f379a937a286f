//! This server's membership in the ControlPlane's fleet: registration, heartbeats with metrics, commands, and a health probe
//! for an idle link.

pub mod agent_metrics;
pub mod commands;
pub mod health_probe;
pub mod membership;
