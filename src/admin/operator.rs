//! Actions on a running agent, for the admin API and signed commands.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::Stream;
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, OwnedMutexGuard, watch};

use super::import::Imports;
use super::jobs::salvage;
use super::letters::Letters;
use super::{Actor, AdminError, Audit, Dropped, Exports, JobLine, Replayed, SalvageAsked, Selection, chain};
use crate::drain::{Controls, LinkStatus, RateLimit, Trouble};
use crate::outbox::{Outbox, Salvaged};
use crate::telemetry::log::{Level, LogLevel};

/// The drain's state and orders.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DrainState {
    /// Whether an operator has paused it.
    pub paused: bool,
    /// Requests per second; 0: no limit.
    pub rate_limit: u32,
    /// Requests allowed at once after a pause; 0: as many as a tenth of a second allows.
    pub burst: u32,
    /// Bytes per second that requests may use of the link; 0: no limit.
    pub bandwidth: u64,
    /// The link: up, probing or down.
    pub link: String,
    /// Why the link is down.
    pub reason: Option<String>,
    /// Whether the refusal brake is engaged: every record was refused, at least of one type.
    pub braked: bool,
}

/// The drain applies an order within this time unless it hangs.
const OBEYED_WITHIN: Duration = Duration::from_secs(2);

/// Reloads the settings. Implemented by `app`, which knows them all.
pub trait Reload: Send + Sync {
    /// Applies what can change at run time. Returns the settings that differ from those at the start and need a restart. On an
    /// error, nothing has changed.
    fn reload(self: Arc<Self>) -> BoxFuture<'static, Result<Vec<String>, ReloadError>>;
}

/// Why the settings were not changed.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct ReloadError(Box<dyn std::error::Error + Send + Sync>);

impl ReloadError {
    /// An error with this reason.
    pub fn new(reason: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self(reason.into())
    }
}

/// Executes an operator's actions on a running agent.
pub struct Operator {
    /// The outbox.
    pub outbox: Outbox,
    /// The orders to the drain.
    pub controls: Controls,
    /// The state of the link.
    pub link: watch::Receiver<LinkStatus>,
    /// The log level.
    pub log_level: LogLevel,
    /// Reloads the settings.
    reloader: Arc<dyn Reload>,
    /// Replays and drops dead letters.
    letters: Letters,
    /// Records operator actions.
    pub audit: Arc<Audit>,
    /// Moves waiting records to a file.
    pub exports: Exports,
    /// Imports what was moved to a file.
    pub imports: Imports,
    /// Allows one verification or salvage at a time.
    jobs: Arc<Mutex<()>>,
}

impl Operator {
    /// For this agent.
    pub fn new(
        outbox: Outbox,
        controls: Controls,
        link: watch::Receiver<LinkStatus>,
        log_level: LogLevel,
        reloader: Arc<dyn Reload>,
        letters: Letters,
        audit: Arc<Audit>,
    ) -> Self {
        let exports = Exports::new(outbox.clone(), controls.clone(), link.clone(), Arc::clone(&audit));
        let imports = Imports::new(outbox.clone(), Arc::clone(&audit));
        let jobs = Arc::new(Mutex::new(()));
        Self { outbox, controls, link, log_level, reloader, letters, audit, exports, imports, jobs }
    }

    /// The turn for a long job, until it is dropped; `None` while another job runs.
    pub fn turn(&self) -> Option<OwnedMutexGuard<()>> {
        Arc::clone(&self.jobs).try_lock_owned().ok()
    }

    /// Recovers readable records from the quarantine. Dropping the stream ends the work between two appends.
    pub fn salvage(
        &self,
        by: Actor,
        asked: SalvageAsked,
    ) -> impl Stream<Item = JobLine<Vec<Salvaged>>> + use<> {
        salvage(self.outbox.clone(), Arc::clone(&self.audit), by, asked.give_up)
    }

    /// Ends exports whose clients went silent and, when `stop` is true, the open export and import.
    pub async fn watch(&self, stop: watch::Receiver<bool>) {
        self.exports.watch(stop).await;
        self.imports.stop().await;
    }

