//! Writing what waits, and the dead letters, to a file.

use std::io::Write;

use super::line::TransferLine;
use super::{ExportHash, Exported, LETTERS_AT_ONCE, TransferError};
use crate::outbox::api::handle::Outbox;
use crate::outbox::engine::fault;
use crate::outbox::format::codec::Entry;
use crate::outbox::format::log::Log;
use crate::outbox::messages::{Settlement, Ticket, Unsettled};
use crate::outbox::segments::segment::ReadError;

/// So many records are written before the file is synced and they are settled here.
const AT_ONCE: usize = 5000;
/// So many are handed to a visitor at once.
const VISIT_AT_ONCE: usize = 500;
/// What is exported, in this order; the dead letters come last.
const EXPORTED: [Log; 4] = [Log::Quota, Log::Started, Log::Usage, Log::Completed];

/// Where an export is.
#[derive(Clone, Debug)]
pub struct ExportPosition {
    stage: ExportStage,
    from: u64,
    /// What is appended later is not exported.
    end: u64,
    /// Nor is what becomes a dead letter later.
    letters_end: u64,
}

#[derive(Clone, Copy, Debug)]
enum ExportStage {
    /// Of [`EXPORTED`].
    Log(usize),
    Letters,
}

/// Lines of an export, and what settles them.
#[derive(Debug, Default)]
pub struct ExportPage {
    /// JSON Lines.
    pub text: Vec<u8>,
    tickets: Vec<Ticket>,
    letters: Vec<u64>,
}

impl ExportPage {
    /// What is in it.
    pub fn counts(&self) -> Exported {
        let (records, dead_letters) = (self.tickets.len() as u64, self.letters.len() as u64);
        Exported { records, dead_letters, id: None }
    }
}

/// Writes all of it, durably, or leaves the file as it was: what is cut is no line.
fn write_synced(file: &mut std::fs::File, text: &[u8]) -> std::io::Result<()> {
    let before = file.metadata()?.len();
    let written = file.write_all(text).and_then(|()| fault::point()).and_then(|()| file.sync_data());
    written.inspect_err(|_| {
        // Where not even this can be done, an import passes over the rest.
        let _ = file.set_len(before).and_then(|()| file.sync_data());
    })
}

impl Outbox {
    /// Hands what waits in a log to `visit`, page by page and in order, until it answers false.
    pub async fn each_waiting(
        &self,
        log: Log,
        mut visit: impl FnMut(Vec<Unsettled>) -> bool,
    ) -> Result<(), ReadError> {
        let (mut from, end) = (0, *self.last().borrow() + 1);
        while from < end {
            let log_page = self.read(log, from, end, VISIT_AT_ONCE).await?;
            from = log_page.next;
            if !visit(log_page.records) {
                break;
            }
        }
        Ok(())
    }

    /// Begins an export of what waits now, and of the dead letters that there are.
    pub async fn begin_export(&self) -> Result<ExportPosition, TransferError> {
        // What is no record becomes a dead letter now.
        if !self.flush().await {
            return Err(TransferError::Unready);
        }
        let (end, letters_end) = (*self.last().borrow() + 1, self.next_dead_letter());
        Ok(ExportPosition { stage: ExportStage::Log(0), from: 0, end, letters_end })
    }

    /// The next lines of an export, and moves `position` behind them; `None` when there are no more. Nothing is settled
    /// yet.
    pub async fn export_page(
        &self,
        position: &mut ExportPosition,
    ) -> Result<Option<ExportPage>, TransferError> {
        while let ExportStage::Log(n) = position.stage {
            let Some(log) = EXPORTED.get(n) else {
                (position.stage, position.from) = (ExportStage::Letters, 0);
                break;
            };
            if position.from >= position.end {
                (position.stage, position.from) = (ExportStage::Log(n + 1), 0);
                continue;
            }
            let log_page = self.read(*log, position.from, position.end, AT_ONCE).await?;
            let mut page = ExportPage::default();
            for unsettled in &log_page.records {
                let Entry::Record(record) = &unsettled.entry else { continue };
                TransferLine::of(record).write(&mut page.text)?;
                page.tickets.push(unsettled.ticket);
            }
            position.from = log_page.next;
            if !page.tickets.is_empty() {
                return Ok(Some(page));
            }
        }
        self.export_letters(position).await
    }

    async fn export_letters(
        &self,
        position: &mut ExportPosition,
    ) -> Result<Option<ExportPage>, TransferError> {
        let letters = self.dead_letters(position.from, LETTERS_AT_ONCE).await?;
        let mut page = ExportPage::default();
        for letter in letters.iter().take_while(|letter| letter.id < position.letters_end) {
            TransferLine::of_letter(letter).write(&mut page.text)?;
            page.letters.push(letter.id);
            position.from = letter.id + 1;
        }
        Ok((!page.letters.is_empty()).then_some(page))
    }

    /// Settles a page that is safe where it was written: its records as exported, and its dead letters are dropped.
    /// Settled twice, it counts once.
    pub async fn settle_exported(&self, page: &ExportPage) -> Result<(), TransferError> {
        self.settle_all(page.tickets.iter().map(|ticket| (ticket, Settlement::Exported)));
        if !page.letters.is_empty() {
            self.drop_dead_letters(page.letters.clone()).await?;
        }
        Ok(())
    }

    /// Writes all that waits to `file`, and then the dead letters. As soon as it is safe there, what waits is settled here
    /// as exported, and the dead letters are dropped. `progress` is told how much of it is done:
    /// that is in the file for good, also when the rest fails.
    pub async fn export(
        &self,
        file: &mut std::fs::File,
        mut progress: impl FnMut(Exported),
    ) -> Result<Exported, TransferError> {
        let (mut exported, mut position) = (Exported::default(), self.begin_export().await?);
        let mut hash = ExportHash::default();
        while let Some(page) = self.export_page(&mut position).await? {
            // IMPORTANT: safe in the file before it is settled here.
            write_synced(file, &page.text)?;
            self.settle_exported(&page).await?;
            hash.update(&page.text);
            exported += page.counts();
            progress(exported);
        }
        write_synced(file, &exported.end_line()?)?;
        exported.id = hash.id();
        if self.flush().await { Ok(exported) } else { Err(TransferError::Unsettled) }
    }
}
