//! Restores the segment catalog at opening: the ledger's list, checked against the disk.
//!
//! The ledger and the folders agree unless something was interrupted or damaged:
//!
//! * a folder with a tombstone was settled, and is deleted;
//! * an unlisted folder was begun but never used, and is deleted; or it contains records because the ledger was lost or has
//!   lost its end: then it is adopted, and all of it is sent again with the same keys;
//! * a listed segment without a folder, or a newest one that cannot be opened, is written off with a report;
//! * a newest segment that ends before the ledger's copy of its totals has lost its end: it is sealed, and the missing
//!   records are discovered when the rest of it is settled.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::error::OpenError;
use super::quarantine::{self, QuarantineReport};
use crate::outbox::engine::names::sync_dir;
use crate::outbox::engine::repair;
use crate::outbox::format::codec::CodecError;
use crate::outbox::format::log::Log;
use crate::outbox::format::schema::{Counters, SegmentInfo, Tally, Totals};
use crate::outbox::ledger::{Ledger, LedgerBatch};
use crate::outbox::segments::segment::{Listed, ReadError, Segment};
use crate::outbox::segments::settlement::Settled;
use crate::outbox::settings::Settings;
use crate::outbox::state::shared::Shared;
use crate::outbox::state::{Lingering, RecentAppends, State};

/// Collects what is known from the ledger and the folders. Deletes remains; changes nothing else yet.
pub(crate) fn restore(settings: &Settings, ledger: &Ledger, is_new: bool) -> Result<State, OpenError> {
    let mut catalog: BTreeMap<u64, Listed> = BTreeMap::new();
    for (id, info) in ledger.segments()? {
        let segment = Arc::new(Segment::new(&settings.dir, id, settings.durability));
        catalog.insert(id, Listed::new(segment, info));
    }
    let mut settled: [Settled; Log::COUNT] = Default::default();
    for log in Log::ALL {
        settled[log.index()] = ledger.settled(log)?;
    }
    let (unlisted, lingering) = sweep(settings, ledger, &catalog)?;
    adopt(settings, &mut catalog, &settled, unlisted)?;
    let mut counters = ledger.counters()?.unwrap_or_default();
    let mut segments: Vec<Listed> = catalog.into_values().collect();
    seal_all_but_last(&mut segments);
    if is_new {
        begin_counting(&mut counters, &segments);
    }
    let mut totals = ledger.totals()?.unwrap_or_default();
    for listed in &segments {
        totals = farther(totals, &listed.info.before);
    }
    // Whatever was lost: a number must not be given out twice, or a new record would count as settled.
    totals.next = settled.iter().map(Settled::end).fold(totals.next, u64::max);
    totals.next = segments.iter().filter_map(|listed| listed.info.end).fold(totals.next, u64::max);
    Ok(State {
        totals_stored: 0,
        totals,
        durable: counters.clone(),
        counters,
        settled,
        segments,
        recent: RecentAppends::new(),
        unread: Default::default(),
        tail_cache: Default::default(),
        letters: Vec::new(),
        counters_dirty: is_new,
        leaving: Vec::new(),
        lingering,
        left: Vec::new(),
        dropped: Vec::new(),
    })
}

/// Deletes the folders named by tombstones. Returns unlisted folders, and those that could not be deleted.
fn sweep(
    settings: &Settings,
    ledger: &Ledger,
    catalog: &BTreeMap<u64, Listed>,
) -> Result<(Vec<u64>, Lingering), OpenError> {
    let path = settings.dir.join("segments");
    let folder = |source| OpenError::Folder { path: path.clone(), source };
    let tombstones = ledger.tombstones()?;
    let (mut unlisted, mut lingering) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(&path).map_err(folder)? {
        let entry = entry.map_err(folder)?;
        let id = entry.file_name().to_str().and_then(|name| name.parse::<u64>().ok());
        match id {
            Some(id) if catalog.contains_key(&id) => {}
            Some(id) if tombstones.contains(&id) => {
                if let Err(error) = std::fs::remove_dir_all(entry.path()) {
                    let segment = Arc::new(Segment::new(&settings.dir, id, settings.durability));
                    segment.say_it_stays(&error);
                    let bytes = segment.disk_bytes();
                    lingering.push((segment, bytes));
                }
            }
            Some(id) => unlisted.push(id),
            None => tracing::warn!(path = %entry.path().display(), "not a segment; it is left alone"),
        }
    }
    // IMPORTANT: the deletions must be durable before the tombstones are removed.
    sync_dir(&path).map_err(folder)?;
    let mut batch = LedgerBatch::default();
    let stays = |id: &u64| lingering.iter().any(|(segment, _)| segment.id == *id);
    let gone: Vec<u64> = tombstones.into_iter().filter(|id| !stays(id)).collect();
    for id in &gone {
        batch.forget_tombstone(*id);
    }
    if !gone.is_empty() {
        ledger.commit(batch)?;
    }
    unlisted.sort_unstable();
    Ok((unlisted, lingering))
}

