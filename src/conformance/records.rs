//! Single records: each kind is taken, a repetition is recognised, a refusal is readable.

use super::answers::{GOOD, delivered, good, status};
use super::ledger::RecordState;
use super::rule::{NotPassed, Rule, RuleVerdict, fail, not_seen, pass};
use super::wire::{Caller, Exchange};
use super::{Run, delivery, in_words};
use crate::control_plane::{Client, Delivery, Meaning, parse_quota_answer};
use crate::record::Record;

/// The expected answer to a repetition.
const RECOGNISED: &str = "409 with a JSON object or without a body, and without Retry-After; or, as if it were new, 200, 201, 202 or 204";

pub(super) static RULES: [Rule; 9] = [
    Rule {
        name: "session_started",
        page: "control-plane.md",
        sentence: GOOD,
        check: |run| Box::pin(started(run)),
    },
    Rule {
        name: "usage_record",
        page: "control-plane.md",
        sentence: GOOD,
        check: |run| Box::pin(usage(run)),
    },
    Rule {
        name: "quota_refresh",
        page: "control-plane.md",
        sentence: "A quota refresh is answered with all five fields in `data`",
        check: |run| Box::pin(quota(run)),
    },
    Rule {
        name: "repeated",
        page: "control-plane.md",
        sentence: "A record that was processed before is answered 409.",
        check: |run| Box::pin(repeated(run)),
    },
    Rule {
        name: "repeated_with_another_body",
        page: "keys.md",
        sentence: "A ControlPlane therefore recognises a record **by its key alone**, and answers 409 to the second.",
        check: |run| Box::pin(repeated_with_another_body(run)),
    },
    Rule {
        name: "concurrent_repeat",
        page: "answers.md",
        sentence: "| 409 with `Retry-After` | the first attempt is still in progress | retried after that time |",
        check: |run| Box::pin(concurrent_repeat(run)),
    },
    Rule {
        name: "unknown_fields",
        page: "records.md",
        sentence: "**Unknown fields** of usage records and quota requests are forwarded unchanged",
        check: |run| Box::pin(unknown_fields(run)),
    },
    Rule {
        name: "session_id_encoding",
        page: "control-plane.md",
        sentence: "An `api_session_id` or `server_id` is percent-encoded as one path segment.",
        check: |run| Box::pin(session_id_encoding(run)),
    },
    Rule {
        name: "refusal",
        page: "answers.md",
        sentence: "| 400, 413, 414, 415, 422, each without a body or with a JSON object (413: with any body) | this record is refused |",
        check: |run| Box::pin(refusal(run)),
    },
];

async fn started(run: &mut Run) -> RuleVerdict {
    let session = run.session.clone();
    let record = run.samples.started(&session);
    good(run.deliver(&record).await)
}

async fn usage(run: &mut Run) -> RuleVerdict {
    let session = run.session.clone();
    let record = run.samples.usage(&session);
    good(run.deliver(&record).await)
}

async fn quota(run: &mut Run) -> RuleVerdict {
    let session = run.session.clone();
    let record = run.samples.quota(&session);
    let exchange = run.deliver_new(&record).await?;
    let expected = format!(
        "data with api_session_id {session}, transaction_id {}, new_quota_amount, final_quota, timestamp",
        record.transaction()
    );
    match parse_quota_answer(exchange.body()) {
        Ok(answer) if answer.api_session_id == session && answer.transaction_id == record.transaction() => {
            pass("answered with all five fields")
        }
        Ok(_) => fail(expected, &exchange),
        Err(error) => fail(format!("{expected}; this answer: {error}"), &exchange),
    }
}

/// Sends a record of each kind twice, byte for byte the same.
async fn repeated(run: &mut Run) -> RuleVerdict {
    let session = run.samples.session("repeated");
    let records = [
        run.samples.started(&session),
        run.samples.usage(&session),
        run.samples.quota(&session),
        run.samples.completed(&session),
    ];
    let mut statuses = Vec::new();
    for record in &records {
        run.deliver_new(record).await?;
        statuses.extend(again(run, record).await?.status().map(|status| status.to_string()));
    }
    pass(format!("started, usage, quota, completed: {}", statuses.join(", ")))
}

/// Sends a record again that was taken before: the server must recognise it.
async fn again(run: &mut Run, record: &Record) -> Result<Exchange, NotPassed> {
    let mut exchange = run.deliver(record).await;
    exchange.sent.push_str(", once more");
    if exchange.is_settled() { Ok(exchange) } else { fail(RECOGNISED, &exchange) }
}

