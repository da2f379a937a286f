//! Executes a command once: it is noted before, and its result is noted before anybody learns of it.

use serde_json::Value;
use tokio::time::Instant;

use super::journal::Begun;
use super::order::{CommandType, Order};
use super::{CommandExecutor, UNKNOWN};
use crate::admin::{Actor, chain};
use crate::control_plane::Command;
use crate::outbox::CommandOutcome;
use crate::telemetry::failpoint;

/// How a command ended, in metrics.
#[derive(Clone, Copy)]
pub(super) enum Ending {
    Succeeded,
    Failed,
    Refused,
    Repeated,
}

impl Ending {
    pub(super) const ALL: [Self; 4] = [Self::Succeeded, Self::Failed, Self::Refused, Self::Repeated];

    pub(super) const fn label(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Refused => "refused",
            Self::Repeated => "repeated",
        }
    }
}

impl CommandExecutor {
    pub(super) async fn carry_out_once(
        &mut self,
        kind: Option<CommandType>,
        command: &Command,
        order: Order,
        expires: Option<i64>,
        received: Instant,
    ) {
        let begun = Begun {
            id: &command.command_id,
            kind: &command.command_type,
            is_change: expires.is_some(),
            expires,
        };
        // IMPORTANT: durable before execution: from here on it cannot be executed twice.
        let Some(number) = self.begin(begun, None).await else { return };
        failpoint::reached("commands::begun");
        let by = Actor::Command(command.command_id.clone());
        let done = self.carry_out(order, &by, received).await;
        failpoint::reached("commands::carried-out");
        let ending = if done.is_ok() { Ending::Succeeded } else { Ending::Failed };
        self.count(kind, ending);
        match &done {
            Ok(_) => tracing::info!(
                command_id = command.command_id,
                command_type = command.command_type,
                "a command was executed"
            ),
            Err(error) => tracing::warn!(
                error,
                command_id = command.command_id,
                command_type = command.command_type,
                "a command failed"
            ),
        }
        if let Some(journal) = &mut self.journal {
            journal.finish(number, outcome(done)).await;
        }
        failpoint::reached("commands::noted");
    }

    /// Records that a command was not executed; that is then reported.
    pub(super) async fn reject(
        &mut self,
        kind: Option<CommandType>,
        command: &Command,
        ending: Ending,
        why: String,
    ) {
        let begun =
            Begun { id: &command.command_id, kind: &command.command_type, is_change: false, expires: None };
        if self.begin(begun, Some(outcome(Err(why)))).await.is_some() {
            self.count(kind, ending);
        }
    }

    /// Records a command. `None`: it cannot be handled now, and will be delivered again.
    async fn begin(&mut self, begun: Begun<'_>, outcome: Option<CommandOutcome>) -> Option<u64> {
        match self.journal.as_mut()?.begin(begun, outcome, self.client.unix_micros()).await {
            Ok(number) => Some(number),
            Err(error) => {
                self.unnoted.get_or_insert_with(|| chain(&error));
                None
            }
        }
    }

    pub(super) fn count(&self, kind: Option<CommandType>, ending: Ending) {
        let kind = kind.map_or(UNKNOWN, CommandType::name);
        self.metrics.commands.with_label_values(&[kind, ending.label()]).inc();
    }
}

pub(super) fn outcome(done: Result<Value, String>) -> CommandOutcome {
    let (success, result, error) = match done {
        Ok(result) => (true, result, None),
        Err(error) => (false, Value::Null, Some(error)),
    };
    CommandOutcome { success, result: result.to_string(), error, at: crate::time::now().0 }
}
