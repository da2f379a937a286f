//! Settings of Redis: connection, queues, and how records are handed over.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use super::load::{Review, SettingsGroup};
use super::values::{boolean, host, name, port, seconds, seconds_or_zero, whole};
use crate::intake::{ClusterUrl, SentinelUrl, ServerSettings, SourceMode, hash_tag};
use crate::secret::Secret;

/// The session, a blocking command for each queue, the quota answers, and the mirror of dead letters.
const CONNECTIONS: u32 = 6;

/// Redis: the connection and the queues.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Redis")]
pub struct RedisConfig {
    /// redis://, rediss://, redis+sentinel://, redis+cluster:// or unix:// URL, instead of host, port, database and password
    #[arg(id = "REDIS_URL")]
    pub url: Option<Secret>,

    /// Address of Redis
    #[arg(id = "REDIS_HOST", default_value = "127.0.0.1", value_parser = host)]
    pub host: String,

    /// Port of Redis
    #[arg(id = "REDIS_PORT", default_value = "6379", value_parser = port)]
    pub port: u16,

    /// Database number
    #[arg(id = "REDIS_DB", default_value = "0", value_parser = whole(0, 65_535))]
    pub db: u32,

    /// Password of Redis
    #[arg(id = "REDIS_PASSWORD")]
    pub password: Option<Secret>,

    /// Timeout in seconds for connecting and for one answer
    #[arg(id = "REDIS_SOCKET_TIMEOUT", default_value = "30", value_parser = seconds)]
    pub socket_timeout: Duration,

    /// No effect (timeouts are always retried); accepted for the previous agent's files
    #[arg(id = "REDIS_RETRY_ON_TIMEOUT", default_value = "true", value_parser = boolean)]
    pub retry_on_timeout: bool,

    /// No effect (the agent opens at most six); accepted for the previous agent's files
    #[arg(id = "REDIS_MAX_CONNECTIONS", default_value = "10", value_parser = whole(1, 1_000))]
    pub max_connections: u32,

    /// Trust the certificate authorities in this PEM file instead of the system's (with rediss://)
    #[arg(id = "REDIS_CA_FILE")]
    pub ca_file: Option<PathBuf>,

    /// Client certificate chain in PEM, for mutual TLS (with rediss://)
    #[arg(id = "REDIS_CLIENT_CERT_FILE")]
    pub client_cert_file: Option<PathBuf>,

    /// Private key of that certificate, in PEM
    #[arg(id = "REDIS_CLIENT_KEY_FILE")]
    pub client_key_file: Option<PathBuf>,

    /// How producers hand over records: lists or streams
    #[arg(id = "SOURCE_MODE", default_value = "list")]
    pub source_mode: SourceMode,

    /// Queue of usage records
    #[arg(id = "USAGE_RECORDS_QUEUE", default_value = "queue:usage_records", value_parser = name)]
    pub usage_records_queue: String,

    /// Queue of session lifecycle events
    #[arg(id = "SESSION_LIFECYCLE_QUEUE", default_value = "queue:session_lifecycle", value_parser = name)]
    pub session_lifecycle_queue: String,

    /// Queue of quota refresh requests
    #[arg(id = "QUOTA_REFRESH_QUEUE", default_value = "queue:quota_refresh", value_parser = name)]
    pub quota_refresh_queue: String,

    /// Queue for the answers to quota refresh requests
    #[arg(id = "QUOTA_RESPONSE_QUEUE", default_value = "queue:quota_response", value_parser = name)]
    pub quota_response_queue: String,

    /// Queue to mirror dead letters to, newest first
    #[arg(id = "DEAD_LETTER_QUEUE", default_value = "queue:dead_letter", value_parser = name)]
    pub dead_letter_queue: String,

    /// Maximum number of dead letters in that queue (0: no mirror)
    #[arg(id = "DEAD_LETTER_MIRROR_MAX", default_value = "10000", value_parser = whole(0, 10_000_000))]
    pub dead_letter_mirror_max: u32,

    /// Seconds after which the in-flight records of an agent that is gone are reclaimed (0: never)
    #[arg(id = "ORPHAN_RECLAIM_SECONDS", default_value = "300", value_parser = seconds_or_zero)]
    pub orphan_reclaim: Duration,
}

impl SettingsGroup for RedisConfig {
    fn check(&mut self, review: &mut Review) {
        if self.max_connections < CONNECTIONS {
            review.warn(format!(
                "REDIS_MAX_CONNECTIONS: {} is too low; the agent opens up to {CONNECTIONS}",
                self.max_connections
            ));
        }
        let is_encrypted = self.check_url(review);
        self.check_queues(review);
        review.readable("REDIS_CA_FILE", self.ca_file.as_deref());
        review.pair(
            ("REDIS_CLIENT_CERT_FILE", self.client_cert_file.as_deref()),
            ("REDIS_CLIENT_KEY_FILE", self.client_key_file.as_deref()),
        );
        if !is_encrypted && (self.ca_file.is_some() || self.client_cert_file.is_some()) {
            review.warn(
                "REDIS_CA_FILE and REDIS_CLIENT_CERT_FILE have no effect without a rediss:// REDIS_URL",
            );
        }
    }
}

