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
//! Everything else supports these: [`agent`] puts them together, [`config`] says how, [`http`] and [`telemetry`] show what
//! goes on, [`admin`] is what an operator may do, [`reload`] takes in new settings, [`membership`] tells the
//! `ControlPlane` that the server lives, [`commands`] does what that says, [`systemd`] tells systemd, [`expiry`] knows
//! when credentials end, [`cli`] is the command line, [`check`] looks before a start, [`sandbox`] and [`demo`] are for
//! trying it out.

pub mod admin;
pub mod agent;
pub mod check;
pub mod cli;
pub mod clock;
pub mod commands;
pub mod config;
pub mod control_plane;
pub mod demo;
pub mod drain;
pub mod expiry;
mod failpoint;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
pub mod health_check;
pub mod http;
pub mod intake;
pub mod membership;
pub mod outbox;
pub mod record;
pub mod reload;
mod rhythm;
pub mod sandbox;
pub mod systemd;
pub mod telemetry;
pub mod vitals;
