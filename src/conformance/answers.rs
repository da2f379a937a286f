//! What a good answer is, and the first rule: the health request gets one.

use super::Run;
use super::rule::{NotPassed, Rule, RuleVerdict, fail};
use super::wire::{Caller, Exchange};

/// The definition of a good answer.
pub(super) const GOOD: &str =
    "A good answer is 200, 201 or 202 with a JSON object whose `success` is not `false`, or 204";
/// The same, as an expectation in a verdict.
pub(super) const EXPECTED: &str = "200, 201 or 202 with a JSON object whose success is not false; or 204";

pub(super) static FIRST: [Rule; 1] =
    [Rule { name: "health", page: "control-plane.md", sentence: GOOD, check: |run| Box::pin(health(run)) }];

async fn health(run: &mut Run) -> RuleVerdict {
    let sent = "GET /api/v1/health".to_owned();
    let exchange = run.wire.send(Caller::Agent, sent, async |client| drop(client.health().await)).await;
    run.wire.stop_if_hopeless(&exchange);
    good(exchange)
}

/// Passes a good answer and fails any other.
pub(super) fn good(exchange: Exchange) -> RuleVerdict {
    delivered(exchange).map(|exchange| status(&exchange))
}

/// The exchange, if its answer is a good one.
pub(super) fn delivered(exchange: Exchange) -> Result<Exchange, NotPassed> {
    if exchange.is_delivered() { Ok(exchange) } else { fail(EXPECTED, &exchange) }
}

/// The answer's status as text.
pub(super) fn status(exchange: &Exchange) -> String {
    exchange.status().map_or_else(|| "no answer".to_owned(), |status| format!("answered {status}"))
}
