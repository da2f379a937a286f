//! Batches: positions, isolation of sessions, and the order within a session.

use std::future::ready;

use super::rule::{NotPassed, Rule, RuleVerdict, fail, not_seen, pass};
use super::samples::SampleBatch;
use super::{BatchAnswer, Run};
use crate::control_plane::Encoding;

const TAKEN: &str = "200 with data.batch (the request's Idempotency-Key), data.count, and data.exceptions without a status other than 409";

pub(super) static RULES: [Rule; 7] = [
    Rule {
        name: "batch",
        page: "batches.md",
        sentence: "A record that is not listed was accepted.",
        check: |run| Box::pin(batch(run)),
    },
    Rule {
        name: "batch_answer",
        page: "batches.md",
        sentence: "An answer with another `batch` or `count`, or with positions that are repeated or out of range, is invalid.",
        check: |run| Box::pin(ready(answer(run))),
    },
    Rule {
        name: "batch_repeated",
        page: "batches.md",
        sentence: "409 for one that was accepted before",
        check: |run| Box::pin(repeated(run)),
    },
    Rule {
        name: "batch_and_single",
        page: "keys.md",
        sentence: "The key is the same for the same record across retries, restarts, crashes, single or batch delivery, and two agents.",
        check: |run| Box::pin(and_single(run)),
    },
    Rule {
        name: "batch_positions",
        page: "batches.md",
        sentence: "`exceptions` lists every record that was not accepted now, by its position in the request, counted from 0",
        check: |run| Box::pin(positions(run)),
    },
    Rule {
        name: "batch_isolation",
        page: "batches.md",
        sentence: "A refused record (400, 413, 414, 422) does not stop its session. Other sessions are not affected.",
        check: |run| Box::pin(isolation(run)),
    },
    Rule {
        name: "batch_order",
        page: "batches.md",
        sentence: "it accepts no later record of that session in this request and answers **424** for each of them",
        check: |run| Box::pin(order(run)),
    },
];

impl Run {
    /// Whether the server has batches; otherwise no rule about them can be observed.
    pub(super) fn has_batches(&self) -> Result<(), NotPassed> {
        match self.batch.as_ref().and_then(|answer| answer.exchange.status()) {
            Some(absent @ (404 | 405 | 501)) => not_seen(
                format!("batches are answered {absent}: the agent sends one record per request"),
                "the contract allows that; run this again when the server has batches",
            ),
            _ => Ok(()),
        }
    }

    /// The answer to the first batch.
    fn first_batch(&self) -> Result<&BatchAnswer, NotPassed> {
        self.has_batches()?;
        self.batch.as_ref().map_or_else(|| not_seen("no batch was sent", super::MEND_FIRST), Ok)
    }
}

/// Two complete short sessions in one request.
async fn batch(run: &mut Run) -> RuleVerdict {
    let (one, two) = (run.samples.session("batch"), run.samples.session("batch-2"));
    let records = [
        run.samples.started(&one),
        run.samples.usage(&one),
        run.samples.usage(&one),
        run.samples.completed(&one),
        run.samples.started(&two),
        run.samples.usage(&two),
    ];
    let answer = run.deliver_batch(&SampleBatch::default().with(records), Encoding::Identity).await;
    let answer = run.batch.insert(answer).clone();
    run.has_batches()?;
    whole(&answer)
}

/// Passes if every record of the batch is settled.
pub(super) fn whole(answer: &BatchAnswer) -> RuleVerdict {
    if answer.is_settled_whole() {
        return pass(format!("{} records were taken", answer.batch.parts().len()));
    }
    answer.broken(TAKEN)
}

/// Checks the answer to the first batch.
fn answer(run: &Run) -> RuleVerdict {
    let answer = run.first_batch()?;
    let (key, count) = (answer.batch.key(), answer.batch.parts().len());
    match &answer.exceptions {
        Ok(_) => pass("it names the batch and the number of its records"),
        Err(_) => answer.broken(&format!(
            r#"{{"success":true,"data":{{"batch":"{key}","count":{count},"exceptions":[…]}}}}"#
        )),
    }
}

async fn repeated(run: &mut Run) -> RuleVerdict {
    let first = run.first_batch()?.clone();
    let mut answer = run.deliver_batch(&first.batch, Encoding::Identity).await;
    answer.exchange.sent.push_str(" once more");
    if !answer.is_settled_whole() {
        return answer.broken("each record listed with 409, or not listed");
    }
    let listed = answer.exceptions.map_or(0, |exceptions| exceptions.len());
    pass(format!("{listed} of {} records listed with 409", first.batch.parts().len()))
}

/// A record delivered alone is recognised in a batch, and the other way round.
async fn and_single(run: &mut Run) -> RuleVerdict {
    run.has_batches()?;
    let session = run.samples.session("both");
    let (started, usage) = (run.samples.started(&session), run.samples.usage(&session));
    for record in [&started, &usage] {
        run.deliver_new(record).await?;
    }
    let new = run.samples.usage(&session);
    let batch = SampleBatch::default().with([started, usage, new.clone()]);
    let mut answer = run.deliver_batch(&batch, Encoding::Identity).await;
    answer.exchange.sent.push_str(" the first two were taken alone before");
    if !answer.is_settled_whole() || answer.status(2).is_some() {
        return answer.broken("[0] and [1] listed with 409 or not listed, [2] not listed");
    }
    let mut exchange = run.deliver(&new).await;
    exchange.sent.push_str(", after it was taken in a batch");
    if exchange.is_settled() {
        return pass("recognised in a batch and alone");
    }
    fail("409; or, as if it were new, 200, 201, 202 or 204", &exchange)
}

