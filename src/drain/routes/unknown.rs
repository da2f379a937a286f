//! Unknown sessions and missing routes: how long a session has been unknown, and when its kind's route is at fault.

use std::time::Duration;

use tokio::time::Instant;

use super::Routes;
use crate::drain::queues::{LaneKey, Unknown, place};
use crate::drain::verdict::Trouble;
use crate::outbox::Log;

impl Routes {
    /// A session was unknown, which is `news` about this session. If several sessions get no other answer, the route is at
    /// fault: true if the kind is held from now on.
    pub(in crate::drain) fn session_unknown(
        &mut self,
        log: Log,
        news: Option<LaneKey>,
        in_flight: usize,
        cause: &str,
        now: Instant,
    ) -> bool {
        let Some(session) = news else { return false };
        let failures_to_open = self.settings.failures_to_open;
        let enough = failures_to_open as usize;
        let route = self.of(log);
        route.unknown = route.unknown.saturating_add(1);
        if route.unknown_sessions.len() < enough {
            route.unknown_sessions.insert(session);
        }
        // Allows for as many as may have been in flight together: a few new sessions at once are not an outage.
        let in_a_row = failures_to_open.saturating_add(u32::try_from(in_flight).unwrap_or(u32::MAX));
        let is_route = route.unknown_sessions.len() >= enough && route.unknown >= in_a_row;
        is_route && self.hold(log, Trouble::NoRoute, cause, now)
    }

    /// The answer was that the route does not exist, whatever the record. True if the kind is held from now on.
    pub(in crate::drain) fn absent(&mut self, log: Log, cause: &str, now: Instant) -> bool {
        let enough = self.settings.failures_to_open;
        let route = self.of(log);
        route.absent = route.absent.saturating_add(1);
        route.absent >= enough && self.hold(log, Trouble::NoRoute, cause, now)
    }

    /// Whether it is held because its sessions or its route are unknown.
    pub(in crate::drain) fn has_no_route(&self, log: Log) -> bool {
        self.held_for(log) == Some(Trouble::NoRoute)
    }

    /// The current progress of all kinds.
    pub(in crate::drain) fn progress(&self, now: Instant) -> Unknown {
        Unknown {
            delivering: self.routes.each_ref().map(|route| route.delivering + route.gap(now)),
            deliveries: self.routes.each_ref().map(|route| route.deliveries),
        }
    }

    /// How long its kind has been delivered since a session was first unknown.
    pub(in crate::drain) fn delivering_since(&self, log: Log, since: &Unknown) -> Duration {
        let at = place(log).unwrap_or_default();
        self.routes[at].delivering.saturating_sub(since.delivering[at])
    }

    /// Whether nothing of its kind was delivered since a session was first unknown.
    pub(in crate::drain) fn is_news(&self, log: Log, since: &Unknown) -> bool {
        let at = place(log).unwrap_or_default();
        self.routes[at].deliveries == since.deliveries[at]
    }

    /// Time with the link down does not count as delivering time.
    pub(in crate::drain) fn link_down(&mut self) {
        for route in &mut self.routes {
            route.last_delivery = None;
        }
    }
}
