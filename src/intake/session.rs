//! One session with Redis, from a connection to its loss: rounds, commits, acknowledgements.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::allowance::{Allowance, Allowances};
use super::fault::{RedisRefusal, is_broken_off};
use super::lease::RENEW;
use super::source::{Ask, Given, ORDER, Source, SourceMessage};
use super::wakeup::{REFUSED, Wakeup};
use super::{Intake, NameHolder, RedisStatus, SourceError};
use crate::outbox::Watermark;
use crate::outbox::{AppendError, Entry, Recent, Rejected, Taken};
use crate::record::{Kind, Queue, Record, Rejection};
use crate::telemetry::failpoint;

/// Most messages of one queue per round.
const ROUND_MESSAGES: usize = 1024;
/// Batches between Redis and their commit: one is being written, one waits, one is being parsed. Must be fewer than the
/// checkpoints that the outbox keeps.
const PIPELINE: usize = 3;
/// How often queues are counted while the intake is paused.
const MEASURE: Duration = Duration::from_secs(1);
/// How often to look for messages of vanished agents; at least four times per reclaim time.
const RECLAIM_EVERY: Duration = Duration::from_secs(30);
const RECLAIM_MOST_OFTEN: Duration = Duration::from_secs(1);

/// A round's messages, not yet parsed.
struct Taking {
    /// By queue, in the order of [`ORDER`].
    given: [Given; 3],
    /// The position of each queue's first message.
    positions: [u64; 3],
    /// See [`PendingBatch::usage_due`].
    usage_due: u64,
}

/// The result of a round.
struct Round {
    /// Whether it returned messages.
    gave: bool,
    /// Whether another round now would return more.
    is_more: bool,
}

/// A batch on its way into the outbox.
struct PendingBatch {
    committed: oneshot::Receiver<Result<u64, AppendError>>,
    /// By queue, in the order of [`ORDER`].
    counts: [usize; 3],
    /// Usage taken before or with this batch, or left in Redis at the time: its completed events must wait for it.
    usage_due: u64,
    has_events: bool,
}

impl PendingBatch {
    /// The usage that events below this commit's number must wait for. The outbox answers all batches committed together
    /// with the last number of all of them, so the events below it may include those of `later` batches.
    fn usage_due_with(&self, later: &VecDeque<PendingBatch>) -> u64 {
        let later = later.iter().filter(|batch| batch.has_events).map(|batch| batch.usage_due);
        later.fold(self.usage_due, u64::max)
    }
}

/// One session.
pub(super) struct Session<'a> {
    intake: &'a Intake,
    source: Source,
    allowances: &'a mut Allowances,
    /// Parsed while the next round is in flight.
    taking: Option<Taking>,
    batches: VecDeque<PendingBatch>,
    /// Whether the in-flight messages have been compared with the outbox.
    recovered: bool,
    /// Taken but not acknowledged, by queue.
    known: [usize; 3],
    /// Committed but not acknowledged, by queue.
    to_ack: [usize; 3],
    positions: [u64; 3],
    usage_taken: u64,
    usage_committed: u64,
    /// Pairs: completed events below the first number wait until the second amount of usage is committed.
    waits: VecDeque<(u64, u64)>,
    /// Completed events below this number have an entry in `waits`.
    waited_for: u64,
    number: u64,
    /// Whether the last round asked for quota requests only.
    is_quota_only: bool,
    is_quota_left: bool,
    /// When to look for messages of vanished agents again.
    reclaim_at: Option<Instant>,
    /// Why Redis refuses to wait for records.
    refused: Option<RedisRefusal>,
    /// When each reason of a refusal was last counted.
    counted: BTreeMap<&'static str, Instant>,
}

