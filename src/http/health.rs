//! Whether the agent can do its work, and what each part of it says.

use serde_json::{Value, json};

use super::Surface;
use crate::drain::Orders;
use crate::outbox::Stats;
use crate::telemetry::metrics::oldest_ages;

/// The state of this moment.
pub(super) struct Health {
    pub redis_connected: bool,
    pub control_plane_connected: bool,
    pub registered: bool,
    stopping: bool,
    redis_fault: Option<String>,
    link: String,
    link_down: bool,
    link_cause: Option<String>,
    next_probe: Option<tokio::time::Instant>,
    drain_holds: Option<&'static str>,
    stats: Stats,
}

impl Health {
    pub(super) fn of(surface: &Surface) -> Self {
        let redis = surface.redis.borrow();
        let link = surface.link.borrow();
        let trouble = link.trouble.map(crate::drain::Trouble::label);
        Self {
            redis_connected: redis.connected,
            redis_fault: redis.fault.clone(),
            control_plane_connected: link.trouble.is_none() && surface.client.is_reachable(),
            link: trouble.map_or_else(|| link.circuit.to_owned(), |why| format!("{}: {why}", link.circuit)),
            link_down: link.trouble.is_some(),
            link_cause: link.cause.clone(),
            next_probe: link.next_probe,
            drain_holds: match *surface.orders.borrow() {
                Orders { exporting: true, .. } => Some("what waits is being exported"),
                Orders { paused: true, .. } => Some("paused by an operator"),
                _ => None,
            },
            registered: *surface.registered.borrow(),
            stopping: *surface.stopping.borrow(),
            stats: surface.outbox.durable_stats(),
        }
    }

    /// It cannot take over records: the outbox is full or cannot be written, or the process is going away.
    pub(super) fn is_unhealthy(&self) -> bool {
        self.stopping || !self.stats.accepting
    }

    /// Something of the outbox is damaged and was set aside: the rest goes on, but somebody has to look.
    fn is_damaged(&self) -> bool {
        self.stats.quarantined_segments > 0
    }

    fn redis_is_degraded(&self) -> bool {
        !self.redis_connected || self.redis_fault.is_some()
    }

    fn status(&self) -> &'static str {
        if self.is_unhealthy() {
            "unhealthy"
        } else if self.link_down
            || self.drain_holds.is_some()
            || self.redis_is_degraded()
            || self.is_damaged()
        {
            "degraded"
        } else {
            "healthy"
        }
    }

    pub(super) fn outbox_json(&self) -> Value {
        let ages = oldest_ages(&self.stats, crate::clock::now().0);
        json!({
            "depth": self.stats.total_depth(),
            "bytes": self.stats.bytes,
            "oldest_age_seconds": ages.iter().map(|(_, age)| *age).fold(0.0, f64::max),
            "disk_bytes": self.stats.disk_bytes,
            "capacity_bytes": self.stats.capacity_bytes,
            "dead_letters": self.stats.dead_letters,
            "quarantined_segments": self.stats.quarantined_segments,
            "quarantined_records": self.stats.quarantined_records,
        })
    }

    pub(super) fn to_json(&self, surface: &Surface) -> Value {
        let redis = match (&self.redis_fault, self.redis_connected) {
            (Some(fault), _) => json!({ "status": "degraded", "reason": fault }),
            (None, true) => json!({ "status": "healthy" }),
            (None, false) => json!({ "status": "degraded", "reason": "not connected" }),
        };
        let durability = self.stats.durability.meaning();
        let outbox = match self.stats.paused {
            Some(reason) => json!({ "status": "unhealthy", "reason": reason, "durability": durability }),
            None if self.is_damaged() => {
                json!({ "status": "degraded", "reason": "quarantined", "durability": durability })
            }
            None => json!({ "status": "healthy", "durability": durability }),
        };
        let drain = match self.drain_holds {
            Some(reason) => json!({ "status": "degraded", "reason": reason }),
            None => json!({ "status": "healthy" }),
        };
        let next_probe =
            self.next_probe.map(|at| at.saturating_duration_since(tokio::time::Instant::now()).as_secs_f64());
        let link = if self.link_down { "degraded" } else { "healthy" };
        json!({
            "status": self.status(),
            "timestamp": crate::clock::now().to_rfc3339(),
            "version": surface.version,
            "uptime_seconds": surface.started.elapsed().as_secs_f64(),
            "redis_connected": self.redis_connected,
            "control_plane_connected": self.control_plane_connected,
            "server_registered": self.registered,
            "components": {
                "redis": redis,
                "outbox": outbox,
                "drain": drain,
                "control_plane": {
                    "status": link,
                    "link": self.link,
                    "cause": self.link_cause,
                    "next_probe_seconds": next_probe,
                },
            },
            "outbox": self.outbox_json(),
        })
    }
}
