//! What everybody else has of an open outbox: a handle that asks its threads, and the threads to wait for.

use std::sync::{Arc, PoisonError, mpsc};
use std::thread::JoinHandle;

use tokio::sync::{oneshot, watch};

use crate::outbox::format::codec::Entry;
use crate::outbox::format::dead_letter::DeadLetter;
use crate::outbox::format::log::Log;
use crate::outbox::format::schema::{Recent, Taken};
use crate::outbox::ledger::LedgerError;
use crate::outbox::messages::{AppendError, LogPage, Settlement, Ticket};
use crate::outbox::segments::segment::ReadError;
use crate::outbox::state;
use crate::outbox::state::shared::Shared;
use crate::outbox::state::stats::Stats;
use crate::outbox::threads::{maintenance, writer};
use crate::record::{Queue, Timestamp};
use crate::time::Moment;

/// An open outbox. Clones share it.
#[derive(Clone)]
pub struct Outbox {
    pub(crate) shared: Arc<Shared>,
    pub(crate) appends: tokio::sync::mpsc::Sender<writer::WriteRequest>,
    pub(crate) requests: MaintenanceQueue,
}

/// Where maintenance is asked. In a simulation it hears of it at once, too.
#[derive(Clone)]
pub(crate) struct MaintenanceQueue {
    requests: mpsc::Sender<maintenance::MaintenanceRequest>,
    #[cfg(feature = "simulation")]
    asked: Arc<tokio::sync::Notify>,
}

impl MaintenanceQueue {
    pub(crate) fn new(requests: mpsc::Sender<maintenance::MaintenanceRequest>) -> Self {
        Self {
            requests,
            #[cfg(feature = "simulation")]
            asked: Arc::default(),
        }
    }

    /// An error if maintenance is gone.
    pub(crate) fn send(
        &self,
        request: maintenance::MaintenanceRequest,
    ) -> Result<(), mpsc::SendError<maintenance::MaintenanceRequest>> {
        self.requests.send(request)?;
        #[cfg(feature = "simulation")]
        self.asked.notify_one();
        Ok(())
    }

    #[cfg(feature = "simulation")]
    pub(crate) fn asked(&self) -> Arc<tokio::sync::Notify> {
        Arc::clone(&self.asked)
    }
}

/// The threads of an outbox: wait for them after the last clone of it is gone.
pub struct Threads {
    pub(crate) writer: JoinHandle<()>,
    pub(crate) maintenance: JoinHandle<()>,
}

impl Threads {
    /// Waits until everything settled is durable and the folder is free. False if one of them panicked.
    pub fn join(self) -> bool {
        let writer = self.writer.join().is_ok();
        self.maintenance.join().is_ok() && writer
    }

    /// Whether one of them has ended.
    pub fn ended(&self) -> bool {
        self.writer.is_finished() || self.maintenance.is_finished()
    }
}

impl Outbox {
    /// Appends `entries`, taken as `recent` says; the answer comes when all of it would survive a power cut.
    ///
    /// Waits for room in a bounded queue only. Entries of one log keep their order. `taken` is the checkpoint of what
    /// came from the queues, and the number of the conversation that took it: when one append of a conversation is
    /// refused, all its later ones are, so that what is committed of it has no gaps.
    pub async fn append(
        &self,
        entries: Vec<Entry>,
        taken: Option<(u64, Recent)>,
    ) -> Result<oneshot::Receiver<Result<u64, AppendError>>, AppendError> {
        let (done, committed) = oneshot::channel();
        let append = writer::Append { entries, taken, done };
        self.appends.send(writer::WriteRequest::Append(append)).await.map_err(|_| AppendError::Closed)?;
        Ok(committed)
    }

