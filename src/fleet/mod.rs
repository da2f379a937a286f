//! What the ControlPlane knows of this server, and what it has it do: registration and heartbeats, the figures in them,
//! commands, and a question after its health when nothing else is asked.

pub mod agent_metrics;
pub mod commands;
pub mod health_probe;
pub mod membership;
