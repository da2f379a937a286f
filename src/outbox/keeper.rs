//! The keeper: reads packs for the drain, makes settlements durable, and deletes what is settled.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::ledger::{self, LedgerError};
use super::segment::{ReadError, Segment};
use super::{DeadLetter, Entry, Lease, Leased, Log, Payload, Reason, Shared, Ticket};

/// Settlements become durable this often: what a crash can make us send again.
const TICK: Duration = Duration::from_millis(50);
/// With nothing to do, it looks around this often: free space, a full outbox that is no longer full.
const IDLE: Duration = Duration::from_millis(500);
/// Rejected messages are moved to the dead letters so many at a time.
const BURIAL: usize = 512;

/// What the keeper is asked.
pub(super) enum Request {
    Lease { log: Log, from: u64, upto: u64, most: usize, done: oneshot::Sender<Result<Lease, ReadError>> },
    Letters { from: u64, most: usize, done: oneshot::Sender<Result<Vec<DeadLetter>, LedgerError>> },
    Flush { done: oneshot::Sender<()> },
}

pub(super) struct Keeper {
    pub shared: Arc<Shared>,
}

impl Keeper {
    /// Serves requests and ticks until nobody can ask any more; then commits what is left.
    pub(super) fn run(self, requests: &Receiver<Request>) {
        let mut ticked = Instant::now();
        loop {
            let wait = if self.has_work() { TICK.saturating_sub(ticked.elapsed()) } else { IDLE };
            let request = requests.recv_timeout(wait);
            match request {
                Ok(Request::Lease { log, from, upto, most, done }) => {
                    // Whoever asked may have gone.
                    let _ = done.send(self.lease(log, from, upto, most));
                }
                Ok(Request::Letters { from, most, done }) => {
                    // What is still on its way to the ledger is a dead letter too.
                    self.tick();
                    let _ = done.send(self.shared.ledger.letters(from, most));
                }
                Ok(Request::Flush { done }) => {
                    self.tick();
                    let _ = done.send(());
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    self.tick();
                    return;
                }
            }
            if ticked.elapsed() >= TICK {
                self.tick();
                ticked = Instant::now();
            }
        }
    }

    fn has_work(&self) -> bool {
        let state = self.shared.state();
        let waiting = state.settled[Log::Rejected.index()].low() < state.totals.next
            && state.segments.iter().any(|listed| {
                let range = listed.info.ranges[Log::Rejected.index()];
                range.is_some_and(|(first, last)| !state.settled[Log::Rejected.index()].covers(first, last))
            });
        waiting || state.counters_dirty || state.settled.iter().any(super::settled::Settled::is_dirty)
    }

    fn lease(&self, log: Log, from: u64, upto: u64, most: usize) -> Result<Lease, ReadError> {
        let (mut from, segments, end) = {
            let state = self.shared.state();
            let settled = &state.settled[log.index()];
            let from = settled.skip(settled.pack_of(from));
            let segments: Vec<_> = state
                .segments
                .iter()
                .filter(|listed| listed.info.ranges[log.index()].is_some_and(|(_, last)| last >= from))
                .map(|listed| Arc::clone(&listed.segment))
                .collect();
            (from, segments, state.totals.next.min(upto))
        };
        let mut records = Vec::new();
        for segment in &segments {
            loop {
                let mut again = false;
                segment.read(log, from, |first, header, entries| {
                    if first >= end {
                        return false;
                    }
                    let mut state = self.shared.state();
                    let settled = &mut state.settled[log.index()];
                    settled.enter(first, header.count, header.oldest);
                    for (seq, entry) in (first..).zip(entries) {
                        if !settled.is_settled(seq) {
                            let (kind, accepted_at) = (entry.kind(), entry.accepted_at());
                            let ticket = Ticket { seq, log, kind, accepted_at, bytes: entry.len() as u32 };
                            records.push(Leased { ticket, entry });
                        }
                    }
                    let behind = first + u64::from(header.count);
                    // Behind this pack may lie a long run of settled ones: jump over it rather than read it.
                    from = settled.skip(behind);
                    again = from != behind;
                    !again && records.len() < most
                })?;
                if !again || records.len() >= most {
                    break;
                }
            }
            if records.len() >= most {
                break;
            }
        }
        self.close_unused(&segments);
        // All there is has been read, unless it was cut short.
        let next = if records.len() < most { from.max(end) } else { from };
        Ok(Lease { records, next })
    }