impl RedisConfig {
    /// Returns whether the connection is encrypted. Problems never quote the URL: it may contain a password.
    fn check_url(&self, review: &mut Review) -> bool {
        let Some(secret) = &self.url else { return false };
        Self::warn_of_ignored(review);
        if SentinelUrl::is_meant(secret.expose().trim()) {
            if let Err(problem) = SentinelUrl::parse(secret.expose().trim()) {
                review.problem("REDIS_URL", problem);
            }
            return false;
        }
        if ClusterUrl::is_meant(secret.expose().trim()) {
            return match ClusterUrl::parse(secret.expose().trim()) {
                Ok(url) => {
                    self.check_slots(review);
                    url.is_encrypted
                }
                Err(problem) => {
                    review.problem("REDIS_URL", problem);
                    false
                }
            };
        }
        let url = match url::Url::parse(secret.expose().trim()) {
            Ok(url) => url,
            Err(e) => {
                review.problem("REDIS_URL", format!("is not a URL: {e}"));
                return false;
            }
        };
        let is_socket = matches!(url.scheme(), "unix" | "redis+unix");
        let database = url.path().trim_start_matches('/');
        if !is_socket && !matches!(url.scheme(), "redis" | "rediss") {
            review.problem(
                "REDIS_URL",
                "is not a redis://, rediss://, redis+sentinel://, redis+cluster:// or unix:// URL",
            );
        } else if is_socket {
            if database.is_empty() || url.host_str().is_some_and(|host| !host.is_empty()) {
                review
                    .problem("REDIS_URL", "has no socket path (example: unix:///run/redis/redis.sock?db=0)");
            }
        } else if url.host_str().is_none_or(str::is_empty) {
            review.problem("REDIS_URL", "has no host name");
        } else if url.query().or(url.fragment()).is_some_and(|rest| rest.contains('@')) {
            // The parts of a password would be taken for the host and the port, and shown.
            review.problem("REDIS_URL", "has a password with # or ? in it: write them as %23 and %3F");
        } else if !database.is_empty() && database.parse::<u16>().is_err() {
            review.problem(
                "REDIS_URL",
                "has a path that is not a database number (example: redis://host:6379/0)",
            );
        }
        url.scheme() == "rediss"
    }

    fn warn_of_ignored(review: &mut Review) {
        let ignored = ["REDIS_HOST", "REDIS_PORT", "REDIS_DB", "REDIS_PASSWORD"];
        let ignored: Vec<_> = ignored.into_iter().filter(|variable| review.is_set(variable)).collect();
        if !ignored.is_empty() {
            review.warn(format!("REDIS_URL is set, so these have no effect: {}", ignored.join(", ")));
        }
    }

    /// The connection's settings.
    pub fn server(&self) -> ServerSettings {
        ServerSettings {
            url: self.url.clone(),
            host: self.host.clone(),
            port: self.port,
            db: self.db,
            password: self.password.clone(),
            socket_timeout: self.socket_timeout,
            ca_file: self.ca_file.clone(),
            client_cert_file: self.client_cert_file.clone(),
            client_key_file: self.client_key_file.clone(),
        }
    }

    /// In a cluster, the keys of a script must share a slot: all queues with lists, those of each stream with streams.
    fn check_slots(&self, review: &mut Review) {
        let queues = [
            ("USAGE_RECORDS_QUEUE", &self.usage_records_queue),
            ("SESSION_LIFECYCLE_QUEUE", &self.session_lifecycle_queue),
            ("QUOTA_REFRESH_QUEUE", &self.quota_refresh_queue),
        ];
        let tag = hash_tag(&self.usage_records_queue);
        for (variable, queue) in queues {
            let found = hash_tag(queue);
            match self.source_mode {
                SourceMode::List if found.is_none() || found != tag => review.problem(
                    variable,
                    "the queues of a Redis Cluster need a common hash tag (example: queue:{edge}:usage_records), \
                     or SOURCE_MODE=stream",
                ),
                SourceMode::Stream if found.is_none() && queue.contains(['{', '}']) => {
                    review.problem(variable, format!("the braces in {queue:?} are not a hash tag of a Redis Cluster"));
                }
                _ => {}
            }
        }
    }

    fn check_queues(&self, review: &mut Review) {
        let mut seen = BTreeSet::new();
        for (variable, queue) in [
            ("USAGE_RECORDS_QUEUE", &self.usage_records_queue),
            ("SESSION_LIFECYCLE_QUEUE", &self.session_lifecycle_queue),
            ("QUOTA_REFRESH_QUEUE", &self.quota_refresh_queue),
            ("QUOTA_RESPONSE_QUEUE", &self.quota_response_queue),
            ("DEAD_LETTER_QUEUE", &self.dead_letter_queue),
        ] {
            // With a shared name the agent would read its own answers, or mistake one kind of record for another.
            if !seen.insert(queue) {
                review.problem(variable, format!("{queue:?} is also the name of another queue"));
            }
        }
    }
}
