//! Admission to the link for requests without a record: registration, heartbeats, commands. They share the circuit breaker
//! and the rate limit with the records, and yield to quota refreshes.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

/// Capacity of the queue; each caller waits with one request at a time.
const WAITING: usize = 16;

/// Requests admission.
#[derive(Clone)]
pub struct Admission(mpsc::Sender<oneshot::Sender<()>>);

/// Receives the requests for admission.
pub struct AdmissionQueue(mpsc::Receiver<oneshot::Sender<()>>);

/// Both ends.
pub fn admission_channel() -> (Admission, AdmissionQueue) {
    let (ask, asked) = mpsc::channel(WAITING);
    (Admission(ask), AdmissionQueue(asked))
}

impl Admission {
    /// Waits for admission of one request, to be sent now. False if there is none `within` this time, or if the drain has
    /// ended.
    pub async fn take(&self, within: Duration) -> bool {
        let turn = async {
            let (grant, granted) = oneshot::channel();
            self.0.send(grant).await.is_ok() && granted.await.is_ok()
        };
        tokio::time::timeout(within, turn).await.unwrap_or(false)
    }
}

impl AdmissionQueue {
    /// The next caller that is still waiting.
    pub(super) async fn next(&mut self) -> Option<oneshot::Sender<()>> {
        loop {
            let grant = self.0.recv().await?;
            if !grant.is_closed() {
                return Some(grant);
            }
        }
    }
}