/// Adds unlisted segments to the catalog; deletes those that were never used.
fn adopt(
    settings: &Settings,
    catalog: &mut BTreeMap<u64, Listed>,
    settled: &[Settled; Log::COUNT],
    unlisted: Vec<u64>,
) -> Result<(), OpenError> {
    for id in unlisted {
        let segment = Arc::new(Segment::new(&settings.dir, id, settings.durability));
        let before = catalog.range(..id).next_back();
        let lowest = before.map_or(0, |(_, listed)| listed.info.end.unwrap_or(listed.info.base));
        match survey(&segment, lowest, settled) {
            Ok(Some(info)) => {
                tracing::warn!(
                    segment = id,
                    records = info.appended.total(),
                    "adopting a segment that is not in the ledger"
                );
                let mut listed = Listed::new(segment, info);
                listed.dirty = true;
                catalog.insert(id, listed);
            }
            Ok(None) => discard(&segment)?,
            // A kill while it was being created. If the ledger itself is new, nothing shows that: then it counts as damage.
            Err(error)
                if error.is_damage()
                    && segment.is_blank()
                    && catalog.range(id..).next().is_none()
                    && !catalog.is_empty() =>
            {
                discard(&segment)?;
            }
            Err(error) if error.is_damage() => {
                let report = QuarantineReport {
                    what: "segment".into(),
                    id,
                    at: crate::time::now().to_rfc3339(),
                    why: vec![format!("not in the ledger, and damaged: {error}")],
                    ..Default::default()
                };
                segment.close();
                let path = segment.path().to_path_buf();
                quarantine::move_segment(&settings.dir, &path, &report)
                    .map_err(|source| OpenError::Folder { path, source })?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Deletes a segment that was never used.
fn discard(segment: &Segment) -> Result<(), OpenError> {
    segment.close();
    segment.delete().map_err(|source| OpenError::Folder { path: segment.path().to_path_buf(), source })
}

/// Determines a segment's contents by reading all of it. `None` if nothing was ever appended.
fn survey(
    segment: &Segment,
    lowest: u64,
    settled: &[Settled; Log::COUNT],
) -> Result<Option<SegmentInfo>, ReadError> {
    let (Some(before), Some(totals)) = (segment.begin()?, segment.totals()?) else {
        return if segment.ranges(0)?.iter().all(Option::is_none) {
            Ok(None)
        } else {
            Err(ReadError::Value {
                segment: segment.id,
                what: "totals",
                source: CodecError::Damaged("missing".into()),
            })
        };
    };
    let mut info = SegmentInfo::beginning(&before);
    let mut end = totals.next;
    for log in Log::ALL {
        segment.read(log, lowest, |first, pack| {
            end = end.max(first + 1);
            if let Ok((header, entries)) = pack {
                end = end.max(first + u64::from(header.count));
                info.base = info.base.min(first);
                for (seq, entry) in (first..).zip(&entries) {
                    info.appended.add(log, entry.kind(), 1);
                    info.bytes += entry.len() as u64;
                    if settled[log.index()].is_settled(seq) {
                        info.settled.add(log, entry.kind(), 1);
                        info.settled_bytes += entry.len() as u64;
                    }
                }
            }
            true
        })?;
    }
    info.end = Some(end);
    info.ranges = segment.ranges(info.base)?;
    Ok((info.appended.total() > 0).then_some(info))
}

/// Only the last segment of the catalog accepts appends.
fn seal_all_but_last(segments: &mut [Listed]) {
    for at in 1..segments.len() {
        let next = segments[at].info.before.clone();
        let info = &mut segments[at - 1].info;
        if info.end.is_none() {
            info.count_to(&next);
            info.end = Some(next.next);
            // The ledger does not know the ranges of its packs yet. If they cannot be determined, reading will show why.
            let whole = Some((info.base, next.next.saturating_sub(1)));
            let ranges = segments[at - 1].segment.ranges(segments[at - 1].info.base);
            segments[at - 1].info.ranges = ranges.unwrap_or([whole; Log::COUNT]);
            segments[at - 1].dirty = true;
        }
    }
}

/// A new ledger for old segments: all counters restart, with the waiting records as the first that were enqueued.
fn begin_counting(counters: &mut Counters, segments: &[Listed]) {
    let Some(last) = segments.last() else { return };
    let here = segments.iter().fold(Tally::default(), |sum, listed| sum.plus(&listed.info.waiting()));
    let own = last.segment.totals().ok().flatten().unwrap_or_else(|| last.info.before.clone());
    counters.forgotten = own.appended.minus(&here).by_kind();
}

fn farther(a: Totals, b: &Totals) -> Totals {
    if b.next > a.next { b.clone() } else { a }
}

/// Writes off what is missing, and ensures that the last segment accepts appends.
pub(crate) fn repair(shared: &Arc<Shared>) -> Result<(), OpenError> {
    let missing: Vec<u64> = {
        let mut state = shared.state();
        let totals = state.totals.clone();
        let missing = state.segments.iter_mut().filter(|listed| !listed.segment.path().exists());
        missing.map(|listed| seal(listed, &totals)).collect()
    };
    let segments = |source| OpenError::Folder { path: shared.settings.dir.join("segments"), source };
    let mut last_id = shared.state().segments.last().map_or(0, |listed| listed.segment.id);
    for id in missing {
        shared.quarantine(id, "its folder is missing").map_err(segments)?;
    }
    if let Some((id, why)) = continue_last(shared)? {
        shared.quarantine(id, &why).map_err(segments)?;
    }
    let needs_new = shared.state().segments.last().is_none_or(|listed| listed.info.end.is_some());
    if needs_new {
        last_id += 1;
        let (totals, recent) = {
            let state = shared.state();
            (state.totals.clone(), state.recent.clone())
        };
        let segment = Segment::new(&shared.settings.dir, last_id, shared.settings.durability);
        segment.create(&totals, recent.iter())?;
        let info = SegmentInfo::beginning(&totals);
        let mut listed = Listed::new(Arc::new(segment), info);
        listed.dirty = true;
        shared.state().segments.push(listed);
    }
    let is_dirty = shared.state().is_dirty() || shared.state().segments.iter().any(|listed| listed.dirty);
    if is_dirty {
        shared.save()?;
    }
    Ok(())
}

/// Reads the newest segment's totals and checkpoint. Returns its number and the reason if it must be quarantined.
fn continue_last(shared: &Shared) -> Result<Option<(u64, String)>, OpenError> {
    let Some((segment, info)) =
        shared.state().segments.last().map(|listed| (Arc::clone(&listed.segment), listed.info.clone()))
    else {
        return Ok(None);
    };
    let read =
        || -> Result<_, ReadError> { Ok((segment.totals()?, segment.ranges(info.base)?, segment.recent())) };
    let (found, ranges, recent) = match read() {
        Ok(read) => read,
        Err(error) if error.is_damage() => {
            let mut state = shared.state();
            let totals = state.totals.clone();
            if let Some(listed) = state.segments.last_mut() {
                seal(listed, &totals);
            }
            return Ok(Some((segment.id, error.to_string())));
        }
        Err(error) => return Err(error.into()),
    };
    let mut state = shared.state();
    match recent {
        Ok(recent) => {
            state.recent = recent.into_iter().map(|(number, recent)| (number, Arc::new(recent))).collect();
        }
        Err(error) => {
            tracing::error!(%error, "the checkpoint cannot be read: messages in flight may be sent twice, with the same keys");
        }
    }
    let mut found = found.unwrap_or_else(|| info.before.clone());
    let is_mended = !repair::kept(segment.path()).is_empty();
    if is_mended {
        count_behind(&segment, &mut found)?;
    }
    let is_short = found.next < state.totals.next;
    if !is_short {
        state.totals = found;
    }
    let totals = state.totals.clone();
    let Some(listed) = state.segments.last_mut() else { return Ok(None) };
    listed.info.ranges = ranges;
    if is_short || is_mended {
        // Records may be missing, which only a sealed segment is checked for: appends go to a new segment after it.
        if is_short {
            listed.fault("its end is missing".to_owned());
            tracing::error!(segment = segment.id, "the newest segment has lost its end");
        }
        seal(listed, &totals);
    } else if info.end.is_none() {
        listed.info.count_to(&totals);
    }
    Ok(None)
}

/// Counts records after the totals of a repaired segment, whose totals may be older than its readable packs: no number may
/// be given out twice.
fn count_behind(segment: &Segment, totals: &mut Totals) -> Result<(), ReadError> {
    let from = totals.next;
    for log in Log::ALL {
        segment.read(log, from, |first, pack| {
            totals.next = totals.next.max(first + 1);
            if let Ok((header, entries)) = pack {
                totals.next = totals.next.max(first + u64::from(header.count));
                for entry in &entries {
                    totals.appended.add(log, entry.kind(), 1);
                    totals.bytes += entry.len() as u64;
                }
            }
            true
        })?;
    }
    Ok(())
}

/// Seals the segment, whose contents end with `totals`. Returns its number.
fn seal(listed: &mut Listed, totals: &Totals) -> u64 {
    if listed.info.end.is_none() {
        listed.info.count_to(totals);
        listed.info.end = Some(totals.next);
    }
    listed.dirty = true;
    listed.segment.id
}
