//! Carries customers' usage records from an edge speech server's Redis to the `ControlPlane`.
//!
//! ```text
//!  AudioAPIServer ──LPUSH──▶ Redis ──take──▶ intake ──commit──▶ outbox ──read───▶ drain ──POST──▶ ControlPlane
//!                              ▲               │ ack: only after the commit   │ settle: only after the answer
//!                              └───────────────┘                              └──────────────────────────────┘
//! ```
//!
//! The rooms, in the order in which a record meets them:
//!
//! * [`record`]: what a record is; parsing, validation, enrichment, identity. Pure.
//! * [`intake`]: takes messages from Redis, and acknowledges them when they are durable.
//! * [`outbox`]: where they wait, on the disk.
//! * [`drain`]: which goes next, how fast, and what an answer means.
//! * [`control_plane`]: the typed client of the `ControlPlane`'s REST API; one attempt a call.
//!
//! Everything else supports these:
//!
//! * [`app`] builds the agent, runs its stages and stops them in order; [`config`] reads and composes its settings.
//! * [`fleet`] registers the server, sends heartbeats, and carries out the `ControlPlane`'s commands.
//! * [`http`] shows what goes on, [`admin`] is what an operator may do, [`check`] looks before a start, [`conformance`]
//!   tries a `ControlPlane`, [`cli`] is the command line.
//! * [`telemetry`], [`time`] and [`secret`] know nothing of the agent: log and metrics, clocks, and values that are never shown.
//!
//! What tries it out is in `crates/`: a `ControlPlane` to run against and the demonstration (`sandbox`), the agent in
//! virtual time (`simulation`), what holds for any bytes from outside (`fuzzing`), campaigns of faults (`campaigns`).

#[cfg(all(not(debug_assertions), any(feature = "fuzzing", feature = "simulation")))]
compile_error!(
    "the features `fuzzing` and `simulation` are never in what ships: build without `--workspace`"
);

pub mod admin;
pub mod app;
pub mod check;
pub mod cli;
pub mod config;
pub mod conformance;
pub mod control_plane;
pub mod drain;
pub mod fleet;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
pub mod http;
pub mod intake;
pub mod outbox;
pub mod record;
pub mod secret;
pub mod telemetry;
pub mod time;
