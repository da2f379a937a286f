//! Requests without valid credentials.

use super::Run;
use super::rule::{Rule, RuleVerdict, fail, pass};
use super::wire::Caller;
use crate::control_plane::Meaning;

const SENTENCE: &str =
    "A request without valid credentials is answered 401 or 403, and nothing in it is processed";

pub(super) static RULES: [Rule; 2] = [
    Rule {
        name: "no_credentials",
        page: "control-plane.md",
        sentence: SENTENCE,
        check: |run| Box::pin(refused(run, Caller::Nobody)),
    },
    Rule {
        name: "wrong_credentials",
        page: "control-plane.md",
        sentence: SENTENCE,
        check: |run| Box::pin(refused(run, Caller::Stranger)),
    },
];

/// A record without valid credentials is refused and not processed: with credentials, the same record is new.
async fn refused(run: &mut Run, by: Caller) -> RuleVerdict {
    let session = run.session.clone();
    let record = run.samples.usage(&session);
    let mut refused = run.deliver_by(by, &record).await;
    refused.sent.push_str(if by == Caller::Nobody {
        ", without credentials"
    } else {
        ", with wrong credentials"
    });
    if refused.meaning() != Some(Meaning::Credentials) {
        return fail("401 or 403", &refused);
    }
    let mut taken = run.deliver(&record).await;
    taken.sent.push_str(", with credentials, after it was refused without");
    match taken.meaning() {
        Some(Meaning::Delivered) => {
            let status = refused.status().unwrap_or_default();
            pass(format!("answered {status}; the record was not processed"))
        }
        Some(Meaning::Duplicate) => fail(
            "200, 201, 202 or 204: the record is new, since it was not processed without credentials",
            &taken,
        ),
        _ => fail(super::answers::EXPECTED, &taken),
    }
}
