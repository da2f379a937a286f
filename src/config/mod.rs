//! What the agent is told: flags, variables, defaults and help, declared once.
//!
//! Every setting is a field of one of the groups here. The field's `id` is its variable, its comment is its
//! help, its type and parser say what it may be. From that follow its flag, its line in `--help` and in
//! `check --print`. A value comes from, first to last: the flag, the environment, `.env`, a systemd
//! credential (secrets), the default. An empty value counts as unset.
//!
//! Nothing here starts anything, and nothing is read but the [`Sources`] and the files that they name.

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

/// The values of a `.env` file's text.
#[cfg(feature = "fuzzing")]
pub(crate) fn dotenv_values(
    text: &str,
    environment: impl Fn(&str) -> Option<String>,
) -> std::collections::BTreeMap<String, String> {
    dotenv::parse(text, environment).values
}

/// All the settings of the agent.
#[derive(Clone, Debug, clap::Args)]
pub struct Config {
    /// Who this agent is.
    #[command(flatten)]
    pub identity: IdentityConfig,
    /// Where records come from.
    #[command(flatten)]
    pub redis: RedisConfig,
    /// Where records are kept.
    #[command(flatten)]
    pub outbox: OutboxConfig,
    /// How records are sent.
    #[command(flatten)]
    pub delivery: DeliveryConfig,
    /// Where records go to.
    #[command(flatten)]
    pub control_plane: ControlPlaneConfig,
    /// The agent's own HTTP surface.
    #[command(flatten)]
    pub http: HttpConfig,
    /// What is logged, and where.
    #[command(flatten)]
    pub log: LogSettings,
    /// What is odd about the settings without keeping the agent from running. To be logged at start-up.
    #[arg(skip)]
    pub warnings: Vec<String>,
    #[arg(skip)]
    settings: Vec<Setting>,
}

impl Config {
    /// Reads all settings, or reports everything that is wrong with them.
    pub fn load(sources: &Sources) -> Result<Self, Problems> {
        let (mut config, review) = load::<Self>(sources)?;
        config.warnings = review.warnings;
        config.settings = review.settings;
        Ok(config)
    }

    /// Every setting with its value, secrets hidden, and where that came from.
    pub fn describe(&self) -> &[Setting] {
        &self.settings
    }

    /// What the log needs to know.
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
        // Of what is wrong already nothing more can be learnt.
        if review.is_good() {
            self.control_plane.check_client(&self.identity, review);
        }
    }
}
