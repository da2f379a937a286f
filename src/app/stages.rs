//! The stages: supervision and ordered shutdown.

use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};

use crate::fleet::membership::Membership;
use crate::intake::SourceError;
use crate::outbox::{Outbox, Threads};

/// The stages after the intake and the drain share what they leave of the time to stop, and have this at least.
const LAST_STAGES: Duration = Duration::from_secs(2);

/// All running parts, in the order in which they are stopped.
pub(super) struct Stages {
    pub(super) taking: JoinSet<Result<(), SourceError>>,
    pub(super) sending: JoinSet<()>,
    pub(super) rest: JoinSet<()>,
    pub(super) serving: JoinSet<()>,
    pub(super) intake_stop: watch::Sender<bool>,
    pub(super) drain_stop: watch::Sender<bool>,
    pub(super) last_stop: watch::Sender<bool>,
}

impl Stages {
    /// Done when a part has ended that should not have.
    pub(super) async fn end_by_themselves(&mut self) -> anyhow::Error {
        tokio::select! {
            Some(end) = self.taking.join_next() => end_of_intake(end),
            end = self.sending.join_next() => unexpected("the drain", end),
            error = first_failure(&mut self.rest) => unexpected("a background task", Some(Err(error))),
            end = self.serving.join_next() => unexpected("the HTTP surface", end),
        }
    }

    /// Upstream first: what the intake has taken is committed and acknowledged; then the drain's requests are answered
    /// and settled; then the rest. A crash at any point here is as safe as anywhere.
    pub(super) async fn stop(mut self, within: Duration, outbox: &Outbox, membership: &Membership) {
        let deadline = Instant::now() + within;
        // With Redis silent the intake would use all the time, and the drain has answers to wait for.
        finish("the intake", &self.intake_stop, &mut self.taking, Instant::now() + within / 2).await;
        finish("the drain", &self.drain_stop, &mut self.sending, deadline).await;
        let deadline = deadline.max(Instant::now() + LAST_STAGES);
        match tokio::time::timeout_at(deadline.into(), outbox.flush()).await {
            Ok(true) => {}
            Ok(false) => {
                tracing::warn!(
                    "some settled records are not yet durable: they will be sent again with the same idempotency keys"
                );
            }
            // It commits as it goes.
            Err(_) => tracing::warn!(
                "some rejected messages are not yet dead letters: the next start continues with them"
            ),
        }
        let deadline = deadline.max(Instant::now() + LAST_STAGES);
        // Without the notice, the ControlPlane notices the missing heartbeats.
        let _ = tokio::time::timeout_at(deadline.into(), membership.goodbye()).await;
        finish("background tasks", &self.last_stop, &mut self.rest, deadline).await;
        finish("the HTTP surface", &self.last_stop, &mut self.serving, deadline).await;
    }
}

/// Stops a stage and waits for it until `deadline`; a stage that overruns is logged and left.
async fn finish<T: 'static>(
    name: &str,
    stop: &watch::Sender<bool>,
    tasks: &mut JoinSet<T>,
    deadline: Instant,
) {
    stop.send_replace(true);
    let all = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout_at(deadline.into(), all).await.is_err() {
        tracing::warn!(stage = name, "did not stop in time");
        tasks.shutdown().await;
    }
}

/// Waits until one of these fails. That one is done is no failure: some have less to do than others.
async fn first_failure(tasks: &mut JoinSet<()>) -> JoinError {
    loop {
        match tasks.join_next().await {
            Some(Err(error)) => return error,
            Some(Ok(())) => {}
            None => std::future::pending().await,
        }
    }
}

/// Done when a thread of the outbox is gone, which only a panic in it brings about.
pub(super) async fn ended(threads: &Threads) {
    while !threads.ended() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

fn unexpected(name: &str, end: Option<Result<(), JoinError>>) -> anyhow::Error {
    match end {
        Some(Err(error)) => anyhow::anyhow!("{name} failed: {error}"),
        _ => anyhow::anyhow!("{name} ended unexpectedly"),
    }
}

fn end_of_intake(end: Result<Result<(), SourceError>, JoinError>) -> anyhow::Error {
    match end {
        // It says by itself what is wrong.
        Ok(Err(error)) => error.into(),
        end => unexpected("the intake", Some(end.map(|_| ()))),
    }
}
