//! Carries customers' usage records from an edge speech server's Redis to the `ControlPlane`.
//!
//! ```text
//!  AudioAPIServer ──LPUSH──▶ Redis ──take──▶ intake ──commit──▶ outbox ──lease──▶ drain ──POST──▶ ControlPlane
//!                              ▲               │ ack: only after the commit   │ settle: only after the answer
//!                              └───────────────┘                              └──────────────────────────────┘
//! ```
//!
//! The modules, in the order in which a record meets them:
//!
//! * [`record`]: what a record is; parsing, validation, enrichment, identity. Pure.
//! * [`intake`]: takes messages from Redis, and acknowledges them when they are durable.
//! * [`outbox`]: where they wait, on the disk.
//! * [`drain`]: which goes next, how fast, and what an answer means.
//! * [`control_plane`]: the typed client of the `ControlPlane`'s REST API; one attempt a call.
//!
//! Everything else supports these: [`telemetry`] and [`clock`].

pub mod clock;
pub mod control_plane;
pub mod drain;
pub mod intake;
pub mod outbox;
pub mod record;
pub mod telemetry;