    /// Reads `log` in `from..upto`: whole packs, until `most` records that are not settled are found, or some MiB of
    /// them. `upto` must be the end of an append. When all of it has been read, the page's `next` is `upto`.
    ///
    /// A record is given out as often as it is read: the caller knows what it has in hand.
    pub async fn read(&self, log: Log, from: u64, upto: u64, most: usize) -> Result<LogPage, ReadError> {
        let mut at_hand = None;
        self.change(|state| at_hand = self.shared.at_hand(state, (log, from, upto), most));
        if let Some(page) = at_hand {
            return Ok(page);
        }
        let (done, page) = oneshot::channel();
        self.requests
            .send(maintenance::MaintenanceRequest::Read { log, from, upto, most, done })
            .map_err(|_| ReadError::Closed)?;
        page.await.unwrap_or(Err(ReadError::Closed))
    }

    /// How far this log was read without a gap, or is known to be settled: a page that begins behind this reads all that
    /// lies between.
    pub fn read_until(&self, log: Log) -> u64 {
        self.shared.state().settled[log.index()].frontier()
    }

    /// Settles a record: at once for every reader, on the disk within 100 ms.
    pub fn settle(&self, ticket: &Ticket, settlement: Settlement) {
        self.change(|state| state.deliver(ticket, settlement));
    }

