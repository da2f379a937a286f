//! When held kinds are probed, and which of them is next.

use std::time::Duration;

use tokio::time::Instant;

use super::{Route, Routes};
use crate::drain::link::Settings;
use crate::drain::queues::{LOGS, place};
use crate::drain::verdict::Trouble;
use crate::outbox::Log;

/// Bad records ahead of good ones are probed quickly: this many probes are sent without backoff, or this many for each
/// refusal that engaged the brake. After that it counts as a bad release.
pub(super) const QUICK_PROBES: u32 = 1_000;
const QUICK_PROBES_OF_EACH: u32 = 10;
/// How long a brake waits for the delivery of a record that was never refused, before it walks past refused ones
/// (`drain/queues/walk.rs`).
pub(super) const WALK_AFTER: Duration = Duration::from_secs(20);

/// How many probes are sent without backoff.
pub(super) fn quick_probes(settings: &Settings) -> u32 {
    settings.refusal_brake.saturating_mul(QUICK_PROBES_OF_EACH).max(QUICK_PROBES)
}

/// When the next probe follows a probe of a held kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::drain) enum Pause {
    /// At once: it is the second half of a step.
    AtOnce,
    /// After this pause, while probes of a braked kind may be sent without backoff.
    Short(Duration),
    /// With backoff: the probe brought nothing new.
    Backoff,
}

impl Routes {
    /// The link is up again: held kinds may have failed with it.
    pub(in crate::drain) fn link_up(&mut self, now: Instant) {
        self.until = self.until.map(|until| until.min(now));
    }

    /// When a held log may be probed next, if there `is` something to send and no probe is in flight.
    pub(in crate::drain) fn next_probe(&self, is: impl Fn(Log) -> bool) -> Option<Instant> {
        let until = self.until.filter(|_| self.probing.is_none())?;
        let held = LOGS.into_iter().zip(&self.routes).filter(|(log, route)| route.held.is_some() && is(*log));
        held.map(|(_, route)| route.asked.map_or(until, |asked| asked.max(until))).min()
    }

    /// The log to probe now, among those with something to send (`is`).
    pub(in crate::drain) fn due(&self, now: Instant, is: impl Fn(Log) -> bool) -> Option<Log> {
        self.next_probe(&is).filter(|until| *until <= now)?;
        let in_turn = (0..LOGS.len()).map(|n| (self.turn + n) % LOGS.len());
        let may_go = |route: &Route| route.held.is_some() && route.asked.is_none_or(|asked| asked <= now);
        in_turn.filter(|at| may_go(&self.routes[*at])).map(|at| LOGS[at]).find(|log| is(*log))
    }

    /// A probe of this log was sent.
    pub(in crate::drain) fn probe_sent(&mut self, log: Log) {
        let at = place(log).unwrap_or_default();
        self.probing = Some(at);
        self.turn = at + 1;
    }

    /// The probe was answered, and its result has been reported.
    pub(in crate::drain) fn probe_answered(&mut self, log: Log, pause: Pause, now: Instant) {
        self.probing = None;
        // A release has already set the next probe of the others.
        let Some(held) = &self.known_of(log).held else { return };
        let walks_at = held.since + WALK_AFTER;
        let is_quick = self.quick_probes > 0 && self.all_held().all(|(log, _)| self.is_braked(log));
        match pause {
            Pause::AtOnce => {
                // The second half of a step is of the same kind.
                (self.until, self.turn) = (Some(now), place(log).unwrap_or_default());
            }
            Pause::Short(pause) if is_quick => {
                self.quick_probes -= 1;
                self.until = Some(now + pause);
            }
            Pause::Short(_) | Pause::Backoff => {
                self.failures = self.failures.saturating_add(1);
                self.wait(now);
                // A walk begins when it may.
                if is_quick && walks_at > now {
                    self.until = self.until.map(|until| until.min(walks_at));
                }
            }
        }
    }

    /// Whether a probe of this log may pass refused records.
    pub(in crate::drain) fn may_walk(&self, log: Log, now: Instant) -> bool {
        let held = self.known_of(log).held.as_ref();
        held.is_some_and(|held| held.trouble == Trouble::Refusing && now >= held.since + WALK_AFTER)
    }

    /// Delays probes of a held kind until this time.
    pub(in crate::drain) fn asked_to_wait(&mut self, log: Log, wait: Duration, now: Instant) {
        let route = self.of(log);
        (route.asked, route.asked_at) = (route.asked.max(Some(now + wait)), Some(now));
    }

    /// Overrides the wait for an operator: the next probe may be sent now.
    pub(in crate::drain) fn hurry(&mut self, now: Instant) {
        self.routes.iter_mut().for_each(|route| route.asked = None);
        self.link_up(now);
    }

    /// Sets the time of the next probe, with backoff.
    pub(super) fn wait(&mut self, now: Instant) {
        let (least, most) = (self.settings.initial_delay, self.settings.backoff(self.failures));
        self.until = Some(now + self.jitter.between(least, most));
    }
}
