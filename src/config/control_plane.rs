//! Settings of the `ControlPlane`: address, credentials, timeouts and back-off.

use std::path::PathBuf;
use std::time::Duration;

use clap::ValueHint;

use crate::control_plane::{Auth, Client, ClientError, HttpVersion, JwtAlgorithm, Settings};

use super::dscp::Dscp;
use super::identity::IdentityConfig;
use super::load::{Review, SettingsGroup};
use super::proxy::ProxyDecision;
use super::values::{BaseUrl, boolean, factor, header_name, seconds, whole};
use crate::fleet::commands::CommandAlgorithm;
use crate::secret::Secret;

/// Headers that every request sets or that frame it. An API key in one of them would break the request.
const RESERVED_HEADERS: [&str; 15] = [
    "Accept",
    "Authorization",
    "Connection",
    "Content-Encoding",
    "Content-Length",
    "Content-Type",
    "Expect",
    "Host",
    "Idempotency-Key",
    "TE",
    "Transfer-Encoding",
    "Upgrade",
    "User-Agent",
    "X-Correlation-ID",
    "traceparent",
];

/// The `ControlPlane`: address, credentials, back-off, periodic calls.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "ControlPlane")]
pub struct ControlPlaneConfig {
    /// Base URL of the ControlPlane's API
    #[arg(
        id = "CONTROL_PLANE_URL",
        alias = "control-plane-base-url",
        required = true,
        value_hint = ValueHint::Url
    )]
    pub url: BaseUrl,

    /// Which credentials are sent; default jwt if only CONTROL_PLANE_JWT_KEY is set
    #[arg(id = "CONTROL_PLANE_AUTH", default_value = "api_key")]
    pub auth: Auth,

    /// API key
    #[arg(id = "CONTROL_PLANE_API_KEY")]
    pub api_key: Option<Secret>,

    /// Header that carries the API key
    #[arg(id = "API_KEY_HEADER", default_value = "X-API-Key", value_parser = header_name)]
    pub api_key_header: String,

    /// Key that signs the agent's tokens: an HMAC secret, or a private key in PEM
    #[arg(id = "CONTROL_PLANE_JWT_KEY")]
    pub jwt_key: Option<Secret>,

    /// Signing algorithm of the agent's tokens; default: by the type of the key
    #[arg(id = "CONTROL_PLANE_JWT_ALGORITHM")]
    pub jwt_algorithm: Option<JwtAlgorithm>,

    /// Trust the certificate authorities in this PEM file instead of the system's
    #[arg(id = "CONTROL_PLANE_CA_FILE")]
    pub ca_file: Option<PathBuf>,

    /// Client certificate chain in PEM, for mutual TLS
    #[arg(id = "CONTROL_PLANE_CLIENT_CERT_FILE")]
    pub client_cert_file: Option<PathBuf>,

    /// Private key of that certificate, in PEM
    #[arg(id = "CONTROL_PLANE_CLIENT_KEY_FILE")]
    pub client_key_file: Option<PathBuf>,

    /// Warn when CONTROL_PLANE_URL is plain HTTP to another host
    #[arg(id = "ENABLE_TLS", default_value = "true", value_parser = boolean)]
    pub enable_tls: bool,

    /// Seconds without progress after which a request fails, while it is sent and while its answer is pending
    #[arg(id = "CONTROL_PLANE_TIMEOUT", default_value = "30", value_parser = seconds)]
    pub timeout: Duration,

    /// Failures in a row after which the link counts as down
    #[arg(id = "CONTROL_PLANE_RETRY_ATTEMPTS", default_value = "3", value_parser = whole(0, 1_000))]
    pub retry_attempts: u32,

    /// First delay after a failure, in seconds
    #[arg(id = "CONTROL_PLANE_INITIAL_ERROR_DELAY", default_value = "5", value_parser = seconds)]
    pub initial_error_delay: Duration,

    /// Longest delay, in seconds
    #[arg(id = "CONTROL_PLANE_MAX_BACKOFF", default_value = "30", value_parser = seconds)]
    pub max_backoff: Duration,

    /// Factor by which the delay grows after each further failure
    #[arg(
        id = "CONTROL_PLANE_ERROR_BACKOFF_MULTIPLIER",
        alias = "control-plane-retry-backoff-factor",
        default_value = "2.0",
        value_parser = factor
    )]
    pub error_backoff_multiplier: f64,

    /// Check the ControlPlane's health when the link has been idle
    #[arg(id = "CONTROL_PLANE_HEALTH_CHECK_ENABLED", default_value = "true", value_parser = boolean)]
    pub health_check_enabled: bool,

    /// Seconds of idle time before a health check
    #[arg(id = "CONTROL_PLANE_HEALTH_CHECK_INTERVAL", default_value = "300", value_parser = seconds)]
    pub health_check_interval: Duration,

    /// Seconds between heartbeats
    #[arg(id = "HEARTBEAT_INTERVAL", default_value = "60", value_parser = seconds)]
    pub heartbeat_interval: Duration,

    /// Seconds between polls for commands
    #[arg(id = "COMMAND_POLL_INTERVAL", default_value = "60", value_parser = seconds)]
    pub command_poll_interval: Duration,

    /// Seconds to remember a command's ID, so that none is executed twice
    #[arg(id = "COMMAND_CACHE_TTL", default_value = "86400", value_parser = seconds)]
    pub command_cache_ttl: Duration,

    /// Signing algorithm of the tokens in commands
    #[arg(id = "JWT_ALGORITHM", default_value = "RS256")]
    pub command_algorithm: CommandAlgorithm,

    /// Seconds to cache the ControlPlane's public keys
    #[arg(id = "JWT_PUBLIC_KEYS_CACHE_TTL", default_value = "3600", value_parser = seconds)]
    pub public_keys_cache_ttl: Duration,

    /// HTTP version; auto: 2 if the ControlPlane offers it over TLS, else 1.1
    #[arg(id = "CONTROL_PLANE_HTTP", default_value = "auto")]
    pub http: HttpVersion,

    /// DSCP of outgoing packets: a name (LE, CS1, AF11, EF) or a number from 0 to 63
    #[arg(id = "CONTROL_PLANE_DSCP")]
    pub dscp: Option<Dscp>,

    /// The proxy on the way there.
    #[arg(skip)]
    pub proxy: ProxyDecision,
}