    /// Settles many records under one lock.
    pub fn settle_all<'a>(&self, tickets: impl IntoIterator<Item = (&'a Ticket, Settlement)>) {
        self.change(|state| {
            for (ticket, settlement) in tickets {
                state.deliver(ticket, settlement);
            }
        });
    }

    /// Settles a record as a dead letter, in one step.
    pub fn settle_as_dead_letter(&self, ticket: &Ticket, letter: DeadLetter) {
        self.change(|state| state.settle_as_dead_letter(ticket, letter));
    }

    /// Changes what the ledger may have to hold; the first change after a rest wakes maintenance.
    fn change(&self, change: impl FnOnce(&mut state::State)) {
        let mut state = self.shared.state();
        let was_dirty = state.is_dirty();
        change(&mut state);
        let is_dirty = state.is_dirty();
        drop(state);
        if is_dirty && !was_dirty {
            // Maintenance has failed if it is gone: whoever reads hears of it.
            let _ = self.requests.send(maintenance::MaintenanceRequest::Wake);
        }
    }

    /// The dead letters from number `from` on, at most `most` of them, and fewer when they are large. Empty only when
    /// there are no more.
    pub async fn dead_letters(&self, from: u64, most: usize) -> Result<Vec<DeadLetter>, LedgerError> {
        let (done, letters) = oneshot::channel();
        self.requests
            .send(maintenance::MaintenanceRequest::Letters { from, most, done })
            .map_err(|_| LedgerError::Closed)?;
        letters.await.unwrap_or(Err(LedgerError::Closed))
    }

    /// Drops dead letters for good. Gives how many of them there were.
    pub async fn drop_dead_letters(&self, ids: Vec<u64>) -> Result<u64, LedgerError> {
        let (done, dropped) = oneshot::channel();
        self.requests
            .send(maintenance::MaintenanceRequest::DropLetters { ids, done })
            .map_err(|_| LedgerError::Closed)?;
        dropped.await.unwrap_or(Err(LedgerError::Closed))
    }

    /// The `ControlPlane` has said what time it is, a moment ago. Until it has, in this run, no dead letter expires.
    pub fn confirm_time(&self, date: Timestamp) {
        self.shared.confirmed.confirm(date, Moment::now());
    }

    /// The numbers of the dead letters that are on the disk and were not mirrored.
    pub fn unmirrored(&self) -> std::ops::Range<u64> {
        let state = self.shared.state();
        state.counters.mirrored + 1..state.durable.next_dead_letter
    }

    /// Dead letters up to this number have been mirrored.
    pub fn set_mirrored(&self, id: u64) {
        self.change(|state| {
            state.counters.mirrored = id;
            state.counters_dirty = true;
        });
    }

    /// The number that the next dead letter will have.
    pub fn next_dead_letter(&self) -> u64 {
        self.shared.state().counters.next_dead_letter
    }

    /// The counters and depths of this moment.
    pub fn stats(&self) -> Stats {
        let stats = self.shared.state().stats();
        self.completed(stats)
    }

    /// The same with what is settled as a crash would leave it, at most 100 ms old: for counters that must never go
    /// back.
    pub fn durable_stats(&self) -> Stats {
        let stats = {
            let state = self.shared.state();
            state.stats_by(&state.durable)
        };
        self.completed(stats)
    }

    fn completed(&self, mut stats: Stats) -> Stats {
        let (segments, records) = *self.shared.quarantined.lock().unwrap_or_else(PoisonError::into_inner);
        stats.quarantined_segments += segments;
        stats.quarantined_records = records;
        stats.disk_bytes = self.shared.used.load(std::sync::atomic::Ordering::Relaxed);
        stats.counted_bytes = self.shared.counted.load(std::sync::atomic::Ordering::Relaxed);
        stats.id = self.shared.id;
        stats.durability = self.shared.settings.durability;
        stats.capacity_bytes = self.shared.settings.max_bytes;
        let free = self.shared.free.load(std::sync::atomic::Ordering::Relaxed);
        stats.disk_free_bytes = (free < u64::MAX).then_some(free);
        stats.min_free_bytes = self.shared.settings.min_free_bytes;
        stats.paused = *self.shared.paused.borrow();
        stats.accepting = stats.paused.is_none();
        stats
    }

    /// Why appends are not accepted, if they are not; follows changes.
    pub fn paused(&self) -> watch::Receiver<Option<&'static str>> {
        self.shared.paused.subscribe()
    }

    /// The number of the last durable record; follows changes.
    pub fn last(&self) -> watch::Receiver<u64> {
        self.shared.last.subscribe()
    }

    /// What the last appends that took something from `queue` took from it, without gaps, oldest first.
    pub fn recently_taken(&self, queue: Queue) -> Vec<Taken> {
        let state = self.shared.state();
        let taken = state.recent.iter().map(|(_, recent)| recent.queues[queue as usize].clone());
        let mut taken: Vec<Taken> = taken.filter(|taken| !taken.digests.is_empty()).collect();
        // Older ones are there for other queues' sake, and not all of them.
        taken.drain(..taken.len().saturating_sub(state::RECENT_APPENDS));
        taken
    }

    /// This outbox's identity: made when its folder was.
    pub fn id(&self) -> uuid::Uuid {
        self.shared.id
    }

    /// Done when each of the outbox's threads has taken a turn since the call: when none of them hangs. A full disk and a
    /// failing one keep neither from it.
    pub async fn liveness(&self) {
        let turned = self.shared.liveness.both();
        // A queue that is full keeps the writer busy enough.
        let _ = self.appends.try_send(writer::WriteRequest::Wake);
        // Maintenance has failed if it is gone: whoever reads hears of it.
        let _ = self.requests.send(maintenance::MaintenanceRequest::Wake);
        turned.await;
    }

    /// Waits until everything settled so far is durable, and what was appended that is no record is a dead letter. False if
    /// that cannot be had just now: it stays to be written.
    pub async fn flush(&self) -> bool {
        let (done, flushed) = oneshot::channel();
        self.requests.send(maintenance::MaintenanceRequest::Flush { done }).is_ok()
            && flushed.await.unwrap_or(false)
    }

    /// Has maintenance do a short piece of work.
    pub(crate) async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Shared) -> T + Send + 'static,
    ) -> Result<T, ReadError> {
        let (done, seen) = oneshot::channel();
        let look = Box::new(move |shared: &Shared| {
            // Whoever asked may have gone.
            let _ = done.send(look(shared));
        });
        self.requests.send(maintenance::MaintenanceRequest::Look(look)).map_err(|_| ReadError::Closed)?;
        seen.await.map_err(|_| ReadError::Closed)
    }
}