/// The positions that must be refused in [`mixed`].
const BAD: [usize; 2] = [2, 7];

/// Three sessions, two of which contain a body that is not a record.
async fn mixed(run: &mut Run) -> BatchAnswer {
    if let Some(answer) = &run.mixed {
        return answer.clone();
    }
    let [one, two, three] = ["mixed-1", "mixed-2", "mixed-3"].map(|purpose| run.samples.session(purpose));
    let samples = &mut run.samples;
    let batch = SampleBatch::default()
        .with([samples.started(&one), samples.usage(&one)])
        .with_bad(&one, samples.without_transaction_id(&one))
        .with([samples.usage(&one), samples.started(&two), samples.usage(&two), samples.started(&three)])
        .with_bad(&three, samples.without_transaction_id(&three))
        .with([samples.usage(&three)]);
    let answer = run.deliver_batch(&batch, Encoding::Identity).await;
    run.mixed.insert(answer).clone()
}

fn is_refused(status: u16) -> bool {
    matches!(status, 400 | 413 | 414 | 415 | 422)
}

async fn positions(run: &mut Run) -> RuleVerdict {
    run.has_batches()?;
    let answer = mixed(run).await;
    let all = 0..answer.batch.parts().len();
    let refused: Vec<_> = all.filter(|index| answer.status(*index).is_some_and(is_refused)).collect();
    if refused == BAD {
        return pass("[2] and [7] were refused");
    }
    if answer.exceptions.is_ok() && refused.is_empty() {
        return not_seen(
            "the server took usage records without transaction_id: nothing was refused",
            "check whether they were billed: a repetition of them cannot be recognised",
        );
    }
    answer.broken("exceptions with index 2 and index 7, each with 422 or 400, and no other refused")
}

async fn isolation(run: &mut Run) -> RuleVerdict {
    run.has_batches()?;
    let answer = mixed(run).await;
    let is_good = |index: &usize| !BAD.contains(index);
    if (0..answer.batch.parts().len()).filter(is_good).all(|index| answer.is_settled(index)) {
        return pass("the records around the refused ones were taken");
    }
    answer.broken("every record but [2] and [7] taken")
}

/// Whether later records of the session must not be taken after this status.
fn stops(status: u16) -> bool {
    matches!(status, 401 | 403 | 404 | 408 | 410 | 425 | 429 | 500..=599)
}

/// Three sessions: one that nobody has started, one with a record that a test server can be told to fail on, and one that
/// must go on regardless of the other two.
async fn order(run: &mut Run) -> RuleVerdict {
    run.has_batches()?;
    let unknown = run.samples.unknown_session("unknown-batch");
    let (failing, good) = (run.samples.session("failing"), run.samples.session("order"));
    let samples = &mut run.samples;
    let batch = SampleBatch::default()
        .with([samples.usage(&unknown), samples.usage(&unknown), samples.completed(&unknown)])
        .with([samples.started(&failing), samples.usage(&failing), samples.failing(&failing)])
        .with([samples.usage(&failing), samples.completed(&failing)])
        .with([samples.started(&good), samples.usage(&good)]);
    let answer = run.deliver_batch(&batch, Encoding::Identity).await;
    if answer.exceptions.is_err() {
        return answer.broken("each record's own status in data.exceptions");
    }
    let mut stopped_by = Vec::new();
    for group in index_groups(&answer.batch) {
        let mut is_stopped = false;
        for index in group {
            match (is_stopped, answer.status(index)) {
                (true, Some(424)) => {}
                (true, _) => {
                    return answer.broken(&format!(
                        "[{index}] with 424: a record of its session before it was not taken"
                    ));
                }
                (false, Some(424)) => {
                    return answer.broken(&format!(
                        "[{index}] without 424: every record of its session before it was taken or refused"
                    ));
                }
                (false, Some(status)) if stops(status) => {
                    is_stopped = true;
                    stopped_by.push(format!("[{index}] with {status}"));
                }
                (false, _) => {}
            }
        }
    }
    if (8..10).any(|index| !answer.is_settled(index)) {
        return answer.broken("[8] and [9] taken: no record of their session failed");
    }
    if stopped_by.is_empty() {
        return not_seen(
            "the server took every record: nothing had to wait",
            "have the server answer 404 for sessions that begin with conformance-unknown, or 503 for a transaction_id that begins with conformance-fail",
        );
    }
    pass(format!("424 behind {}", stopped_by.join(" and ")))
}

/// The positions of each session's records.
fn index_groups(batch: &SampleBatch) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let parts = batch.parts();
    for index in 0..parts.len() {
        match groups.last_mut() {
            Some(group) if parts[group[0]].session == parts[index].session => group.push(index),
            _ => groups.push(vec![index]),
        }
    }
    groups
}