impl<'a> Session<'a> {
    pub(super) async fn begin(
        intake: &'a Intake,
        allowances: &'a mut Allowances,
        number: u64,
        is_first: bool,
    ) -> Result<Self, SourceError> {
        let source = Source::open(&intake.settings, &intake.outbox, is_first).await?;
        let reclaims = !intake.settings.orphan_reclaim.is_zero();
        Ok(Self {
            intake,
            source,
            allowances,
            taking: None,
            batches: VecDeque::new(),
            recovered: false,
            known: [0; 3],
            to_ack: [0; 3],
            positions: [0; 3],
            usage_taken: 0,
            usage_committed: 0,
            waits: VecDeque::new(),
            waited_for: 0,
            number,
            is_quota_only: false,
            is_quota_left: false,
            reclaim_at: reclaims.then(Instant::now),
            refused: None,
            counted: BTreeMap::new(),
        })
    }

    /// Runs just before the first message is taken: an outbox with failed storage knows its contents only once it accepts
    /// again.
    async fn recover(&mut self) -> Result<(), SourceError> {
        let adopted = self.source.adopt_previous().await?;
        if adopted > 0 {
            tracing::info!(adopted, "adopted the previous agent's messages in flight");
        }
        failpoint::reached("intake::adopted");
        for (n, queue) in ORDER.into_iter().enumerate() {
            let taken = self.intake.outbox.recently_taken(queue);
            let allowance = self.allowances.now();
            let recovered = self.source.recover(queue, &taken, allowance).await;
            (self.to_ack[n], self.positions[n]) = recovered.map_err(|error| cut(error, allowance))?;
        }
        self.known = self.to_ack;
        self.recovered = true;
        failpoint::reached("intake::recovered");
        Ok(())
    }

    pub(super) async fn run(&mut self, stop: &mut watch::Receiver<bool>) -> Result<(), SourceError> {
        let mut wakeup = Some(Wakeup::open(&self.intake.settings, &self.source).await?);
        let mut paused = self.intake.outbox.paused();
        let mut idle = false;
        loop {
            self.collect_committed()?;
            let stopping = *stop.borrow();
            let pause = *paused.borrow_and_update();
            self.tell_paused(if stopping { Some("stopping") } else { pause });
            let open = !stopping && pause.is_none();
            if stopping {
                // IMPORTANT: before the lease is released. An agent that has removed itself must have no message in flight.
                wakeup = None;
            }
            if stopping && self.taking.is_none() && self.batches.is_empty() {
                self.round(false).await?;
                failpoint::reached("intake::releasing");
                // A lease that is not released expires.
                let _ = self.source.release().await;
                return Ok(());
            }
            if open && !self.recovered {
                self.recover().await?;
            }
            if !stopping && self.reclaim_at.is_some_and(|at| at <= Instant::now()) {
                self.reclaim().await?;
                idle = false;
            }
            let take = open && self.batches.len() + usize::from(self.taking.is_some()) < PIPELINE;
            let has_acks = self.to_ack.iter().any(|n| *n > 0);
            if has_acks || (take && !idle) {
                let Round { gave, is_more } = self.round(take).await?;
                if let Some(wakeup) = wakeup.as_mut().filter(|_| gave) {
                    wakeup.found();
                }
                idle = take && !is_more && !self.source.has_more();
                continue;
            }
            if let Some(taking) = self.taking.take() {
                append(self.intake, self.number, taking, &mut self.batches).await?;
                continue;
            }
            // Nothing to do now: wait for a commit, a message, the end of a pause, or the next measurement.
            if open
                && take
                && let Some(wakeup) = &mut wakeup
            {
                wakeup.arm(&self.source);
            }
            tokio::select! {
                biased;
                committed = first_commit(&mut self.batches) => self.committed(committed)?,
                refused = woken(&mut wakeup) => {
                    idle = false;
                    self.refused = refused?;
                }
                Ok(()) = paused.changed() => idle = false,
                _ = stop.changed() => {}
                // Also renews the lease.
                () = tokio::time::sleep(if open { RENEW } else { MEASURE }) => { self.round(false).await?; }
            }
        }
    }

    /// Waits for the batches on their way into the outbox. The next session compares the in-flight messages with the
    /// outbox's content: it would miss a later commit, and take its messages twice. Messages that were taken but not handed
    /// over are only in flight.
    pub(super) async fn end(&mut self) {
        for batch in self.batches.drain(..) {
            // The next session determines whether it was acknowledged.
            let _ = batch.committed.await;
        }
    }

