//! Replays and drops dead letters, one job at a time, each to its end.
//!
//! Two concurrent replays would replay the same dead letter twice, and a replay interrupted between appending the records and
//! removing the dead letters would leave both. So a separate task does the work, and the caller may leave.

use tokio::sync::{mpsc, oneshot, watch};

use std::sync::Arc;

use super::{Actor, AdminError, Audit, Dropped, Replayed, Selection};

/// Requests queued for the task; further callers wait for room in the queue.
const WAITING: usize = 4;

enum LetterRequest {
    Replay(Actor, Selection, oneshot::Sender<Result<Replayed, AdminError>>),
    Drop(Actor, Selection, oneshot::Sender<Result<Dropped, AdminError>>),
}

impl LetterRequest {
    /// Whether the caller no longer waits for it.
    fn is_given_up(&self) -> bool {
        match self {
            Self::Replay(.., done) => done.is_closed(),
            Self::Drop(.., done) => done.is_closed(),
        }
    }
}

/// Sends requests to the task.
#[derive(Clone)]
pub struct Letters(mpsc::Sender<LetterRequest>);

/// The task that executes requests.
pub struct LetterWork {
    audit: Arc<Audit>,
    orders: mpsc::Receiver<LetterRequest>,
}

/// Creates both ends.
pub fn letters(audit: Arc<Audit>) -> (Letters, LetterWork) {
    let (sender, orders) = mpsc::channel(WAITING);
    (Letters(sender), LetterWork { audit, orders })
}

impl Letters {
    pub(super) async fn replay(&self, by: Actor, selection: Selection) -> Result<Replayed, AdminError> {
        self.order(|done| LetterRequest::Replay(by, selection, done)).await
    }

    pub(super) async fn drop(&self, by: Actor, selection: Selection) -> Result<Dropped, AdminError> {
        self.order(|done| LetterRequest::Drop(by, selection, done)).await
    }

    async fn order<T>(
        &self,
        order: impl FnOnce(oneshot::Sender<Result<T, AdminError>>) -> LetterRequest,
    ) -> Result<T, AdminError> {
        let (done, outcome) = oneshot::channel();
        self.0.send(order(done)).await.map_err(|_| AdminError::Stopping)?;
        outcome.await.unwrap_or(Err(AdminError::Stopping))
    }
}

impl LetterWork {
    /// Runs until `stop` is true. A request in progress is finished first.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        loop {
            let order = tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return,
                order = self.orders.recv() => order,
            };
            let Some(order) = order else { return };
            if !order.is_given_up() {
                self.carry_out(order).await;
            }
        }
    }

    /// Executes a request. From here on it does not matter whether the caller still waits.
    async fn carry_out(&self, order: LetterRequest) {
        match order {
            LetterRequest::Replay(by, selection, done) => {
                let _ = done.send(self.audit.replay_letters(&by, &selection).await);
            }
            LetterRequest::Drop(by, selection, done) => {
                let _ = done.send(self.audit.drop_letters(&by, &selection).await);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;

    use super::super::tests::{open, started, until};
    use super::*;
    use crate::outbox::{DeadLetter, Entry, Payload, Reason};

    fn letter() -> Entry {
        let Entry::Record(record) = started(0) else { unreachable!("it is a record") };
        Entry::Letter(Box::new(DeadLetter {
            id: 0,
            reason: Reason::Refused,
            detail: "no".into(),
            attempts: 1,
            first_at: record.accepted_at(),
            last_at: record.accepted_at(),
            payload: Payload::Record(record),
        }))
    }

    #[tokio::test]
    async fn a_started_replay_finishes_without_a_waiting_caller() {
        let dir = tempfile::tempdir().unwrap();
        let (outbox, threads) = open(dir.path());
        outbox.append(vec![letter(), letter()], None).await.unwrap().await.unwrap().unwrap();
        until("two dead letters", || outbox.stats().dead_letters == 2).await;
        let (letters, work) = letters(Arc::new(Audit::new(outbox.clone())));
        let by = || Actor::Command("c-1".into());
        let stop = watch::Sender::new(false);
        let working = tokio::spawn(work.run(stop.subscribe()));

        let all = Selection { all: true, ..Selection::default() };
        let mut asked = Box::pin(letters.replay(by(), all.clone()));
        std::future::poll_fn(|context| {
            assert!(asked.as_mut().poll(context).is_pending());
            std::task::Poll::Ready(())
        })
        .await;
        // On this single-threaded runtime, the work begins with the next turn.
        tokio::task::yield_now().await;
        drop(asked);
        until("both are records again", || outbox.stats().dead_letters == 0).await;
        assert_eq!(outbox.stats().total_depth(), 2, "each once");

        // A request whose caller has left is never started.
        outbox.append(vec![letter()], None).await.unwrap().await.unwrap().unwrap();
        until("one dead letter", || outbox.stats().dead_letters == 1).await;
        let mut asked = Box::pin(letters.drop(by(), all.clone()));
        std::future::poll_fn(|context| {
            assert!(asked.as_mut().poll(context).is_pending());
            std::task::Poll::Ready(())
        })
        .await;
        drop(asked);
        let outcome = letters.replay(by(), all.clone()).await.unwrap();
        assert_eq!((outcome.replayed.len(), &outcome.error), (1, &None), "{outcome:?}");

        let orders = super::super::list_orders(&outbox, None).await.unwrap().orders;
        let noted: Vec<_> = orders.iter().map(|line| (&*line.who, &*line.order, line.count)).collect();
        let replayed = |count| ("command c-1", "replay dead letters", Some(count));
        assert_eq!(noted, [replayed(1), replayed(2)], "newest first, without what was never started");

        stop.send_replace(true);
        working.await.unwrap();
        assert!(matches!(letters.replay(by(), all).await, Err(AdminError::Stopping)));
        drop((letters, outbox));
        assert!(threads.join());
    }
}
