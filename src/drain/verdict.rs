//! What an answer means: a pure, total function from what came back to what is done about it.

use std::time::Duration;

use crate::control_plane::{Failure, Response};
use crate::outbox::Settlement;

/// What is done about an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Taken, now or before: settled.
    Settled(Settlement),
    /// This record is refused: a dead letter, unless the brake is on.
    Refused,
    /// No request can be made of it: a dead letter, and no word of the link.
    Unsendable,
    /// The session is not known (yet): retried within its grace.
    SessionUnknown,
    /// The server failed: the link, or a poison record, as the neighbours' fortunes tell.
    ServerError,
    /// 503: too much for it, or a poison record, likewise.
    Unavailable,
    /// The link itself: retried for as long as it takes.
    Link(Trouble),
}

impl Verdict {
    /// How the record is settled, if it is.
    pub(super) fn settlement(&self) -> Option<Settlement> {
        match self {
            Self::Settled(settlement) => Some(*settlement),
            _ => None,
        }
    }

    /// What it would say of the link if nothing else were heard.
    pub(super) fn trouble(&self) -> Option<Trouble> {
        match self {
            Self::Link(trouble) => Some(*trouble),
            Self::ServerError => Some(Trouble::Failing),
            Self::Unavailable => Some(Trouble::Overloaded),
            Self::Settled(_) | Self::Refused | Self::Unsendable | Self::SessionUnknown => None,
        }
    }
}

/// What is wrong with the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// No answer, or none in HTTP: refused, DNS, cut.
    Unreachable,
    /// No answer in time.
    Timeout,
    /// TLS failed.
    Tls,
    /// 401 or 403.
    Credentials,
    /// 3xx, or 1xx as the answer: the URL is wrong.
    Misconfigured,
    /// 408, 425, 429, 503: too much for it.
    Overloaded,
    /// Other 5xx.
    Failing,
    /// Every session is unknown: the URL or the route is wrong.
    NoRoute,
    /// It refuses everything: the brake.
    Refusing,
}

impl Trouble {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Unreachable,
        Self::Timeout,
        Self::Tls,
        Self::Credentials,
        Self::Misconfigured,
        Self::Overloaded,
        Self::Failing,
        Self::NoRoute,
        Self::Refusing,
    ];

    /// The name in health, logs and metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Timeout => "timeout",
            Self::Tls => "tls",
            Self::Credentials => "credentials",
            Self::Misconfigured => "misconfigured",
            Self::Overloaded => "overloaded",
            Self::Failing => "failing",
            Self::NoRoute => "no_route",
            Self::Refusing => "refusing",
        }
    }

    /// Whether a part of the `ControlPlane` that serves one kind of records may be to blame, and not the link.
    pub(super) const fn may_be_a_kinds(self) -> bool {
        matches!(self, Self::Unreachable | Self::Timeout | Self::Overloaded | Self::Failing)
    }

    /// Whether going slower would help.
    pub const fn is_congestion(self) -> bool {
        matches!(self, Self::Overloaded | Self::Timeout)
    }
}

/// The verdict on one attempt, and how long the peer asks us to wait.
pub(super) fn judge(result: &Result<Response, Failure>) -> (Verdict, Option<Duration>) {
    match result {
        Ok(response) => (by_status(response.status), response.retry_after),
        Err(failure) => (by_failure(failure), None),
    }
}

/// The verdict on one status: an answer's, or one of a batch's results.
pub(super) fn by_status(status: u16) -> Verdict {
    match status {
        200..=299 => Verdict::Settled(Settlement::Delivered),
        409 => Verdict::Settled(Settlement::Duplicate),
        300..=399 | 100..=199 => Verdict::Link(Trouble::Misconfigured),
        401 | 403 => Verdict::Link(Trouble::Credentials),
        404 | 410 => Verdict::SessionUnknown,
        408 | 425 | 429 => Verdict::Link(Trouble::Overloaded),
        400..=499 => Verdict::Refused,
        503 => Verdict::Unavailable,
        _ => Verdict::ServerError,
    }
}

fn by_failure(failure: &Failure) -> Verdict {
    match failure {
        Failure::Tls(_) => Verdict::Link(Trouble::Tls),
        Failure::Timeout { .. } => Verdict::Link(Trouble::Timeout),
        Failure::Token(_) => Verdict::Link(Trouble::Credentials),
        // The record's own fault: no request can name its session.
        Failure::Unsendable(_) => Verdict::Unsendable,
        Failure::Dns(_) | Failure::Unreachable(_) | Failure::Cut(_) | Failure::NotHttp(_) => {
            Verdict::Link(Trouble::Unreachable)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_means_what_the_contract_says() {
        use Trouble::{Credentials, Misconfigured, Overloaded};
        use Verdict::{Link, Refused, ServerError, SessionUnknown, Unavailable};
        let (delivered, duplicate) =
            (Verdict::Settled(Settlement::Delivered), Verdict::Settled(Settlement::Duplicate));
        let table = [
            (200, delivered.clone()),
            (201, delivered.clone()),
            (204, delivered.clone()),
            (409, duplicate),
            (400, Refused),
            (402, Refused),
            (405, Refused),
            (413, Refused),
            (415, Refused),
            (422, Refused),
            (404, SessionUnknown),
            (410, SessionUnknown),
            (401, Link(Credentials)),
            (403, Link(Credentials)),
            (408, Link(Overloaded)),
            (425, Link(Overloaded)),
            (429, Link(Overloaded)),
            (503, Unavailable),
            (500, ServerError),
            (502, ServerError),
            (504, ServerError),
            (301, Link(Misconfigured)),
            (302, Link(Misconfigured)),
            (307, Link(Misconfigured)),
        ];
        for (status, verdict) in table {
            assert_eq!(by_status(status), verdict, "{status}");
        }
    }
}
