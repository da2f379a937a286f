//! Moving what waits, and the dead letters, out of a running agent, a page at a time, without losing a record to a client that vanishes.
//!
//! While an export is open the drain holds no record. A page is given out again and again until it is confirmed: that
//! says that it is safe elsewhere, and only then are its records settled, or its dead letters dropped. An export of which nothing is heard for a
//! while ends by itself, and the drain goes on, with what was not confirmed among the rest.

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

/// Without a word of the client for so many seconds an export ends, unless it asked for another time.
const PATIENCE: u64 = 60;
const PATIENCE_MOST: u64 = 600;

/// Why an export does not go on.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// There is one already.
    #[error("another export is under way")]
    Busy,
    /// It was given up, or has ended.
    #[error("there is no such export: it has ended, or nothing was heard of its client for too long")]
    Gone,
    /// A page was confirmed that was not given out.
    #[error("that page was not given out")]
    Page,
    /// What waits could not be read, or not be settled.
    #[error(transparent)]
    Transfer(#[from] TransferError),
}

/// How an export is begun.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ExportAsked {
    /// After so many seconds without a word it ends by itself; 60 unless asked otherwise, at most 600.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patience_seconds: Option<u64>,
}

/// An export under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ExportState {
    /// What to call it.
    pub export: Uuid,
    /// Whether the drain has let go of all records: pages are given out then.
    pub parked: bool,
    /// It ends by itself when nothing is heard for so many seconds.
    pub patience_seconds: u64,
}

/// Which page is confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PageNumber {
    /// Its number.
    pub page: u64,
}

/// What has been exported for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Confirmed {
    /// Records that are settled as exported.
    pub exported: u64,
    /// Dead letters that are dropped here.
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

/// What comes next.
#[derive(Debug, PartialEq, Eq)]
pub enum Page {
    /// The drain has records in hand yet: ask again.
    NotYet(ExportState),
    /// These lines.
    Lines {
        /// What to confirm.
        number: u64,
        /// JSON Lines.
        text: Vec<u8>,
    },
    /// All that was there when it began was given out.
    End,
}

struct Export {
    id: Uuid,
    order: OpenOrder,
    patience: Duration,
    position: Option<ExportPosition>,
    /// Given out and not confirmed.
    page: Option<ExportPage>,
    /// Its number, or that of the last one.
    number: u64,
    exported: Exported,
}

/// The one export that may be under way.
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

    /// Begins one: the drain sends no record until it ends.
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

    /// The open export of this name, of which something has just been heard.
    fn heard<'a>(&self, open: &'a mut Option<Export>, id: Uuid) -> Result<&'a mut Export, ExportError> {
        let export = open.as_mut().filter(|export| export.id == id).ok_or(ExportError::Gone)?;
        self.until.send_replace(Some(Instant::now() + export.patience));
        Ok(export)
    }

    /// The page that is to be confirmed next.
    pub async fn page(&self, id: Uuid) -> Result<Page, ExportError> {
        let mut open = self.open.lock().await;
        let export = self.heard(&mut open, id)?;
        // IMPORTANT: what the drain has in hand may be delivered yet: it must not be given out as well.
        let state = self.state(export);
        if !state.parked {
            return Ok(Page::NotYet(state));
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
        Ok(page.map_or(Page::End, |page| Page::Lines { number: export.number, text: page.text.clone() }))
    }

    /// The page is safe elsewhere: what is in it leaves this outbox. Told twice, it does the same as once.
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

    /// Ends it: the drain goes on, unless the operator has paused it.
    pub async fn end(&self, id: Uuid) -> Result<Confirmed, ExportError> {
        let mut open = self.open.lock().await;
        let exported = self.heard(&mut open, id)?.exported;
        self.close(&mut open, None).await;
        Ok(exported.into())
    }

    /// Whatever ends it: what was confirmed has left this outbox, and is noted.
    async fn close(&self, open: &mut Option<Export>, error: Option<&str>) {
        self.until.send_replace(None);
        self.controls.export(false);
        if let Some(Export { mut order, exported, .. }) = open.take() {
            let Exported { records, dead_letters, .. } = exported;
            order.describe(format!("{records} records and {dead_letters} dead letters are in a file now"));
            let (count, error) = (exported.total(), error.map(str::to_owned));
            self.audit.end(order, Effect { count, error, ..Effect::default() }).await;
        }
    }

    /// Ends exports of which nothing is heard any more, and when `stop` is true the one that is open then.
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
                    // Something may have been heard meanwhile.
                    if self.until.borrow().is_some_and(|until| until <= Instant::now()) {
                        tracing::warn!("nothing is heard of whoever was exporting: the sender goes on");
                        self.close(&mut open, Some("nothing more was heard of its client")).await;
                    }
                }
            }
        }
        self.close(&mut *self.open.lock().await, Some(STOPPED)).await;
    }
}
