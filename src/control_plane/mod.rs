//! Speaks the `ControlPlane`'s REST API: one attempt a call, and an exact account of what became of it.
//!
//! It never retries (but a request that a used connection swallowed), never follows a redirect; it says what an answer means, and what becomes of a record is the drain's. What it
//! promises its callers:
//!
//! * every call ends when nothing has progressed for as long as the time-out, and keeps at most a limit of the answer;
//! * credentials go to the configured host and nowhere else, and into no log line, error or `Debug`;
//! * new secrets and certificates are taken in as a whole ([`Client::reload`]), or the old ones stay.
//!
//! `settings` is what it needs to know, `client` the attempt, `credentials` what a reload replaces, `auth` the
//! tokens, `clock` how wrong this machine's clock is, `target` where requests go, `transport` over which connections,
//! `failure` why there was no
//! answer, `meaning` what an answer means, `answers` what its body says, `registration` the calls about the server itself.

mod accepts;
mod answers;
mod auth;
mod client;
mod clock;
mod credentials;
mod decode;
mod failure;
mod meaning;
mod registration;
mod retry_after;
mod settings;
mod target;
mod transport;

#[cfg(test)]
mod tests;

pub use accepts::Accepts;
pub use answers::{
    BadAnswer, BatchException, Command, Commands, QuotaAnswer, parse_batch_answer, parse_commands,
    parse_key_set, parse_quota_answer,
};
pub use auth::KeyError;
pub use client::{
    Answer, BatchRequest, Client, ConnectionChoice, Delivery, Encoding, Observer, PreparedSettings, Response,
};
pub use credentials::ClientError;
#[cfg(feature = "fuzzing")]
pub(crate) use decode::decode;
pub use failure::{Failure, TlsProblem};
pub use meaning::{Asked, Meaning, Said, meaning};
pub use registration::{CallError, Capabilities, CommandResult, Heartbeat, Registration, ServerStatus};
#[cfg(feature = "fuzzing")]
pub(crate) use retry_after::retry_after;
pub use settings::{Auth, HttpVersion, JwtAlgorithm, ProxySettings, Settings, UnreadableFile};
#[cfg(feature = "simulation")]
pub use transport::{ExchangeFuture, Wire, WireAnswer, WireRequest};
pub use transport::{Opening, Priority};