    async fn reclaim(&mut self) -> Result<(), SourceError> {
        let gone_for = self.intake.settings.orphan_reclaim;
        self.source.reclaim(gone_for).await?;
        let every = (gone_for / 4).clamp(RECLAIM_MOST_OFTEN, RECLAIM_EVERY);
        self.reclaim_at = Some(Instant::now() + every);
        Ok(())
    }

    /// One round. While Redis executes it, the messages of the previous round go into the outbox.
    async fn round(&mut self, take: bool) -> Result<Round, SourceError> {
        let allowance = self.allowances.now();
        // While a round may return only one message, every other round asks only for quota requests: they never wait for
        // another queue.
        self.is_quota_only = take && allowance.is_single() && self.is_quota_left && !self.is_quota_only;
        let is_asked = |n: usize| take && (!self.is_quota_only || ORDER[n] == Queue::Quota);
        let asks = std::array::from_fn(|n| Ask {
            ack: self.to_ack[n],
            known: self.known[n] - self.to_ack[n],
            want: if is_asked(n) { ROUND_MESSAGES } else { 0 },
        });
        failpoint::reached("intake::asking");
        let taking = self.taking.take();
        let parse = async {
            let Some(taking) = taking else { return Ok(()) };
            // The connection's task sends the request on this thread, as soon as this task yields.
            tokio::task::yield_now().await;
            append(self.intake, self.number, taking, &mut self.batches).await
        };
        let (given, appended) = tokio::join!(biased; self.source.round(&asks, allowance), parse);
        appended?;
        let given = given.map_err(|error| if take { cut(error, allowance) } else { error })?;
        for (n, ask) in asks.iter().enumerate() {
            self.known[n] -= ask.ack;
        }
        if asks.iter().any(|ask| ask.ack > 0) {
            failpoint::reached("intake::acknowledged");
        }
        self.to_ack = [0; 3];
        self.tell_depths(&given);
        let usage_left = given[1].left;
        self.usage_taken += given[1].messages.len() as u64;
        let usage_due = self.usage_taken + usage_left;
        let end = *self.intake.outbox.last().borrow() + 1;
        if self.waited_for < end && self.batches.is_empty() {
            // Events of an earlier session, and replayed or imported ones, wait for the usage that is in Redis now: no
            // other usage can precede them.
            self.waited_for = end;
            self.waits.push_back((end, usage_due));
        }
        for (_, waits_for) in &mut self.waits {
            // With several agents, others take part of the queue: what is left now is all that can still come.
            *waits_for = (*waits_for).min(usage_due);
        }
        let gave = given.iter().any(|given| !given.messages.is_empty());
        let left = given.iter().any(|given| given.left > 0);
        self.is_quota_left = given[2].left > 0;
        if gave {
            failpoint::reached("intake::taken");
            self.taking = Some(Taking { positions: self.positions, usage_due, given });
            for (n, given) in self.taking.iter().flat_map(|taking| taking.given.iter().enumerate()) {
                self.known[n] += given.messages.len();
                self.positions[n] += given.messages.len() as u64;
            }
        }
        self.release();
        // Another round follows at once only if this one returned something and left more; otherwise it would only delay
        // what was returned.
        Ok(Round { gave, is_more: left && (gave || self.is_quota_only) })
    }

    /// Handles every commit that has been answered.
    fn collect_committed(&mut self) -> Result<(), SourceError> {
        while let Some(batch) = self.batches.front_mut() {
            match batch.committed.try_recv() {
                Ok(answer) => self.committed(answer)?,
                Err(oneshot::error::TryRecvError::Empty) => break,
                Err(oneshot::error::TryRecvError::Closed) => self.committed(Err(AppendError::Closed))?,
            }
        }
        Ok(())
    }

