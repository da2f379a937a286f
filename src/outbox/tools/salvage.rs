//! Recovers what is readable in the quarantine into the outbox.
//!
//! Quarantined files are read in place, without sled. Only their report changes: it notes what was recovered. So salvaging
//! can be repeated after a file was repaired or restored, and then recovers only the rest.

use std::path::Path;

use super::transfer::TransferError;
use crate::outbox::api::handle::Outbox;
use crate::outbox::engine::repair;
use crate::outbox::format::codec::Entry;
use crate::outbox::format::log::Log;
use crate::outbox::ledger::DeadLetterRemains;
use crate::outbox::messages::AppendError;
use crate::outbox::recovery::quarantine::{self, QuarantineReport};
use crate::outbox::segments::segment::Remains;

/// Approximate number of records, and limit of their bytes, recovered in one append.
const AT_ONCE: usize = 500;
const BYTES_AT_ONCE: usize = 1 << 20;

/// Why salvaging stopped.
#[derive(Debug, thiserror::Error)]
pub enum SalvageError {
    /// A file could not be read or written.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The records could not be appended.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// The dead letters could not be read.
    #[error(transparent)]
    Transfer(#[from] TransferError),
}

/// The result for one part of the quarantine.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Salvaged {
    /// Its folder's name.
    pub name: String,
    /// Records known to have waited in it and not recovered before.
    pub known: u64,
    /// Records recovered into the outbox as new ones, with their original keys and bodies; for a ledger, dead letters.
    pub records: u64,
    /// What could not be read.
    pub trouble: Vec<String>,
    /// Whether it is finished: all known records are recovered, or the rest was given up.
    pub is_done: bool,
}

impl Outbox {
    /// The contents of the quarantine, with the folders' names.
    pub fn quarantine(&self) -> std::io::Result<Vec<(String, QuarantineReport)>> {
        let all = quarantine::list(&self.shared.settings.dir)?;
        Ok(all.into_iter().map(|(folder, report)| (name_of(&folder), report)).collect())
    }

    /// Recovers the readable waiting records from the quarantine, and notes that in the reports. Nothing is deleted. Known
    /// records that cannot be read stay open for another attempt, unless they are to be given up. `progress` gets the
    /// number of recovered records.
    ///
    /// If it is interrupted and repeated, one append's records are recovered twice: as records with one key, which are
    /// billed once. Messages on their way to the dead letters then become two.
    pub async fn salvage(
        &self,
        give_up: bool,
        mut progress: impl FnMut(u64),
    ) -> Result<Vec<Salvaged>, SalvageError> {
        let mut outcomes = Vec::new();
        for (folder, report) in quarantine::list(&self.shared.settings.dir)? {
            if report.salvaged_at.is_some() || self.is_on_its_way(&folder, &report) {
                continue;
            }
            let known = report.records.saturating_sub(report.salvaged_records);
            let outcome = Salvaged { name: name_of(&folder), known, ..Salvaged::default() };
            let mut work = Work { outbox: self, folder: &folder, report, outcome };
            let before: u64 = outcomes.iter().map(|outcome: &Salvaged| outcome.records).sum();
            work.salvage(&mut |records| progress(before + records)).await?;
            outcomes.push(work.end(give_up)?);
        }
        self.shared.count_quarantined();
        Ok(outcomes)
    }

    /// Whether maintenance is moving it at this moment: the report is written before the folder is moved.
    fn is_on_its_way(&self, folder: &Path, report: &QuarantineReport) -> bool {
        let is_listed = self.shared.state().segments.iter().any(|listed| listed.segment.id == report.id);
        report.what == "segment" && is_listed && !folder.join("segment").exists()
    }
}

fn name_of(folder: &Path) -> String {
    folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// A part of the quarantine being worked on.
struct Work<'a> {
    outbox: &'a Outbox,
    folder: &'a Path,
    report: QuarantineReport,
    outcome: Salvaged,
}

