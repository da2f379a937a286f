//! Turns at the link for what is no record: registration, heartbeats, commands. They share circuit and rate limit with
//! the records, and go behind quota refreshes.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

/// Askers that wait to be heard; each of them asks for one turn at a time.
const WAITING: usize = 16;

/// Asks for turns.
#[derive(Clone)]
pub struct Admission(mpsc::Sender<oneshot::Sender<()>>);

/// Hears who asks.
pub struct AdmissionQueue(mpsc::Receiver<oneshot::Sender<()>>);

/// Both ends.
pub fn admission_channel() -> (Admission, AdmissionQueue) {
    let (ask, asked) = mpsc::channel(WAITING);
    (Admission(ask), AdmissionQueue(asked))
}

impl Admission {
    /// Waits for a turn: one request may go now. False if there is none `within` this time, or the drain has ended.
    pub async fn take(&self, within: Duration) -> bool {
        let turn = async {
            let (grant, granted) = oneshot::channel();
            self.0.send(grant).await.is_ok() && granted.await.is_ok()
        };
        tokio::time::timeout(within, turn).await.unwrap_or(false)
    }
}

impl AdmissionQueue {
    /// The next who still waits for a turn.
    pub(super) async fn next(&mut self) -> Option<oneshot::Sender<()>> {
        loop {
            let grant = self.0.recv().await?;
            if !grant.is_closed() {
                return Some(grant);
            }
        }
    }
}