    /// Handles the oldest batch: it is durable, or it failed, which ends the session, and it will be taken again.
    fn committed(&mut self, answer: Result<u64, AppendError>) -> Result<(), SourceError> {
        // IMPORTANT: remove it whatever the answer: its receiver was consumed and can be awaited only once.
        let batch = self.batches.pop_front();
        let last = answer?;
        failpoint::reached("intake::committed");
        let Some(batch) = batch else { return Ok(()) };
        for n in 0..ORDER.len() {
            self.to_ack[n] += batch.counts[n];
        }
        self.usage_committed += batch.counts[1] as u64;
        if batch.has_events {
            self.waits.push_back((last + 1, batch.usage_due_with(&self.batches)));
            self.waited_for = last + 1;
        }
        self.release();
        Ok(())
    }

    /// Advances the watermark past events whose usage is all in the outbox.
    fn release(&mut self) {
        let mut free = None;
        while let Some((event, _)) = self.waits.front().filter(|(_, usage)| *usage <= self.usage_committed) {
            free = Some(*event);
            self.waits.pop_front();
        }
        if let Some(completed) = free {
            let usage = *self.intake.outbox.last().borrow() + 1;
            self.intake.watermark.send_modify(|watermark| {
                *watermark = Watermark {
                    completed: watermark.completed.max(completed),
                    usage: watermark.usage.max(usage),
                };
            });
        }
    }

    /// Counts current refusals: each reason at most once per retry interval of a refused command, however many rounds run.
    fn count_refusals(&mut self, given: &[Given; 3]) {
        let refusals = given.iter().filter_map(|given| given.fault.as_ref()).chain(&self.refused);
        for reason in refusals.map(|refusal| refusal.reason) {
            let counted = self.counted.get(reason);
            if counted.is_none_or(|at| at.elapsed() >= REFUSED) {
                self.counted.insert(reason, Instant::now());
                self.intake.metrics.redis_failures.with_label_values(&[reason]).inc();
            }
        }
    }

    /// Reports stream entries that were deleted before they were read: no other message reports this loss.
    fn tell_trimmed(&self, given: &[Given; 3]) {
        for (given, queue) in given.iter().zip(ORDER).filter(|(given, _)| given.trimmed > 0) {
            let (entries, stream) = (given.trimmed, self.intake.settings.names.queue(queue));
            self.intake.metrics.stream_trimmed.with_label_values(&[queue.label()]).inc_by(entries);
            tracing::error!(
                entries,
                stream,
                "stream entries were trimmed or deleted while pending: their records are lost. The agent acknowledges the \
                 entries; check whether a producer trims unacknowledged entries (XADD … MAXLEN, XTRIM)"
            );
        }
    }

    fn tell_depths(&mut self, given: &[Given; 3]) {
        self.count_refusals(given);
        self.tell_trimmed(given);
        let names = &self.intake.settings.names;
        let of_queue = given.iter().zip(ORDER).find_map(|(given, queue)| {
            given.fault.as_ref().map(|fault| format!("{}: {fault}", names.queue(queue)))
        });
        let refused =
            self.refused.as_ref().map(|refused| format!("Redis refuses to wait for records: {refused}"));
        let fault = of_queue.or(refused);
        let mut depths = [None; 3];
        for (given, queue) in given.iter().zip(ORDER) {
            let depth = given.fault.is_none().then_some(given.left);
            depths[queue as usize] = depth;
            self.intake.metrics.queue_depth(names.queue(queue), depth);
        }
        let now = RedisStatus { connected: true, fault, depths, name: NameHolder::Ours };
        let before = self.intake.status.borrow().clone();
        if !before.connected {
            self.intake.metrics.redis_up(true);
            tracing::info!("Redis is connected");
        }
        match &now.fault {
            Some(fault) if before.fault.as_ref() != Some(fault) => {
                tracing::warn!(fault, "Redis refuses some commands; retrying");
            }
            None if before.connected && before.fault.is_some() => {
                tracing::info!("Redis accepts all commands again");
            }
            _ => {}
        }
        self.intake.status.send_if_modified(|status| {
            let changed = *status != now;
            *status = now;
            changed
        });
    }

    fn tell_paused(&self, reason: Option<&str>) {
        let paused = &self.intake.metrics.intake_paused;
        for known in ["full", "disk_low", "storage", "folder_gone", "stopping"] {
            paused.with_label_values(&[known]).set(i64::from(reason == Some(known)));
        }
    }
}

