//! Compressed batches.

use super::batches::whole;
use super::rule::{Rule, RuleVerdict, not_seen, pass};
use super::samples::SampleBatch;
use super::{BatchAnswer, Run};
use crate::control_plane::Encoding;

pub(super) static RULES: [Rule; 2] = [
    Rule {
        name: "gzip",
        page: "batches.md",
        sentence: "On 415 the agent uses what that answer's `Accept-Encoding` names, else none.",
        check: |run| Box::pin(gzip(run)),
    },
    Rule {
        name: "zstd",
        page: "batches.md",
        sentence: "`BATCH_COMPRESSION=auto` is zstd if an answer's `Accept-Encoding` lists it",
        check: |run| Box::pin(zstd(run)),
    },
];

/// A batch that is long enough to be compressed.
async fn compressed(run: &mut Run, purpose: &str, encoding: Encoding) -> BatchAnswer {
    let session = run.samples.session(purpose);
    let mut records = vec![run.samples.started(&session)];
    records.extend((0..3).map(|_| run.samples.usage(&session)));
    let mut answer = run.deliver_batch(&SampleBatch::default().with(records), encoding).await;
    answer.exchange.sent.extend([" Content-Encoding: ", purpose]);
    answer
}

async fn gzip(run: &mut Run) -> RuleVerdict {
    run.has_batches()?;
    let answer = compressed(run, "gzip", Encoding::Gzip).await;
    let Ok(response) = &answer.exchange.result else { return whole(&answer) };
    let names_gzip = response.accepts.is_some_and(|accepts| accepts.gzip);
    match response.status {
        415 if names_gzip => answer.broken("the batch taken: Accept-Encoding of this answer names gzip"),
        415 => pass("answered 415: the agent sends batches uncompressed, five to ten times the bytes"),
        _ => whole(&answer),
    }
}

async fn zstd(run: &mut Run) -> RuleVerdict {
    run.has_batches()?;
    if !run.accepts_zstd {
        return not_seen(
            "no answer to a batch names zstd in Accept-Encoding: the agent uses gzip",
            "if the server takes zstd, send Accept-Encoding: gzip, zstd with answers",
        );
    }
    whole(&compressed(run, "zstd", Encoding::Zstd).await)
}
