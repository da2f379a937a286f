//! The handle of an open outbox, which sends requests to its threads, and the threads to wait for.

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
use crate::outbox::threads::maintenance::{Maintenance, MaintenanceRequest};
use crate::outbox::threads::writer::{Append, WriteRequest};
use crate::record::{Queue, Timestamp};
use crate::time::Moment;

/// An open outbox. Clones share it.
#[derive(Clone)]
pub struct Outbox {
    pub(crate) shared: Arc<Shared>,
    pub(crate) appends: tokio::sync::mpsc::Sender<WriteRequest>,
    pub(crate) requests: MaintenanceQueue,
}

/// Sends requests to maintenance. In a simulation it also wakes it at once.
#[derive(Clone)]
pub(crate) struct MaintenanceQueue {
    requests: mpsc::Sender<MaintenanceRequest>,
    #[cfg(feature = "simulation")]
    asked: Arc<tokio::sync::Notify>,
}

impl MaintenanceQueue {
    pub(crate) fn new(requests: mpsc::Sender<MaintenanceRequest>) -> Self {
        Self {
            requests,
            #[cfg(feature = "simulation")]
            asked: Arc::default(),
        }
    }

    /// Fails if maintenance is gone.
    fn send(&self, request: MaintenanceRequest) -> Result<(), mpsc::SendError<MaintenanceRequest>> {
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

/// The threads of an outbox. Wait for them after the last clone of the outbox is dropped.
pub struct Threads {
    pub(crate) writer: JoinHandle<()>,
    pub(crate) maintenance: JoinHandle<()>,
}

impl Threads {
    /// Waits until everything settled is durable and the folder is unlocked. False if a thread panicked.
    pub fn join(self) -> bool {
        let writer = self.writer.join().is_ok();
        self.maintenance.join().is_ok() && writer
    }

    /// Whether a thread has ended.
    pub fn ended(&self) -> bool {
        self.writer.is_finished() || self.maintenance.is_finished()
    }
}

impl Outbox {
    /// Appends `entries`, which were taken as described by `recent`. The answer comes once all of them are durable.
    ///
    /// Waits only for room in a bounded queue. Entries of one log keep their order. `taken` is the checkpoint of the
    /// messages taken from the queues, and the number of the conversation with Redis that took them: if one append of a
    /// conversation is refused, all its later ones are, so its committed messages have no gaps.
    pub async fn append(
        &self,
        entries: Vec<Entry>,
        taken: Option<(u64, Recent)>,
    ) -> Result<oneshot::Receiver<Result<u64, AppendError>>, AppendError> {
        let (done, committed) = oneshot::channel();
        let append = WriteRequest::Append(Append { entries, taken, done });
        self.appends.send(append).await.map_err(|_| AppendError::Closed)?;
        Ok(committed)
    }

    /// Reads `log` in `from..upto`: whole packs, until `most` unsettled records or some MiB of them are found. `upto` must
    /// be the end of an append. When everything has been read, the page's `next` is `upto`.
    ///
    /// A record is returned every time it is read: the caller knows what it already has.
    pub async fn read(&self, log: Log, from: u64, upto: u64, most: usize) -> Result<LogPage, ReadError> {
        let mut at_hand = None;
        self.change(|state| at_hand = self.shared.at_hand(state, (log, from, upto), most));
        if let Some(page) = at_hand {
            return Ok(page);
        }
        let page = self.run(move |maintenance| maintenance.read_waiting(log, from, upto, most)).await;
        page.unwrap_or(Err(ReadError::Closed))
    }

    /// How far this log has been read without a gap, or is known to be settled. A page that starts beyond this reads
    /// everything in between.
    pub fn read_until(&self, log: Log) -> u64 {
        self.shared.state().settled[log.index()].frontier()
    }

    /// Settles a record: at once for every reader, on disk within 100 ms.
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

    /// Makes a change that the ledger must save. The first after an idle time wakes maintenance.
    fn change(&self, change: impl FnOnce(&mut state::State)) {
        let mut state = self.shared.state();
        let was_dirty = state.is_dirty();
        change(&mut state);
        let is_dirty = state.is_dirty();
        drop(state);
        if is_dirty && !was_dirty {
            // If maintenance is gone it has failed, and readers get the error.
            let _ = self.requests.send(Box::new(|_| ()));
        }
    }

    /// The dead letters from number `from` on, at most `most`, fewer if they are large. Empty only if there are no more.
    pub async fn dead_letters(&self, from: u64, most: usize) -> Result<Vec<DeadLetter>, LedgerError> {
        let letters = self.ask(move |maintenance, done| maintenance.read_letters(from, most, done)).await;
        letters.unwrap_or(Err(LedgerError::Closed))
    }

    /// Deletes dead letters. Returns how many existed.
    pub async fn drop_dead_letters(&self, ids: Vec<u64>) -> Result<u64, LedgerError> {
        let dropped = self.run(move |maintenance| maintenance.drop_letters(&ids)).await;
        dropped.unwrap_or(Err(LedgerError::Closed))
    }

    /// Confirms the `ControlPlane`'s current time. In each run, no dead letter expires before the first confirmation.
    pub fn confirm_time(&self, date: Timestamp) {
        self.shared.confirmed.confirm(date, Moment::now());
    }

    /// The numbers of durable dead letters that were not mirrored.
    pub fn unmirrored(&self) -> std::ops::Range<u64> {
        let state = self.shared.state();
        state.counters.mirrored + 1..state.durable.next_dead_letter
    }

    /// Marks dead letters up to this number as mirrored.
    pub fn set_mirrored(&self, id: u64) {
        self.change(|state| {
            state.counters.mirrored = id;
            state.counters_dirty = true;
        });
    }

    /// The number of the next dead letter.
    pub fn next_dead_letter(&self) -> u64 {
        self.shared.state().counters.next_dead_letter
    }

    /// The current counters and depths.
    pub fn stats(&self) -> Stats {
        let stats = self.shared.state().stats();
        self.completed(stats)
    }

    /// The same with settlements as a crash would leave them, at most 100 ms old: for counters that must never decrease.
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
        stats.durability = self.shared.durability;
        stats.is_in_memory = self.shared.durability != self.shared.settings.durability;
        stats.capacity_bytes = self.shared.settings.max_bytes;
        let free = self.shared.free.load(std::sync::atomic::Ordering::Relaxed);
        stats.disk_free_bytes = (free < u64::MAX).then_some(free);
        stats.min_free_bytes = self.shared.settings.min_free_bytes;
        stats.paused = *self.shared.paused.borrow();
        stats.accepting = stats.paused.is_none();
        stats
    }

    /// Why appends are refused, if they are; follows changes.
    pub fn paused(&self) -> watch::Receiver<Option<&'static str>> {
        self.shared.paused.subscribe()
    }

