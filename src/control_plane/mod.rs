//! Speaks the `ControlPlane`'s REST API: one attempt per call, with an exact report of its outcome.
//!
//! It never retries (except a request lost on a reused connection) and never follows a redirect. It says what an answer
//! means; the drain decides what happens to the record. It guarantees:
//!
//! * every call ends when nothing has progressed for the time-out, and keeps a limited part of the answer;
//! * credentials go to the configured host and nowhere else, and into no log line, error or `Debug`;
//! * new secrets and certificates are adopted entirely ([`Client::reload`]), or the old ones stay.
//!
//! `settings` is its configuration, `client` the attempt, `credentials` what a reload replaces, `auth` the tokens, `clock`
//! the error of this machine's clock, `target` the URLs, `transport` the connections, `failure` why there was no answer,
//! `meaning` what an answer means, `answers` the content of its body, `registration` the calls about the server itself.

mod accepts;
mod answers;
mod auth;
mod client;
mod clock;
mod credentials;
mod decode;
mod failure;
mod heard;
mod meaning;
mod registration;
mod request;
mod response;
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
pub use client::{Client, Observer, PreparedSettings};
pub use credentials::ClientError;
#[cfg(feature = "fuzzing")]
pub(crate) use decode::decode;
pub use failure::{Failure, TlsProblem};
pub use heard::Failing;
pub use meaning::{Asked, Meaning, Said, meaning};
pub use registration::{CallError, Capabilities, CommandResult, Heartbeat, Registration, ServerStatus};
pub use request::{BatchRequest, ConnectionChoice, Delivery, Encoding, Priority};
pub use response::{Answer, Response};
#[cfg(feature = "fuzzing")]
pub(crate) use retry_after::retry_after;
pub use settings::{Auth, HttpVersion, JwtAlgorithm, ProxySettings, Settings, UnreadableFile};
pub use transport::Opening;
#[cfg(feature = "simulation")]
pub use transport::{ExchangeFuture, Wire, WireAnswer, WireRequest};
