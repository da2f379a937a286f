//! Defines a rule and its possible results.

use futures_util::future::LocalBoxFuture;
use serde::Serialize;

use super::Run;
use super::wire::Exchange;

/// A behaviour that the agent relies on.
pub(super) struct Rule {
    /// Fixed: scripts look for it.
    pub(super) name: &'static str,
    /// The page of `docs/contract/` with the sentence.
    pub(super) page: &'static str,
    /// The sentence, word for word.
    pub(super) sentence: &'static str,
    pub(super) check: Check,
}

/// Checks a rule.
pub(super) type Check = for<'a> fn(&'a mut Run) -> LocalBoxFuture<'a, RuleVerdict>;

/// The result of a check: what showed that the rule is kept, or why it did not pass.
pub(super) type RuleVerdict = Result<String, NotPassed>;

/// Why a rule did not pass.
#[derive(Debug)]
pub(super) enum NotPassed {
    /// It is broken.
    Fail(Violation),
    /// It could not be observed: why, and what to do.
    NotSeen { why: String, advice: String },
}

/// How a rule is broken.
#[derive(Debug)]
pub(super) struct Violation {
    expected: String,
    sent: String,
    received: String,
    /// What the agent does after such an answer.
    consequence: Option<&'static str>,
}

#[expect(clippy::unnecessary_wraps, reason = "it ends a check, as `fail` and `not_seen` do")]
pub(super) fn pass(seen: impl Into<String>) -> RuleVerdict {
    Ok(seen.into())
}

pub(super) fn not_seen<T>(why: impl Into<String>, advice: impl Into<String>) -> Result<T, NotPassed> {
    Err(NotPassed::NotSeen { why: why.into(), advice: advice.into() })
}

/// The answer to this request is not the expected one.
pub(super) fn fail<T>(expected: impl Into<String>, exchange: &Exchange) -> Result<T, NotPassed> {
    Err(NotPassed::Fail(Violation {
        expected: expected.into(),
        sent: exchange.sent.clone(),
        received: exchange.received.clone(),
        consequence: exchange.consequence(),
    }))
}

/// The answer is a good one, but its content is not the expected one.
pub(super) fn fail_by<T>(
    expected: impl Into<String>,
    sent: impl Into<String>,
    received: impl Into<String>,
) -> Result<T, NotPassed> {
    Err(NotPassed::Fail(Violation {
        expected: expected.into(),
        sent: sent.into(),
        received: received.into(),
        consequence: None,
    }))
}

/// Whether a rule is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RuleState {
    /// It is.
    Pass,
    /// It is not.
    Fail,
    /// It could not be observed.
    NotSeen,
}

/// The result of one rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// The rule's name.
    pub rule: &'static str,
    /// Whether it is kept.
    pub state: RuleState,
    /// The page of `docs/contract/` with the sentence.
    pub page: &'static str,
    /// The sentence that is kept or broken.
    pub sentence: &'static str,
    /// What showed that it is kept, or why it was not seen. Absent if it is broken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub says: Option<String>,
    /// What the answer should have been.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected: Option<String>,
    /// The request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sent: Option<String>,
    /// The answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub received: Option<String>,
    /// What an agent does after such an answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consequence: Option<&'static str>,
    /// How to observe the rule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl Row {
    pub(super) fn new(rule: &Rule, verdict: RuleVerdict) -> Self {
        let Rule { name, page, sentence, .. } = *rule;
        let row = Self {
            rule: name,
            state: RuleState::Pass,
            page,
            sentence,
            says: None,
            expected: None,
            sent: None,
            received: None,
            consequence: None,
            advice: None,
        };
        match verdict {
            Ok(says) => Self { says: Some(says), ..row },
            Err(NotPassed::NotSeen { why, advice }) => {
                Self { state: RuleState::NotSeen, says: Some(why), advice: Some(advice), ..row }
            }
            Err(NotPassed::Fail(Violation { expected, sent, received, consequence })) => Self {
                state: RuleState::Fail,
                expected: Some(expected),
                sent: Some(sent),
                received: Some(received),
                consequence,
                ..row
            },
        }
    }
}
