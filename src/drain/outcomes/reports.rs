//! Reports outcomes to the link and the routes, and logs what changes.

use std::time::Duration;

use tokio::time::Instant;

use crate::drain::DrainLoop;
use crate::drain::link::{Change, Circuit, Flight, asked_wait};
use crate::drain::queues::{LaneKey, kind_of};
use crate::drain::routes::{Attribution, LinkFailure};
use crate::drain::verdict::Trouble;
use crate::outbox::Log;

impl DrainLoop {
    pub(super) fn delivered(&mut self, log: Log, records: u64, flight: Flight, now: Instant) {
        self.link_delivered(flight, now);
        self.route_delivered(log, records, flight.sent, now);
    }

    /// Reports a request that delivered records to the link: once, whatever it contains.
    pub(super) fn link_delivered(&mut self, flight: Flight, now: Instant) {
        self.renewed_token = false;
        let change = self.link.delivered(flight, now);
        if change == Some(Change::Up) {
            self.batching.ask_again();
        }
        self.announce(change);
    }

    pub(super) fn route_delivered(&mut self, log: Log, records: u64, sent: Instant, now: Instant) {
        if self.routes.delivered(log, records, sent, now) {
            self.let_go(log, now);
        }
    }

    /// A held type is released.
    pub(in crate::drain) fn let_go(&mut self, log: Log, now: Instant) {
        tracing::info!(kind = kind_of(log).name(), "sending records of this type again");
        if !self.routes.was_braked_briefly(log) {
            self.link.begin_small(now);
        }
        if log == Log::Usage {
            self.batching.ask_again();
        }
    }

    /// Whether an answer without success, to a record of this kind, shows that the link is up. While other kinds keep it
    /// down, a held kind's refusal shows nothing new: the link would come up and go down again with every probe.
    pub(super) fn shows_the_link(&self, log: Log) -> bool {
        self.link.circuit() == Circuit::Closed || !self.routes.is_held(log) || !self.lanes.has_ready()
    }

    /// A request was answered, though without success.
    pub(super) fn answers(&mut self, log: Log, now: Instant) {
        if self.shows_the_link(log) {
            let change = self.link.answered(now);
            self.announce(change);
        }
        self.let_go_if_answered(log, now);
    }

    pub(super) fn let_go_if_answered(&mut self, log: Log, now: Instant) {
        if self.routes.answered(log, now) {
            self.let_go(log, now);
        }
    }

    /// A type is held from now on.
    pub(super) fn held(&self, log: Log) {
        let held = self.routes.all_held().find(|(of, _)| *of == log);
        if let Some((_, held)) = held {
            tracing::warn!(
                kind = kind_of(log).name(),
                reason = held.trouble.label(),
                cause = held.cause,
                "the ControlPlane does not accept records of this type; they wait in the outbox"
            );
        }
    }

    /// A request failed with what may be the link's trouble. Reports it to the link, unless only its kind is in trouble.
    pub(super) fn troubled(
        &mut self,
        log: Log,
        lanes: impl Iterator<Item = LaneKey>,
        trouble: Trouble,
        retry_after: Option<Duration>,
        flight: Flight,
        now: Instant,
    ) {
        let asked = asked_wait(retry_after);
        let failure =
            LinkFailure { trouble, sent: flight.sent, is_asked: asked.is_some(), cause: &self.heard };
        let attribution = self.routes.troubled(log, lanes, failure, now);
        if attribution == Attribution::Link {
            let change = self.link.failed(trouble, retry_after, flight, now);
            self.announce(change);
            return;
        }
        if attribution == Attribution::KindFromNowOn {
            self.link.was_not_to_blame(trouble, now);
            self.held(log);
        }
        if let Some(wait) = asked {
            self.routes.asked_to_wait(log, wait, now);
        }
    }

    /// Renews the credentials once: the token may be too old, or signed with a replaced key.
    pub(super) fn renew_credentials(&mut self, trouble: Trouble) {
        if trouble == Trouble::Credentials && !self.renewed_token {
            self.renewed_token = true;
            self.drain.client.renew_token();
        }
    }

    /// Logs a change of the link's state.
    pub(in crate::drain) fn announce(&mut self, change: Option<Change>) {
        match change {
            Some(Change::Down(trouble)) => {
                tracing::warn!(
                    reason = trouble.label(),
                    cause = self.heard,
                    control_plane = self.drain.client.origin(),
                    proxy = self.drain.client.proxy(),
                    "the link to the ControlPlane is down: records wait in the outbox, and the agent probes until it answers"
                );
                self.cause = Some(self.heard.clone());
                self.down_since.get_or_insert_with(Instant::now);
                self.routes.link_down();
            }
            Some(Change::Up) => {
                tracing::info!("the link to the ControlPlane is up");
                (self.cause, self.down_since) = (None, None);
                self.routes.link_up(Instant::now());
            }
            None => {}
        }
    }
}
