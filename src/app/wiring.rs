//! The wiring: the channels between the parts.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};

use super::settings::{acceptor, drain_settings, intake_settings, registration};
use crate::app::systemd::Service;
use crate::config::Config;
use crate::control_plane::Client;
use crate::drain::{Admission, AdmissionQueue, Controls, Drain, LinkStatus};
use crate::fleet::agent_metrics::AgentMetrics;
use crate::fleet::commands;
use crate::fleet::membership::{Failures, Membership};
use crate::http::{Hosts, Refusals, Surface};
use crate::intake::{self, Intake, Mirror, RedisStatus};
use crate::outbox::{Outbox, QuotaReply, Watermark};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::notify::Notify;

/// The first request after startup is sent at a random moment within this time, so that a fleet does not connect all at
/// once.
const FIRST_CONTACT_WITHIN: Duration = Duration::from_millis(500);

/// What the parts of an agent share, and the channels between them.
pub(super) struct Wiring {
    pub(super) config: Config,
    pub(super) client: Arc<Client>,
    pub(super) outbox: Outbox,
    pub(super) metrics: Arc<Metrics>,
    pub(super) redis: intake::RedisServer,
    pub(super) controls: Controls,
    pub(super) started: Instant,
    /// From the drain.
    pub(super) link: watch::Sender<LinkStatus>,
    /// From the intake.
    pub(super) redis_status: watch::Sender<RedisStatus>,
    /// From the intake: how far `completed` events may be read.
    pub(super) watermark: watch::Sender<Watermark>,
    /// From the membership.
    pub(super) registered: watch::Sender<bool>,
    pub(super) registration_trouble: watch::Sender<Option<String>>,
    /// Each of these stops a stage.
    pub(super) intake_stop: watch::Sender<bool>,
    pub(super) drain_stop: watch::Sender<bool>,
    pub(super) last_stop: watch::Sender<bool>,
}

impl Wiring {
    /// The intake's settings, which the other writers to Redis use too.
    pub(super) fn intake_settings(&self) -> intake::Settings {
        intake_settings(&self.config, self.redis.clone())
    }

    pub(super) fn intake(&self) -> Intake {
        Intake {
            settings: self.intake_settings(),
            outbox: self.outbox.clone(),
            acceptor: acceptor(&self.config),
            watermark: self.watermark.clone(),
            status: self.redis_status.clone(),
            metrics: Arc::clone(&self.metrics),
        }
    }

    pub(super) fn drain(&self, quota_answers: mpsc::Sender<QuotaReply>, admission: AdmissionQueue) -> Drain {
        Drain {
            outbox: self.outbox.clone(),
            client: Arc::clone(&self.client),
            settings: drain_settings(&self.config, self.first_contact_within()),
            quota_answers,
            watermark: self.watermark.subscribe(),
            metrics: Arc::clone(&self.metrics),
            status: self.link.clone(),
            orders: self.controls.subscribe(),
            admission,
        }
    }

    pub(super) fn mirror(&self) -> Mirror {
        Mirror {
            settings: self.intake_settings(),
            outbox: self.outbox.clone(),
            most: self.config.redis.dead_letter_mirror_max as usize,
            metrics: Arc::clone(&self.metrics),
        }
    }

    /// The metrics that the agent reports.
    pub(super) fn agent_metrics(&self) -> AgentMetrics {
        AgentMetrics {
            outbox: self.outbox.clone(),
            redis: self.redis_status.subscribe(),
            link: self.link.subscribe(),
            orders: self.controls.subscribe(),
            client: Arc::clone(&self.client),
            started: self.started,
        }
    }

    pub(super) fn membership(&self, admission: Admission) -> Membership {
        Membership {
            client: Arc::clone(&self.client),
            registration: registration(&self.config),
            interval: self.config.control_plane.heartbeat_interval,
            first_contact_within: self.first_contact_within(),
            agent_metrics: self.agent_metrics(),
            admission,
            registered: self.registered.clone(),
            trouble: self.registration_trouble.clone(),
            metrics: Arc::clone(&self.metrics),
            failures: Mutex::new(Failures::default()),
            unanswered: AtomicBool::new(false),
        }
    }

    pub(super) fn command_settings(&self) -> commands::Settings {
        let plane = &self.config.control_plane;
        commands::Settings {
            server_id: self.config.identity.server_id.clone(),
            poll_interval: plane.command_poll_interval,
            cache_ttl: plane.command_cache_ttl,
            algorithm: plane.command_algorithm,
            keys_ttl: plane.public_keys_cache_ttl,
        }
    }

    /// The state that the HTTP server shows.
    pub(super) fn surface(&self) -> Surface {
        let Config { identity, http, .. } = &self.config;
        let intake = self.intake_settings();
        Surface {
            server_id: identity.server_id.clone(),
            region: identity.server_region.clone(),
            version: identity.app_version.clone(),
            started: self.started,
            outbox: self.outbox.clone(),
            redis: self.redis_status.subscribe(),
            link: self.link.subscribe(),
            orders: self.controls.subscribe(),
            registered: self.registered.subscribe(),
            registration_trouble: self.registration_trouble.subscribe(),
            stopping: self.intake_stop.subscribe(),
            names: intake.names,
            metrics: Arc::clone(&self.metrics),
            client: Arc::clone(&self.client),
            redis_server: intake.server,
            trusted: http.trusted_ips.clone(),
            refused: Refusals::default(),
            hosts: Arc::new(Hosts::new(&http.host, http.trusted_hosts.as_ref())),
        }
    }

    /// The notifications to systemd.
    pub(super) fn service(&self, notify: Notify) -> Service {
        Service::new(
            notify,
            self.outbox.clone(),
            self.link.subscribe(),
            self.controls.subscribe(),
            self.redis_status.subscribe(),
            Arc::clone(&self.client),
        )
    }

    fn first_contact_within(&self) -> Duration {
        self.config.control_plane.initial_error_delay.min(FIRST_CONTACT_WITHIN)
    }
}
