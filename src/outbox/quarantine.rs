//! What is damaged is set aside here with a report, never deleted.
//!
//! `quarantine/<name>/` holds `report.json` and what was set aside: `segment` or `ledger`. The report says what was
//! settled, so that salvaging brings back only what still waited.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Log;
use super::database::sync_dir;
use super::state::State;
use crate::record::{Kind, Timestamp};

/// What was set aside, why, and what is known of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// `segment` or `ledger`.
    pub what: String,
    /// The segment's number.
    #[serde(default)]
    pub id: u64,
    /// When, RFC 3339.
    pub at: String,
    /// Why: everything that could not be read.
    pub why: Vec<String>,
    /// How many records are known to have waited in it.
    pub records: u64,
    /// The same by kind.
    pub by_kind: BTreeMap<String, u64>,
    /// Its numbers: from the first to before the second.
    pub numbers: (u64, u64),
    /// Which of them were settled, by log, as ranges of the same form.
    pub settled: BTreeMap<String, Vec<(u64, u64)>>,
    /// When it was salvaged, RFC 3339.
    #[serde(default)]
    pub salvaged_at: Option<String>,
    /// How many records that brought back.
    #[serde(default)]
    pub salvaged_records: u64,
}

/// Where the set-aside things of an outbox are.
pub(super) fn dir(outbox: &Path) -> PathBuf {
    outbox.join("quarantine")
}

pub(super) fn segment_name(id: u64) -> String {
    format!("segment-{id:012}")
}

impl Report {
    fn new(what: &str, why: Vec<String>) -> Self {
        Self { what: what.to_owned(), at: crate::clock::now().to_rfc3339(), why, ..Self::default() }
    }

    /// Of a segment of the row, as it is known at this moment.
    pub(super) fn of_segment(state: &State, id: u64, why: &str) -> Self {
        let mut report = Self { id, ..Self::new("segment", Vec::new()) };
        let Some(listed) = state.segments.iter().find(|listed| listed.segment.id == id) else {
            return report;
        };
        report.why.clone_from(&listed.faults);
        report.why.push(why.to_owned());
        let (info, waiting) = (&listed.info, listed.info.waiting());
        report.records = waiting.total();
        for (kind, count) in Kind::ALL.into_iter().zip(waiting.by_kind()) {
            report.by_kind.insert(kind.name().to_owned(), count);
        }
        report.numbers = (info.base, info.end.unwrap_or(state.totals.next));
        for log in Log::ALL {
            let ranges = state.settled[log.index()].settled_in(report.numbers.0, report.numbers.1);
            report.settled.insert(log.label().to_owned(), ranges);
        }
        report
    }

    /// Whether this number of this log was settled.
    pub(super) fn was_settled(&self, log: Log, seq: u64) -> bool {
        let ranges = self.settled.get(log.label()).map_or(&[][..], Vec::as_slice);
        ranges.iter().any(|(from, upto)| (*from..*upto).contains(&seq))
    }

    pub(super) fn write(&self, folder: &Path) -> std::io::Result<()> {
        std::fs::create_dir_all(folder)?;
        let (path, new) = (folder.join("report.json"), folder.join("report.json.new"));
        std::fs::write(&new, serde_json::to_vec_pretty(self)?)?;
        std::fs::File::open(&new)?.sync_all()?;
        std::fs::rename(&new, &path)?;
        sync_dir(folder)?;
        folder.parent().map_or(Ok(()), sync_dir)
    }
}

/// Moves a damaged segment's folder here, if it is there at all, and reports.
pub(super) fn move_segment(outbox: &Path, path: &Path, report: &Report) -> std::io::Result<()> {
    let mut folder = dir(outbox).join(segment_name(report.id));
    if path.exists() && folder.join("segment").exists() {
        // A number that is used again, after the ledger and all segments were lost.
        let Timestamp(now) = crate::clock::now();
        folder.set_extension(now.to_string());
    }
    // A segment that was being set aside when the power went has its report, which knows more than we do now.
    if path.exists() || !folder.join("report.json").exists() {
        report.write(&folder)?;
    }
    super::fault::point()?;
    if path.exists() {
        std::fs::rename(path, folder.join("segment"))?;
        sync_dir(&folder)?;
        path.parent().map_or(Ok(()), sync_dir)?;
    }
    tracing::error!(
        segment = report.id,
        records = report.records,
        why = report.why.join("; "),
        folder = %folder.display(),
        "a damaged segment was set aside: the rest goes on; see `outbox salvage`"
    );
    Ok(())
}

/// Moves a file or folder of the outbox that cannot be used here.
pub(super) fn move_aside(outbox: &Path, name: &str, why: String) -> std::io::Result<()> {
    let Timestamp(now) = crate::clock::now();
    let folder = dir(outbox).join(format!("{name}-{now}"));
    tracing::error!(why, folder = %folder.display(), "{name} is damaged: it was set aside and is made anew");
    Report::new(name, vec![why]).write(&folder)?;
    std::fs::rename(outbox.join(name), folder.join(name))?;
    sync_dir(&folder)?;
    sync_dir(outbox)
}

/// Everything that was set aside: the folders and their reports, oldest first.
pub(super) fn list(outbox: &Path) -> std::io::Result<Vec<(PathBuf, Report)>> {
    let entries = match std::fs::read_dir(dir(outbox)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut all = Vec::new();
    for entry in entries {
        let folder = entry?.path();
        let report = std::fs::read(folder.join("report.json")).ok();
        let report = report.and_then(|bytes| serde_json::from_slice::<Report>(&bytes).ok());
        all.push((folder, report.unwrap_or_else(|| Report::new("unknown", vec!["no report".to_owned()]))));
    }
    all.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(all)
}

/// How many segments and records are here that nobody has salvaged.
pub(super) fn count(outbox: &Path) -> (u64, u64) {
    let all = list(outbox).unwrap_or_default();
    let open = all.iter().filter(|(_, report)| report.salvaged_at.is_none());
    open.fold((0, 0), |(segments, records), (_, report)| (segments + 1, records + report.records))
}
