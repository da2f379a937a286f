//! The finding of one check, for `check` and the probes it runs.

use serde::Serialize;

/// The state of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FindingState {
    /// As it should be.
    Ok,
    /// The agent can run, but an operator should know.
    Warning,
    /// The agent cannot work.
    Failed,
}

/// A finding about one thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The thing that was checked.
    pub what: &'static str,
    /// Its state.
    pub state: FindingState,
    /// The state as text.
    pub says: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl Finding {
    /// A finding without a problem.
    pub fn ok(what: &'static str, says: impl Into<String>) -> Self {
        Self { what, state: FindingState::Ok, says: says.into(), advice: None }
    }

    /// A finding that an operator should know about.
    pub fn warning(what: &'static str, says: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { what, state: FindingState::Warning, says: says.into(), advice: Some(advice.into()) }
    }

    /// A finding that stops the agent from working.
    pub fn failed(what: &'static str, says: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { what, state: FindingState::Failed, says: says.into(), advice: Some(advice.into()) }
    }
}
