//! The quarantine for damaged files, which get a report and are never deleted.
//!
//! `quarantine/<name>/` contains `report.json` and the damaged files: `segment` or `ledger`. The report lists what was
//! settled and what has been recovered, so salvaging recovers only what still waits.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};

use serde::{Deserialize, Serialize};

use crate::outbox::engine::fault;
use crate::outbox::engine::names::{replace_file, sync_dir};
use crate::outbox::format::log::Log;
use crate::outbox::state::State;
use crate::outbox::state::shared::Shared;
use crate::record::{Kind, Timestamp};

/// What was quarantined, why, and what is known of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuarantineReport {
    /// `segment`; `ledger`, which had to be replaced; or `damaged ledger`, from which a new one was built with everything
    /// readable.
    pub what: String,
    /// The segment's number.
    #[serde(default)]
    pub id: u64,
    /// When, in RFC 3339.
    pub at: String,
    /// The reasons: everything that could not be read.
    pub why: Vec<String>,
    /// The number of records known to have waited in it.
    pub records: u64,
    /// The same by kind.
    pub by_kind: BTreeMap<String, u64>,
    /// Its numbers: from the first to before the second, or to the end if that is 0.
    pub numbers: (u64, u64),
    /// Those that were settled or recovered, by log, as ranges of the same form.
    pub settled: BTreeMap<String, Vec<(u64, u64)>>,
    /// When all of it was recovered or given up, in RFC 3339.
    #[serde(default)]
    pub salvaged_at: Option<String>,
    /// The number of recovered records.
    #[serde(default)]
    pub salvaged_records: u64,
    /// The same by kind.
    #[serde(default)]
    pub salvaged_by_kind: BTreeMap<String, u64>,
}

/// The quarantine of an outbox.
pub(crate) fn dir(outbox: &Path) -> PathBuf {
    outbox.join("quarantine")
}

pub(crate) fn segment_name(id: u64) -> String {
    format!("segment-{id:012}")
}

impl QuarantineReport {
    fn new(what: &str, why: Vec<String>) -> Self {
        Self { what: what.to_owned(), at: crate::time::now().to_rfc3339(), why, ..Self::default() }
    }

    /// The report on a segment of the catalog, as of now.
    pub(crate) fn of_segment(state: &State, id: u64, why: &str) -> Self {
        let mut report = Self { id, ..Self::new("segment", Vec::new()) };
        let Some(listed) = state.listed(id) else {
            return report;
        };
        report.why.clone_from(&listed.faults);
        report.why.push(why.to_owned());
        let (info, waiting) = (&listed.info, listed.info.waiting());
        report.records = waiting.total();
        for (kind, count) in Kind::ALL.into_iter().zip(waiting.by_kind()) {
            report.by_kind.insert(kind.name().to_owned(), count);
        }
        // The newest segment may contain more than is known.
        report.numbers = (info.base, info.end.unwrap_or(0));
        for log in Log::ALL {
            let upto = info.end.unwrap_or(state.totals.next);
            let ranges = state.settled[log.index()].settled_in(info.base, upto);
            report.settled.insert(log.label().to_owned(), ranges);
        }
        report
    }

    /// Records known to have waited and not recovered, by kind.
    pub fn missing(&self) -> BTreeMap<String, u64> {
        let back = |kind: &String| self.salvaged_by_kind.get(kind).copied().unwrap_or(0);
        let missing =
            self.by_kind.iter().map(|(kind, known)| (kind.clone(), known.saturating_sub(back(kind))));
        missing.filter(|(_, missing)| *missing > 0).collect()
    }

    /// Whether this record was settled or recovered.
    pub(crate) fn is_settled(&self, log: Log, seq: u64) -> bool {
        let Some(ranges) = self.settled.get(log.label()) else { return false };
        let behind = ranges.partition_point(|(first, _)| *first <= seq);
        ranges[..behind].last().is_some_and(|(_, end)| seq < *end)
    }

    /// This record is recovered.
    pub(crate) fn set_settled(&mut self, log: Log, seq: u64) {
        let ranges = self.settled.entry(log.label().to_owned()).or_default();
        let behind = ranges.partition_point(|(first, _)| *first <= seq);
        match ranges[..behind].last_mut() {
            Some((_, end)) if *end >= seq => *end = (*end).max(seq + 1),
            _ => ranges.insert(behind, (seq, seq + 1)),
        }
    }

    pub(crate) fn write(&self, folder: &Path) -> std::io::Result<()> {
        std::fs::create_dir_all(folder)?;
        replace_file(&folder.join("report.json"), &serde_json::to_vec_pretty(self)?)?;
        sync_dir(folder)?;
        folder.parent().map_or(Ok(()), sync_dir)
    }
}