impl SettingsGroup for ControlPlaneConfig {
    fn check(&mut self, review: &mut Review) {
        self.check_credentials(review);
        self.check_backoff(review);
        self.proxy = ProxyDecision::decide(&self.url, review);
        review.readable("CONTROL_PLANE_CA_FILE", self.ca_file.as_deref());
        review.pair(
            ("CONTROL_PLANE_CLIENT_CERT_FILE", self.client_cert_file.as_deref()),
            ("CONTROL_PLANE_CLIENT_KEY_FILE", self.client_key_file.as_deref()),
        );
        if self.enable_tls && !self.url.is_https() && !self.url.is_loopback() {
            review.warn(
                "CONTROL_PLANE_URL is plain HTTP to another host: credentials and records can be read on the \
                 network (ENABLE_TLS=false silences this warning)",
            );
        }
    }
}

impl ControlPlaneConfig {
    /// The client's settings.
    pub fn client_settings(&self, identity: &IdentityConfig, most_connections: u32) -> Settings {
        Settings {
            url: Secret::new(self.url.expose()),
            timeout: self.timeout,
            max_idle_connections: most_connections as usize,
            server_id: identity.server_id.clone(),
            version: identity.app_version.clone(),
            auth: self.auth,
            api_key_header: self.api_key_header.clone(),
            api_key: self.api_key.clone(),
            jwt_key: self.jwt_key.clone(),
            jwt_algorithm: self.jwt_algorithm,
            jwt_key_id: None,
            ca_file: self.ca_file.clone(),
            client_cert_file: self.client_cert_file.clone(),
            client_key_file: self.client_key_file.clone(),
            http: self.http,
            dscp: self.dscp.map(|dscp| dscp.0),
            proxy: self.proxy.settings(),
        }
    }

