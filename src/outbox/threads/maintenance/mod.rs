//! Maintenance: reads packs for the drain, makes settlements durable, and deletes settled segments.

mod dead_letters;
mod expiry;
mod oldest;
mod reading;
mod tidy;
mod troubles;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::writer::WriteRequest;
use crate::outbox::format::dead_letter::DeadLetter;
use crate::outbox::format::log::Log;
use crate::outbox::ledger::LedgerError;
use crate::outbox::messages::LogPage;
use crate::outbox::segments::segment::ReadError;
use crate::outbox::state::shared::Shared;
use crate::telemetry::failpoint;
use expiry::ExpiryScan;
use troubles::Troubles;

/// Settlements become durable this often: a crash makes us send these records again.
const TICK: Duration = Duration::from_millis(50);
/// Interval of checks when idle: free space, and whether a full outbox is no longer full.
const IDLE: Duration = Duration::from_millis(500);
/// Pause after the ledger could not be written.
const RETRY_AFTER: Duration = Duration::from_millis(if cfg!(test) { 0 } else { 500 });
/// Interval of work not done at every tick: carrying forward, retention, the reserve.
const CHORES: Duration = Duration::from_secs(1);

/// A request to maintenance, which runs between its other work, so that nothing else has a database open meanwhile. Without
/// anything to do it is a wakeup: there may be something to commit.
pub(crate) type MaintenanceRequest = Box<dyn FnOnce(&mut Maintenance) + Send>;

pub(crate) struct Maintenance {
    pub shared: Arc<Shared>,
    /// Requests a new segment from the writer, without keeping it alive.
    write_requests: mpsc::WeakSender<WriteRequest>,
    failed_at: Option<Instant>,
    /// When looking up the oldest record last failed.
    oldest_failed_at: Option<Instant>,
    chores_at: Instant,
    /// Whether the ledger's copy of the totals must be updated.
    copies_totals: bool,
    expiry: ExpiryScan,
    /// Each segment's number and its waiting records at the last check.
    stragglers: Vec<(u64, u64)>,
    troubles: Troubles,
    /// When each open segment was last read.
    last_read: BTreeMap<u64, Instant>,
    /// Whether the last move to the dead letters succeeded and left some rejected messages.
    has_more_rejected: bool,
    /// Whether it should tick at once if there is no request.
    is_pressed: bool,
    /// The next append's number at the last check.
    next: u64,
    /// When records were last appended or read.
    busy_at: Instant,
    /// Callers that wait until everything before this number is durable and no longer in the rejected log.
    flushes: Vec<(u64, oneshot::Sender<bool>)>,
    /// Readers that have read all existing dead letters while more are on their way.
    readers: Vec<LetterReader>,
}

/// A reader of dead letters, answered once there are any, or once all before `upto` exist.
struct LetterReader {
    from: u64,
    most: usize,
    upto: u64,
    done: oneshot::Sender<Result<Vec<DeadLetter>, LedgerError>>,
}

impl Maintenance {
    pub(crate) fn new(shared: Arc<Shared>, write_requests: mpsc::WeakSender<WriteRequest>) -> Self {
        Self {
            shared,
            write_requests,
            failed_at: None,
            oldest_failed_at: None,
            chores_at: Instant::now(),
            copies_totals: false,
            expiry: ExpiryScan::begin(),
            stragglers: Vec::new(),
            troubles: Troubles::default(),
            last_read: BTreeMap::new(),
            has_more_rejected: false,
            is_pressed: false,
            next: 0,
            busy_at: Instant::now(),
            flushes: Vec::new(),
            readers: Vec::new(),
        }
    }

    /// Serves requests and ticks until all handles are gone; then commits the rest.
    pub(crate) fn run(mut self, requests: &Receiver<MaintenanceRequest>) {
        let mut ticked = Instant::now();
        while self.turn(requests, &mut ticked) {}
    }

    /// Serves a request or ticks. False when all handles are gone.
    ///
    /// A tick is short even in a flood of rejected messages: it moves some of them to the dead letters, and other requests
    /// are served before the next tick. Nor does this work, which costs more than appending, slow the valid records among
    /// them: while records are appended or read, there are no additional ticks.
    pub(crate) fn turn(&mut self, requests: &Receiver<MaintenanceRequest>, ticked: &mut Instant) -> bool {
        let wait = self.wait(*ticked);
        match requests.recv_timeout(wait) {
            Ok(request) => self.step(Some(request), ticked),
            Err(RecvTimeoutError::Timeout) => self.step(None, ticked),
            Err(RecvTimeoutError::Disconnected) => {
                self.end();
                return false;
            }
        }
        true
    }

    /// All handles are gone.
    pub(crate) fn end(&mut self) {
        self.failed_at = None;
        // Messages not moved to the dead letters stay for the next start.
        self.tick();
    }

