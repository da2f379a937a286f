//! Reloads settings on request, and secrets and certificates when their files change.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, watch};

use crate::admin::{Reload, ReloadError};
use crate::config::{Config, ControlPlaneConfig, DeliveryConfig, Problems, Sources};
use crate::control_plane::{Client, ClientError, Settings};
use crate::drain::{Controls, RateLimit};
use crate::intake;
use crate::secret::{Secret, SecretSource};
use crate::telemetry::log::LogLevel;
use crate::telemetry::notify::Notify;

/// How often the files are checked: a new key should require neither a restart nor a signal.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Settings that take effect at run time. All others need a restart, and changes to them are reported.
const AT_ONCE: [&str; 15] = [
    "ADMIN_TOKEN",
    "API_KEY_HEADER",
    "CONTROL_PLANE_API_KEY",
    "CONTROL_PLANE_AUTH",
    "CONTROL_PLANE_CA_FILE",
    "CONTROL_PLANE_CLIENT_CERT_FILE",
    "CONTROL_PLANE_CLIENT_KEY_FILE",
    "CONTROL_PLANE_JWT_ALGORITHM",
    "CONTROL_PLANE_JWT_KEY",
    "CONTROL_PLANE_TIMEOUT",
    "DEBUG",
    "DRAIN_BANDWIDTH",
    "DRAIN_BURST",
    "DRAIN_RATE_LIMIT",
    "LOG_LEVEL",
];

/// Identifies a file's content by its modification time and size.
type Stamp = Option<(SystemTime, u64)>;

