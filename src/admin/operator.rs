//! What may be done to a running agent, for everybody who may do it: the admin surface, and signed commands.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, OwnedMutexGuard, watch};
use uuid::Uuid;

use super::letters::Letters;
use super::{AdminError, Dropped, Exports, Imported, Replayed, Selection};
use crate::admin::reload::{ReloadError, Reloader};
use crate::drain::{Controls, LinkStatus, RateLimit, Trouble};
use crate::outbox::{Chunk, KnownLetters, Outbox, TransferError};
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
    /// Bytes a second that requests may take of the link; 0: no limit.
    pub bandwidth: u64,
    /// The circuit: closed, half-open or open.
    pub link: String,
    /// Why the link is down.
    pub reason: Option<String>,
    /// Whether the brake holds: everything was refused, at least of one kind.
    pub braked: bool,
}

/// The drain takes its next turn within this time, unless something is badly wrong.
const OBEYED_WITHIN: Duration = Duration::from_secs(2);

/// An import of which nothing is heard for so long has ended: another one may begin.
const IMPORT_PATIENCE: Duration = Duration::from_secs(30);

struct Import {
    id: Uuid,
    known: KnownLetters,
    heard: Instant,
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
    /// Replays and drops.
    letters: Letters,
    /// Moving what waits to a file.
    pub exports: Exports,
    /// The import under way: what was here when it began.
    import: Mutex<Option<Import>>,
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
        letters: Letters,
    ) -> Self {
        let exports = Exports::new(outbox.clone(), controls.clone(), link.clone());
        let (import, jobs) = (Mutex::new(None), Arc::new(Mutex::new(())));
        Self { outbox, controls, link, log_level, reloader, letters, exports, import, jobs }
    }

    /// The turn for a job that takes long, for as long as it is held; none while another is under way.
    pub fn turn(&self) -> Option<OwnedMutexGuard<()>> {
        Arc::clone(&self.jobs).try_lock_owned().ok()
    }

    /// Takes in some lines of what was exported, of the import with this name. None: another one is under way.
    /// After the last ones that import has ended, and the dead letters among all of them are such.
    pub async fn import(
        &self,
        id: Uuid,
        chunk: Chunk,
        is_last: bool,
    ) -> Result<Option<Imported>, TransferError> {
        let mut open = self.import.lock().await;
        let parsed = tokio::task::spawn_blocking(move || chunk.entries()).await;
        let entries = parsed.map_err(std::io::Error::other)??;
        let import = match &mut *open {
            Some(import) if import.id == id => import,
            Some(import) if import.heard.elapsed() < IMPORT_PATIENCE => return Ok(None),
            open => {
                let known = self.outbox.begin_import().await?;
                open.insert(Import { id, known, heard: Instant::now() })
            }
        };
        import.heard = Instant::now();
        let imported = self.outbox.import_chunk(entries, &mut import.known).await;
        if is_last || imported.is_err() {
            // Whoever failed begins again, and need not wait for it.
            *open = None;
        }
        let imported = imported?;
        if is_last {
            self.outbox.end_import().await?;
        }
        // A line for each of thousands: the counters tell the rest.
        tracing::debug!(
            imported = imported.records,
            dead_letters = imported.dead_letters,
            "records were imported"
        );
        Ok(Some(imported.into()))
    }

    /// How the drain is.
    pub fn drain(&self) -> DrainState {
        let (orders, link) = (self.controls.orders(), self.link.borrow());
        DrainState {
            paused: orders.paused,
            rate_limit: orders.rate_limit.per_second,
            burst: orders.rate_limit.burst,
            bandwidth: orders.bandwidth,
            link: link.circuit.to_owned(),
            reason: link.trouble.map(|trouble| trouble.label().to_owned()),
            braked: is_braked(&link),
        }
    }

    /// Sends no more records.
    pub fn pause(&self) {
        self.controls.pause();
    }

    /// Sends records again, and the next probe at once.
    pub fn resume(&self) {
        self.controls.resume();
    }

    /// Lets records go again after everything was refused. Done when the drain has heard it.
    pub async fn release_brake(&self) {
        self.controls.release_brake();
        let mut link = self.link.clone();
        // A drain that does not hear it is braked, and so it is told.
        let _ = tokio::time::timeout(OBEYED_WITHIN, link.wait_for(|link| !is_braked(link))).await;
    }

    /// Limits the rate of requests, until the next reload or restart.
    pub fn set_rate_limit(&self, rate_limit: RateLimit) {
        let before = self.controls.orders().rate_limit;
        if rate_limit != before {
            tracing::info!(
                rate_limit = rate_limit.per_second,
                burst = rate_limit.burst,
                before = before.per_second,
                "the rate limit was changed by an operator"
            );
        }
        self.controls.set_rate_limit(rate_limit);
    }

    /// Limits what requests take of the link, until the next reload or restart.
    pub fn set_bandwidth(&self, bandwidth: u64) {
        let before = self.controls.orders().bandwidth;
        if bandwidth != before {
            tracing::info!(bandwidth, before, "the bandwidth limit was changed by an operator");
        }
        self.controls.set_bandwidth(bandwidth);
    }

    /// Logs from this level on, until the next reload or restart.
    pub fn set_log_level(&self, level: Level) {
        self.log_level.set(level);
    }

    /// Makes records of dead letters again. Once begun that is finished, whether or not somebody waits for it.
    pub async fn replay(&self, selection: Selection) -> Result<Replayed, AdminError> {
        self.letters.replay(selection).await
    }

    /// Drops dead letters for good, likewise.
    pub async fn drop_letters(&self, selection: Selection) -> Result<Dropped, AdminError> {
        self.letters.drop(selection).await
    }

    /// Reads the settings again. Gives the changed ones that need a restart.
    pub async fn reload(&self) -> Result<Vec<String>, ReloadError> {
        self.reloader.reload().await
    }
}

fn is_braked(link: &LinkStatus) -> bool {
    link.held.iter().any(|held| held.trouble == Trouble::Refusing)
}