/// Moves a damaged segment's folder here, if it exists, and writes the report.
pub(crate) fn move_segment(outbox: &Path, path: &Path, report: &QuarantineReport) -> std::io::Result<()> {
    let mut folder = dir(outbox).join(segment_name(report.id));
    if path.exists() && folder.join("segment").exists() {
        // A reused number, after the ledger and all segments were lost.
        let Timestamp(now) = crate::time::now();
        folder.set_extension(now.to_string());
    }
    // If power failed while the segment was being moved, its report exists and is better than a new one.
    if path.exists() || !folder.join("report.json").exists() {
        report.write(&folder)?;
    }
    fault::point()?;
    if path.exists() {
        std::fs::rename(path, folder.join("segment"))?;
    }
    // IMPORTANT: also if an earlier attempt moved it but could not sync that. A folder that reappears in its old place
    // would be deleted there, because the ledger is about to forget it.
    sync_dir(&folder)?;
    path.parent().map_or(Ok(()), sync_dir)?;
    tracing::error!(
        segment = report.id,
        records = report.records,
        why = report.why.join("; "),
        folder = %folder.display(),
        "a damaged segment was quarantined: the rest goes on; see `outbox salvage`"
    );
    Ok(())
}

/// Moves `path` here, the outbox's `name`, as found. If it does not exist, that is reported.
pub(crate) fn move_files(
    outbox: &Path,
    path: &Path,
    name: &str,
    what: &str,
    why: String,
) -> std::io::Result<()> {
    let Timestamp(now) = crate::time::now();
    let folder = dir(outbox).join(format!("{name}-{now}"));
    tracing::error!(why, folder = %folder.display(), "{what}: moved to the quarantine; the rest goes on; see `outbox salvage`");
    QuarantineReport::new(what, vec![why]).write(&folder)?;
    if path.exists() {
        std::fs::rename(path, folder.join(name))?;
        sync_dir(&folder)?;
        path.parent().map_or(Ok(()), sync_dir)?;
    }
    Ok(())
}

/// All quarantined folders and their reports, oldest first.
pub(crate) fn list(outbox: &Path) -> std::io::Result<Vec<(PathBuf, QuarantineReport)>> {
    let entries = match std::fs::read_dir(dir(outbox)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut all = Vec::new();
    for entry in entries {
        let folder = entry?.path();
        let report = std::fs::read(folder.join("report.json")).ok();
        let report = report.and_then(|bytes| serde_json::from_slice::<QuarantineReport>(&bytes).ok());
        let report = report.unwrap_or_else(|| unreported(&folder));
        all.push((folder, report));
    }
    // By time, not by text: a time without a fraction of a second would sort after those with one.
    let age = |report: &QuarantineReport| {
        chrono::DateTime::parse_from_rfc3339(&report.at).map_or(i64::MAX, |at| at.timestamp_micros())
    };
    all.sort_by_cached_key(|(folder, report)| (age(report), folder.clone()));
    Ok(all)
}

/// The report for something without one. It is as old as its folder.
fn unreported(folder: &Path) -> QuarantineReport {
    let mut report = QuarantineReport::new("unknown", vec!["no report".to_owned()]);
    let changed = std::fs::metadata(folder).and_then(|meta| meta.modified()).ok();
    let since = changed.and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
    if let Some(at) = since.and_then(|since| i64::try_from(since.as_micros()).ok()) {
        report.at = Timestamp(at).to_rfc3339();
    }
    report
}

/// The number of folders that are neither recovered nor given up, and of their records.
pub(crate) fn count(outbox: &Path) -> (u64, u64) {
    let all = list(outbox).unwrap_or_default();
    let open = all.iter().filter(|(_, report)| report.salvaged_at.is_none());
    open.fold((0, 0), |(things, records), (_, report)| {
        (things + 1, records + report.records.saturating_sub(report.salvaged_records))
    })
}

impl Shared {
    /// Moves a segment of the catalog to the quarantine: its waiting records are written off, and the rest continues.
    pub(crate) fn quarantine(&self, id: u64, why: &str) -> std::io::Result<()> {
        let (report, segment) = {
            let state = self.state();
            let Some(segment) = state.listed(id).map(|listed| Arc::clone(&listed.segment)) else {
                return Ok(());
            };
            (QuarantineReport::of_segment(&state, id, why), segment)
        };
        // IMPORTANT: a missing folder is not damage, and nothing in it is written off.
        self.in_place()?;
        segment.close();
        move_segment(&self.settings.dir, segment.path(), &report)?;
        self.state().write_off(id);
        self.count_quarantined();
        Ok(())
    }

    /// Counts the contents of the quarantine.
    pub(crate) fn count_quarantined(&self) {
        let counted = count(&self.settings.dir);
        *self.quarantined.lock().unwrap_or_else(PoisonError::into_inner) = counted;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_quarantined_is_listed_oldest_first_whatever_it_is_called() {
        let outbox = tempfile::tempdir().unwrap();
        for (name, at) in [
            ("ledger-3", "2026-01-02T00:00:00Z"),
            ("segment-000000000001", "2026-01-03T00:00:00.5Z"),
            ("segment-000000000009", "2026-01-01T00:00:00.000001Z"),
            ("format.json-2", "2026-01-03T00:00:00Z"),
        ] {
            let report = QuarantineReport { at: at.into(), ..QuarantineReport::new("segment", Vec::new()) };
            report.write(&dir(outbox.path()).join(name)).unwrap();
        }
        // Without a report: created now.
        std::fs::create_dir(dir(outbox.path()).join("a")).unwrap();
        let listed = list(outbox.path()).unwrap();
        let names = listed.iter().map(|(folder, _)| folder.file_name().unwrap().to_str().unwrap());
        assert_eq!(
            names.collect::<Vec<_>>(),
            ["segment-000000000009", "ledger-3", "format.json-2", "segment-000000000001", "a"]
        );
    }
}
