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
//! * [`control_plane`]: the typed client of the `ControlPlane`'s REST API; one attempt a call.

pub mod control_plane;
pub mod record;
