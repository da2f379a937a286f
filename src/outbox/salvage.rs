//! Getting out of the quarantine what can be read, and back into the outbox.

use std::path::Path;

use super::quarantine::{self, Report};
use super::segment::Segment;
use super::{AppendError, Entry, Log, Outbox, ReadError};

/// About so many records, and so many bytes of them, are brought back in one append.
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
}

/// What came of one thing in the quarantine.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Salvaged {
    /// Its folder's name.
    pub name: String,
    /// Records that are known to have waited in it.
    pub known: u64,
    /// Records that are in the outbox again, as new ones, with the keys and bodies that they always had.
    pub records: u64,
    /// What could not be read.
    pub trouble: Vec<String>,
    /// Some of the trouble is not the files': it is worth another try, and nothing is noted as salvaged.
    pub may_pass: bool,
}

impl Outbox {
    /// Everything in the quarantine, with the names of the folders.
    pub fn quarantine(&self) -> std::io::Result<Vec<(String, Report)>> {
        let all = quarantine::list(&self.shared.settings.dir)?;
        Ok(all.into_iter().map(|(folder, report)| (name_of(&folder), report)).collect())
    }

    /// Brings back what waited in the segments that were set aside, as far as it can be read, and notes that in their
    /// reports. Nothing is deleted. `progress` is told how many records are back.
    ///
    /// Ended in the middle, and begun again, it brings some back twice: records with one key, so that they are billed
    /// once; of what was on its way to the dead letters there are two then.
    pub async fn salvage(&self, mut progress: impl FnMut(u64)) -> Result<Vec<Salvaged>, SalvageError> {
        let mut outcomes = Vec::new();
        for (folder, mut report) in quarantine::list(&self.shared.settings.dir)? {
            if report.salvaged_at.is_some() || self.is_on_its_way(&folder, &report) {
                continue;
            }
            let mut outcome =
                Salvaged { name: name_of(&folder), known: report.records, ..Salvaged::default() };
            if folder.join("segment").exists() {
                // From a copy: opening changes a database, and drops what it cannot make sense of.
                let copy = folder.join("copy");
                // IMPORTANT: one that an earlier salvaging left was opened: with the original laid over it, it would be
                // neither.
                remove(&copy)?;
                copy_dir(&folder.join("segment"), &copy)?;
                let segment = Segment::elsewhere(&copy, report.id);
                for log in Log::ALL {
                    self.salvage_log(&segment, log, &report, &mut outcome, &mut progress).await?;
                }
                segment.delete()?;
            }
            // What failed for the moment's sake (no room to open it, no descriptors) is there for the next time.
            if !outcome.may_pass {
                report.salvaged_at = Some(crate::clock::now().to_rfc3339());
            }
            report.salvaged_records = outcome.records;
            report.write(&folder)?;
            outcomes.push(outcome);
        }
        self.shared.count_quarantined();
        Ok(outcomes)
    }

    /// Brings back what waited in one log of a segment, page by page.
    async fn salvage_log(
        &self,
        segment: &Segment,
        log: Log,
        report: &Report,
        outcome: &mut Salvaged,
        progress: &mut impl FnMut(u64),
    ) -> Result<(), SalvageError> {
        let mut from = Some(report.numbers.0);
        while let Some(at) = from {
            let mut page = Page::default();
            if let Err(error) = page.read(segment, log, at, report) {
                outcome.may_pass |= !error.is_damage();
                page.trouble.push(format!("{}: {error}", log.label()));
                page.next = None;
            }
            outcome.trouble.append(&mut page.trouble);
            if !page.entries.is_empty() {
                let records = page.entries.len() as u64;
                let committed = self.append(page.entries, None).await?;
                committed.await.map_err(|_| AppendError::Closed)??;
                outcome.records += records;
                progress(outcome.records);
            }
            from = page.next;
        }
        Ok(())
    }
}

impl Outbox {
    /// Whether the keeper is setting it aside at this moment: the report is written before the folder is moved.
    fn is_on_its_way(&self, folder: &Path, report: &Report) -> bool {
        let is_listed = self.shared.state().segments.iter().any(|listed| listed.segment.id == report.id);
        report.what == "segment" && is_listed && !folder.join("segment").exists()
    }
}

fn name_of(folder: &Path) -> String {
    folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Some of what waited in a log, as far as it can be read, and what could not be.
#[derive(Default)]
struct Page {
    entries: Vec<Entry>,
    trouble: Vec<String>,
    /// Where the next page begins, if there is one.
    next: Option<u64>,
}

impl Page {
    fn read(&mut self, segment: &Segment, log: Log, from: u64, report: &Report) -> Result<(), ReadError> {
        let (_, upto) = report.numbers;
        let is_known = upto > 0;
        let mut bytes = 0;
        segment.read(log, from, |first, pack| {
            if is_known && first >= upto {
                return false;
            }
            if self.entries.len() >= AT_ONCE || bytes >= BYTES_AT_ONCE {
                self.next = Some(first);
                return false;
            }
            match pack {
                Ok((_, found)) => {
                    let waited = (first..).zip(found).filter(|(seq, _)| !report.was_settled(log, *seq));
                    for (_, entry) in waited {
                        bytes += entry.len();
                        self.entries.push(entry);
                    }
                }
                Err(error) => self.trouble.push(format!("{} pack {first}: {error}", log.label())),
            }
            true
        })
    }
}

fn remove(dir: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn copy_dir(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    let named =
        |error: std::io::Error| std::io::Error::new(error.kind(), format!("{}: {error}", from.display()));
    for entry in std::fs::read_dir(from).map_err(named)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_dir(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
