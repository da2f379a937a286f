//! The writer: commits appends, together if they arrive together, and starts new segments.

mod commit;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::outbox::engine::error::DatabaseError;
use crate::outbox::format::codec::{self, Entry};
use crate::outbox::format::log::Log;
use crate::outbox::format::schema::{Recent, SegmentInfo, Totals};
use crate::outbox::ledger::LedgerError;
use crate::outbox::messages::AppendError;
use crate::outbox::segments::segment::{Listed, Segment};
use crate::outbox::state::RecentAppends;
use crate::outbox::state::shared::Shared;

/// Appends are committed together up to this many bytes, which limits the memory of a commit.
const COMMIT_BYTES: usize = 4 << 20;
/// How long to wait before trying failed storage again.
const RETRY_AFTER: Duration = Duration::from_millis(500);
/// How quickly an append is refused meanwhile.
pub(crate) const REFUSE_WITHIN: Duration = Duration::from_millis(10);
/// Conversations with Redis remembered after one of their appends was refused. There is one at a time, and each has a new
/// number.
const REFUSED_CONVERSATIONS: usize = 16;

/// A request to the writer.
pub(crate) enum WriteRequest {
    /// Append this.
    Append(Append),
    /// Begin a new segment, if anything was appended to this one.
    Roll,
    /// Answer when this and the requests before it are served: the writer does not hang.
    Wake(oneshot::Sender<()>),
}

/// A request to append.
pub(crate) struct Append {
    pub entries: Vec<Entry>,
    pub taken: Option<(u64, Recent)>,
    pub done: oneshot::Sender<Result<u64, AppendError>>,
}

impl Append {
    fn bytes(&self) -> usize {
        self.entries.iter().map(Entry::len).sum()
    }
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

pub(crate) struct Writer {
    shared: Arc<Shared>,
    active: Arc<Segment>,
    totals: Totals,
    ranges: [Option<(u64, u64)>; Log::COUNT],
    appends: u64,
    recent: RecentAppends,
    /// The conversations with a refused append.
    refused: BTreeSet<u64>,
    /// The failure, if no new segment could be begun since.
    broken: Option<String>,
}

impl Writer {
    /// A writer that continues in the last segment of the catalog.
    pub(crate) fn new(shared: &Arc<Shared>) -> std::io::Result<Self> {
        let state = shared.state();
        let Some(listed) = state.segments.last() else {
            return Err(std::io::Error::other("the segment catalog is empty"));
        };
        let writer = Self {
            active: Arc::clone(&listed.segment),
            ranges: listed.info.ranges,
            totals: state.totals.clone(),
            appends: state.recent.back().map_or(0, |(n, _)| n + 1),
            recent: state.recent.clone(),
            refused: BTreeSet::new(),
            broken: None,
            shared: Arc::clone(shared),
        };
        drop(state);
        Ok(writer)
    }

    /// Commits appends until all senders are gone.
    pub(crate) fn run(mut self, mut write_requests: mpsc::Receiver<WriteRequest>) {
        while let Some(first) = write_requests.blocking_recv() {
            self.serve(first, &mut write_requests);
            self.wait_until_mended(&mut write_requests);
        }
    }

    /// Serves a request together with those that have arrived meanwhile.
    pub(crate) fn serve(&mut self, first: WriteRequest, write_requests: &mut mpsc::Receiver<WriteRequest>) {
        let (mut bytes, mut group, mut wants_roll, mut waiting) = (0, Vec::new(), false, Vec::new());
        let mut next = Some(first);
        while let Some(request) = next {
            match request {
                WriteRequest::Append(append) => {
                    bytes += append.bytes();
                    group.push(append);
                }
                WriteRequest::Roll => wants_roll = true,
                WriteRequest::Wake(done) => waiting.push(done),
            }
            next = (bytes < COMMIT_BYTES).then(|| write_requests.try_recv().ok()).flatten();
        }
        if wants_roll {
            self.roll_if_used();
        }
        if !group.is_empty() {
            self.append(group);
        }
        // A caller may be gone.
        for done in waiting {
            let _ = done.send(());
        }
    }

    /// While the storage is broken: keeps trying to begin a new segment. Nobody waits for that: appends are refused at once
    /// meanwhile, and a disk that never recovers does not keep the outbox from closing.
    fn wait_until_mended(&mut self, write_requests: &mut mpsc::Receiver<WriteRequest>) {
        let mut tried = Instant::now();
        while self.is_broken() && self.refuse_meanwhile(write_requests) {
            std::thread::sleep(REFUSE_WITHIN);
            self.try_again(&mut tried);
        }
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.broken.is_some()
    }

    /// Refuses appends while the storage is broken. False if no more can arrive.
    pub(crate) fn refuse_meanwhile(&mut self, write_requests: &mut mpsc::Receiver<WriteRequest>) -> bool {
        let why = AppendError::Storage(self.broken.clone().unwrap_or_default());
        while let Ok(request) = write_requests.try_recv() {
            match request {
                WriteRequest::Append(append) => self.refuse(append, &why),
                WriteRequest::Roll => {}
                WriteRequest::Wake(done) => _ = done.send(()),
            }
        }
        !write_requests.is_closed()
    }

