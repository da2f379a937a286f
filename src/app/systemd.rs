//! What systemd is told: that the agent is ready, how it is, that it stops, and that it still gets on.
//!
//! A ping says that the pipeline can make progress: each is preceded by a turn of both of the outbox's threads, on which
//! every record waits twice, and it is sent by the runtime's one thread, on which everything else runs. None comes
//! when one of the three hangs. Whatever the outside does (a `ControlPlane` or a Redis that is away, a full disk)
//! keeps none of them: they go on trying, and a restart would mend nothing.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use crate::drain::{LinkStatus, Orders};
use crate::intake::RedisStatus;
use crate::outbox::Outbox;
use crate::telemetry::notify::Notify;

/// The status is looked at this often, and told when it has changed.
const STATUS_EVERY: Duration = Duration::from_secs(2);
/// Pings within the time in which one is wanted: some may come late.
const PINGS: u32 = 4;

/// Keeps systemd informed.
pub struct Service {
    notify: Notify,
    outbox: Outbox,
    link: watch::Receiver<LinkStatus>,
    orders: watch::Receiver<Orders>,
    redis: watch::Receiver<RedisStatus>,
}

impl Service {
    /// Tells `notify` what the others say.
    pub fn new(
        notify: Notify,
        outbox: Outbox,
        link: watch::Receiver<LinkStatus>,
        orders: watch::Receiver<Orders>,
        redis: watch::Receiver<RedisStatus>,
    ) -> Self {
        Self { notify, outbox, link, orders, redis }
    }

    /// Runs until `stop` is true; says that the agent stops as soon as `stopping` is. To be spawned after all that has to
    /// run when systemd is told that it does.
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

    /// Stopping is work too: the pings go on until the end.
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
            1 => "1 record waits".to_owned(),
            depth => format!("{depth} records wait"),
        };
        let link = match self.link.borrow().trouble {
            None => "link up".to_owned(),
            Some(trouble) => format!("link down: {}", trouble.label()),
        };
        let mut parts = vec![waiting, link];
        if self.orders.borrow().paused {
            parts.push("paused by an operator".to_owned());
        }
        if !self.redis.borrow().connected {
            parts.push("Redis away".to_owned());
        }
        parts.extend(stats.paused.map(|reason| format!("takes no records: {reason}")));
        parts.join("; ")
    }
}
