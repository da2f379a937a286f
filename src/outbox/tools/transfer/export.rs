//! Writes the waiting records and the dead letters to a file.

use std::io::Write;

use super::line::TransferLine;
use super::{ExportHash, Exported, LETTERS_AT_ONCE, TransferError};
use crate::outbox::api::handle::Outbox;
use crate::outbox::engine::fault;
use crate::outbox::format::codec::Entry;
use crate::outbox::format::log::Log;
use crate::outbox::messages::{Settlement, Ticket, Unsettled};
use crate::outbox::segments::segment::ReadError;

/// Records written before the file is synced and they are settled here.
const AT_ONCE: usize = 5000;
/// Records passed to a visitor at once.
const VISIT_AT_ONCE: usize = 500;
/// The exported logs, in order; the dead letters come last.
const EXPORTED: [Log; 4] = [Log::Quota, Log::Started, Log::Usage, Log::Completed];

/// The position of an export.
#[derive(Clone, Debug)]
pub struct ExportPosition {
    /// An index into [`EXPORTED`]; beyond it, the dead letters.
    log: usize,
    from: u64,
    /// Records appended later are not exported.
    end: u64,
    /// Nor are later dead letters.
    letters_end: u64,
}

/// Lines of an export, and what is needed to settle them.
#[derive(Debug, Default)]
pub struct ExportPage {
    /// JSON Lines.
    pub text: Vec<u8>,
    tickets: Vec<Ticket>,
    letters: Vec<u64>,
}

impl ExportPage {
    /// The counts of its lines.
    pub fn counts(&self) -> Exported {
        let (records, dead_letters) = (self.tickets.len() as u64, self.letters.len() as u64);
        Exported { records, dead_letters, id: None }
    }
}

/// Writes all of it durably, or leaves the file as it was: no partial line remains.
fn write_synced(file: &mut std::fs::File, text: &[u8]) -> std::io::Result<()> {
    let before = file.metadata()?.len();
    let written = file.write_all(text).and_then(|()| fault::point()).and_then(|()| file.sync_data());
    written.inspect_err(|_| {
        // If even this fails, an import skips the rest.
        let _ = file.set_len(before).and_then(|()| file.sync_data());
    })
}

impl Outbox {
    /// Passes the waiting records of a log to `visit`, page by page and in order, until it returns false.
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

    /// Starts an export of the records waiting now and of the existing dead letters.
    pub async fn begin_export(&self) -> Result<ExportPosition, TransferError> {
        // Rejected messages become dead letters first.
        if !self.flush().await {
            return Err(TransferError::Unready);
        }
        let (end, letters_end) = (*self.last().borrow() + 1, self.next_dead_letter());
        Ok(ExportPosition { log: 0, from: 0, end, letters_end })
    }

    /// The next lines of an export; moves `position` behind them. `None` when there are no more. Settles nothing yet.
    pub async fn export_page(
        &self,
        position: &mut ExportPosition,
    ) -> Result<Option<ExportPage>, TransferError> {
        while let Some(log) = EXPORTED.get(position.log) {
            if position.from >= position.end {
                (position.log, position.from) = (position.log + 1, 0);
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

    /// Settles a page that is durable in its file: its records as exported; its dead letters are dropped. Idempotent.
    pub async fn settle_exported(&self, page: &ExportPage) -> Result<(), TransferError> {
        self.settle_all(page.tickets.iter().map(|ticket| (ticket, Settlement::Exported)));
        if !page.letters.is_empty() {
            self.drop_dead_letters(page.letters.clone()).await?;
        }
        Ok(())
    }

    /// Writes all waiting records and then the dead letters to `file`. As soon as they are durable there, records are
    /// settled as exported here, and dead letters are dropped. `progress` gets the counts of what is durable in the file,
    /// even if the rest fails.
    pub async fn export(
        &self,
        file: &mut std::fs::File,
        mut progress: impl FnMut(Exported),
    ) -> Result<Exported, TransferError> {
        let (mut exported, mut position) = (Exported::default(), self.begin_export().await?);
        let mut hash = ExportHash::default();
        while let Some(page) = self.export_page(&mut position).await? {
            // IMPORTANT: durable in the file before it is settled here.
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
