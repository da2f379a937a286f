//! Whether the agent can do its work, and what each part of it says.

use serde_json::{Value, json};

use super::Surface;
use crate::outbox::Stats;
use crate::telemetry::metrics::oldest_ages;
use crate::vitals::is_well;

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
    drain_paused: bool,
    is_well: bool,
    stats: Stats,
}

impl Health {
    pub(super) fn of(surface: &Surface) -> Self {
        let redis = surface.redis.borrow();
        let link = surface.link.borrow();
        let trouble = link.trouble.map(crate::drain::Trouble::label);
        let (orders, stats) = (*surface.orders.borrow(), surface.outbox.durable_stats());
        Self {
            is_well: is_well(&redis, &link, orders, &stats),
            redis_connected: redis.connected,
            redis_fault: redis.fault.clone(),
            control_plane_connected: link.trouble.is_none() && surface.client.is_reachable(),
            link: trouble.map_or_else(|| link.circuit.to_owned(), |why| format!("{}: {why}", link.circuit)),
            link_down: link.trouble.is_some(),
            link_cause: link.cause.clone(),
            drain_paused: orders.paused,
            registered: *surface.registered.borrow(),
            stopping: *surface.stopping.borrow(),
            stats,
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

    fn status(&self) -> &'static str {
        if self.is_unhealthy() {
            "unhealthy"
        } else if self.is_well {
            "healthy"
        } else {
            "degraded"
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
        let drain = if self.drain_paused {
            json!({ "status": "degraded", "reason": "paused by an operator" })
        } else {
            json!({ "status": "healthy" })
        };
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
                "control_plane": { "status": link, "link": self.link, "cause": self.link_cause },
            },
            "outbox": self.outbox_json(),
        })
    }
}
