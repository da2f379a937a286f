//! Checks everything the agent needs, and gives advice on each problem.
//!
//! It leaves nothing behind: it uses a scratch key in Redis, a small file on the outbox's disk, and two requests to the
//! `ControlPlane`. It can run beside an agent.

mod control_plane;

use serde::Serialize;

use crate::app::intake_settings;
use crate::config::Config;
use crate::telemetry::finding::{Finding, FindingState};
use crate::{intake, outbox};

/// The findings of a check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CheckReport {
    /// Whether no check failed.
    pub ok: bool,
    /// The findings.
    pub checks: Vec<Finding>,
}

impl CheckReport {
    /// Collects findings.
    pub fn of(checks: Vec<Finding>) -> Self {
        Self { ok: checks.iter().all(|check| check.state != FindingState::Failed), checks }
    }
}

/// Checks everything that these settings name, except the agent that may run with them.
pub async fn run(config: &Config) -> Vec<Finding> {
    let mut checks = vec![configuration(config)];
    let settings = outbox_settings(config);
    let disk = tokio::task::spawn_blocking(move || outbox::probe(&settings));
    // Each check waits for another service: run them concurrently.
    let (redis, disk, plane) = tokio::join!(redis(config), disk, control_plane::probe(config));
    checks.extend(redis);
    checks.extend(disk.unwrap_or_else(|error| vec![Finding::failed("outbox", error.to_string(), REPORT)]));
    checks.extend(plane);
    checks
}

const REPORT: &str = "this is a bug in the agent: please report it";

fn configuration(config: &Config) -> Finding {
    let set = config.describe().iter().filter(|setting| setting.origin != crate::config::Origin::Default);
    let says = format!("{} settings are set, the rest are defaults", set.count());
    if config.warnings.is_empty() {
        return Finding::ok("configuration", says);
    }
    Finding::warning("configuration", says, config.warnings.join("; "))
}

fn outbox_settings(config: &Config) -> outbox::ProbeSettings {
    outbox::ProbeSettings {
        dir: config.outbox.dir.clone(),
        max_bytes: config.outbox.max_bytes.0,
        min_free_bytes: config.outbox.min_free_bytes.0,
        durability: config.outbox.durability,
    }
}

async fn redis(config: &Config) -> Vec<Finding> {
    match intake::server(&config.redis.server()) {
        Ok(server) => {
            let own = outbox::id_in(&config.outbox.dir);
            intake::probe(&intake_settings(config, server), own).await
        }
        Err(error) => {
            let chain = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
            let says = chain.map(ToString::to_string).collect::<Vec<_>>().join(": ");
            vec![Finding::failed("redis", says, "correct REDIS_URL and the REDIS_…_FILE settings")]
        }
    }
}
