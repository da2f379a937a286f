//! The writer: commits appends, together when they arrive together, and starts new segments.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::codec::Packer;
use super::database::{Batch, DatabaseError};
use super::ledger;
use super::schema::{Recent, SegmentInfo, Totals};
use super::segment::{Listed, Segment};
use super::settled::PACK_RECORDS;
use super::state::{RECENT_APPENDS, at};
use super::{AppendError, Entry, LedgerError, Log, Shared, space};

/// A pack is closed at this many bytes of records: about 4 KiB compressed.
const PACK_BYTES: usize = 32 << 10;
/// Appends are committed together up to this many bytes: a bound on the memory of one commit.
const COMMIT_BYTES: usize = 4 << 20;
/// How long to wait before the storage is opened again after it failed.
const REOPEN_AFTER: Duration = Duration::from_millis(500);

/// A request to append.
pub(super) struct Append {
    pub entries: Vec<Entry>,
    pub taken: Option<(u64, Recent)>,
    pub done: oneshot::Sender<Result<u64, AppendError>>,
}

#[derive(Debug, thiserror::Error)]
enum WriteError {
    #[error(transparent)]
    Database(#[from] DatabaseError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

pub(super) struct Writer {
    shared: Arc<Shared>,
    packer: Packer,
    active: Arc<Segment>,
    totals: Totals,
    ranges: [Option<(u64, u64)>; Log::COUNT],
    appends: u64,
    recent: VecDeque<(u64, Recent)>,
    /// The active segment has no checkpoint of its own yet.
    fresh: bool,
    /// The conversation of which an append was refused.
    refused: Option<u64>,
}

impl Writer {
    /// A writer that goes on where the last one stopped: in the last segment of the row.
    pub(super) fn new(shared: &Arc<Shared>) -> std::io::Result<Self> {
        let state = shared.state();
        let Some(listed) = state.segments.last() else {
            return Err(std::io::Error::other("the row of segments is empty"));
        };
        let writer = Self {
            packer: Packer::new()?,
            active: Arc::clone(&listed.segment),
            ranges: listed.info.ranges,
            totals: state.totals.clone(),
            appends: state.recent.back().map_or(0, |(n, _)| n + 1),
            recent: state.recent.clone(),
            fresh: true,
            refused: None,
            shared: Arc::clone(shared),
        };
        drop(state);
        Ok(writer)
    }

    /// Commits what comes until nobody can send any more.
    pub(super) fn run(mut self, mut appends: mpsc::Receiver<Append>) {
        while let Some(first) = appends.blocking_recv() {
            let mut bytes: usize = first.entries.iter().map(Entry::len).sum();
            let mut group = vec![first];
            while bytes < COMMIT_BYTES {
                let Ok(next) = appends.try_recv() else { break };
                bytes += next.entries.iter().map(Entry::len).sum::<usize>();
                group.push(next);
            }
            let of_refused = |append: &Append| {
                append.taken.as_ref().is_some_and(|(number, _)| Some(*number) == self.refused)
            };
            if group.iter().any(of_refused) {
                self.refuse(group, &AppendError::Full("an earlier batch was refused"));
                continue;
            }
            if let Some(reason) = self.shared.measure() {
                self.refuse(group, &AppendError::Full(reason));
                continue;
            }
            let begun = std::time::Instant::now();
            match self.commit(&group) {
                Ok(()) => {
                    self.shared.settings.commit_seconds.observe(begun.elapsed().as_secs_f64());
                    for append in group {
                        // Nobody waiting is nobody to tell; the records are safe.
                        let _ = append.done.send(Ok(self.totals.next - 1));
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "the outbox could not write");
                    self.refuse(group, &AppendError::Storage(error.to_string()));
                    self.reopen();
                }
            }
        }
    }

    fn refuse(&mut self, group: Vec<Append>, error: &AppendError) {
        for append in group {
            if let Some((number, _)) = append.taken {
                self.refused = Some(number);
            }
            // Nobody waiting is nobody to tell.
            let _ = append.done.send(Err(error.clone()));
        }
    }

    fn commit(&mut self, group: &[Append]) -> Result<(), WriteError> {
        if self.active.disk_bytes() >= self.shared.settings.segment_bytes {
            self.roll()?;
        }
        let mut batch = Batch::default();
        let (mut totals, mut ranges) = (self.totals.clone(), self.ranges);
        let mut by_log: [Vec<&Entry>; Log::COUNT] = Default::default();
        for append in group {
            for entry in &append.entries {
                totals.enqueued[at(entry.kind())] += 1;
                totals.bytes += entry.len() as u64;
                by_log[Log::of(entry).index()].push(entry);
            }
        }
        for log in Log::ALL {
            for pack in packs(&by_log[log.index()]) {
                let value = self.packer.pack(pack)?;
                Segment::put_pack(&mut batch, log, totals.next, &value);
                let first = ranges[log.index()].map_or(totals.next, |(first, _)| first);
                ranges[log.index()] = Some((first, totals.next));
                totals.next += pack.len() as u64;
            }
        }
        let mut recent = self.recent.clone();
        if self.fresh {
            // A segment knows the checkpoint by itself: the one before it may be deleted.
            for (n, old) in &recent {
                Segment::put_recent(&mut batch, *n, old, None);
            }
        }
        let mut appends = self.appends;
        for taken in group.iter().filter_map(|append| append.taken.as_ref().map(|(_, recent)| recent.clone()))
        {
            let forget = appends.checked_sub(RECENT_APPENDS as u64);
            Segment::put_recent(&mut batch, appends, &taken, forget);
            recent.push_back((appends, taken));
            appends += 1;
        }
        while recent.len() > RECENT_APPENDS {
            recent.pop_front();
        }
        Segment::put_totals(&mut batch, &totals);
        // IMPORTANT: durable first; only then does anybody, the drain included, hear of these records. A record
        // that was sent but did not survive would be accepted anew, with another time in its body.
        self.active.database()?.commit(batch)?;
        (self.totals, self.ranges, self.recent, self.appends) = (totals, ranges, recent, appends);
        self.fresh = false;
        let mut state = self.shared.state();
        state.totals = self.totals.clone();
        state.recent.clone_from(&self.recent);
        if let Some(listed) = state.segments.last_mut() {
            listed.info.ranges = self.ranges;
        }
        drop(state);
        self.shared.last.send_replace(self.totals.next - 1);
        Ok(())
    }

    /// Seals the active segment and starts the next.
    fn roll(&mut self) -> Result<(), WriteError> {
        let id = self.active.id + 1;
        let next = Arc::new(Segment::new(&self.shared.settings.dir, id, self.shared.settings.durability));
        // IMPORTANT: created and synced, then listed, then used: a listed segment is always there.
        next.database()?;
        let info =
            SegmentInfo { base: self.totals.next, before: self.totals.clone(), ..SegmentInfo::default() };
        let sealed = {
            let state = self.shared.state();
            state.segments.last().map(|listed| SegmentInfo { sealed: true, ..listed.info.clone() })
        };
        let mut entry = ledger::Entry::default();
        if let Some(sealed) = &sealed {
            entry.segment(self.active.id, sealed);
        }
        entry.segment(id, &info);
        self.shared.ledger.commit(entry)?;
        let mut state = self.shared.state();
        if let (Some(listed), Some(sealed)) = (state.segments.last_mut(), sealed) {
            listed.info = sealed;
        }
        state.segments.push(Listed { segment: Arc::clone(&next), info });
        drop(state);
        self.active.close();
        (self.active, self.ranges, self.fresh) = (next, [None; Log::COUNT], true);
        Ok(())
    }

    /// After a failed write sled refuses all further ones: close the database and open it again, until it works.
    fn reopen(&mut self) {
        self.shared.pause(Some(space::STORAGE));
        loop {
            std::thread::sleep(REOPEN_AFTER);
            self.active.close();
            match self.active.totals() {
                Ok(found) => {
                    // A failed barrier leaves open whether the batch is there. If it is, it counts; its appender
                    // was told "no" and will find it in the checkpoint when it takes the same messages again.
                    let found = found.unwrap_or_else(|| self.totals.clone());
                    if found.next > self.totals.next {
                        self.adopt(found);
                    }
                    self.shared.pause(None);
                    return;
                }
                Err(error) => tracing::debug!(%error, "the outbox's storage cannot be opened yet"),
            }
        }
    }

    fn adopt(&mut self, found: Totals) {
        let (Ok(recent), Ok(ranges)) = (self.active.recent(), self.active.ranges()) else { return };
        self.recent = recent.into();
        self.appends = self.recent.back().map_or(self.appends, |(n, _)| n + 1);
        self.ranges = ranges;
        self.totals = found;
        let mut state = self.shared.state();
        state.totals = self.totals.clone();
        state.recent.clone_from(&self.recent);
        if let Some(listed) = state.segments.last_mut() {
            listed.info.ranges = self.ranges;
        }
        drop(state);
        self.shared.last.send_replace(self.totals.next - 1);
    }
}

/// Cuts `entries` into packs: at most [`PACK_RECORDS`] records, and closed at [`PACK_BYTES`].
fn packs<'a, 'b>(mut entries: &'b [&'a Entry]) -> impl Iterator<Item = &'b [&'a Entry]> {
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = entries.iter().take(PACK_RECORDS).take_while(|entry| {
            let room = bytes < PACK_BYTES;
            bytes += entry.len();
            room
        });
        let (pack, rest) = entries.split_at(fits.count());
        entries = rest;
        (!pack.is_empty()).then_some(pack)
    })
}
