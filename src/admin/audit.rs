//! Operator actions: each gets a log line and a ledger entry with who, what and the result.
//!
//! An action that moves or deletes records, or takes long, is recorded as begun before it starts and again with its result,
//! so that a crash leaves a trace; so is each page of an action that takes several requests. An action that cannot be
//! recorded is executed anyway, since a full disk must not prevent pausing the drain; the log says so.

use std::fmt;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{AdminError, Dropped, Replayed, Selection, chain, dead_letters};
use crate::outbox::{AUDIT_IDS, AUDIT_KEPT, AuditNote, AuditOutcome, LedgerError, Outbox};
use crate::telemetry::failpoint;

/// An action waits at most this long for its entry, which is then written later.
const NOTED_WITHIN: Duration = Duration::from_secs(2);

/// Who acts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Actor {
    /// A holder of the token, at this address.
    Address(IpAddr),
    /// The ControlPlane, by the command with this ID.
    Command(String),
    /// A user of the command line on this machine.
    User(String),
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => write!(f, "{address}"),
            Self::Command(id) => write!(f, "command {id}"),
            Self::User(name) => write!(f, "local user {name}"),
        }
    }
}

/// An operator action and its result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AuditLine {
    /// Its number: later actions have greater ones.
    pub number: u64,
    /// When it was started.
    pub at: String,
    /// Who did it: an address, `command <id>`, or `local user <name>`.
    pub who: String,
    /// The action.
    pub order: String,
    /// Its target.
    pub detail: String,
    /// How many dead letters or records it affected.
    pub count: Option<u64>,
    /// The numbers of the first affected dead letters.
    pub ids: Vec<u64>,
    /// `begun` (outcome unknown), `done` or `failed`.
    pub outcome: String,
    /// Why it failed.
    pub error: Option<String>,
}

impl From<(u64, AuditNote)> for AuditLine {
    fn from((number, note): (u64, AuditNote)) -> Self {
        let AuditNote { at, who, order, detail, count, ids, outcome } = note;
        let (outcome, error) = match outcome {
            AuditOutcome::Begun => ("begun", None),
            AuditOutcome::Done => ("done", None),
            AuditOutcome::Failed(error) => ("failed", Some(error)),
        };
        let at = crate::record::Timestamp(at).to_rfc3339();
        Self { number, at, who, order, detail, count, ids, outcome: outcome.to_owned(), error }
    }
}

/// The last operator actions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AuditPage {
    /// Newest first.
    pub orders: Vec<AuditLine>,
}

/// How many actions to list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct AuditFilter {
    /// Maximum number; default 1,000, which is all that are kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

/// The last operator actions, newest first.
pub async fn list_orders(outbox: &Outbox, limit: Option<usize>) -> Result<AuditPage, AdminError> {
    let orders = outbox.orders().await?.into_iter().rev().map(AuditLine::from);
    Ok(AuditPage { orders: orders.take(limit.unwrap_or(AUDIT_KEPT as usize)).collect() })
}

/// An action recorded as begun.
pub struct OpenOrder {
    /// The entry's number, if it was written in time.
    number: Option<u64>,
    note: AuditNote,
}

impl OpenOrder {
    fn new(by: &Actor, order: &str, detail: String) -> Self {
        let note = AuditNote {
            at: crate::time::now().0,
            who: by.to_string(),
            order: order.to_owned(),
            detail,
            count: None,
            ids: Vec::new(),
            outcome: AuditOutcome::Begun,
        };
        Self { number: None, note }
    }

    /// Sets the target, if it is known only now.
    pub fn describe(&mut self, detail: String) {
        self.note.detail = detail;
    }

    /// Whether this succeeded and `next` is the same action by the same actor.
    fn goes_on_with(&self, next: &Self) -> bool {
        let (before, next) = (&self.note, &next.note);
        before.outcome == AuditOutcome::Done
            && (&before.who, &before.order, &before.detail) == (&next.who, &next.order, &next.detail)
    }
}

/// The result of an action.
#[derive(Debug, Default)]
pub struct Effect {
    /// Dead letters or records affected, also on failure.
    pub count: u64,
    /// Which dead letters.
    pub ids: Vec<u64>,
    /// Why it failed.
    pub error: Option<String>,
}

/// Records operator actions.
pub struct Audit {
    outbox: Outbox,
    /// The last page of the last action on dead letters: an action may take several requests.
    last_page: Mutex<Option<OpenOrder>>,
}

impl Audit {
    /// Of this outbox.
    pub fn new(outbox: Outbox) -> Self {
        Self { outbox, last_page: Mutex::default() }
    }

    /// Records an action that was executed at once, or failed.
    pub async fn note(
        &self,
        by: &Actor,
        order: &str,
        detail: impl Into<String>,
        outcome: Result<(), String>,
    ) {
        let mut order = OpenOrder::new(by, order, detail.into());
        order.note.outcome = outcome.map_or_else(AuditOutcome::Failed, |()| AuditOutcome::Done);
        log(&order.note);
        self.write(&mut order).await;
    }

