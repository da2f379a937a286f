//! Exports waiting records and dead letters from a running agent, a page at a time, without losing a record if the client
//! vanishes.
//!
//! While an export is open the drain holds no record. A page is served again until it is confirmed as safe elsewhere; only
//! then are its records settled, or its dead letters dropped. An export whose client is silent for a while ends by itself,
//! and the drain resumes, including unconfirmed records.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;
use uuid::Uuid;

use super::audit::{Effect, OpenOrder};
use super::{Actor, Audit, STOPPED};
use crate::drain::{Controls, LinkStatus};
use crate::outbox::{ExportPage, ExportPosition, Exported, Outbox, TransferError};

/// Default number of silent seconds after which an export ends.
const PATIENCE: u64 = 60;
const PATIENCE_MOST: u64 = 600;

/// Why an export cannot continue.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// An export is already open.
    #[error("another export is running")]
    Busy,
    /// The export was abandoned or has ended.
    #[error("no such export: it has ended, or its client was silent for too long")]
    Gone,
    /// The confirmed page was never served.
    #[error("this page was never served")]
    Page,
    /// The backlog could not be read or settled.
    #[error(transparent)]
    Transfer(#[from] TransferError),
}

/// Parameters of an export.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ExportAsked {
    /// Silent seconds after which it ends by itself; default 60, at most 600.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patience_seconds: Option<u64>,
}

/// An open export.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ExportState {
    /// Its ID.
    pub export: Uuid,
    /// Whether the drain has released all records: only then are pages served.
    pub parked: bool,
    /// Silent seconds after which it ends by itself.
    pub patience_seconds: u64,
}

/// The page to confirm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PageNumber {
    /// Its number.
    pub page: u64,
}

/// Confirmed totals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Confirmed {
    /// Records settled as exported.
    pub exported: u64,
    /// Dead letters dropped from this outbox.
    pub dead_letters: u64,
}

impl From<Exported> for Confirmed {
    fn from(exported: Exported) -> Self {
        Self { exported: exported.records, dead_letters: exported.dead_letters }
    }
}

impl From<Confirmed> for Exported {
    fn from(confirmed: Confirmed) -> Self {
        Self { records: confirmed.exported, dead_letters: confirmed.dead_letters, id: None }
    }
}

/// The next page.
#[derive(Debug, PartialEq, Eq)]
pub enum NextPage {
    /// The drain still holds records: ask again.
    NotYet(ExportState),
    /// These lines.
    Lines {
        /// What to confirm.
        number: u64,
        /// JSON Lines.
        text: Vec<u8>,
    },
    /// Everything present at its start was served.
    End,
}

struct Export {
    id: Uuid,
    order: OpenOrder,
    patience: Duration,
    position: Option<ExportPosition>,
    /// Served but not confirmed.
    page: Option<ExportPage>,
    /// The page's number, or that of the last page.
    number: u64,
    exported: Exported,
}

/// The one export that may be open.
pub struct Exports {
    outbox: Outbox,
    controls: Controls,
    link: watch::Receiver<LinkStatus>,
    audit: Arc<Audit>,
    open: Mutex<Option<Export>>,
    /// When the open one ends by itself.
    until: watch::Sender<Option<Instant>>,
}

impl Exports {
    pub(super) fn new(
        outbox: Outbox,
        controls: Controls,
        link: watch::Receiver<LinkStatus>,
        audit: Arc<Audit>,
    ) -> Self {
        Self { outbox, controls, link, audit, open: Mutex::new(None), until: watch::Sender::new(None) }
    }

    fn state(&self, export: &Export) -> ExportState {
        let parked = self.link.borrow().parked;
        ExportState { export: export.id, parked, patience_seconds: export.patience.as_secs() }
    }

