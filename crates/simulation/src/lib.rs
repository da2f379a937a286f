//! The whole agent under simulation: one thread, virtual time; simulated Redis, ControlPlane, network, disk and clock;
//! thousands of faults; everything derived from one seed. `docs/proof.md` says what is simulated and what is real.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "what cannot be simulated ends the run, with the line"
)]
#![expect(clippy::similar_names, reason = "`truth` beside `trust`, `taken` beside `token`")]

pub mod agent;
pub mod bugs;
pub mod chance;
pub mod commands;
pub mod disk;
pub mod fleet;
pub mod network;
pub mod oracle;
pub mod plan;
pub mod redis;
pub mod request;
pub mod run;
pub mod server;
pub mod shrink;
pub mod streams;
pub mod world;