    /// Records an action as begun, executes it, and records its result.
    pub async fn order<T>(
        &self,
        by: &Actor,
        order: &str,
        detail: impl Into<String>,
        work: impl Future<Output = T>,
        effect: impl FnOnce(&T) -> Effect,
    ) -> T {
        let order = self.begin(by, order, detail).await;
        let done = work.await;
        self.end(order, effect(&done)).await;
        done
    }

    /// Records an action as begun. Its result gets the same number.
    pub async fn begin(&self, by: &Actor, order: &str, detail: impl Into<String>) -> OpenOrder {
        self.begun(OpenOrder::new(by, order, detail.into())).await
    }

    async fn begun(&self, mut order: OpenOrder) -> OpenOrder {
        order.note.outcome = AuditOutcome::Begun;
        self.write(&mut order).await;
        failpoint::reached("audit::begun");
        order
    }

    /// Records the result of an action, or of its next page.
    pub async fn end(&self, mut order: OpenOrder, effect: Effect) -> OpenOrder {
        let Effect { count, mut ids, error } = effect;
        ids.truncate(AUDIT_IDS);
        let outcome = error.map_or(AuditOutcome::Done, AuditOutcome::Failed);
        let before = order.note.clone();
        order.note = AuditNote { count: Some(count), ids, outcome, ..before.clone() };
        log(&order.note);
        order.note.count = Some(before.count.unwrap_or(0) + count);
        order.note.ids = before.ids.into_iter().chain(order.note.ids).take(AUDIT_IDS).collect();
        self.write(&mut order).await;
        order
    }

    /// Deletes dead letters, some hundreds at a time.
    pub async fn drop_letters(&self, by: &Actor, selection: &Selection) -> Result<Dropped, AdminError> {
        let (ids, next) = dead_letters::chosen(&self.outbox, selection).await?;
        let work = self.outbox.drop_dead_letters(ids.clone());
        let effect = |dropped: &Result<u64, LedgerError>| Effect {
            count: *dropped.as_ref().unwrap_or(&0),
            ids,
            error: dropped.as_ref().err().map(|error| chain(error)),
        };
        let dropped = self.page(by, "drop dead letters", selection, work, effect).await;
        Ok(Dropped { dropped: dropped?, next })
    }

    /// Replays dead letters as records, some hundreds at a time.
    pub async fn replay_letters(&self, by: &Actor, selection: &Selection) -> Result<Replayed, AdminError> {
        let work = dead_letters::replay_selected(&self.outbox, selection);
        let effect = |outcome: &Result<Replayed, AdminError>| match outcome {
            Ok(Replayed { replayed, error, .. }) => {
                Effect { count: replayed.len() as u64, ids: replayed.clone(), error: error.clone() }
            }
            Err(error) => Effect { error: Some(chain(error)), ..Effect::default() },
        };
        self.page(by, "replay dead letters", selection, work, effect).await
    }

    /// Like [`Audit::order`], for a page of an action on dead letters: each page is recorded before it is executed, all
    /// under one number.
    async fn page<T>(
        &self,
        by: &Actor,
        order: &str,
        selection: &Selection,
        work: impl Future<Output = T>,
        effect: impl FnOnce(&T) -> Effect,
    ) -> T {
        let new = OpenOrder::new(by, order, selection.to_string());
        let last = self.last_page.lock().unwrap_or_else(PoisonError::into_inner).take();
        let is_first = selection.from == 0 || selection.below.is_none();
        let last = last.filter(|last| !is_first && last.goes_on_with(&new));
        let order = self.begun(last.unwrap_or(new)).await;
        let done = work.await;
        let order = self.end(order, effect(&done)).await;
        *self.last_page.lock().unwrap_or_else(PoisonError::into_inner) = Some(order);
        done
    }

    async fn write(&self, order: &mut OpenOrder) {
        let written = self.outbox.note_order(order.number, order.note.clone());
        match tokio::time::timeout(NOTED_WITHIN, written).await {
            Ok(Ok(number)) => order.number = Some(number),
            Ok(Err(error)) => {
                tracing::warn!(%error, "audit: an operator action could not be written to the ledger");
            }
            Err(_) => tracing::warn!("audit: an operator action was not written to the ledger in time"),
        }
    }
}

fn log(note: &AuditNote) {
    let AuditNote { who, order, detail, count, ids, outcome, .. } = note;
    let ids = (!ids.is_empty()).then(|| format!("{ids:?}"));
    if let AuditOutcome::Failed(error) = outcome {
        tracing::warn!(who, order, detail, count, ids, error, "audit: operator action failed");
    } else {
        tracing::warn!(who, order, detail, count, ids, "audit: operator action");
    }
}
