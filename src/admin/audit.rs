//! Who gave which order, and what it did: a line in the log and a note in the ledger for each.
//!
//! What destroys is noted before it is done, and again with what came of it: a crash between leaves the note that it was
//! begun. An order that cannot be noted is carried out all the same, for a full disk must not keep anybody from pausing the
//! drain; the line in the log says so.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use super::{AdminError, Dropped, Replayed, Selection, chain, dead_letters};
use crate::outbox::{AUDIT_IDS, AUDIT_KEPT, AuditNote, AuditOutcome, LedgerError, Outbox};

/// An order need not wait longer for its note, which is written all the same.
const NOTED_WITHIN: Duration = Duration::from_secs(2);

/// Who gives an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Actor {
    /// Whoever has the token, at this address.
    Address(IpAddr),
    /// The ControlPlane, by the command with this id.
    Command(String),
    /// Whoever ran the command line on this machine.
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

/// An order and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AuditLine {
    /// Its number: later orders have greater ones.
    pub number: u64,
    /// When it was given.
    pub at: String,
    /// Who gave it: an address, `command <id>`, or `local user <name>`.
    pub who: String,
    /// What was to be done.
    pub order: String,
    /// What it was to be done with.
    pub detail: String,
    /// To how many it was done.
    pub count: Option<u64>,
    /// To which dead letters: the first of them.
    pub ids: Vec<u64>,
    /// `begun` (nothing more is known), `done` or `failed`.
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

/// The last orders.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AuditPage {
    /// Newest first.
    pub orders: Vec<AuditLine>,
}

/// How many orders are listed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct AuditFilter {
    /// At most so many; 1,000, which are kept, unless asked otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

/// The last orders, newest first.
pub async fn list_orders(outbox: &Outbox, limit: Option<usize>) -> Result<AuditPage, AdminError> {
    let orders = outbox.orders().await?.into_iter().rev().map(AuditLine::from);
    Ok(AuditPage { orders: orders.take(limit.unwrap_or(AUDIT_KEPT as usize)).collect() })
}

/// Notes orders.
pub struct Audit {
    outbox: Outbox,
    /// The last note: an order that takes several requests is one.
    last: Mutex<Option<(u64, AuditNote)>>,
}

impl Audit {
    /// Of this outbox.
    pub fn new(outbox: Outbox) -> Self {
        Self { outbox, last: Mutex::default() }
    }

    /// Notes an order that has been carried out, or not.
    pub async fn note(
        &self,
        by: &Actor,
        order: &str,
        detail: impl Into<String>,
        count: Option<u64>,
        outcome: Result<(), String>,
    ) {
        let outcome = outcome.map_or_else(AuditOutcome::Failed, |()| AuditOutcome::Done);
        let note = AuditNote { count, outcome, ..begun(by, order, detail.into()) };
        log(&note);
        let mut last = self.last.lock().await;
        self.write(&mut last, None, note).await;
    }

    /// Drops dead letters for good, some hundreds at a time.
    pub async fn drop_letters(&self, by: &Actor, selection: &Selection) -> Result<Dropped, AdminError> {
        let (ids, next) = dead_letters::chosen(&self.outbox, selection).await?;
        let mut last = self.last.lock().await;
        let note = begun(by, "drop dead letters", selection.to_string());
        let (number, before) = self.begin(&mut last, selection, note).await;
        let dropped = self.outbox.drop_dead_letters(ids.clone()).await;
        let count = *dropped.as_ref().unwrap_or(&0);
        let failed = dropped.as_ref().err().map(|error| chain(error));
        self.end(&mut last, number, before, (count, &ids), failed).await;
        Ok(Dropped { dropped: dropped?, next })
    }

    /// Makes records of dead letters again, some hundreds at a time.
    pub async fn replay_letters(&self, by: &Actor, selection: &Selection) -> Result<Replayed, AdminError> {
        let mut last = self.last.lock().await;
        let note = begun(by, "replay dead letters", selection.to_string());
        let (number, before) = self.begin(&mut last, selection, note).await;
        let outcome = dead_letters::replay_selected(&self.outbox, selection).await;
        let (ids, failed) = match &outcome {
            Ok(replayed) => (&replayed.replayed[..], replayed.error.clone()),
            Err(error) => (&[][..], Some(chain(error))),
        };
        self.end(&mut last, number, before, (ids.len() as u64, ids), failed).await;
        outcome
    }

    /// Notes that an order is begun, or that it goes on. Gives its number, if it could be noted.
    async fn begin(
        &self,
        last: &mut Option<(u64, AuditNote)>,
        selection: &Selection,
        note: AuditNote,
    ) -> (Option<u64>, AuditNote) {
        let is_same = |before: &AuditNote| {
            (&before.who, &before.order, &before.detail, &before.outcome)
                == (&note.who, &note.order, &note.detail, &AuditOutcome::Done)
        };
        if selection.from > 0
            && selection.below.is_some()
            && let Some((number, before)) = last.as_ref().filter(|(_, before)| is_same(before))
        {
            return (Some(*number), before.clone());
        }
        (self.write(last, None, note.clone()).await, note)
    }

    async fn end(
        &self,
        last: &mut Option<(u64, AuditNote)>,
        number: Option<u64>,
        before: AuditNote,
        (count, ids): (u64, &[u64]),
        failed: Option<String>,
    ) {
        let mut note = AuditNote {
            count: Some(count),
            ids: ids.iter().take(AUDIT_IDS).copied().collect(),
            outcome: failed.map_or(AuditOutcome::Done, AuditOutcome::Failed),
            ..before.clone()
        };
        log(&note);
        note.count = Some(before.count.unwrap_or(0) + count);
        note.ids = before.ids.into_iter().chain(note.ids).take(AUDIT_IDS).collect();
        self.write(last, number, note).await;
    }

    async fn write(
        &self,
        last: &mut Option<(u64, AuditNote)>,
        number: Option<u64>,
        note: AuditNote,
    ) -> Option<u64> {
        let written = tokio::time::timeout(NOTED_WITHIN, self.outbox.note_order(number, note.clone())).await;
        let number = match written {
            Ok(Ok(number)) => number,
            Ok(Err(error)) => {
                unnoted(&error);
                return None;
            }
            Err(_) => {
                tracing::warn!("audit: an order could not be noted in time");
                return None;
            }
        };
        *last = Some((number, note));
        Some(number)
    }
}

fn unnoted(error: &LedgerError) {
    tracing::warn!(%error, "audit: an order could not be noted in the ledger");
}

fn begun(by: &Actor, order: &str, detail: String) -> AuditNote {
    AuditNote {
        at: crate::time::now().0,
        who: by.to_string(),
        order: order.to_owned(),
        detail,
        count: None,
        ids: Vec::new(),
        outcome: AuditOutcome::Begun,
    }
}

fn log(note: &AuditNote) {
    let AuditNote { who, order, detail, count, ids, outcome, .. } = note;
    let ids = (!ids.is_empty()).then(|| format!("{ids:?}"));
    if let AuditOutcome::Failed(error) = outcome {
        tracing::warn!(who, order, detail, count, ids, error, "audit: an order was given, and failed");
    } else {
        tracing::warn!(who, order, detail, count, ids, "audit: an order was given");
    }
}
