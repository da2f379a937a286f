//! Reads everything, and reports what is wrong where. It repairs and moves nothing: a damaged database, which opening would
//! change, is not opened.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::outbox::api::handle::Outbox;
use crate::outbox::engine::repair;
use crate::outbox::format::codec::CodecError;
use crate::outbox::format::log::Log;
use crate::outbox::format::schema::{SegmentInfo, Tally, Totals};
use crate::outbox::ledger::Ledger;
use crate::outbox::recovery::error::OpenError;
use crate::outbox::recovery::{manifest, open, quarantine};
use crate::outbox::segments::segment::{ReadError, Segment};
use crate::outbox::segments::settlement::Settled;
use crate::outbox::settings::Settings;

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
        for (folder, report) in quarantine::list(dir).unwrap_or_default() {
            if report.salvaged_at.is_none() {
                verifier.problem(format!("{}: {} records set aside", folder.display(), report.records));
            }
        }
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
            let segment = Arc::new(Segment::new(&settings.dir, *id, settings.durability));
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
        for (kind, enqueued) in totals.appended.by_kind().into_iter().enumerate() {
            let enqueued = enqueued.saturating_sub(counters.forgotten[kind]);
            let (gone, waits) = (counters.gone(kind), waiting.by_kind()[kind]);
            if enqueued != gone + waits {
                let name = crate::record::Kind::ALL[kind].name();
                self.problem(format!("{name}: {enqueued} enqueued, but {gone} gone and {waits} waiting"));
            }
        }
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
            info.appended = totals.appended.minus(&info.before.appended);
        }
        let (mut appended, mut settled) = (Tally::default(), Tally::default());
        for log in Log::ALL {
            segment.read(log, info.base, |first, pack| {
                if first >= info.end() {
                    return false;
                }
                match pack {
                    Ok((_, entries)) => {
                        for (seq, entry) in (first..).zip(&entries) {
                            appended.add(log, entry.kind(), 1);
                            if self.settled[log.index()].is_settled(seq) {
                                settled.add(log, entry.kind(), 1);
                            }
                        }
                        self.found.records += entries.len() as u64;
                        (self.progress)(self.found.records);
                    }
                    Err(error) => {
                        self.problem(format!(
                            "segment {}: {} pack {first}: {error}",
                            segment.id,
                            log.label()
                        ));
                    }
                }
                true
            })?;
        }
        self.found.segments += 1;
        for (what, counted, found) in
            [("records", info.appended, appended), ("settled records", info.settled, settled)]
        {
            if counted != found {
                let (counted, found) = (counted.total(), found.total());
                self.problem(format!("segment {}: {counted} {what} counted, {found} found", segment.id));
            }
        }
        Ok(totals)
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
