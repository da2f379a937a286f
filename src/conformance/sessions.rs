//! Sessions that the server does not know yet.

use super::Run;
use super::answers::{delivered, good, status};
use super::rule::{Rule, RuleVerdict, fail, pass};
use crate::control_plane::Meaning;

const SENTENCE: &str = "| 404, 410 on a session | the session is not known (yet) |";
const EXPECTED_UNKNOWN: &str = "404 or 410; or a good answer, if the server takes records of any session";

pub(super) static RULES: [Rule; 3] = [
    Rule {
        name: "unknown_session",
        page: "answers.md",
        sentence: SENTENCE,
        check: |run| Box::pin(unknown(run)),
    },
    Rule {
        name: "session_becomes_known",
        page: "answers.md",
        sentence: "retried for `SESSION_UNKNOWN_GRACE_SECONDS`",
        check: |run| Box::pin(becomes_known(run)),
    },
    Rule {
        name: "session_completed",
        page: "control-plane.md",
        sentence: super::answers::GOOD,
        check: |run| Box::pin(completed(run)),
    },
];

async fn unknown(run: &mut Run) -> RuleVerdict {
    let session = run.samples.unknown_session("unknown");
    let record = run.samples.usage(&session);
    let exchange = run.deliver(&record).await;
    match exchange.meaning() {
        Some(Meaning::NotFound | Meaning::Delivered) => pass(status(&exchange)),
        _ => fail(EXPECTED_UNKNOWN, &exchange),
    }
}

/// A record sent before its session is known is taken once the session has started.
async fn becomes_known(run: &mut Run) -> RuleVerdict {
    let session = run.samples.unknown_session("late");
    let usage = run.samples.usage(&session);
    let early = run.deliver(&usage).await;
    match early.meaning() {
        Some(Meaning::Delivered) => {
            return pass("the server takes records of a session that has not started");
        }
        Some(Meaning::NotFound) => {}
        _ => return fail(EXPECTED_UNKNOWN, &early),
    }
    let started = run.samples.started(&session);
    run.deliver_new(&started).await?;
    let mut exchange = run.deliver(&usage).await;
    exchange.sent.push_str(", once more, after the session has started");
    delivered(exchange)?;
    pass(format!("{} before its start, then taken", status(&early)))
}

async fn completed(run: &mut Run) -> RuleVerdict {
    let session = run.session.clone();
    let record = run.samples.completed(&session);
    good(run.deliver(&record).await)
}
