//! What the answers so far say about the `ControlPlane`: whether it serves us, and why not.

use super::failure::Failure;
use super::meaning::Meaning;
use super::response::Response;

/// Failed requests in a row, of any kind, after which the `ControlPlane` counts as away although no record shows it.
const UNANSWERED: u64 = 5;

/// The name of the health check among the endpoints.
pub(super) const HEALTH: &str = "health";

#[derive(Debug, Default)]
pub(super) struct Heard {
    /// Whether a `ControlPlane` that accepts our credentials has ever answered.
    has_served: bool,
    /// The failed requests since it last did.
    failing: Option<Failing>,
    /// Whether its health check, too, has refused our credentials: if not, its success says nothing about them.
    guards_health: bool,
}

/// The failed requests since a `ControlPlane` that accepts our credentials last answered.
#[derive(Clone, Debug)]
pub struct Failing {
    /// Their number.
    pub requests: u64,
    /// Why the last one failed, as text.
    pub cause: String,
    /// The same as a type: the meaning and the status of its answer, or why it got none.
    pub last: Result<(Meaning, u16), Failure>,
}

impl Heard {
    /// Whether the last request of any kind was answered by a `ControlPlane` that accepts our credentials.
    pub(super) fn is_reachable(&self) -> bool {
        self.has_served && self.failing.is_none()
    }

    /// The failed requests, if they are so many that the `ControlPlane` counts as away.
    pub(super) fn unanswered(&self) -> Option<&Failing> {
        self.failing.as_ref().filter(|failing| failing.requests >= UNANSWERED)
    }

    /// Whether it has ever answered, and does not count as away.
    pub(super) fn is_connected(&self) -> bool {
        self.has_served && self.unanswered().is_none()
    }

    /// Notes whether the `ControlPlane` accepted a request to this endpoint.
    pub(super) fn note(&mut self, endpoint: &str, result: &Result<Response, Failure>) {
        let (cause, last) = match result {
            // It was never sent.
            Err(Failure::Unsendable(_)) => return,
            Ok(response) if response.is_served() => return self.served(endpoint),
            Ok(response) => {
                self.guards_health |= endpoint == HEALTH && response.meaning == Meaning::Credentials;
                let cause = format!("status {}{}", response.status, response.meaning.remark());
                (cause, Ok((response.meaning, response.status)))
            }
            Err(failure) => (failure.to_string(), Err(failure.clone())),
        };
        let requests = self.failing.take().map_or(1, |before| before.requests + 1);
        self.failing = Some(Failing { requests, cause, last });
    }

    fn served(&mut self, endpoint: &str) {
        let is_refused = |failing: &Failing| matches!(failing.last, Ok((Meaning::Credentials, _)));
        if endpoint == HEALTH && !self.guards_health && self.failing.as_ref().is_some_and(is_refused) {
            return;
        }
        (self.has_served, self.failing) = (true, None);
    }
}
