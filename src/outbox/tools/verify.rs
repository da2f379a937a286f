//! Reads everything, and reports what is wrong where. It repairs and moves nothing: a damaged database, which opening would
//! change, is not opened.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::outbox::api::handle::Outbox;
use crate::outbox::engine::repair;
use crate::outbox::format::codec::{CodecError, Entry, PackHeader};
use crate::outbox::format::log::Log;
use crate::outbox::format::schema::{Counters, SegmentInfo, Tally, Totals};
use crate::outbox::ledger::Ledger;
use crate::outbox::recovery::error::OpenError;
use crate::outbox::recovery::{manifest, open, quarantine};
use crate::outbox::segments::segment::{ReadError, Segment};
use crate::outbox::segments::settlement::Settled;
use crate::outbox::settings::Settings;
use crate::record::Kind;

/// The result.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// Segments read.
    pub segments: usize,
    /// Records in them.
    pub records: u64,
    /// Waiting records among them.
    pub waiting: u64,
    /// Dead letters read.
    pub dead_letters: u64,
    /// All problems.
    pub problems: Vec<String>,
}

/// The verification of one segment: what was read, against what was counted.
pub(super) struct SegmentCheck {
    pub id: u64,
    /// The counts when reading began.
    pub info: SegmentInfo,
    pub records: u64,
    appended: Tally,
    settled: Tally,
    pub problems: Vec<String>,
}

impl SegmentCheck {
    pub(super) fn new(id: u64, info: SegmentInfo) -> Self {
        let (appended, settled) = (Tally::default(), Tally::default());
        Self { id, info, records: 0, appended, settled, problems: Vec::new() }
    }

    /// A pack was read at `first`.
    pub(super) fn pack(
        &mut self,
        settled: &Settled,
        log: Log,
        first: u64,
        pack: Result<(PackHeader, Vec<Entry>), CodecError>,
    ) {
        match pack {
            Ok((_, entries)) => {
                for (seq, entry) in (first..).zip(&entries) {
                    self.appended.add(log, entry.kind(), 1);
                    if settled.is_settled(seq) {
                        self.settled.add(log, entry.kind(), 1);
                    }
                }
                self.records += entries.len() as u64;
            }
            Err(error) => self.problem(format!("{} pack {first}: {error}", log.label())),
        }
    }

    pub(super) fn problem(&mut self, what: impl std::fmt::Display) {
        self.problems.push(format!("segment {}: {what}", self.id));
    }

    /// All of it was read: compares that with the counts, then and now.
    pub(super) fn compare(&mut self, now: &SegmentInfo) {
        for (kind, name) in Kind::ALL.map(Kind::name).into_iter().enumerate() {
            let of = |tally: &Tally| tally.by_kind()[kind];
            let (counted, found) = (of(&self.info.appended), of(&self.appended));
            if counted != found {
                self.problem(format_args!("{counted} {name} counted, {found} found"));
            }
            let (least, most, found) = (of(&self.info.settled), of(&now.settled), of(&self.settled));
            if found < least || found > most {
                let counted = if least == most { least.to_string() } else { format!("{least} to {most}") };
                self.problem(format_args!("{counted} settled {name} counted, {found} found"));
            }
        }
    }
}

/// Where the counters disagree with the records waiting in the segments.
pub(super) fn compare_sums(enqueued: [u64; 5], counters: &Counters, waiting: &Tally) -> Vec<String> {
    let mut problems = Vec::new();
    for (kind, enqueued) in Kind::ALL.into_iter().zip(enqueued) {
        let (gone, waits) = (counters.gone(kind as usize - 1), waiting.by_kind()[kind as usize - 1]);
        if enqueued != gone + waits {
            let name = kind.name();
            problems.push(format!("{name}: {enqueued} enqueued, but {gone} gone and {waits} waiting"));
        }
    }
    problems
}

/// What waits in the quarantine of an outbox.
pub(super) fn quarantined(dir: &Path) -> impl Iterator<Item = String> {
    let all = quarantine::list(dir).unwrap_or_default().into_iter();
    let open = all.filter(|(_, report)| report.salvaged_at.is_none());
    open.map(|(folder, report)| format!("{}: {} records in quarantine", folder.display(), report.records))
}

impl Verified {
    pub(super) fn add(&mut self, segment: SegmentCheck) {
        self.segments += 1;
        self.records += segment.records;
        self.problems.extend(segment.problems);
    }
}

struct OutboxVerifier<'a> {
    settled: Vec<Settled>,
    found: Verified,
    progress: &'a mut dyn FnMut(u64),
}

