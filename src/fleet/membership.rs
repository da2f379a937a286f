//! Fleet membership: registration, heartbeats, and the shutdown notice.
//!
//! All of it uses `SERVER_ID`, and so waits until no other agent holds that ID ([`NameHolder`]): a second agent's shutdown
//! notice would remove the first from the fleet. If Redis is unreachable and cannot tell, this agent registers anyway, since
//! its outbox has to be delivered.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::control_plane::{CallError, Client, Heartbeat, Meaning, Registration};
use crate::drain::Admission;
use crate::fleet::agent_metrics::{AgentMetrics, Load};
use crate::intake::NameHolder;
use crate::telemetry::metrics::Metrics;
use crate::time::JitteredInterval;

/// Retry interval of registration, or the heartbeat interval if that is shorter.
const REGISTER_EVERY: Duration = Duration::from_secs(30);
/// Failures in a row after which the trouble is reported.
const TROUBLE_AFTER: u32 = 4;

/// Failures of registrations and heartbeats.
#[derive(Debug, Default)]
pub struct Failures {
    registration: InARow,
    heartbeat: InARow,
}

/// A series of failures.
#[derive(Debug, Default)]
struct InARow {
    count: u32,
    /// The failure last logged.
    said: Option<String>,
}

impl InARow {
    /// Whether to log this failure, once for each kind: at once if the `ControlPlane` refuses, after a while if it or the network
    /// fails, since then the link usually logs it.
    fn is_news(&mut self, error: &CallError) -> bool {
        self.count += 1;
        let is_no = matches!(
            error,
            CallError::Status {
                meaning: Meaning::Refused
                    | Meaning::NotFound
                    | Meaning::Credentials
                    | Meaning::Misconfigured
                    | Meaning::Foreign,
                ..
            }
        );
        let kind = match error {
            CallError::Status { status: 500.., .. } => "5xx".to_owned(),
            CallError::Failed(failure) => failure.label().to_owned(),
            error => error.to_string(),
        };
        let is_news = (self.lasts() || is_no) && self.said.as_ref() != Some(&kind);
        if is_news {
            self.said = Some(kind);
        }
        is_news
    }

    fn lasts(&self) -> bool {
        self.count >= TROUBLE_AFTER
    }
}

/// Reports this server to the `ControlPlane`.
pub struct Membership {
    /// The client.
    pub client: Arc<Client>,
    /// The registration data.
    pub registration: Registration,
    /// The heartbeat interval.
    pub interval: Duration,
    /// The first contact after a start happens at a random moment within this time.
    pub first_contact_within: Duration,
    /// The metrics in heartbeats.
    pub agent_metrics: AgentMetrics,
    /// Shares the link with the records.
    pub admission: Admission,
    /// Whether the server is registered.
    pub registered: watch::Sender<bool>,
    /// Why it is not, once that has lasted for a while.
    pub trouble: watch::Sender<Option<String>>,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// Failures so far.
    pub failures: Mutex<Failures>,
    /// A registration got no answer, so the server may be registered.
    pub unanswered: AtomicBool,
}

impl Membership {
    /// Runs until `stop` is true. [`Self::goodbye`] sends the shutdown notice when everything else has stopped.
    pub async fn run(self: Arc<Self>, mut stop: watch::Receiver<bool>) {
        let (beats, tries) =
            (JitteredInterval::new(self.interval), JitteredInterval::new(self.interval.min(REGISTER_EVERY)));
        let mut wait = JitteredInterval::new(self.first_contact_within).first();
        let mut load = Load::from_now();
        loop {
            let is_new = tokio::select! {
                biased;
                // A request in flight is abandoned: otherwise shutdown would be as slow as the ControlPlane.
                _ = stop.wait_for(|stop| *stop) => return,
                () = self.name_lost() => {
                    // The ID now belongs to another agent: polling for commands stops too.
                    self.know(false);
                    self.unanswered.store(false, Ordering::Relaxed);
                    false
                }
                is_new = self.round(wait, &mut load) => is_new,
            };
            wait = match (*self.registered.borrow(), is_new) {
                // A fleet registers at once, but its heartbeats are spread over the interval from the first one on.
                (true, true) => beats.first(),
                (true, false) => beats.next(),
                (false, _) => tries.next(),
            };
        }
    }