    /// The drain's state.
    pub fn drain(&self) -> DrainState {
        let (orders, link) = (self.controls.orders(), self.link.borrow());
        DrainState {
            paused: orders.paused,
            rate_limit: orders.rate_limit.per_second,
            burst: orders.rate_limit.burst,
            bandwidth: orders.bandwidth,
            link: link.state.label().to_owned(),
            reason: link.trouble.map(|trouble| trouble.label().to_owned()),
            braked: is_braked(&link),
        }
    }

    /// Pauses sending. Returns when the drain has applied it; requests in flight may still be answered.
    pub async fn pause(&self, by: &Actor) {
        self.controls.pause();
        self.obeyed(|link| link.holds).await;
        self.audit.note(by, "pause the sender", "", Ok(())).await;
    }

    /// Resumes sending and sends the next probe now.
    pub async fn resume(&self, by: &Actor) {
        self.controls.resume();
        self.audit.note(by, "resume the sender", "", Ok(())).await;
    }

    /// Sends the next probe now, even during a `Retry-After`.
    pub async fn probe(&self, by: &Actor) {
        self.controls.probe();
        self.audit.note(by, "probe the link", "", Ok(())).await;
    }

    /// Releases the refusal brake. Returns when the drain has applied it.
    pub async fn release_brake(&self, by: &Actor) {
        self.controls.release_brake();
        self.obeyed(|link| !is_braked(link)).await;
        self.audit.note(by, "release the brake", "", Ok(())).await;
    }

    /// Waits until the drain has applied an order. If it does not, its state shows that.
    async fn obeyed(&self, heard: impl Fn(&LinkStatus) -> bool) {
        let mut link = self.link.clone();
        let _ = tokio::time::timeout(OBEYED_WITHIN, link.wait_for(heard)).await;
    }

    /// Limits the request rate until the next reload or restart.
    pub async fn set_rate_limit(&self, by: &Actor, rate_limit: RateLimit) {
        let before = self.controls.orders().rate_limit;
        self.controls.set_rate_limit(rate_limit);
        let said = |limit: RateLimit| format!("{} requests/s, burst {}", limit.per_second, limit.burst);
        let detail = format!("{} (before: {})", said(rate_limit), said(before));
        self.audit.note(by, "set the rate limit", detail, Ok(())).await;
    }

    /// Limits the bandwidth until the next reload or restart.
    pub async fn set_bandwidth(&self, by: &Actor, bandwidth: u64) {
        let before = self.controls.orders().bandwidth;
        self.controls.set_bandwidth(bandwidth);
        let detail = format!("{bandwidth} bytes/s (before: {before})");
        self.audit.note(by, "set the bandwidth", detail, Ok(())).await;
    }

    /// Sets the log level until the next reload or restart.
    pub async fn set_log_level(&self, by: &Actor, level: Level) {
        let before = self.log_level.get();
        self.log_level.set(level);
        let detail = format!("{level:?} (before: {before:?})");
        self.audit.note(by, "set the log level", detail, Ok(())).await;
    }

    /// Replays dead letters. Once started it finishes, even without a waiting caller.
    pub async fn replay(&self, by: &Actor, selection: Selection) -> Result<Replayed, AdminError> {
        self.letters.replay(by.clone(), selection).await
    }

    /// Deletes dead letters. Once started it finishes, even without a waiting caller.
    pub async fn drop_letters(&self, by: &Actor, selection: Selection) -> Result<Dropped, AdminError> {
        self.letters.drop(by.clone(), selection).await
    }

    /// Reloads the settings. Returns the changed ones that need a restart.
    pub async fn reload(&self, by: &Actor) -> Result<Vec<String>, ReloadError> {
        let done = Arc::clone(&self.reloader).reload().await;
        let outcome = done.as_ref().map(drop).map_err(|error| chain(error));
        self.audit.note(by, "reload the settings", "", outcome).await;
        done
    }
}

fn is_braked(link: &LinkStatus) -> bool {
    link.held.iter().any(|held| held.trouble == Trouble::Refusing)
}
