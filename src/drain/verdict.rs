//! Decides what to do about an answer: a pure, total function of its meaning.

use std::time::Duration;

use crate::control_plane::{Failing, Failure, Meaning, Response};
use crate::outbox::Settlement;

/// What to do about an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Accepted, now or before: settled.
    Settled(Settlement),
    /// This record is refused: a dead letter once confirmed, unless the brake is engaged.
    Refused,
    /// It cannot be sent as a request: a dead letter, without effect on the link.
    Unsendable,
    /// The session is not known (yet): retried within its grace period.
    SessionUnknown,
    /// The first attempt is still in progress: retried when the answer says so.
    InProgress,
    /// Within a batch: not tried because of an earlier record of its session. Not an attempt.
    NotTried,
    /// It failed: the link, the kind's route, or the record is at fault, depending on other outcomes.
    Failed {
        /// The link's trouble, if the link is at fault.
        trouble: Trouble,
        /// Whether the server may have failed because of the record: after enough such failures, it becomes a dead letter.
        may_be_poison: bool,
    },
}

impl Verdict {
    const fn failed(trouble: Trouble) -> Self {
        Self::Failed { trouble, may_be_poison: false }
    }

    const fn server_failed(trouble: Trouble) -> Self {
        Self::Failed { trouble, may_be_poison: true }
    }

    /// The trouble of the link, if nothing else were known.
    pub(super) fn trouble(self) -> Option<Trouble> {
        match self {
            Self::Failed { trouble, .. } => Some(trouble),
            _ => None,
        }
    }
}

/// What is wrong with the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// No answer, or none in HTTP: refused, DNS, cut off.
    Unreachable,
    /// No progress in time.
    Timeout,
    /// TLS failed.
    Tls,
    /// 401 or 403.
    Credentials,
    /// 3xx, or a status of a wrong URL, proxy or host.
    Misconfigured,
    /// A 2xx that no `ControlPlane` gives: from a captive portal, a proxy, another host.
    ForeignAnswer,
    /// 408, 425, 429, 503: overloaded.
    Overloaded,
    /// Other 5xx.
    Failing,
    /// Every session is unknown: the URL or the route is wrong.
    NoRoute,
    /// It refuses everything: the brake is engaged.
    Refusing,
}

impl Trouble {
    /// All troubles.
    pub const ALL: [Self; 10] = [
        Self::Unreachable,
        Self::Timeout,
        Self::Tls,
        Self::Credentials,
        Self::Misconfigured,
        Self::ForeignAnswer,
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
            Self::ForeignAnswer => "foreign_answer",
            Self::Overloaded => "overloaded",
            Self::Failing => "failing",
            Self::NoRoute => "no_route",
            Self::Refusing => "refusing",
        }
    }

    /// What it is, and what the agent does about it or the operator can do: a phrase for people.
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Unreachable => "the ControlPlane cannot be reached; the agent keeps trying",
            Self::Timeout => "the ControlPlane does not answer in time; the agent keeps trying",
            Self::Tls => {
                "no trusted TLS connection to the ControlPlane: check its certificate, ours, and the clocks"
            }
            Self::Credentials => "the ControlPlane refuses this agent's credentials: give it valid ones",
            Self::Misconfigured => "no ControlPlane answers so: check CONTROL_PLANE_URL and the proxy",
            Self::ForeignAnswer => {
                "another service answers in its place: look for a captive portal, a proxy or a wrong CONTROL_PLANE_URL"
            }
            Self::Overloaded => "the ControlPlane is overloaded; the agent waits as asked and tries again",
            Self::Failing => "the ControlPlane has internal errors; the agent keeps trying",
            Self::NoRoute => {
                "the ControlPlane does not know this route, or no session: check CONTROL_PLANE_URL"
            }
            Self::Refusing => {
                "the ControlPlane refuses every record; the agent keeps them, probes with one at a time, and makes no more \
                 dead letters"
            }
        }
    }

    /// The trouble of a `ControlPlane` whose last request failed like this.
    pub fn of(failing: &Failing) -> Self {
        let verdict = match &failing.last {
            Ok((meaning, status)) => by_meaning(*meaning, *status),
            Err(failure) => by_failure(failure),
        };
        // Answers without a trouble do not count as failures.
        verdict.trouble().unwrap_or(Self::Failing)
    }

    /// Whether one answer suffices: every request would get the same.
    pub(super) const fn is_definite(self) -> bool {
        matches!(self, Self::Credentials | Self::Misconfigured | Self::ForeignAnswer)
    }

    /// Whether a kind can be held for this because only its requests meet it; the next answer to one ends the hold.
    pub(super) const fn may_be_a_kinds(self) -> bool {
        !matches!(self, Self::NoRoute | Self::Refusing)
    }

    /// Whether sending more slowly would help.
    pub const fn is_congestion(self) -> bool {
        matches!(self, Self::Overloaded | Self::Timeout)
    }
}

