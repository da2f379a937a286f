//! Checks the `ControlPlane`'s health when the link has been idle, so that an idle agent knows whether it is connected.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::control_plane::Client;
use crate::drain::Admission;
use crate::time::JitteredInterval;

/// The health probe.
pub struct HealthProbe {
    /// Idle time of the link after which it probes.
    pub interval: Duration,
    /// The client.
    pub client: Arc<Client>,
    /// Shares the link with the records.
    pub admission: Admission,
}

impl HealthProbe {
    /// Runs until `stop` is true.
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        let interval = JitteredInterval::new(self.interval);
        let mut patience = interval.next();
        let mut wait = patience;
        loop {
            tokio::select! {
                biased;
                () = tokio::time::sleep(wait) => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
            let quiet = self.client.quiet_for();
            wait = patience.saturating_sub(quiet);
            if !wait.is_zero() {
                continue;
            }
            tokio::select! {
                biased;
                () = self.ask() => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
            patience = interval.next();
            wait = patience;
        }
    }

    /// Sends a probe; the client notes the answer. While the link is down, the drain's probes suffice.
    async fn ask(&self) {
        if self.admission.take(self.interval).await
            && let Err(error) = self.client.health().await
        {
            tracing::debug!(%error, "the ControlPlane's health check failed");
        }
    }
}