    /// Tries to begin a new segment, if the last attempt was long enough ago.
    pub(crate) fn try_again(&mut self, tried: &mut Instant) {
        if tried.elapsed() >= RETRY_AFTER {
            self.recover();
            *tried = Instant::now();
        }
    }

    /// Begins a new segment if anything was appended to this one.
    pub(crate) fn roll_if_used(&mut self) {
        if self.has_appended()
            && let Err(error) = self.roll()
        {
            tracing::warn!(%error, "cannot begin a new segment");
            // IMPORTANT: it is now unknown whether the ledger lists the new segment. Nothing may be appended to this one
            // before a new segment has been begun: data after the end known to the ledger would not be read.
            self.broke(error.to_string());
        }
    }

    /// Commits appends together, and answers each.
    pub(crate) fn append(&mut self, group: Vec<Append>) {
        let mut group = self.acceptable(group);
        if group.is_empty() {
            return;
        }
        if self.broken.is_some() {
            self.recover();
        }
        if let Some(reason) = self.shared.measure() {
            self.refuse_all(group, &AppendError::Full(reason));
            return;
        }
        let begun = Instant::now();
        match self.commit(&mut group) {
            Ok(()) => {
                self.shared.settings.commit_seconds.observe(begun.elapsed().as_secs_f64());
                for append in group {
                    // If nobody waits, nobody needs the answer; the records are safe.
                    let _ = append.done.send(Ok(self.totals.next - 1));
                }
            }
            Err(error) => {
                tracing::error!(%error, "the outbox cannot write");
                self.refuse_all(group, &AppendError::Storage(error.to_string()));
                self.broke(error.to_string());
            }
        }
    }

    /// Refuses appends that are invalid on their own, and returns the others.
    fn acceptable(&mut self, group: Vec<Append>) -> Vec<Append> {
        let mut rest = Vec::with_capacity(group.len());
        for append in group {
            let of_refused = append.taken.as_ref().is_some_and(|(number, _)| self.refused.contains(number));
            let longest = append.entries.iter().map(Entry::len).max().unwrap_or(0);
            if of_refused {
                self.refuse(append, &AppendError::Full("an earlier batch was refused"));
            } else if longest > codec::ENTRY_BYTES {
                self.refuse(append, &AppendError::TooLong { bytes: longest, most: codec::ENTRY_BYTES });
            } else {
                rest.push(append);
            }
        }
        rest
    }

    /// Nothing is appended until a new segment has been begun.
    fn broke(&mut self, why: String) {
        self.broken = Some(why);
        self.shared.writer_failed.store(true, Ordering::Relaxed);
        self.shared.measure();
    }

    fn refuse_all(&mut self, group: Vec<Append>, error: &AppendError) {
        for append in group {
            self.refuse(append, error);
        }
    }

    fn refuse(&mut self, append: Append, error: &AppendError) {
        if let Some((number, _)) = append.taken {
            self.refused.insert(number);
            while self.refused.len() > REFUSED_CONVERSATIONS {
                self.refused.pop_first();
            }
        }
        // If nobody waits, nobody needs the answer.
        let _ = append.done.send(Err(error.clone()));
    }

    fn has_appended(&self) -> bool {
        self.ranges.iter().any(Option::is_some)
    }

    /// Seals the active segment and starts the next.
    fn roll(&mut self) -> Result<(), WriteError> {
        let settings = &self.shared.settings;
        // A segment outside the folder would never be found.
        self.shared.in_place()?;
        let next = Arc::new(Segment::new(&settings.dir, self.active.id + 1, settings.durability));
        // IMPORTANT: created and synced, then listed, then used: a listed segment always exists.
        next.create(&self.totals, self.recent.iter())?;
        {
            let mut state = self.shared.state();
            if let Some(listed) = state.segments.last_mut() {
                // IMPORTANT: data that a failed commit may have left after this number was never acknowledged, and is
                // appended again: nobody reads it.
                listed.info.end = Some(self.totals.next);
                listed.dirty = true;
            }
            let mut listed = Listed::new(Arc::clone(&next), SegmentInfo::beginning(&self.totals));
            listed.dirty = true;
            state.segments.push(listed);
        }
        if let Err(error) = self.shared.save() {
            let mut state = self.shared.state();
            state.segments.retain(|listed| listed.segment.id != next.id);
            if let Some(listed) = state.segments.last_mut() {
                (listed.info.end, listed.disk_bytes) = (None, None);
            }
            return Err(error.into());
        }
        self.active.close();
        (self.active, self.ranges) = (next, [None; Log::COUNT]);
        Ok(())
    }

    /// After a failed write sled refuses all further ones, and after a failed barrier it is unknown what is on disk: a new
    /// segment is begun after the acknowledged records, if the disk allows it.
    fn recover(&mut self) {
        // Open files can still be read, but none can be opened.
        if self.shared.in_place().is_err() {
            self.shared.measure();
            return;
        }
        self.shared.reserve.give_up();
        match self.roll() {
            Ok(()) => {
                self.broken = None;
                self.shared.writer_failed.store(false, Ordering::Relaxed);
                self.shared.measure();
            }
            Err(error) => tracing::debug!(%error, "cannot write to the outbox's storage yet"),
        }
    }
}
