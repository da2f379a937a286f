//! Rules about all answers of the run, and about the server's counts.

use std::future::ready;

use hyper::header::RETRY_AFTER;

use super::Run;
use super::accounts::Processed;
use super::answers::status;
use super::rule::{NotPassed, Rule, RuleVerdict, fail, fail_by, not_seen, pass};
use super::wire::Caller;
use crate::control_plane::Client;

/// The rule that a person must check if no accounts are named.
pub const COUNTED_ONCE: &str = "counted_once";
/// Requests of a burst in flight at once.
const AT_ONCE: usize = 16;
const COUNT_YOURSELF: &str =
    "look up the records that are listed at the end, or name the server's accounts with --accounts";

pub(super) static RULES: [Rule; 5] = [
    Rule {
        name: "retry_after",
        page: "answers.md",
        sentence: "`Retry-After` (seconds or date) is obeyed",
        check: |run| Box::pin(retry_after(run)),
    },
    Rule {
        name: "json_answers",
        page: "answers.md",
        sentence: "An answer counts only if the ControlPlane can have given it.",
        check: |run| Box::pin(ready(json_answers(run))),
    },
    Rule {
        name: "answers_match",
        page: "answers.md",
        sentence: "any answer that names another `transaction_id`, `api_session_id` or `batch` (in `data`), or another `X-Correlation-ID`, than was asked",
        check: |run| Box::pin(ready(answers_match(run))),
    },
    Rule {
        name: "session_order",
        page: "batches.md",
        sentence: "the ControlPlane takes a session's records one after another",
        check: |run| Box::pin(session_order(run)),
    },
    Rule {
        name: COUNTED_ONCE,
        page: "keys.md",
        sentence: "A ControlPlane therefore recognises a record **by its key alone**, and answers 409 to the second.",
        check: |run| Box::pin(counted_once(run)),
    },
];

async fn retry_after(run: &mut Run) -> RuleVerdict {
    let mut left = run.setup.burst as usize;
    while left > 0 && run.wire.is_over().is_none() {
        let now = left.min(AT_ONCE);
        let ask = async |client: &Client| {
            drop(futures_util::future::join_all((0..now).map(|_| client.health())).await);
        };
        run.wire.together(Caller::Agent, "GET /api/v1/health, many at once", ask).await;
        left -= now;
    }
    let seen = &run.wire.seen;
    if let Some(unreadable) = &seen.unreadable_wait {
        return fail("a Retry-After in seconds, or as an HTTP date", unreadable);
    }
    if let Some(exchange) = &seen.asked_to_wait {
        let value = exchange.result.as_ref().ok().and_then(|response| response.headers.get(RETRY_AFTER));
        let value =
            value.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).unwrap_or_default();
        return pass(format!("{} with Retry-After: {value}", status(exchange)));
    }
    let why = match &seen.shed {
        Some(shed) => {
            format!("an answer was {}, without Retry-After: the agent backs off by itself", shed.received)
        }
        None => "no answer was 429 or 503".to_owned(),
    };
    not_seen(why, "run with --burst 500 against a server with a low rate limit")
}

fn json_answers(run: &Run) -> RuleVerdict {
    match &run.wire.seen.foreign {
        Some(exchange) => fail(
            "of 2xx only 200, 201, 202 with a JSON object, and 204; 400, 409, 414, 415, 422 with a JSON object or without a body",
            exchange,
        ),
        None => pass(format!("in {} answers", run.wire.seen.answers)),
    }
}

fn answers_match(run: &Run) -> RuleVerdict {
    match &run.wire.seen.mismatched {
        Some(exchange) => fail("an answer that names this request, or no request", exchange),
        None => pass(format!("none of {} answers names another request", run.wire.seen.answers)),
    }
}

async fn processed(run: &Run) -> Result<Processed, NotPassed> {
    let Some(accounts) = &run.accounts else {
        return not_seen("the server was not asked what it counted", COUNT_YOURSELF);
    };
    accounts.processed().await.or_else(|reason| not_seen(accounts.unable(reason).to_string(), COUNT_YOURSELF))
}

async fn session_order(run: &mut Run) -> RuleVerdict {
    let now = processed(run).await?;
    match now.disorder_since(&run.before) {
        None => not_seen("its accounts have no order_violations", COUNT_YOURSELF),
        Some((0, _)) => pass("no order violation in the accounts"),
        Some((count, example)) => fail_by(
            "each session's records in their order: started, usage, completed",
            "all records of this run",
            format!(
                "the accounts have {count} order_violations more than before, such as: {}",
                example.unwrap_or("?")
            ),
        ),
    }
}

/// The server's counts grew by exactly what it said it took.
async fn counted_once(run: &mut Run) -> RuleVerdict {
    let now = processed(run).await?;
    let (mut words, mut is_good) = (Vec::new(), true);
    for (kind, name) in Processed::KINDS {
        let counted = now.of(kind).saturating_sub(run.before.of(kind));
        let (settled, unknown) = run.ledger.count(kind);
        is_good &= (settled..=settled + unknown).contains(&counted);
        let more = if unknown == 0 { String::new() } else { format!(" to {}", settled + unknown) };
        words.push(format!("{counted} {name} of {settled}{more}"));
    }
    let words = words.join(", ");
    if is_good {
        return pass(words);
    }
    fail_by(
        "every record of the run counted once, while nobody else sends records",
        "all records of this run, many of them more than once",
        format!("the accounts have {words} more than before"),
    )
}