    /// Checks that a client can be built: only a client's constructor can tell whether keys and certificates are usable.
    pub(super) fn check_client(&self, identity: &IdentityConfig, review: &mut Review) {
        let Err(error) = Client::new(self.client_settings(identity, 1)) else { return };
        let variable = match &error {
            ClientError::Url(_) => "CONTROL_PLANE_URL",
            ClientError::Proxy(_) => "HTTPS_PROXY",
            ClientError::ServerId(_) => "SERVER_ID",
            ClientError::Version => "APP_VERSION",
            ClientError::ApiKey(_) => "CONTROL_PLANE_API_KEY",
            ClientError::JwtKey(_) => "CONTROL_PLANE_JWT_KEY",
            ClientError::File(_) | ClientError::HalfAnIdentity | ClientError::Tls(_) => {
                if self.client_cert_file.is_some() {
                    "CONTROL_PLANE_CLIENT_CERT_FILE"
                } else {
                    "CONTROL_PLANE_CA_FILE"
                }
            }
        };
        let chain = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
        review.problem(variable, chain.map(ToString::to_string).collect::<Vec<_>>().join(": "));
    }

    fn check_credentials(&mut self, review: &mut Review) {
        if !review.is_set("CONTROL_PLANE_AUTH") && self.api_key.is_none() && self.jwt_key.is_some() {
            self.auth = Auth::Jwt;
            review.derived("CONTROL_PLANE_AUTH", "jwt");
        }
        if self.auth != Auth::Jwt && self.api_key.is_none() {
            review.problem("CONTROL_PLANE_API_KEY", "required by CONTROL_PLANE_AUTH, but not set");
        }
        if self.auth != Auth::ApiKey && self.jwt_key.is_none() {
            review.problem("CONTROL_PLANE_JWT_KEY", "required by CONTROL_PLANE_AUTH, but not set");
        }
        if RESERVED_HEADERS.iter().any(|name| self.api_key_header.eq_ignore_ascii_case(name)) {
            review.problem("API_KEY_HEADER", format!("{:?} is a reserved header", self.api_key_header));
        }
        let is_header = |key: &Secret| key.expose().bytes().all(|b| (b' '..0x7f).contains(&b));
        if !self.api_key.as_ref().is_none_or(is_header) {
            review.problem("CONTROL_PLANE_API_KEY", "has characters that are not allowed in a header");
        }
    }

    fn check_backoff(&mut self, review: &mut Review) {
        if self.initial_error_delay > self.max_backoff {
            review.problem(
                "CONTROL_PLANE_INITIAL_ERROR_DELAY",
                format!("is longer than CONTROL_PLANE_MAX_BACKOFF ({} s)", self.max_backoff.as_secs_f64()),
            );
        }
        // Zero is raised to 1: a failure of the link never ends a record.
        if self.retry_attempts == 0 {
            review.warn("CONTROL_PLANE_RETRY_ATTEMPTS: 0 would never open the circuit; 1 is used");
            self.retry_attempts = 1;
            review.derived("CONTROL_PLANE_RETRY_ATTEMPTS", "1");
        }
        // Factors below 1 had another meaning in the previous agent. Its files must keep working.
        if self.error_backoff_multiplier < 1.0 {
            review.warn(format!(
                "CONTROL_PLANE_ERROR_BACKOFF_MULTIPLIER: {} would shorten the delays; 1 is used",
                self.error_backoff_multiplier
            ));
            self.error_backoff_multiplier = 1.0;
            review.derived("CONTROL_PLANE_ERROR_BACKOFF_MULTIPLIER", "1");
        }
    }
}
