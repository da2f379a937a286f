//! The configuration: flags, variables, defaults and help, each declared once.
//!
//! Every setting is a field of one of the groups here. The field's `id` is its variable, its doc comment is its help, and its
//! type and parser define the valid values. The flag and the lines in `--help` and `check --print` follow from these. The
//! first source with a value wins: the flag, the environment, `.env`, a systemd credential (secrets only), the default. An
//! empty value counts as unset.
//!
//! This module starts nothing, and reads only the [`Sources`] and the files they name.

mod control_plane;
mod delivery;
mod dotenv;
mod dscp;
mod http;
mod identity;
mod load;
mod log;
mod outbox;
mod peer;
mod proxy;
mod redis;
mod sources;
mod spelling;
#[cfg(test)]
mod tests;
mod values;

pub use control_plane::ControlPlaneConfig;
pub use delivery::DeliveryConfig;
pub use dscp::Dscp;
pub use http::HttpConfig;
pub use identity::IdentityConfig;
pub use load::{Problem, Problems, Review, Setting, SettingsGroup, load};
pub use log::LogSettings;
pub use outbox::OutboxConfig;
pub use peer::PeerConfig;
pub use proxy::ProxyDecision;
pub use redis::RedisConfig;
pub use sources::{Flags, Origin, Sources};
pub use values::{BaseUrl, ByteSize};

use crate::telemetry::log::LogConfig;

/// Parses the text of a `.env` file.
#[cfg(feature = "fuzzing")]
pub(crate) fn dotenv_values(
    text: &str,
    environment: impl Fn(&str) -> Option<String>,
) -> std::collections::BTreeMap<String, String> {
    dotenv::parse(text, environment).values
}

/// All settings of the agent.
#[derive(Clone, Debug, clap::Args)]
pub struct Config {
    /// The agent's identity.
    #[command(flatten)]
    pub identity: IdentityConfig,
    /// The source of records.
    #[command(flatten)]
    pub redis: RedisConfig,
    /// The store of records.
    #[command(flatten)]
    pub outbox: OutboxConfig,
    /// How records are sent.
    #[command(flatten)]
    pub delivery: DeliveryConfig,
    /// The destination of records.
    #[command(flatten)]
    pub control_plane: ControlPlaneConfig,
    /// The agent's own HTTP surface.
    #[command(flatten)]
    pub http: HttpConfig,
    /// What is logged, and where.
    #[command(flatten)]
    pub log: LogSettings,
    /// Oddities in the settings that do not stop the agent, logged at start-up.
    #[arg(skip)]
    pub warnings: Vec<String>,
    #[arg(skip)]
    settings: Vec<Setting>,
}

impl Config {
    /// Reads all settings, or reports every problem.
    pub fn load(sources: &Sources) -> Result<Self, Problems> {
        let (mut config, review) = load::<Self>(sources)?;
        config.warnings = review.warnings;
        config.settings = review.settings;
        Ok(config)
    }

    /// Every setting with its value and its source. Secrets are hidden.
    pub fn describe(&self) -> &[Setting] {
        &self.settings
    }

    /// The settings of the log.
    pub fn log(&self) -> LogConfig {
        self.log.with_service_name(&self.identity.app_name)
    }
}

impl SettingsGroup for Config {
    fn check(&mut self, review: &mut Review) {
        self.redis.check(review);
        self.outbox.check(review);
        self.control_plane.check(review);
        self.http.check(review);
        self.log.check(review);
        // A client can be built only from valid settings.
        if review.is_good() {
            self.control_plane.check_client(&self.identity, review);
        }
    }
}