    /// The number of the last durable record; follows changes.
    pub fn last(&self) -> watch::Receiver<u64> {
        self.shared.last.subscribe()
    }

    /// What the latest appends with messages from `queue` took from it, without gaps, oldest first.
    pub fn recently_taken(&self, queue: Queue) -> Vec<Taken> {
        let state = self.shared.state();
        let taken = state.recent.iter().map(|(_, recent)| recent.queues[queue as usize].clone());
        let mut taken: Vec<Taken> = taken.filter(|taken| !taken.digests.is_empty()).collect();
        // Older ones are kept for other queues, and not completely.
        taken.drain(..taken.len().saturating_sub(state::RECENT_APPENDS));
        taken
    }

    /// This outbox's id, created with its folder.
    pub fn id(&self) -> uuid::Uuid {
        self.shared.id
    }

    /// Resolves when each of the outbox's threads has served a request since the call, which shows that none hangs. A full or
    /// failing disk does not prevent that; never, if one has ended.
    pub async fn liveness(&self) {
        let (done, written) = oneshot::channel();
        let writer =
            async { self.appends.send(WriteRequest::Wake(done)).await.is_ok() && written.await.is_ok() };
        let (has_written, maintained) = tokio::join!(writer, self.run(|_| ()));
        if !has_written || maintained.is_none() {
            std::future::pending::<()>().await;
        }
    }

    /// Waits until everything settled so far is durable, and appended rejected messages are dead letters. False if that is
    /// impossible now: it remains to be written.
    pub async fn flush(&self) -> bool {
        self.ask(Maintenance::flush).await.unwrap_or(false)
    }

    /// Has maintenance work for somebody who gets the answer, at once or later; `None` if maintenance is gone.
    async fn ask<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Maintenance, oneshot::Sender<T>) + Send + 'static,
    ) -> Option<T> {
        let (done, answer) = oneshot::channel();
        self.requests.send(Box::new(move |maintenance| work(maintenance, done))).ok()?;
        answer.await.ok()
    }

    /// The result of a short piece of work in maintenance; `None` if it is gone.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Maintenance) -> T + Send + 'static,
    ) -> Option<T> {
        // The caller may be gone.
        self.ask(move |maintenance, done| drop(done.send(work(maintenance)))).await
    }

    /// The same for work that needs only what is shared.
    pub(crate) async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Shared) -> T + Send + 'static,
    ) -> Option<T> {
        self.run(move |maintenance| look(&maintenance.shared)).await
    }

    /// Reads or writes the ledger.
    pub(super) async fn with_ledger<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Shared) -> Result<T, LedgerError> + Send + 'static,
    ) -> Result<T, LedgerError> {
        self.look(work).await.unwrap_or(Err(LedgerError::Closed))
    }
}