async fn repeated_with_another_body(run: &mut Run) -> RuleVerdict {
    let session = run.session.clone();
    let [first, second] = run.samples.usage_of_two_agents(&session);
    run.deliver_new(&first).await?;
    let mut exchange = run.deliver(&second).await;
    exchange.sent.push_str(", once more, with the server_instance_id of another agent");
    if exchange.is_settled() {
        pass(format!("{} to the same key with another body", status(&exchange)))
    } else {
        fail(RECOGNISED, &exchange)
    }
}

/// Two agents, or one agent after a lost connection, may send a record while it is being processed.
async fn concurrent_repeat(run: &mut Run) -> RuleVerdict {
    let session = run.samples.session("twice");
    let started = run.samples.started(&session);
    run.deliver_new(&started).await?;
    let record = run.samples.usage(&session);
    let sent = format!("{}, twice at once", in_words(&record));
    let twice = async |client: &Client| {
        let correlation_id = record.correlation_id();
        let delivery: Delivery<'_> = delivery(&record, &correlation_id);
        let (_, _) = tokio::join!(client.deliver(delivery.clone()), client.deliver(delivery));
    };
    let both = run.wire.together(Caller::Agent, &sent, twice).await;
    for exchange in &both {
        run.ledger.note(&record, RecordState::of(exchange));
    }
    let may_wait =
        |exchange: &Exchange| matches!(exchange.meaning(), Some(Meaning::InProgress | Meaning::Overloaded));
    let allowed = |exchange: &Exchange| exchange.is_settled() || may_wait(exchange);
    if let Some(other) = both.iter().find(|exchange| !allowed(exchange)) {
        return fail(
            "200, 201, 202 or 204 for one of the two; for the other the same, or 409, with Retry-After while the first is under way",
            other,
        );
    }
    if let [one, other] = &*both
        && one.meaning() == Some(Meaning::Duplicate)
        && other.meaning() == Some(Meaning::Duplicate)
    {
        return fail("200, 201, 202 or 204 for one of the two: the record is new", other);
    }
    let statuses: Vec<_> =
        both.iter().filter_map(Exchange::status).map(|status| status.to_string()).collect();
    let waits = both.iter().filter_map(|exchange| exchange.result.as_ref().ok()?.retry_after);
    if let Some(wait) = waits.max() {
        tokio::time::sleep(wait.min(super::wire::WAIT_MOST)).await;
    }
    again(run, &record).await?;
    pass(format!("answered {}", statuses.join(" and ")))
}

async fn unknown_fields(run: &mut Run) -> RuleVerdict {
    let session = run.session.clone();
    let record = run.samples.with_unknown_fields(&session);
    let mut exchange = run.deliver(&record).await;
    exchange.sent.push_str(", with conformance_text and conformance_nested beside the contract's fields");
    good(exchange)
}

async fn session_id_encoding(run: &mut Run) -> RuleVerdict {
    let session = run.samples.session("ä b/c?d#e%2F;f");
    for record in [run.samples.started(&session), run.samples.usage(&session)] {
        let mut exchange = run.deliver(&record).await;
        exchange
            .sent
            .push_str(", the session percent-encoded as one segment: %C3%A4%20b%2Fc%3Fd%23e%252F%3Bf");
        delivered(exchange)?;
    }
    pass(format!("the session {session} was taken"))
}

async fn refusal(run: &mut Run) -> RuleVerdict {
    let session = run.session.clone();
    let body = run.samples.without_transaction_id(&session);
    let sent = format!("POST /api/v1/sessions/{session}/usage-records, a body without transaction_id");
    let key = uuid::Uuid::new_v4();
    let correlation_id = key.to_string();
    let deliver = async |client: &Client| {
        let delivery = Delivery {
            kind: crate::record::Kind::Usage,
            session_id: &session,
            transaction_id: "",
            body: body.clone().into(),
            key,
            correlation_id: &correlation_id,
            traceparent: None,
            connection: crate::control_plane::ConnectionChoice::Any,
        };
        drop(client.deliver(delivery).await);
    };
    let exchange = run.wire.send(Caller::Agent, sent, deliver).await;
    match exchange.meaning() {
        Some(Meaning::Refused) => pass(status(&exchange)),
        Some(Meaning::Delivered | Meaning::Duplicate) => not_seen(
            format!("{} to a usage record without transaction_id: nothing was refused", status(&exchange)),
            "check whether it was billed: a repetition of it cannot be recognised",
        ),
        _ => fail("400, 413, 414, 415 or 422, without a body or with a JSON object", &exchange),
    }
}
