//! The stages: supervision and ordered shutdown.

use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};

use crate::fleet::membership::Membership;
use crate::intake::SourceError;
use crate::outbox::{Outbox, Threads};

/// Minimum time for the stages after the intake and the drain, which share the rest of the time to stop.
const LAST_STAGES: Duration = Duration::from_secs(2);

/// All running parts, in the order they are stopped.
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
    /// Resolves when a part has ended unexpectedly.
    pub(super) async fn end_by_themselves(&mut self) -> anyhow::Error {
        tokio::select! {
            Some(end) = self.taking.join_next() => end_of_intake(end),
            end = self.sending.join_next() => unexpected("the drain", end),
            error = first_failure(&mut self.rest) => unexpected("a background task", Some(Err(error))),
            end = self.serving.join_next() => unexpected("the HTTP surface", end),
        }
    }

    /// Stops upstream first: what the intake has taken is committed and acknowledged; then the drain's requests are answered and
    /// settled; then the rest stops. A crash during shutdown is as safe as at any other time.
    pub(super) async fn stop(mut self, within: Duration, outbox: &Outbox, membership: &Membership) {
        let deadline = Instant::now() + within;
        // If Redis is silent, the intake would use all the time, but the drain has to wait for answers.
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
            // Commits continuously.
            Err(_) => tracing::warn!(
                "some rejected messages are not yet dead letters: the next start continues with them"
            ),
        }
        let deadline = deadline.max(Instant::now() + LAST_STAGES);
        // Without the notice, the ControlPlane notices missing heartbeats.
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

/// Waits until a task fails. A task that finishes has not failed: some have less to do than others.
async fn first_failure(tasks: &mut JoinSet<()>) -> JoinError {
    loop {
        match tasks.join_next().await {
            Some(Err(error)) => return error,
            Some(Ok(())) => {}
            None => std::future::pending().await,
        }
    }
}

/// Resolves when a thread of the outbox has ended, which only a panic causes.
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
        // The error describes itself.
        Ok(Err(error)) => error.into(),
        end => unexpected("the intake", Some(end.map(|_| ()))),
    }
}
