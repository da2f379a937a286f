//! Derives each part's settings from the configuration.

use std::time::Duration;

use crate::config::Config;
use crate::control_plane::{Capabilities, Registration};
use crate::drain::{self, BatchSettings, LinkSettings, QueueSettings};
use crate::intake::{self, Names};
use crate::record::{Acceptor, Enrichment};

fn names(config: &Config) -> Names {
    Names {
        usage: config.redis.usage_records_queue.clone(),
        lifecycle: config.redis.session_lifecycle_queue.clone(),
        quota: config.redis.quota_refresh_queue.clone(),
        quota_response: config.redis.quota_response_queue.clone(),
        dead_letters: config.redis.dead_letter_queue.clone(),
        server_id: config.identity.server_id.clone(),
    }
}

/// The configured settings of the intake.
pub(crate) fn intake_settings(config: &Config, server: intake::RedisServer) -> intake::Settings {
    intake::Settings {
        server,
        names: names(config),
        timeout: config.redis.socket_timeout,
        mode: config.redis.source_mode,
        orphan_reclaim: config.redis.orphan_reclaim,
    }
}

pub(super) fn acceptor(config: &Config) -> Acceptor {
    let enrichment = Enrichment {
        server_id: config.identity.server_id.clone(),
        region: config.identity.server_region.clone(),
        version: config.identity.app_version.clone(),
    };
    Acceptor::new(
        &enrichment,
        config.delivery.unknown_fields,
        usize::try_from(config.outbox.record_max_bytes.0).unwrap_or(usize::MAX),
    )
}

pub(super) fn drain_settings(config: &Config, first_contact_within: Duration) -> drain::Settings {
    let (plane, delivery) = (&config.control_plane, &config.delivery);
    drain::Settings {
        queues: QueueSettings::default(),
        link: LinkSettings {
            failures_to_open: plane.retry_attempts,
            initial_delay: plane.initial_error_delay,
            max_backoff: plane.max_backoff,
            multiplier: plane.error_backoff_multiplier,
            concurrency: delivery.concurrency as usize,
            refusal_brake: delivery.refusal_brake,
        },
        batch: BatchSettings {
            mode: delivery.mode,
            max_records: delivery.batch_max_records as usize,
            max_bytes: delivery.batch_max_bytes.0 as usize,
            compression: delivery.batch_compression,
        },
        session_order: delivery.session_order,
        quota_ttl: delivery.quota_refresh_ttl,
        session_grace: delivery.session_unknown_grace,
        poison_attempts: delivery.poison_attempts,
        first_contact_within,
    }
}

pub(super) fn registration(config: &Config) -> Registration {
    Registration {
        region: config.identity.server_region.clone(),
        ip_address: config.identity.dataplane_host.clone(),
        port: config.identity.dataplane_port,
        capabilities: Capabilities {
            max_concurrent_sessions: 1000,
            supported_products: "speech_transcription,speech_synthesis,real_time_streaming".into(),
            supported_languages: "*".into(),
        },
    }
}