impl Work<'_> {
    async fn salvage(&mut self, progress: &mut impl FnMut(u64)) -> Result<(), SalvageError> {
        if self.report.what == "ledger" {
            return self.letters(progress).await;
        }
        let segment = self.folder.join("segment");
        let folders = repair::kept(&segment).into_iter().chain([segment.clone()]);
        for folder in folders.filter(|folder| folder.exists()) {
            match Remains::read(&folder) {
                Ok(remains) => {
                    for log in Log::ALL {
                        self.log(&remains, log, progress).await?;
                    }
                }
                Err(error) => self.outcome.trouble.push(format!("{}: {error}", folder.join("db").display())),
            }
        }
        Ok(())
    }

    /// Recovers the waiting records of one log of a segment, page by page.
    async fn log(
        &mut self,
        remains: &Remains,
        log: Log,
        progress: &mut impl FnMut(u64),
    ) -> Result<(), SalvageError> {
        let mut from = Some(self.report.numbers.0);
        while let Some(at) = from {
            let mut page = SalvagePage::default();
            page.read(remains, log, at, &self.report)?;
            self.outcome.trouble.append(&mut page.trouble);
            from = page.next;
            for entry in &page.entries {
                *self.report.salvaged_by_kind.entry(entry.kind().name().to_owned()).or_default() += 1;
            }
            self.append(page.entries, progress).await?;
            for seq in page.numbers {
                self.report.set_settled(log, seq);
            }
            self.note()?;
        }
        Ok(())
    }

    /// Recovers the dead letters of a replaced ledger that are not in the outbox already, page by page.
    async fn letters(&mut self, progress: &mut impl FnMut(u64)) -> Result<(), SalvageError> {
        let ledger = self.folder.join("ledger");
        let letters = match DeadLetterRemains::read(&ledger) {
            Ok(letters) => letters,
            Err(error) => {
                self.outcome.trouble.push(format!("{}: {error}", ledger.join("db").display()));
                return Ok(());
            }
        };
        let (mut known, mut from) = (self.outbox.begin_import().await?, Some(0));
        while let Some(at) = from.take() {
            let (mut page, mut bytes) = (Vec::new(), 0);
            letters.letters(at, |(id, letter, len)| {
                if page.len() >= AT_ONCE || bytes >= BYTES_AT_ONCE {
                    from = Some(id);
                    return false;
                }
                bytes += len;
                match letter {
                    Ok(letter) => page.push(Entry::Letter(Box::new(letter))),
                    Err(error) => self.outcome.trouble.push(format!("dead letter {id}: {error}")),
                }
                true
            })?;
            self.outcome.records += self.outbox.import_chunk(page, &mut known).await?.dead_letters;
            progress(self.outcome.records);
        }
        Ok(())
    }

    async fn append(
        &mut self,
        entries: Vec<Entry>,
        progress: &mut impl FnMut(u64),
    ) -> Result<(), SalvageError> {
        if entries.is_empty() {
            return Ok(());
        }
        let records = entries.len() as u64;
        let committed = self.outbox.append(entries, None).await?;
        committed.await.map_err(|_| AppendError::Closed)??;
        self.outcome.records += records;
        progress(self.outcome.records);
        Ok(())
    }

    fn note(&mut self) -> std::io::Result<()> {
        self.report.salvaged_records = self.report.salvaged_by_kind.values().sum();
        self.report.write(self.folder)
    }

    fn end(mut self, give_up: bool) -> std::io::Result<Salvaged> {
        // If its contents were never counted, all are recovered if all were readable.
        let is_counted = !self.report.by_kind.is_empty();
        let missing = self.report.missing();
        self.outcome.is_done =
            give_up || if is_counted { missing.is_empty() } else { self.outcome.trouble.is_empty() };
        for (kind, missing) in missing {
            self.outcome.trouble.push(format!("{kind}: {missing} records"));
        }
        if self.outcome.is_done {
            self.report.salvaged_at = Some(crate::time::now().to_rfc3339());
        }
        self.note()?;
        Ok(self.outcome)
    }
}

/// Some waiting records of a log, as far as readable, and read errors.
#[derive(Default)]
struct SalvagePage {
    entries: Vec<Entry>,
    numbers: Vec<u64>,
    trouble: Vec<String>,
    /// Where the next page begins, if there is one.
    next: Option<u64>,
}

impl SalvagePage {
    fn read(
        &mut self,
        remains: &Remains,
        log: Log,
        from: u64,
        report: &QuarantineReport,
    ) -> std::io::Result<()> {
        let (_, upto) = report.numbers;
        let is_known = upto > 0;
        let mut bytes = 0;
        remains.packs(log, from, |first, pack| {
            if is_known && first >= upto {
                return false;
            }
            if self.entries.len() >= AT_ONCE || bytes >= BYTES_AT_ONCE {
                self.next = Some(first);
                return false;
            }
            match pack {
                Ok((_, found)) => {
                    for (seq, entry) in (first..).zip(found).filter(|(seq, _)| !report.is_settled(log, *seq))
                    {
                        bytes += entry.len();
                        self.entries.push(entry);
                        self.numbers.push(seq);
                    }
                }
                Err(error) => self.trouble.push(format!("{} pack {first}: {error}", log.label())),
            }
            true
        })
    }
}
