//! The agent's metrics for the `ControlPlane`: in each heartbeat, and on request.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::control_plane::{Client, ServerStatus};
use crate::drain::{LinkStatus, Orders};
use crate::intake::RedisStatus;
use crate::outbox::metrics::oldest_ages;
use crate::outbox::{Outbox, Reason, Stats};

/// The sources of the figures.
#[derive(Clone)]
pub struct AgentMetrics {
    /// The outbox.
    pub outbox: Outbox,
    /// Redis, as the intake sees it.
    pub redis: watch::Receiver<RedisStatus>,
    /// The link, as the drain sees it.
    pub link: watch::Receiver<LinkStatus>,
    /// The operator's orders to the drain.
    pub orders: watch::Receiver<Orders>,
    /// Counts the requests.
    pub client: Arc<Client>,
    /// When this process started.
    pub started: Instant,
}

impl AgentMetrics {
    /// The status, as in `/health`.
    pub fn status(&self) -> ServerStatus {
        let stats = self.outbox.durable_stats();
        let is_well = is_well(&self.redis.borrow(), &self.link.borrow(), *self.orders.borrow(), &stats);
        if is_well { ServerStatus::Online } else { ServerStatus::Degraded }
    }

    /// The current metrics; CPU usage is measured since the last call with `load`.
    pub fn metrics(&self, load: &mut Load) -> Value {
        let stats = self.outbox.durable_stats();
        let oldest = oldest_ages(&stats, crate::time::now().0);
        json!({
            "usage_records_processed": stats.delivered[0] + stats.duplicates[0],
            "control_plane_requests": self.client.attempts(),
            "redis_queue_depth": self.redis.borrow().depths.iter().flatten().sum::<u64>(),
            "failed_deliveries": failed_deliveries(&stats),
            "memory_usage_mb": resident_bytes().map(|bytes| rounded(bytes as f64 / f64::from(1 << 20))),
            "cpu_usage_percent": rounded(load.percent()),
            "outbox_depth": stats.total_depth(),
            "outbox_oldest_age_seconds": oldest.iter().map(|(_, age)| *age).fold(0.0, f64::max),
            "dead_letters": stats.dead_letters,
            "uptime_seconds": self.started.elapsed().as_secs(),
        })
    }
}

/// Whether nothing needs attention.
pub fn is_well(redis: &RedisStatus, link: &LinkStatus, orders: Orders, stats: &Stats) -> bool {
    let takes = redis.connected && redis.fault.is_none();
    let sends = link.trouble.is_none() && !orders.holds();
    takes && sends && stats.accepting && stats.quarantined_segments == 0
}

/// Records that became dead letters since the outbox was created; invalid messages do not count.
fn failed_deliveries(stats: &Stats) -> u64 {
    let given_up = Reason::ALL.into_iter().filter(|reason| *reason != Reason::Invalid);
    given_up.map(|reason| stats.dead_lettered.iter().map(|of| of[reason as usize]).sum::<u64>()).sum()
}

/// Rounds to two decimals, enough for people.
fn rounded(figure: f64) -> f64 {
    (figure * 100.0).round() / 100.0
}

/// Measures this process' CPU time between calls.
pub struct Load {
    at: Instant,
    used: Duration,
}

impl Load {
    /// Starts measuring now.
    pub fn from_now() -> Self {
        Self { at: Instant::now(), used: processor_time() }
    }

    /// Percent of one core since the last call; 200: two cores.
    fn percent(&mut self) -> f64 {
        let (at, used) = (Instant::now(), processor_time());
        let wall = at.duration_since(self.at).as_secs_f64();
        let busy = used.saturating_sub(self.used).as_secs_f64();
        (self.at, self.used) = (at, used);
        if wall > 0.0 { busy / wall * 100.0 } else { 0.0 }
    }
}

fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.max(0).unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// The process' resident memory, if the kernel reports it.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_load_is_of_the_time_since_it_was_asked_last() {
        let mut load = Load::from_now();
        let begun = processor_time();
        while processor_time().saturating_sub(begun) < Duration::from_millis(50) {
            std::hint::black_box(0);
        }
        let busy = load.percent();
        assert!(busy > 0.0 && busy.is_finite(), "{busy}");
        load.at = Instant::now().checked_sub(Duration::from_secs(3600)).unwrap();
        let idle = load.percent();
        assert!(idle < busy && idle < 1.0, "an almost idle hour: {idle}");
    }

    #[test]
    fn this_process_takes_some_memory() {
        let bytes = resident_bytes().unwrap();
        assert!((1 << 20..64 << 30).contains(&bytes), "{bytes}");
    }
}