    /// Of the sealed segments, only the two read last stay open.
    fn close_unused(&self, read: &[Arc<Segment>]) {
        let state = self.shared.state();
        let keep = read.first().map(|segment| segment.id);
        let sealed: Vec<_> =
            state.segments.iter().rev().skip(1).map(|listed| Arc::clone(&listed.segment)).collect();
        drop(state);
        let open: Vec<_> = sealed.into_iter().filter(|segment| segment.is_open()).collect();
        if open.len() > 2 {
            for segment in open.iter().filter(|segment| Some(segment.id) != keep).skip(1) {
                segment.close();
            }
        }
    }

    fn tick(&self) {
        self.bury_rejected();
        if let Err(error) = self.commit() {
            // Nothing is lost: what is settled in memory is sent again after a restart at worst.
            if !self.shared.ledger_failed.swap(true, Ordering::Relaxed) {
                tracing::error!(%error, "the outbox's ledger could not be written");
            }
            return;
        }
        self.delete_settled();
        self.shared.measure();
    }

    /// Moves what the intake could not accept to the dead letters.
    fn bury_rejected(&self) {
        loop {
            let low = self.shared.state().settled[Log::Rejected.index()].low();
            let lease = match self.lease(Log::Rejected, low, u64::MAX, BURIAL) {
                Ok(lease) => lease,
                Err(error) => {
                    tracing::error!(%error, "rejected messages could not be read");
                    return;
                }
            };
            if lease.records.is_empty() {
                return;
            }
            let mut state = self.shared.state();
            for Leased { ticket, entry } in lease.records {
                let Entry::Rejected(rejected) = entry else { continue };
                let letter = DeadLetter {
                    id: 0,
                    reason: Reason::Invalid,
                    detail: rejected.detail,
                    attempts: 0,
                    first_at: rejected.accepted_at,
                    last_at: rejected.accepted_at,
                    payload: Payload::Raw {
                        kind: rejected.kind,
                        accepted_at: rejected.accepted_at,
                        bytes: rejected.raw,
                    },
                };
                state.bury(&ticket, letter);
            }
            drop(state);
            if self.commit().is_err() {
                return;
            }
        }
    }

    /// Marks, counters and dead letters, in one step.
    fn commit(&self) -> Result<(), LedgerError> {
        let mut entry = ledger::Entry::default();
        {
            let mut state = self.shared.state();
            let dirty = state.counters_dirty || state.settled.iter().any(super::settled::Settled::is_dirty);
            if !dirty {
                return Ok(());
            }
            for letter in std::mem::take(&mut state.letters) {
                let bytes = entry.letter(&letter)?;
                state.counters.dead_letter_bytes += bytes;
            }
            for log in Log::ALL {
                let changes = state.settled[log.index()].take_changes();
                entry.settled(log, &changes);
            }
            entry.counters(&state.counters);
            state.counters_dirty = false;
        }
        self.shared.ledger.commit(entry)
    }

    /// Deletes the segments of which nothing waits any more. The newest stays: it takes appends.
    fn delete_settled(&self) {
        let done: Vec<Arc<Segment>> = {
            let state = self.shared.state();
            let sealed = state.segments.len().saturating_sub(1);
            let covered = |listed: &&super::segment::Listed| {
                Log::ALL.iter().all(|log| {
                    listed.info.ranges[log.index()]
                        .is_none_or(|(first, last)| state.settled[log.index()].covers(first, last))
                })
            };
            state.segments[..sealed]
                .iter()
                .filter(covered)
                .map(|listed| Arc::clone(&listed.segment))
                .collect()
        };
        for segment in done {
            let mut entry = ledger::Entry::default();
            entry.forget_segment(segment.id);
            // IMPORTANT: forgotten first: a folder without a listing is a remainder, a listing without a folder a loss.
            if self.shared.ledger.commit(entry).is_err() {
                return;
            }
            self.shared.state().segments.retain(|listed| listed.segment.id != segment.id);
            if let Err(error) = segment.delete() {
                tracing::warn!(%error, path = %segment.path().display(), "a settled segment could not be deleted");
            }
        }
    }
}