/// The verdict on one attempt, and how long the peer asks us to wait.
pub(super) fn judge(result: &Result<Response, Failure>) -> (Verdict, Option<Duration>) {
    match result {
        Ok(response) => {
            // A foreign answer does not say when the ControlPlane may be asked again.
            let is_its_own =
                matches!(response.meaning, Meaning::Overloaded | Meaning::Failing | Meaning::InProgress);
            let retry_after = response.retry_after.filter(|_| is_its_own);
            (by_meaning(response.meaning, response.status), retry_after)
        }
        Err(failure) => (by_failure(failure), None),
    }
}

fn by_meaning(meaning: Meaning, status: u16) -> Verdict {
    match meaning {
        Meaning::Delivered => Verdict::Settled(Settlement::Delivered),
        Meaning::Duplicate => Verdict::Settled(Settlement::Duplicate),
        Meaning::InProgress => Verdict::InProgress,
        Meaning::Refused => Verdict::Refused,
        Meaning::NotFound => Verdict::SessionUnknown,
        Meaning::Credentials => Verdict::failed(Trouble::Credentials),
        // 503 usually means load, but sometimes a record that crashes the server.
        Meaning::Overloaded if status == 503 => Verdict::server_failed(Trouble::Overloaded),
        Meaning::Overloaded => Verdict::failed(Trouble::Overloaded),
        Meaning::Failing => Verdict::server_failed(Trouble::Failing),
        Meaning::Misconfigured => Verdict::failed(Trouble::Misconfigured),
        Meaning::Foreign => Verdict::failed(Trouble::ForeignAnswer),
        // As for a truncated answer: this request has none.
        Meaning::Mismatched => Verdict::failed(Trouble::Unreachable),
    }
}

/// The verdict on a record's own status within a batch's answer.
pub(super) fn by_status(status: u16) -> Verdict {
    match status {
        409 => Verdict::Settled(Settlement::Duplicate),
        400 | 413 | 414 | 415 | 422 => Verdict::Refused,
        401 | 403 => Verdict::failed(Trouble::Credentials),
        404 | 410 => Verdict::SessionUnknown,
        408 | 425 | 429 => Verdict::failed(Trouble::Overloaded),
        424 => Verdict::NotTried,
        503 => Verdict::server_failed(Trouble::Overloaded),
        500.. => Verdict::server_failed(Trouble::Failing),
        _ => Verdict::failed(Trouble::Misconfigured),
    }
}

/// Whether the `ControlPlane` promises to accept no later record of the session after this status in the same batch. Other
/// statuses come from something in between, and promise nothing.
pub(super) fn stops_session(status: u16) -> bool {
    matches!(status, 401 | 403 | 404 | 408 | 410 | 424 | 425 | 429 | 500..)
}

fn by_failure(failure: &Failure) -> Verdict {
    match failure {
        Failure::Tls(_) => Verdict::failed(Trouble::Tls),
        Failure::Timeout { .. } => Verdict::failed(Trouble::Timeout),
        Failure::Token(_) => Verdict::failed(Trouble::Credentials),
        // The record is at fault: no request can name its session.
        Failure::Unsendable(_) => Verdict::Unsendable,
        Failure::Dns(_) | Failure::Unreachable(_) | Failure::Cut(_) | Failure::NotHttp(_) => {
            Verdict::failed(Trouble::Unreachable)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_of_a_record_in_a_batch_means_what_the_contract_says() {
        use Trouble::{Credentials, Failing, Misconfigured, Overloaded};
        let refused = [400, 413, 414, 415, 422];
        for status in 300..=599 {
            let expected = match status {
                409 => Verdict::Settled(Settlement::Duplicate),
                424 => Verdict::NotTried,
                404 | 410 => Verdict::SessionUnknown,
                401 | 403 => Verdict::failed(Credentials),
                408 | 425 | 429 => Verdict::failed(Overloaded),
                503 => Verdict::server_failed(Overloaded),
                500..=599 => Verdict::server_failed(Failing),
                _ if refused.contains(&status) => Verdict::Refused,
                _ => Verdict::failed(Misconfigured),
            };
            assert_eq!(by_status(status), expected, "{status}");
        }
    }

    #[test]
    fn only_the_control_planes_own_answer_settles_or_refuses_a_record() {
        use Meaning::{
            Credentials, Delivered, Duplicate, Failing, Foreign, InProgress, Misconfigured, Mismatched,
            NotFound, Overloaded, Refused,
        };
        let settles = |meaning| matches!(by_meaning(meaning, 200), Verdict::Settled(_));
        let refuses = |meaning| by_meaning(meaning, 422) == Verdict::Refused;
        assert!(settles(Delivered) && settles(Duplicate) && refuses(Refused));
        let others =
            [Credentials, Failing, Foreign, InProgress, Mismatched, Misconfigured, NotFound, Overloaded];
        for meaning in others {
            assert!(!settles(meaning) && !refuses(meaning), "{meaning:?}");
        }
    }
}
