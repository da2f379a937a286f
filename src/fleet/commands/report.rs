//! Reports each result until the `ControlPlane` accepts it.

use serde_json::Value;
use tokio::sync::watch;

use super::journal::Journal;
use super::order::CommandType;
use super::{CommandExecutor, until};
use crate::control_plane::{CallError, CommandResult, Meaning};
use crate::record::Timestamp;
use crate::telemetry::failpoint;

/// An unknown server or command may become known; after this many such answers the result is given up.
const NOT_FOUND_MOST: u32 = 10;
/// Failed reports in a round after which the rest waits for the next round.
const UNHEARD_MOST: usize = 10;

/// The outcome of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ReportOutcome {
    /// The `ControlPlane` accepted it.
    Heard,
    /// Rejected: repeating it would not help.
    Refused,
    /// The `ControlPlane` does not know this server or this command.
    NotFound,
    /// This report failed, on either side: retry it; the next one may succeed.
    Again,
    /// No report can succeed now.
    NotNow,
}

/// Maps the answer to an outcome. Pure and total.
fn outcome_of(answer: &Result<(), CallError>) -> ReportOutcome {
    match answer {
        Ok(()) => ReportOutcome::Heard,
        Err(CallError::Status { meaning, .. }) => match meaning {
            Meaning::Delivered | Meaning::Duplicate => ReportOutcome::Heard,
            Meaning::NotFound => ReportOutcome::NotFound,
            Meaning::Refused => ReportOutcome::Refused,
            Meaning::InProgress | Meaning::Failing => ReportOutcome::Again,
            // The connection is at fault: other results would fail too.
            Meaning::Credentials
            | Meaning::Overloaded
            | Meaning::Misconfigured
            | Meaning::Foreign
            | Meaning::Mismatched => ReportOutcome::NotNow,
        },
        Err(CallError::BadAnswer(_)) => ReportOutcome::Again,
        Err(CallError::Failed(_)) => ReportOutcome::NotNow,
    }
}

impl CommandExecutor {
    /// Reports results in order; those that failed before go last. `None`: time to stop.
    pub(super) async fn report(&mut self, stop: &watch::Receiver<bool>) -> Option<()> {
        let Some(journal) = &mut self.journal else { return Some(()) };
        let mut unreported = journal.unreported();
        unreported.sort_by_key(|number| self.unheard.get(number).copied().unwrap_or(0));
        let mut unheard = 0;
        for number in unreported {
            if unheard >= UNHEARD_MOST {
                return Some(());
            }
            let Some(result) = result(journal, number) else { continue };
            if !until(stop, self.admission.take(self.settings.poll_interval)).await? {
                return Some(());
            }
            let answer = until(stop, self.client.command_result(&result)).await?;
            failpoint::reached("commands::reported");
            let not_found = self.not_found.entry(number).or_default();
            *not_found += u32::from(outcome_of(&answer) == ReportOutcome::NotFound);
            let is_given_up = match outcome_of(&answer) {
                ReportOutcome::Heard => false,
                ReportOutcome::Refused => true,
                ReportOutcome::NotFound if *not_found >= NOT_FOUND_MOST => true,
                ReportOutcome::NotFound | ReportOutcome::Again => {
                    tracing::debug!(?answer, "reporting the result of a command failed; it will be retried");
                    *self.unheard.entry(number).or_default() += 1;
                    unheard += 1;
                    continue;
                }
                ReportOutcome::NotNow => {
                    tracing::debug!(?answer, "reporting results of commands fails; retrying later");
                    return Some(());
                }
            };
            if let Err(error) = answer
                && is_given_up
            {
                tracing::warn!(%error, command_id = result.command_id, "the ControlPlane rejects the result of a command; it is not reported again");
                self.unwanted.retain(|number| journal.note(*number).is_some());
                self.unwanted.insert(number);
            }
            for counts in [&mut self.not_found, &mut self.unheard] {
                counts.retain(|counted, _| *counted != number && journal.note(*counted).is_some());
            }
            journal.reported(number).await;
        }
        Some(())
    }
}

/// The result as it is reported.
fn result(journal: &Journal, number: u64) -> Option<CommandResult> {
    let note = journal.note(number)?;
    let outcome = note.outcome.as_ref()?;
    let mut result: Value = serde_json::from_str(&outcome.result).unwrap_or_default();
    let ends = CommandType::of(&note.command_type).is_some_and(CommandType::ends_with_the_process);
    if let Value::Object(fields) = &mut result
        && ends
        && journal.is_earlier(number)
    {
        // The change was made and undone by a restart: the sender of the command has to know.
        fields.insert("ended_by_restart".into(), true.into());
    }
    Some(CommandResult {
        command_id: note.command_id.clone(),
        success: outcome.success,
        result,
        error_message: outcome.error.clone(),
        execution_timestamp: Timestamp(outcome.at).to_rfc3339(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_is_dropped_only_if_repeating_it_cannot_help() {
        let fate_of =
            |meaning| outcome_of(&Err(CallError::Status { status: 400, meaning, retry_after: None }));
        assert_eq!(outcome_of(&Ok(())), ReportOutcome::Heard);
        for (meaning, expected) in [
            (Meaning::Delivered, ReportOutcome::Heard),
            (Meaning::Duplicate, ReportOutcome::Heard),
            (Meaning::InProgress, ReportOutcome::Again),
            (Meaning::Refused, ReportOutcome::Refused),
            (Meaning::NotFound, ReportOutcome::NotFound),
            (Meaning::Credentials, ReportOutcome::NotNow),
            (Meaning::Overloaded, ReportOutcome::NotNow),
            (Meaning::Failing, ReportOutcome::Again),
            (Meaning::Misconfigured, ReportOutcome::NotNow),
            (Meaning::Foreign, ReportOutcome::NotNow),
            (Meaning::Mismatched, ReportOutcome::NotNow),
        ] {
            assert_eq!(fate_of(meaning), expected, "{meaning:?}");
        }
    }
}
