//! Fleet membership: registers this server, sends its heartbeats, and says goodbye.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::watch;

use crate::control_plane::{Client, Heartbeat, Registration};
use crate::drain::Turns;
use crate::rhythm::Rhythm;
use crate::vitals::{Load, Vitals};

/// While not registered, it is tried this often, or with the heartbeat's interval if that is shorter.
const REGISTER_EVERY: Duration = Duration::from_secs(30);

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
    pub vitals: Vitals,
    /// It shares the link with the records.
    pub turns: Turns,
    /// Whether the server is registered.
    pub registered: watch::Sender<bool>,
    /// A registration was sent and not answered: whether the server is known nobody can say.
    pub unanswered: AtomicBool,
}

impl Membership {
    /// Runs until `stop` is true. The goodbye is [`Self::goodbye`]'s, when everything else has stopped.
    pub async fn run(self: Arc<Self>, mut stop: watch::Receiver<bool>) {
        let (beats, tries) = (Rhythm::new(self.interval), Rhythm::new(self.interval.min(REGISTER_EVERY)));
        let mut wait = Rhythm::new(self.first_contact_within).first();
        let mut load = Load::from_now();
        loop {
            let is_new = tokio::select! {
                biased;
                // What is under way is not waited for: the stop would be as slow as the ControlPlane.
                _ = stop.wait_for(|stop| *stop) => return,
                is_new = self.round(wait, &mut load) => is_new,
            };
            wait = match (*self.registered.borrow(), is_new) {
                // A fleet registers at once; its heartbeats are spread over the interval from the first one on.
                (true, true) => beats.first(),
                (true, false) => beats.next(),
                (false, _) => tries.next(),
            };
        }
    }

    /// Waits, and then tells what there is to tell. Gives whether the server is newly registered.
    async fn round(&self, wait: Duration, load: &mut Load) -> bool {
        tokio::time::sleep(wait).await;
        let registered = || *self.registered.borrow();
        // While the link is down there is no turn, and the drain's probes are enough.
        if registered() && self.turns.take(self.interval).await {
            self.beat(load).await;
        }
        // Also at once after a heartbeat that was not recognised.
        if !registered() && self.turns.take(self.interval).await {
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
                self.registered.send_replace(true);
                tracing::info!("registered with the ControlPlane");
            }
            Err(error) => tracing::debug!(%error, "not registered yet"),
        }
    }

    async fn beat(&self, load: &mut Load) {
        match self.client.heartbeat(self.vitals.status(), self.vitals.metrics(load)).await {
            Ok(Heartbeat::Heard) => {}
            Ok(Heartbeat::Forgotten) => {
                self.registered.send_replace(false);
                tracing::info!("the ControlPlane has forgotten this server; it registers again");
            }
            Err(error) => tracing::debug!(%error, "the heartbeat was not heard"),
        }
    }

    /// Tells the `ControlPlane` that this server goes, if it knows it, or may.
    pub async fn goodbye(&self) {
        if (*self.registered.borrow() || self.unanswered.load(Ordering::Relaxed))
            && let Err(error) = self.client.shutdown_notice().await
        {
            tracing::debug!(%error, "the shutdown notice was not heard");
        }
    }
}
