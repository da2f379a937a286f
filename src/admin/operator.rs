//! What may be done to a running agent, for everybody who may do it: the admin surface, and signed commands.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, OwnedMutexGuard, watch};

use super::{AdminError, Dropped, Exports, Imported, Replayed, Selection, dead_letters};
use crate::drain::{Controls, LinkStatus, RateLimit};
use crate::outbox::{Chunk, Outbox, TransferError};
use crate::reload::{ReloadError, Reloader};
use crate::telemetry::log::{Level, LogLevel};

/// How the drain is, and what was ordered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DrainState {
    /// Whether an operator has paused it.
    pub paused: bool,
    /// Requests a second; 0: no limit.
    pub rate_limit: u32,
    /// How many may go at once after a pause; 0: as many as go in a tenth of a second.
    pub burst: u32,
    /// The circuit: closed, half-open or open.
    pub link: String,
    /// Why the link is down.
    pub reason: Option<String>,
    /// Whether the brake holds: everything was refused.
    pub braked: bool,
}

/// An operator's hands.
pub struct Operator {
    /// Where records wait.
    pub outbox: Outbox,
    /// What is ordered of the drain.
    pub controls: Controls,
    /// How the link is.
    pub link: watch::Receiver<LinkStatus>,
    /// What is logged.
    pub log_level: LogLevel,
    /// Reads the settings again.
    pub reloader: Arc<Reloader>,
    /// One that replays or drops at a time: two would replay the same letter twice.
    letters: Mutex<()>,
    /// Moving what waits to a file.
    pub exports: Exports,
    /// One import at a time, for the memory's sake.
    imports: Mutex<()>,
    /// One verification, or salvaging, at a time.
    jobs: Arc<Mutex<()>>,
}

impl Operator {
    /// Of this agent.
    pub fn new(
        outbox: Outbox,
        controls: Controls,
        link: watch::Receiver<LinkStatus>,
        log_level: LogLevel,
        reloader: Arc<Reloader>,
    ) -> Self {
        let exports = Exports::new(outbox.clone(), controls.clone(), link.clone());
        let (letters, imports, jobs) = (Mutex::new(()), Mutex::new(()), Arc::new(Mutex::new(())));
        Self { outbox, controls, link, log_level, reloader, letters, exports, imports, jobs }
    }

    /// The turn for a job that takes long, for as long as it is held; none while another is under way.
    pub fn turn(&self) -> Option<OwnedMutexGuard<()>> {
        Arc::clone(&self.jobs).try_lock_owned().ok()
    }

    /// Takes in some lines of what was exported.
    pub async fn import(&self, chunk: Chunk) -> Result<Imported, TransferError> {
        let _one = self.imports.lock().await;
        let parsed = tokio::task::spawn_blocking(move || chunk.entries()).await;
        let entries = parsed.map_err(std::io::Error::other)??;
        let imported = self.outbox.import_chunk(entries).await?;
        // A line for each of thousands: the counters tell the rest.
        tracing::debug!(
            imported = imported.records,
            dead_letters = imported.dead_letters,
            "records were imported"
        );
        Ok(imported.into())
    }

    /// How the drain is.
    pub fn drain(&self) -> DrainState {
        let (orders, link) = (self.controls.orders(), self.link.borrow());
        DrainState {
            paused: orders.paused,
            rate_limit: orders.rate_limit.per_second,
            burst: orders.rate_limit.burst,
            link: link.circuit.to_owned(),
            reason: link.trouble.map(|trouble| trouble.label().to_owned()),
            braked: link.trouble == Some(crate::drain::Trouble::Refusing),
        }
    }

    /// Sends no more records, or sends them again.
    pub fn pause(&self, paused: bool) {
        self.controls.pause(paused);
    }

    /// Limits the rate of requests, until the next reload or restart.
    pub fn set_rate_limit(&self, rate_limit: RateLimit) {
        self.controls.set_rate_limit(rate_limit);
    }

    /// Logs from this level on, until the next reload or restart.
    pub fn set_log_level(&self, level: Level) {
        self.log_level.set(level);
    }

    /// Makes records of dead letters again.
    pub async fn replay(&self, selection: &Selection) -> Result<Replayed, AdminError> {
        let _one = self.letters.lock().await;
        let outcome = dead_letters::replay_selected(&self.outbox, selection).await?;
        tracing::info!(replayed = outcome.replayed.len(), "dead letters were replayed");
        Ok(outcome)
    }

    /// Drops dead letters for good.
    pub async fn drop_letters(&self, selection: &Selection) -> Result<Dropped, AdminError> {
        let _one = self.letters.lock().await;
        let outcome = dead_letters::drop_selected(&self.outbox, selection).await?;
        tracing::warn!(dropped = outcome.dropped, "dead letters were dropped by an operator");
        Ok(outcome)
    }

    /// Reads the settings again. Gives the changed ones that need a restart.
    pub async fn reload(&self) -> Result<Vec<String>, ReloadError> {
        self.reloader.reload().await
    }
}