impl Outbox {
    /// Reads all of the outbox in `settings.dir` and checks every checksum and count. `progress` gets the number of records
    /// read.
    pub fn verify(settings: &Settings, progress: &mut dyn FnMut(u64)) -> Result<Verified, OpenError> {
        let dir = &settings.dir;
        let absent = || OpenError::Absent(dir.clone());
        if !dir.join("lock").exists() {
            return Err(absent());
        }
        let _lock = open::lock(dir)?;
        manifest::read(dir)?.ok_or_else(absent)?;
        let mut verifier = OutboxVerifier { settled: Vec::new(), found: Verified::default(), progress };
        // IMPORTANT: a database that is damaged or marked as unsynced is not opened: opening would repair it.
        if let Some(trouble) = repair::trouble(&dir.join("ledger")) {
            verifier.problem(format!("ledger: {trouble}"));
            return Ok(verifier.found);
        }
        match Ledger::open(dir, settings.durability) {
            Ok(Some(ledger)) => verifier.verify(settings, &ledger)?,
            Ok(None) => verifier.problem("ledger: missing"),
            Err(error) => verifier.problem(format!("ledger: {error}")),
        }
        verifier.found.problems.extend(quarantined(dir));
        Ok(verifier.found)
    }
}

impl OutboxVerifier<'_> {
    fn problem(&mut self, what: impl Into<String>) {
        self.found.problems.push(what.into());
    }

    fn verify(&mut self, settings: &Settings, ledger: &Ledger) -> Result<(), OpenError> {
        if let Err(error) = ledger.check() {
            self.problem(error.to_string());
            return Ok(());
        }
        for log in Log::ALL {
            self.settled.push(ledger.settled(log)?);
        }
        let (mut catalog, mut totals) = (ledger.segments()?, Totals::default());
        let known: Vec<u64> = catalog.iter().map(|(id, _)| *id).chain(ledger.tombstones()?).collect();
        let mut waiting = Tally::default();
        let newest = catalog.len().saturating_sub(1);
        for (at, (id, info)) in catalog.iter_mut().enumerate() {
            let segment = Segment::new(&settings.dir, *id, settings.durability);
            if let Some(trouble) = repair::trouble(segment.path()) {
                self.problem(format!("segment {id}: {trouble}"));
            } else {
                match self.segment(&segment, info, at == newest) {
                    Ok(own) => totals = own,
                    Err(error) => self.problem(format!("segment {id}: {error}")),
                }
            }
            waiting = waiting.plus(&info.waiting());
            segment.close();
        }
        self.report_unlisted(settings, &known);
        self.found.waiting = waiting.total();
        self.letters(ledger)?;
        for (number, note) in ledger.commands()? {
            if let Err(error) = note {
                self.problem(format!("note of command {number}: {error}"));
            }
        }
        let counters = ledger.counters()?.unwrap_or_default();
        if counters.dead_letters != self.found.dead_letters {
            let (counted, found) = (counters.dead_letters, self.found.dead_letters);
            self.problem(format!("dead letters: {counted} counted, {found} found"));
        }
        self.found.problems.extend(compare_sums(counters.enqueued(&totals), &counters, &waiting));
        Ok(())
    }

    /// Reads one segment. Returns its totals, and completes the ledger's data about the newest one.
    fn segment(
        &mut self,
        segment: &Segment,
        info: &mut SegmentInfo,
        is_newest: bool,
    ) -> Result<Totals, ReadError> {
        let missing = |what| ReadError::Value {
            segment: segment.id,
            what,
            source: CodecError::Damaged("missing".into()),
        };
        let totals = segment.totals()?.ok_or_else(|| missing("totals"))?;
        segment.begin()?.ok_or_else(|| missing("beginning"))?;
        segment.recent()?;
        if is_newest && info.end.is_none() {
            info.count_to(&totals);
        }
        let mut check = SegmentCheck::new(segment.id, info.clone());
        let read = Log::ALL.into_iter().try_for_each(|log| {
            segment.read(log, info.base, |first, pack| {
                if first >= info.end() {
                    return false;
                }
                check.pack(&self.settled[log.index()], log, first, pack);
                (self.progress)(self.found.records + check.records);
                true
            })
        });
        if read.is_ok() {
            check.compare(info);
        }
        // What is wrong with one log is told even if another cannot be read.
        self.found.add(check);
        read.map(|()| totals)
    }

    fn report_unlisted(&mut self, settings: &Settings, known: &[u64]) {
        let entries = std::fs::read_dir(settings.dir.join("segments")).into_iter().flatten().flatten();
        for name in entries.map(|entry| entry.file_name()) {
            let id = name.to_str().and_then(|name| name.parse::<u64>().ok());
            if !id.is_some_and(|id| known.contains(&id)) {
                self.problem(format!("segments/{}: not in the ledger", name.display()));
            }
        }
    }

    fn letters(&mut self, ledger: &Ledger) -> Result<(), OpenError> {
        ledger.letters(0, |(id, letter, _)| {
            match letter {
                Ok(_) => self.found.dead_letters += 1,
                Err(error) => self.found.problems.push(format!("dead letter {id}: {error}")),
            }
            true
        })?;
        Ok(())
    }
}
