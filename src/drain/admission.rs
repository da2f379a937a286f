//! Turns at the link for requests without a record: registration, heartbeats, commands. They share circuit breaker and rate
//! limit with the records, and yield to quota refreshes.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

/// Capacity of the queue of requests for a turn; each caller has one at a time.
const WAITING: usize = 16;

/// Asks for turns.
#[derive(Clone)]
pub struct Admission(mpsc::Sender<oneshot::Sender<()>>);

/// Receives the requests for turns.
pub struct AdmissionQueue(mpsc::Receiver<oneshot::Sender<()>>);

/// Both ends.
pub fn admission_channel() -> (Admission, AdmissionQueue) {
    let (ask, asked) = mpsc::channel(WAITING);
    (Admission(ask), AdmissionQueue(asked))
}

impl Admission {
    /// Waits for a turn, which allows one request now. False if none comes `within` this time, or the drain has ended.
    pub async fn take(&self, within: Duration) -> bool {
        let turn = async {
            let (grant, granted) = oneshot::channel();
            self.0.send(grant).await.is_ok() && granted.await.is_ok()
        };
        tokio::time::timeout(within, turn).await.unwrap_or(false)
    }
}

impl AdmissionQueue {
    /// The next caller that still waits for a turn.
    pub(super) async fn next(&mut self) -> Option<oneshot::Sender<()>> {
        loop {
            let grant = self.0.recv().await?;
            if !grant.is_closed() {
                return Some(grant);
            }
        }
    }
}