    /// Starts an export: the drain sends no record until it ends.
    pub async fn begin(&self, by: &Actor, asked: ExportAsked) -> Result<ExportState, ExportError> {
        let mut open = self.open.lock().await;
        if open.is_some() {
            return Err(ExportError::Busy);
        }
        let id = Uuid::new_v4();
        let patience =
            Duration::from_secs(asked.patience_seconds.unwrap_or(PATIENCE).clamp(1, PATIENCE_MOST));
        let export = Export {
            id,
            order: self.audit.begin(by, "export", "").await,
            patience,
            position: None,
            page: None,
            number: 0,
            exported: Exported::default(),
        };
        self.until.send_replace(Some(Instant::now() + patience));
        self.controls.export(true);
        Ok(self.state(open.insert(export)))
    }

    /// The open export with this ID; its client has just been heard.
    fn heard<'a>(&self, open: &'a mut Option<Export>, id: Uuid) -> Result<&'a mut Export, ExportError> {
        let export = open.as_mut().filter(|export| export.id == id).ok_or(ExportError::Gone)?;
        self.until.send_replace(Some(Instant::now() + export.patience));
        Ok(export)
    }

    /// The next unconfirmed page.
    pub async fn page(&self, id: Uuid) -> Result<NextPage, ExportError> {
        let mut open = self.open.lock().await;
        let export = self.heard(&mut open, id)?;
        // IMPORTANT: records the drain holds may still be delivered: they must not be served as well.
        let state = self.state(export);
        if !state.parked {
            return Ok(NextPage::NotYet(state));
        }
        if export.page.is_none() {
            let mut position = match export.position.take() {
                Some(position) => position,
                None => self.outbox.begin_export().await?,
            };
            let before = position.clone();
            let read = self.outbox.export_page(&mut position).await;
            export.position = Some(if read.is_ok() { position } else { before });
            export.page = read?;
            export.number += u64::from(export.page.is_some());
        }
        let page = export.page.as_ref();
        Ok(page
            .map_or(NextPage::End, |page| NextPage::Lines { number: export.number, text: page.text.clone() }))
    }

    /// Confirms a page: its records leave this outbox. Idempotent.
    pub async fn confirm(&self, id: Uuid, number: u64) -> Result<Confirmed, ExportError> {
        let mut open = self.open.lock().await;
        let export = self.heard(&mut open, id)?;
        if number > export.number {
            return Err(ExportError::Page);
        }
        if number == export.number
            && let Some(page) = &export.page
        {
            self.outbox.settle_exported(page).await?;
            if !self.outbox.flush().await {
                return Err(TransferError::Unsettled.into());
            }
            export.exported += page.counts();
            export.page = None;
        }
        Ok(export.exported.into())
    }

    /// Ends it: the drain resumes, unless an operator has paused it.
    pub async fn end(&self, id: Uuid) -> Result<Confirmed, ExportError> {
        let mut open = self.open.lock().await;
        let exported = self.heard(&mut open, id)?.exported;
        self.close(&mut open, None).await;
        Ok(exported.into())
    }

    /// Closes it for any reason, and records what was confirmed.
    async fn close(&self, open: &mut Option<Export>, error: Option<&str>) {
        self.until.send_replace(None);
        self.controls.export(false);
        if let Some(Export { mut order, exported, .. }) = open.take() {
            let Exported { records, dead_letters, .. } = exported;
            order.describe(format!("exported {records} records and {dead_letters} dead letters to a file"));
            let (count, error) = (exported.total(), error.map(str::to_owned));
            self.audit.end(order, Effect { count, error, ..Effect::default() }).await;
        }
    }

    /// Ends exports with silent clients, and the open one when `stop` is true.
    pub async fn watch(&self, mut stop: watch::Receiver<bool>) {
        let mut until = self.until.subscribe();
        while !*stop.borrow() {
            let deadline = *until.borrow_and_update();
            let overdue = async {
                match deadline {
                    Some(deadline) => tokio::time::sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = stop.changed() => {}
                Ok(()) = until.changed() => {}
                () = overdue => {
                    let mut open = self.open.lock().await;
                    // The client may have been heard from meanwhile.
                    if self.until.borrow().is_some_and(|until| until <= Instant::now()) {
                        tracing::warn!("the export's client went silent: the export is closed and sending resumes");
                        self.close(&mut open, Some("its client went silent")).await;
                    }
                }
            }
        }
        self.close(&mut *self.open.lock().await, Some(STOPPED)).await;
    }
}
