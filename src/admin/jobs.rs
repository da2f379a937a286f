//! Jobs whose duration depends on the size of the outbox: they report progress in lines, and then the result.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, Stream};
use serde::{Deserialize, Serialize};
use tokio::sync::{oneshot, watch};

use super::audit::Effect;
use super::{Actor, Audit, chain};
use crate::outbox::{self, Outbox, Salvaged, Verified};

/// Interval of progress lines.
const TELL_EVERY: Duration = Duration::from_millis(250);

/// A line of a job's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobLine<T> {
    /// Records processed so far.
    Progress(u64),
    /// The result: the last line.
    Done(T),
    /// The error: the last line.
    Failed(String),
}

/// The result of an import.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Imported {
    /// Records imported.
    pub imported: u64,
    /// Dead letters imported.
    pub dead_letters: u64,
    /// Dead letters skipped because they already existed.
    pub known_dead_letters: u64,
}

impl From<outbox::Imported> for Imported {
    fn from(imported: outbox::Imported) -> Self {
        let outbox::Imported { records, dead_letters, known, .. } = imported;
        Self { imported: records, dead_letters, known_dead_letters: known }
    }
}

impl From<Imported> for outbox::Imported {
    fn from(imported: Imported) -> Self {
        let Imported { imported, dead_letters, known_dead_letters } = imported;
        Self { records: imported, dead_letters, known: known_dead_letters, is_incomplete: false }
    }
}

/// Verifies an outbox in use and reports damage. Dropping the stream ends the job.
pub fn verify(outbox: &Outbox) -> impl Stream<Item = JobLine<Verified>> + use<> {
    let (outbox, (tell, progress)) = (outbox.clone(), watch::channel(0));
    let work = async move {
        let verified = outbox.inspect(|records| _ = tell.send_replace(records)).await;
        verified.map_err(|error| error.to_string())
    };
    lines(work, progress)
}

/// The lines of a job: its progress from time to time, then its result.
fn lines<T>(
    work: impl Future<Output = Result<T, String>>,
    progress: watch::Receiver<u64>,
) -> impl Stream<Item = JobLine<T>> {
    stream::unfold(Some((Box::pin(work), progress)), async |job| {
        let (mut work, progress) = job?;
        match tokio::time::timeout(TELL_EVERY, &mut work).await {
            Err(_) => {
                let records = *progress.borrow();
                Some((JobLine::Progress(records), Some((work, progress))))
            }
            Ok(Ok(done)) => Some((JobLine::Done(done), None)),
            Ok(Err(error)) => Some((JobLine::Failed(error), None)),
        }
    })
}

/// How to salvage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct SalvageAsked {
    /// Abandons what cannot be recovered and clears the quarantine state.
    #[serde(default)]
    pub give_up: bool,
}

/// The audit log's detail about a salvage.
pub fn salvage_detail(give_up: bool) -> &'static str {
    if give_up { "with --give-up" } else { "" }
}

/// Recovers readable records from the quarantine, by order of `by`. Dropping the stream ends the work between two appends.
pub(super) fn salvage(
    outbox: Outbox,
    audit: Arc<Audit>,
    by: Actor,
    give_up: bool,
) -> impl Stream<Item = JobLine<Vec<Salvaged>>> {
    let (told, done) = oneshot::channel();
    let (tell, progress) = watch::channel(0);
    let (stop, mut stopped) = oneshot::channel::<()>();
    let (runtime, heard) = (tokio::runtime::Handle::current(), progress.clone());
    // Copies and reads whole files: not on a thread that others wait for.
    tokio::task::spawn_blocking(move || {
        let work = async {
            let work = outbox.salvage(give_up, move |records| {
                tell.send_replace(records);
            });
            tokio::select! {
                outcome = work => outcome.map_err(|error| chain(&error)),
                _ = &mut stopped => Err("its client disconnected".to_owned()),
            }
        };
        let effect = |outcome: &Result<_, String>| {
            let error = outcome.as_ref().err().cloned();
            Effect { count: *heard.borrow(), error, ..Effect::default() }
        };
        let _ =
            told.send(runtime.block_on(audit.order(&by, "salvage", salvage_detail(give_up), work, effect)));
    });
    let salvaging = async move {
        // Dropped with this: then the work ends.
        let _stop = stop;
        done.await.unwrap_or_else(|_| Err("salvaging ended unexpectedly".into()))
    };
    lines(salvaging, progress)
}