    /// How long to wait for a request.
    pub(crate) fn wait(&mut self, ticked: Instant) -> Duration {
        self.is_pressed = !self.flushes.is_empty() || (self.has_more_rejected && self.is_quiet());
        if self.is_pressed {
            Duration::ZERO
        } else if self.has_work() || !self.readers.is_empty() {
            TICK.saturating_sub(ticked.elapsed())
        } else {
            IDLE
        }
    }

    /// Serves the request, if one arrived within the wait; ticks if that is due.
    pub(crate) fn step(&mut self, request: Option<MaintenanceRequest>, ticked: &mut Instant) {
        let is_due = match request {
            Some(request) => {
                request(self);
                false
            }
            None => self.is_pressed,
        };
        if is_due || ticked.elapsed() >= TICK {
            if self.chores_at.elapsed() >= CHORES {
                self.chores();
            }
            self.tick();
            self.answer_flushes();
            self.answer_readers();
            *ticked = Instant::now();
        }
    }

    /// Whether no records are being appended or read.
    pub(crate) fn is_quiet(&mut self) -> bool {
        let next = self.shared.state().totals.next;
        if std::mem::replace(&mut self.next, next) != next {
            self.busy_at = Instant::now();
        }
        self.busy_at.elapsed() >= TICK
    }

    /// Answers flushes for which everything possible is done.
    fn answer_flushes(&mut self) {
        if self.flushes.is_empty() {
            return;
        }
        let saved = self.commit();
        let dead_lettered = self.dead_lettered_until();
        let waits = saved && self.has_more_rejected;
        for (upto, done) in std::mem::take(&mut self.flushes) {
            if waits && dead_lettered < upto {
                self.flushes.push((upto, done));
            } else {
                let _ = done.send(saved && dead_lettered >= upto);
            }
        }
    }

    /// Answers readers for which there is news, or nothing more to wait for. Called after a tick.
    fn answer_readers(&mut self) {
        for reader in std::mem::take(&mut self.readers) {
            if reader.done.is_closed() {
                continue;
            }
            let letters = self.letters(reader.from, reader.most);
            let may_be_more = self.has_more_rejected && self.dead_lettered_until() < reader.upto;
            if may_be_more && letters.as_ref().is_ok_and(Vec::is_empty) {
                self.readers.push(reader);
            } else {
                let _ = reader.done.send(letters);
            }
        }
    }

    /// Reads for the drain or an operator.
    pub(crate) fn read_waiting(
        &mut self,
        log: Log,
        from: u64,
        upto: u64,
        most: usize,
    ) -> Result<LogPage, ReadError> {
        let page = self.read(log, from, upto, most)?;
        if !page.records.is_empty() {
            self.busy_at = Instant::now();
        }
        Ok(page)
    }

    /// Answers with dead letters. Those on their way to the ledger count too: only after all of them is the end reached.
    /// They come with the ticks, and others are served meanwhile.
    pub(crate) fn read_letters(
        &mut self,
        from: u64,
        most: usize,
        done: oneshot::Sender<Result<Vec<DeadLetter>, LedgerError>>,
    ) {
        let letters = self.letters(from, most);
        if letters.as_ref().is_ok_and(Vec::is_empty) {
            let upto = self.shared.state().totals.next;
            self.readers.push(LetterReader { from, most, upto, done });
        } else {
            // The caller may be gone.
            let _ = done.send(letters);
        }
    }

    /// Answers once everything before the next append is durable and no longer in the rejected log, or cannot be now.
    pub(crate) fn flush(&mut self, done: oneshot::Sender<bool>) {
        let upto = self.shared.state().totals.next;
        self.flushes.push((upto, done));
    }

    fn has_work(&self) -> bool {
        self.shared.state().is_dirty() || self.has_rejected()
    }

    pub(crate) fn tick(&mut self) {
        if self.failed_at.is_some_and(|at| at.elapsed() < RETRY_AFTER) {
            self.has_more_rejected = false;
            return;
        }
        self.dead_letter_rejected();
        self.tidy();
        self.commit();
        self.look_for_oldest();
        self.shared.measure();
    }

    /// Commits if necessary. After a failure the changes remain to be committed.
    fn commit(&mut self) -> bool {
        // IMPORTANT: what the writer is saving now is no longer dirty, but not durable yet.
        self.shared.wait_for_save();
        // The copy of the totals is saved along with settlements; otherwise saving it with the chores suffices.
        let is_due = {
            let state = self.shared.state();
            state.is_dirty() || self.copies_totals && state.totals.next != state.totals_stored
        };
        self.copies_totals = false;
        if !is_due {
            return true;
        }
        failpoint::reached("outbox::saving");
        let saved = self.shared.save().is_ok();
        self.failed_at = (!saved).then(Instant::now);
        saved
    }

    fn ask_for_new_segment(&self) {
        if let Some(write_requests) = self.write_requests.upgrade() {
            // A writer that is too busy is asked again at the next tick.
            let _ = write_requests.try_send(WriteRequest::Roll);
        }
    }
}