/// Why the settings were not reloaded.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReloadFailure {
    /// The settings are invalid.
    #[error(transparent)]
    Settings(#[from] Problems),
    /// The ControlPlane's secrets and certificates are invalid.
    #[error("cannot use the ControlPlane's secrets and certificates")]
    Client(#[from] ClientError),
    /// The secrets and certificates for Redis are invalid.
    #[error("cannot use the secrets and certificates for Redis")]
    Redis(#[from] intake::RedisClientError),
    /// Reading the settings failed.
    #[error("cannot read the settings")]
    Failed,
}

/// Reads the settings again and applies them to a running agent.
pub(super) struct Reloader {
    sources: Sources,
    client: Arc<Client>,
    redis: intake::RedisServer,
    controls: Controls,
    log_level: LogLevel,
    admin_token: watch::Sender<Option<Secret>>,
    /// The configuration at the start. Settings that need a restart are compared with it.
    started_with: Config,
    /// The files' stamps at the start.
    stamps: Vec<Stamp>,
    /// Serialises reloads: concurrent ones could each undo part of the other.
    reading: Mutex<()>,
}

impl Reloader {
    /// For an agent with this configuration, loaded from these sources. Create it right after loading: it notices changes from
    /// then on.
    pub(super) fn new(
        config: &Config,
        sources: Sources,
        client: Arc<Client>,
        redis: intake::RedisServer,
        controls: Controls,
        log_level: LogLevel,
    ) -> Self {
        let admin_token = watch::Sender::new(config.http.admin_token.clone());
        let (started_with, reading, stamps) = (config.clone(), Mutex::new(()), Vec::new());
        let new =
            Self { sources, client, redis, controls, log_level, admin_token, started_with, stamps, reading };
        Self { stamps: stamps_of(&new.files()), ..new }
    }

    /// The current token of the admin API.
    pub(super) fn admin_token(&self) -> watch::Receiver<Option<Secret>> {
        self.admin_token.subscribe()
    }

    /// Implements [`Reload::reload`].
    async fn read_again(self: &Arc<Self>) -> Result<Vec<String>, ReloadFailure> {
        let this = Arc::clone(self);
        let read = tokio::task::spawn_blocking(move || this.read()).await;
        let need_restart = read.map_err(|_| ReloadFailure::Failed)??;
        if need_restart.is_empty() {
            tracing::info!("settings reloaded");
        } else {
            tracing::warn!(?need_restart, "settings reloaded; some changes need a restart");
        }
        Ok(need_restart)
    }

    fn read(&self) -> Result<Vec<String>, ReloadFailure> {
        let _one = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        // IMPORTANT: everything that can fail comes before everything that cannot.
        let config = Config::load(&self.sources)?;
        let settings = client_settings(&self.started_with, &config);
        let (client, redis) = (self.client.prepare(settings)?, self.redis.prepare()?);
        self.client.adopt(client);
        self.redis.adopt(redis);
        let DeliveryConfig { rate_limit: per_second, burst, bandwidth, .. } = config.delivery;
        self.controls.set_rate_limit(RateLimit { per_second, burst });
        self.controls.set_bandwidth(bandwidth.0);
        self.log_level.set(config.log().level);
        self.admin_token.send_replace(config.http.admin_token.clone());
        Ok(need_restart(&self.started_with, &config))
    }

    /// Reads only the files of secrets and certificates again. Each is applied separately: an invalid file must not keep another
    /// from being renewed.
    async fn reread_files(self: &Arc<Self>) {
        let this = Arc::clone(self);
        if let Err(error) = tokio::task::spawn_blocking(move || this.read_files()).await {
            tracing::error!(%error, "secrets and certificates not reloaded: reading them failed");
        }
    }

    fn read_files(&self) {
        let _one = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        let token = self.admin_token_file().map(|file| Secret::read(&file)).transpose();
        let token = token.map(|token| {
            if let Some(token) = token {
                self.admin_token.send_replace(Some(token));
            }
        });
        let all_good = [
            tell("the admin surface", token),
            tell("the ControlPlane", self.client.reload()),
            tell("Redis", self.redis.reload()),
        ];
        if all_good == [true; 3] {
            tracing::info!("secrets and certificates reloaded");
        }
    }

    fn admin_token_file(&self) -> Option<PathBuf> {
        match self.admin_token.borrow().as_ref()?.source() {
            SecretSource::File(path) => Some(path.clone()),
            SecretSource::Value => None,
        }
    }

    fn files(&self) -> Vec<PathBuf> {
        let others = self.redis.secret_files().into_iter().chain(self.admin_token_file());
        self.client.secret_files().into_iter().chain(others).collect()
    }

    async fn stamps(&self) -> Vec<Stamp> {
        let files = self.files();
        tokio::task::spawn_blocking(move || stamps_of(&files)).await.unwrap_or_default()
    }

    /// Reloads on request and when a secret's file changes, until `stop` is true. Invalid values are logged, and the old ones
    /// stay in use.
    pub(super) async fn run(
        self: Arc<Self>,
        notify: Notify,
        mut told: mpsc::Receiver<()>,
        mut stop: watch::Receiver<bool>,
    ) {
        let mut known = self.stamps.clone();
        loop {
            tokio::select! {
                () = until_true(&mut stop) => return,
                Some(()) = told.recv() => {
                    notify.reloading().await;
                    // IMPORTANT: stamps are taken before reading: a change in between is then noticed in the next round.
                    known = self.stamps().await;
                    if let Err(error) = self.read_again().await {
                        let error = &error as &dyn std::error::Error;
                        tracing::error!(error, "settings not reloaded: they are invalid; the old ones stay in use");
                    }
                    // The agent keeps working in either case.
                    notify.ready().await;
                }
                () = tokio::time::sleep(LOOK_EVERY) => {
                    let found = self.stamps().await;
                    if found != known {
                        known = found;
                        self.reread_files().await;
                    }
                }
            }
        }
    }
}

impl Reload for Reloader {
    fn reload(self: Arc<Self>) -> BoxFuture<'static, Result<Vec<String>, ReloadError>> {
        async move { self.read_again().await.map_err(ReloadError::new) }.boxed()
    }
}

/// The client's settings after a reload: those that can change at run time are new; the others (the server's ID and version,
/// the proxy) are as at the start. Paths, tokens and headers must name the same server.
fn client_settings(started_with: &Config, now: &Config) -> Settings {
    let ControlPlaneConfig { auth, api_key, api_key_header, jwt_key, jwt_algorithm, .. } =
        now.control_plane.clone();
    let ControlPlaneConfig { ca_file, client_cert_file, client_key_file, timeout, .. } =
        now.control_plane.clone();
    let mixed = ControlPlaneConfig {
        auth,
        api_key,
        api_key_header,
        jwt_key,
        jwt_algorithm,
        ca_file,
        client_cert_file,
        client_key_file,
        timeout,
        ..started_with.control_plane.clone()
    };
    mixed.client_settings(&started_with.identity, started_with.delivery.concurrency)
}

/// Settings that differ from those at the start and need a restart.
fn need_restart(before: &Config, now: &Config) -> Vec<String> {
    let value = |config: &Config, name: &str| {
        config
            .describe()
            .iter()
            .find(|setting| setting.name == name)
            .and_then(|setting| setting.value.clone())
    };
    let mut names: Vec<_> = now.describe().iter().map(|setting| setting.name.clone()).collect();
    // Proxies are listed only while they are set.
    let gone = before.describe().iter().filter(|setting| !names.contains(&setting.name));
    let gone: Vec<_> = gone.map(|setting| setting.name.clone()).collect();
    names.extend(gone);
    // All values of a secret are shown alike. Files are read again where they are used.
    let differs = |before: &Option<Secret>, now: &Option<Secret>| match (before, now) {
        (Some(before), Some(now)) if matches!(now.source(), SecretSource::File(_)) => {
            before.source() != now.source()
        }
        _ => before != now,
    };
    let secrets = [
        ("REDIS_URL", differs(&before.redis.url, &now.redis.url)),
        ("REDIS_PASSWORD", differs(&before.redis.password, &now.redis.password)),
    ];
    names.retain(|name| {
        let secret = secrets.iter().find(|(secret, _)| secret == name);
        let changed = secret.map_or_else(|| value(before, name) != value(now, name), |(_, differs)| *differs);
        changed && !AT_ONCE.contains(&name.as_str())
    });
    names
}

/// Logs unusable values. Returns whether they are usable.
fn tell(whose: &str, read: Result<(), impl std::error::Error + 'static>) -> bool {
    let Err(error) = read else { return true };
    let error = &error as &dyn std::error::Error;
    tracing::error!(
        error,
        whose,
        "secrets and certificates not reloaded: they are invalid; the old ones stay in use"
    );
    false
}

async fn until_true(stop: &mut watch::Receiver<bool>) {
    // A dropped sender also means stop.
    let _ = stop.wait_for(|stop| *stop).await;
}

fn stamps_of(files: &[PathBuf]) -> Vec<Stamp> {
    let stamp = |file: &PathBuf| {
        let meta = std::fs::metadata(file).ok()?;
        Some((meta.modified().ok()?, meta.len()))
    };
    files.iter().map(stamp).collect()
}
