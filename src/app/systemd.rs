//! Notifications to systemd: ready, status, stopping, and the watchdog's pings.
//!
//! A ping means that the pipeline can make progress: it follows a round trip through both threads of the outbox, and is sent
//! by the runtime's single thread, on which everything else runs. If one of the three hangs, pings stop. External failures (an
//! unreachable `ControlPlane` or Redis, a full disk) do not stop them: the agent retries, and a restart would not help.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use crate::control_plane::Client;
use crate::drain::{LinkStatus, Orders, Trouble};
use crate::intake::RedisStatus;
use crate::outbox::{Outbox, meaning_of};
use crate::telemetry::notify::Notify;

/// How often the status is checked; it is sent only when it has changed.
const STATUS_EVERY: Duration = Duration::from_secs(2);
/// Pings per watchdog interval: some may be late.
const PINGS: u32 = 4;

/// Keeps systemd informed.
pub struct Service {
    notify: Notify,
    outbox: Outbox,
    link: watch::Receiver<LinkStatus>,
    orders: watch::Receiver<Orders>,
    redis: watch::Receiver<RedisStatus>,
    client: Arc<Client>,
}

impl Service {
    /// Reports the state of the other parts to `notify`.
    pub fn new(
        notify: Notify,
        outbox: Outbox,
        link: watch::Receiver<LinkStatus>,
        orders: watch::Receiver<Orders>,
        redis: watch::Receiver<RedisStatus>,
        client: Arc<Client>,
    ) -> Self {
        Self { notify, outbox, link, orders, redis, client }
    }

    /// Runs until `stop` is true; reports the shutdown as soon as `stopping` is true. Spawn it after every part that must be
    /// running when systemd is told so.
    pub async fn run(self, mut stopping: watch::Receiver<bool>, mut stop: watch::Receiver<bool>) {
        if !self.notify.is_heard() {
            return;
        }
        let ping = async {
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => {}
                () = self.ping() => {}
            }
        };
        tokio::join!(self.tell(&mut stopping), ping);
    }

    async fn tell(&self, stopping: &mut watch::Receiver<bool>) {
        let is_ready = tokio::select! {
            _ = stopping.wait_for(|stopping| *stopping) => false,
            () = self.outbox.liveness() => true,
        };
        let mut told = self.status();
        if is_ready {
            self.notify.send(&format!("READY=1\nSTATUS={told}")).await;
        }
        let mut look = tokio::time::interval(STATUS_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                _ = stopping.wait_for(|stopping| *stopping) => break,
                _ = look.tick() => {}
            }
            let status = self.status();
            if status != told {
                self.notify.send(&format!("STATUS={status}")).await;
                told = status;
            }
        }
        self.notify.send(&format!("STOPPING=1\nSTATUS=stopping; {}", self.status())).await;
    }

    /// Pings continue until shutdown is complete.
    async fn ping(&self) {
        let Some(wanted) = self.notify.watchdog() else { return };
        loop {
            self.outbox.liveness().await;
            self.notify.send("WATCHDOG=1").await;
            tokio::time::sleep(wanted / PINGS).await;
        }
    }

    /// One line for `systemctl status`.
    fn status(&self) -> String {
        let stats = self.outbox.stats();
        let waiting = match stats.total_depth() {
            1 => "1 record waiting".to_owned(),
            depth => format!("{depth} records waiting"),
        };
        let link = match (self.link.borrow().trouble, self.client.unanswered()) {
            (Some(trouble), _) => format!("link down: {}: {}", trouble.label(), trouble.meaning()),
            (None, Some(failing)) => {
                let trouble = Trouble::of(&failing);
                format!("requests to the ControlPlane fail: {}: {}", trouble.label(), trouble.meaning())
            }
            (None, None) => "link up".to_owned(),
        };
        let mut parts = vec![waiting, link];
        match *self.orders.borrow() {
            Orders { exporting: true, .. } => parts.push("an export is in progress".to_owned()),
            Orders { paused: true, .. } => parts.push("paused by an operator".to_owned()),
            _ => {}
        }
        let redis = self.redis.borrow();
        match &redis.fault {
            Some(fault) => parts.push(format!("cannot use Redis: {fault}")),
            None if !redis.connected => parts.push("not connected to Redis yet".to_owned()),
            None => {}
        }
        let refusal =
            stats.paused.map(|reason| format!("not accepting records: {reason}: {}", meaning_of(reason)));
        parts.extend(refusal);
        parts.join("; ")
    }
}