/// Logs one debug line per record, for tracing; costs nothing at other levels.
fn tell_accepted(record: &Record) {
    if tracing::enabled!(tracing::Level::DEBUG) {
        let (correlation_id, kind) = (record.correlation_id(), record.kind().name());
        tracing::debug!(correlation_id = &*correlation_id, kind, "a record was accepted");
    }
}

/// Turns the messages into records and appends them to the outbox.
async fn append(
    intake: &Intake,
    conversation: u64,
    taking: Taking,
    batches: &mut VecDeque<PendingBatch>,
) -> Result<(), SourceError> {
    let accepted_at = crate::time::now();
    let acceptance = intake.acceptor.at(accepted_at);
    let Taking { given, positions, usage_due } = taking;
    let counts = std::array::from_fn(|n| given[n].messages.len());
    let mut entries = Vec::with_capacity(counts.iter().sum());
    let mut recent = Recent::default();
    for ((given, queue), position) in given.into_iter().zip(ORDER).zip(positions) {
        intake.metrics.intake_records.with_label_values(&[queue.label()]).inc_by(given.messages.len() as u64);
        recent.queues[queue as usize] = Taken { position, digests: given.digests };
        for SourceMessage { body, defect } in given.messages {
            let accepted = match defect {
                None => acceptance.accept(queue, &body),
                Some(defect) => Err(Rejection { kind: unread_kind(queue), detail: defect.into_owned() }),
            };
            entries.push(match accepted {
                Ok(record) => {
                    tell_accepted(&record);
                    Entry::Record(record)
                }
                Err(Rejection { kind, detail }) => {
                    Entry::Rejected(Rejected { kind, accepted_at, raw: body.into(), detail })
                }
            });
        }
    }
    let has_events = entries.iter().any(|entry| entry.kind() == Kind::Completed);
    failpoint::reached("intake::parsed");
    let committed = intake.outbox.append(entries, Some((conversation, recent))).await?;
    batches.push_back(PendingBatch { committed, counts, usage_due, has_events });
    Ok(())
}

/// Waits until a message may have arrived. Returns Redis' refusal to wait, if any.
async fn woken(wakeup: &mut Option<Wakeup>) -> Result<Option<RedisRefusal>, SourceError> {
    match wakeup {
        Some(wakeup) => {
            wakeup.woken().await?;
            Ok(wakeup.refused().map(RedisRefusal::of))
        }
        None => std::future::pending().await,
    }
}

/// Classifies a failed request for messages.
fn cut(error: SourceError, allowance: Allowance) -> SourceError {
    match error {
        SourceError::Redis(error) if is_broken_off(&error) => SourceError::Cut(allowance),
        error => error,
    }
}

async fn first_commit(batches: &mut VecDeque<PendingBatch>) -> Result<u64, AppendError> {
    match batches.front_mut() {
        Some(batch) => (&mut batch.committed).await.unwrap_or(Err(AppendError::Closed)),
        None => std::future::pending().await,
    }
}

/// The kind of a message that was not parsed.
fn unread_kind(queue: Queue) -> Kind {
    match queue {
        Queue::Usage => Kind::Usage,
        Queue::Lifecycle => Kind::Lifecycle,
        Queue::Quota => Kind::Quota,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(usage_due: u64, has_events: bool) -> PendingBatch {
        let (_, committed) = oneshot::channel();
        PendingBatch { committed, counts: [0; 3], usage_due, has_events }
    }

    #[test]
    fn events_that_may_be_committed_together_wait_for_the_usage_of_all_of_them() {
        let first = batch(10, true);
        assert_eq!(first.usage_due_with(&VecDeque::new()), 10);
        // The last number of their commit is above the second one's event, whose usage has not all been taken.
        assert_eq!(first.usage_due_with(&[batch(25, true), batch(40, false)].into()), 25);
        assert_eq!(
            first.usage_due_with(&[batch(25, false)].into()),
            10,
            "one without events holds up nothing"
        );
    }
}
