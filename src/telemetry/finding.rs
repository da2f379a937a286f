//! What a look at one thing has found, for `check` and for what it looks with.

use serde::Serialize;

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FindingState {
    /// As it should be.
    Ok,
    /// The agent can run, but somebody should know.
    Warning,
    /// The agent cannot do its work with this.
    Failed,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Which.
    pub what: &'static str,
    /// How it is.
    pub state: FindingState,
    /// The same in words.
    pub says: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl Finding {
    /// As it should be.
    pub fn ok(what: &'static str, says: impl Into<String>) -> Self {
        Self { what, state: FindingState::Ok, says: says.into(), advice: None }
    }

    /// Worth knowing.
    pub fn warning(what: &'static str, says: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { what, state: FindingState::Warning, says: says.into(), advice: Some(advice.into()) }
    }

    /// Wrong.
    pub fn failed(what: &'static str, says: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { what, state: FindingState::Failed, says: says.into(), advice: Some(advice.into()) }
    }
}