    /// Waits, then registers or sends a heartbeat. Returns whether the server is newly registered.
    async fn round(&self, wait: Duration, load: &mut Load) -> bool {
        tokio::time::sleep(wait).await;
        // IMPORTANT: send nothing under an ID that another agent holds.
        let mut redis = self.agent_metrics.redis.clone();
        let is_free = |name| matches!(name, NameHolder::Ours | NameHolder::Untold);
        if redis.wait_for(|redis| is_free(redis.name)).await.is_err() {
            return false;
        }
        let registered = || *self.registered.borrow();
        // While the link is down nothing is admitted, and the drain's probes suffice.
        if registered() && self.admission.take(self.interval).await {
            self.beat(load).await;
        }
        // Also directly after a heartbeat that was answered 404.
        if !registered() && self.admission.take(self.interval).await {
            self.register().await;
            return registered();
        }
        false
    }

    async fn register(&self) {
        self.unanswered.store(true, Ordering::Relaxed);
        let answer = self.client.register(&self.registration).await;
        self.unanswered.store(false, Ordering::Relaxed);
        match answer {
            Ok(()) => {
                self.know(true);
                *self.failures() = Failures::default();
                self.trouble.send_replace(None);
                tracing::info!("registered with the ControlPlane");
            }
            Err(error) => self.refused(&error),
        }
    }

    fn know(&self, registered: bool) {
        self.registered.send_replace(registered);
        self.metrics.registered.set(i64::from(registered));
    }

    fn refused(&self, error: &CallError) {
        let failures = &mut self.failures().registration;
        if failures.is_news(error) {
            tracing::warn!(
                %error,
                proxy = self.client.proxy(),
                "cannot register this server with the ControlPlane: no heartbeats and no commands until it is registered. \
                 Registration is retried; records do not wait for it"
            );
        } else {
            tracing::debug!(%error, "not registered yet");
        }
        if failures.lasts() {
            self.trouble.send_replace(Some(format!("cannot register this server: {error}")));
        }
    }

    fn failures(&self) -> MutexGuard<'_, Failures> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Resolves when another agent holds the ID of this server while it is, or may be, registered.
    async fn name_lost(&self) {
        let mut redis = self.agent_metrics.redis.clone();
        let lost = redis.wait_for(|redis| redis.name == NameHolder::Another && self.is_known()).await.is_ok();
        if !lost {
            // The intake has ended.
            std::future::pending::<()>().await;
        }
    }

    fn is_known(&self) -> bool {
        *self.registered.borrow() || self.unanswered.load(Ordering::Relaxed)
    }

    async fn beat(&self, load: &mut Load) {
        match self.client.heartbeat(self.agent_metrics.status(), self.agent_metrics.metrics(load)).await {
            Ok(Heartbeat::Heard) => self.failures().heartbeat = InARow::default(),
            Ok(Heartbeat::Forgotten) => {
                self.know(false);
                tracing::info!("the ControlPlane no longer knows this server; registering again");
            }
            Err(error) if self.failures().heartbeat.is_news(&error) => tracing::warn!(
                %error,
                proxy = self.client.proxy(),
                "heartbeats fail: the ControlPlane may show this server as offline; they continue; records do not wait for them"
            ),
            Err(error) => tracing::debug!(%error, "the heartbeat failed"),
        }
    }

    /// Sends the shutdown notice if the `ControlPlane` knows this server, or may know it.
    pub async fn goodbye(&self) {
        let is_ours = self.agent_metrics.redis.borrow().name != NameHolder::Another;
        if is_ours
            && self.is_known()
            && let Err(error) = self.client.shutdown_notice().await
        {
            tracing::debug!(%error, "the shutdown notice failed");
        }
    }
}
