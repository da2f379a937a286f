//! Fleet membership: registers this server, sends its heartbeats, and says goodbye.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;

use crate::control_plane::{Client, Heartbeat, Registration, ServerStatus};
use crate::drain::Turns;
use crate::intake::RedisStatus;
use crate::outbox::Outbox;

/// While not registered, it is tried this often, or with the heartbeat's interval if that is shorter.
const REGISTER_EVERY: Duration = Duration::from_secs(30);
/// Of the interval, a heartbeat comes so much sooner or later, so that a fleet started at once does not beat at once.
const JITTER: f64 = 0.1;

/// Keeps the `ControlPlane` informed.
pub struct Membership {
    /// Where to.
    pub client: Arc<Client>,
    /// What is registered.
    pub registration: Registration,
    /// Between heartbeats.
    pub interval: Duration,
    /// The first contact after a start is at a random moment within this time.
    pub first_contact_within: Duration,
    /// What is told.
    pub outbox: Outbox,
    /// It shares the link with the records.
    pub turns: Turns,
    /// What is told of Redis.
    pub redis: watch::Receiver<RedisStatus>,
    /// Whether the server is registered.
    pub registered: watch::Sender<bool>,
    /// Since when this process runs.
    pub started: std::time::Instant,
}

impl Membership {
    /// Runs until `stop` is true. The goodbye is [`Self::goodbye`]'s, when everything else has stopped.
    pub async fn run(self: Arc<Self>, mut stop: watch::Receiver<bool>) {
        let mut wait = self.first_contact_within.mul_f64(rand::random_range(0.0..=1.0));
        loop {
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
            let registered = || *self.registered.borrow();
            // While the link is down there is no turn, and the drain's probes are enough.
            if registered() && self.turns.take(self.interval).await {
                self.beat().await;
            }
            // Also at once after a heartbeat that was not recognised.
            if !registered() && self.turns.take(self.interval).await {
                self.register().await;
            }
            let interval = if registered() { self.interval } else { self.interval.min(REGISTER_EVERY) };
            wait = interval.mul_f64(rand::random_range(1.0 - JITTER..=1.0 + JITTER));
        }
    }

    async fn register(&self) {
        match self.client.register(&self.registration).await {
            Ok(()) => {
                self.registered.send_replace(true);
                tracing::info!("registered with the ControlPlane");
            }
            Err(error) => tracing::debug!(%error, "not registered yet"),
        }
    }

    async fn beat(&self) {
        let degraded = !self.redis.borrow().connected || !self.outbox.stats().accepting;
        let status = if degraded { ServerStatus::Degraded } else { ServerStatus::Online };
        match self.client.heartbeat(status, self.metrics()).await {
            Ok(Heartbeat::Heard) => {}
            Ok(Heartbeat::Forgotten) => {
                self.registered.send_replace(false);
                tracing::info!("the ControlPlane has forgotten this server; it registers again");
            }
            Err(error) => tracing::debug!(%error, "the heartbeat was not heard"),
        }
    }

    fn metrics(&self) -> Value {
        let stats = self.outbox.stats();
        let oldest = crate::telemetry::metrics::oldest_ages(&stats, crate::clock::now().0);
        json!({
            "usage_records_processed": stats.delivered[0] + stats.duplicates[0],
            "redis_queue_depth": self.redis.borrow().depths.iter().sum::<u64>(),
            "outbox_depth": stats.total_depth(),
            "outbox_oldest_age_seconds": oldest.iter().map(|(_, age)| *age).fold(0.0, f64::max),
            "dead_letters": stats.dead_letters,
            "uptime_seconds": self.started.elapsed().as_secs(),
        })
    }

    /// Tells the `ControlPlane` that this server goes, if it knows it.
    pub async fn goodbye(&self) {
        if *self.registered.borrow()
            && let Err(error) = self.client.shutdown_notice().await
        {
            tracing::debug!(%error, "the shutdown notice was not heard");
        }
    }
}
