//! Settings of the agent's HTTP surface: addresses, access, admin token.

use super::load::{Review, SettingsGroup};
use super::values::{host, port};
use crate::http::{TrustedHosts, TrustedIps};
use crate::secret::Secret;

/// A shorter token can be guessed.
const ADMIN_TOKEN_MIN_CHARS: usize = 16;

/// The HTTP surface.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "HTTP surface")]
pub struct HttpConfig {
    /// Address the agent listens on
    #[arg(id = "SERVER_HOST", default_value = "127.0.0.1", value_parser = host)]
    pub host: String,

    /// Port the agent listens on
    #[arg(id = "SERVER_PORT", default_value = "8010", value_parser = port)]
    pub port: u16,

    /// Additional port with the same pages and API; only a warning if it is in use
    #[arg(id = "METRICS_PORT", value_parser = port)]
    pub metrics_port: Option<u16>,

    /// Additional port with the same pages and API; only a warning if it is in use
    #[arg(id = "HEALTH_CHECK_PORT", value_parser = port)]
    pub health_check_port: Option<u16>,

    /// Addresses and CIDR blocks with access, separated by commas; unset: all
    #[arg(id = "TRUSTED_IPS")]
    pub trusted_ips: Option<TrustedIps>,

    /// Further names and addresses allowed in Host, with or without a port, separated by commas
    #[arg(id = "TRUSTED_HOSTS")]
    pub trusted_hosts: Option<TrustedHosts>,

    /// Bearer token of the admin API (/admin); unset: the admin API is off
    #[arg(id = "ADMIN_TOKEN")]
    pub admin_token: Option<Secret>,
}

impl SettingsGroup for HttpConfig {
    fn check(&mut self, review: &mut Review) {
        if let Some(token) = &self.admin_token {
            if !token.expose().bytes().all(|b| b.is_ascii_graphic()) {
                review.problem("ADMIN_TOKEN", "has characters that are not allowed in a bearer token");
            } else if token.expose().len() < ADMIN_TOKEN_MIN_CHARS {
                review.warn(format!("ADMIN_TOKEN is shorter than {ADMIN_TOKEN_MIN_CHARS} characters"));
            }
        }
    }
}
