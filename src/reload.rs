//! Takes in what has changed while the agent runs: settings when told to, secrets and certificates also when a file of
//! them is another than before.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, watch};

use crate::config::{Config, Problems, Secret, SecretSource, Setting, Sources};
use crate::control_plane::{Client, ClientError};
use crate::drain::{Controls, RateLimit};
use crate::intake;
use crate::systemd::Notify;
use crate::telemetry::log::LogLevel;

/// How often the files are looked at. A new key should not wait for a restart, nor for somebody to send a signal.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// What takes effect while the agent runs. Everything else takes a restart, and whoever changed it is told.
const AT_ONCE: [&str; 14] = [
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
    "DRAIN_BURST",
    "DRAIN_RATE_LIMIT",
    "LOG_LEVEL",
];

/// What a file's content is taken to depend on.
type Stamp = Option<(SystemTime, u64)>;

/// Why nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The settings cannot be used.
    #[error(transparent)]
    Settings(#[from] Problems),
    /// The ControlPlane's secrets and certificates cannot be used.
    #[error("the ControlPlane's secrets and certificates")]
    Client(#[from] ClientError),
    /// Redis' cannot.
    #[error("Redis' secrets and certificates")]
    Redis(#[from] intake::ClientError),
    /// Reading them failed.
    #[error("reading the settings failed")]
    Failed,
}

/// Reads the settings again and applies them to a running agent.
pub struct Reloader {
    sources: Sources,
    client: Arc<Client>,
    redis: intake::Server,
    controls: Controls,
    log_level: LogLevel,
    admin_token: watch::Sender<Option<Secret>>,
    /// As they were read last.
    known: Mutex<Vec<Setting>>,
}

impl Reloader {
    /// For an agent with this configuration, which came from these sources.
    pub fn new(
        config: &Config,
        sources: Sources,
        client: Arc<Client>,
        redis: intake::Server,
        controls: Controls,
        log_level: LogLevel,
    ) -> Self {
        let admin_token = watch::Sender::new(config.http.admin_token.clone());
        let known = Mutex::new(config.describe().to_vec());
        Self { sources, client, redis, controls, log_level, admin_token, known }
    }

    /// The token of the admin surface, as it is now.
    pub fn admin_token(&self) -> watch::Receiver<Option<Secret>> {
        self.admin_token.subscribe()
    }

    /// Reads all settings, and applies those that can be. Gives the names of changed ones that need a restart. With an
    /// error, no setting has changed.
    pub async fn reload(self: &Arc<Self>) -> Result<Vec<String>, ReloadError> {
        let this = Arc::clone(self);
        let read = tokio::task::spawn_blocking(move || this.read()).await;
        let need_restart = read.map_err(|_| ReloadError::Failed)??;
        if need_restart.is_empty() {
            tracing::info!("the settings were read again");
        } else {
            tracing::warn!(?need_restart, "the settings were read again; some that changed need a restart");
        }
        Ok(need_restart)
    }

    fn read(&self) -> Result<Vec<String>, ReloadError> {
        let config = Config::load(&self.sources)?;
        // First what can fail. Redis' files may have been taken in when the client's cannot be used: each is whole.
        self.redis.reload()?;
        let concurrency = config.delivery.concurrency;
        self.client.reconfigure(config.control_plane.client_settings(&config.identity, concurrency))?;
        self.controls.set_rate_limit(RateLimit {
            per_second: config.delivery.rate_limit,
            burst: config.delivery.burst,
        });
        self.log_level.set(config.log().level);
        self.admin_token.send_replace(config.http.admin_token.clone());
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = config.describe().iter().filter(|setting| !known.contains(setting));
        let need_restart = changed.filter(|setting| !AT_ONCE.contains(&setting.name.as_str()));
        let need_restart = need_restart.map(|setting| setting.name.clone()).collect();
        *known = config.describe().to_vec();
        Ok(need_restart)
    }

    /// Reads secrets and certificates again, and nothing else.
    async fn reread_files(self: &Arc<Self>) {
        let this = Arc::clone(self);
        match tokio::task::spawn_blocking(move || this.read_files()).await {
            Ok(Ok(())) => tracing::info!("secrets and certificates were read again"),
            Ok(Err(error)) => {
                let error = &*error as &dyn std::error::Error;
                tracing::error!(error, "secrets and certificates cannot be used; the old ones stay");
            }
            Err(error) => tracing::error!(%error, "reading secrets and certificates failed"),
        }
    }

    fn read_files(&self) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        if let Some(file) = self.admin_token_file() {
            self.admin_token.send_replace(Some(Secret::read(&file)?));
        }
        self.redis.reload()?;
        Ok(self.client.reload()?)
    }

    fn admin_token_file(&self) -> Option<PathBuf> {
        match self.admin_token.borrow().as_ref()?.source() {
            SecretSource::File(path) => Some(path.clone()),
            SecretSource::Value => None,
        }
    }

    async fn stamps(&self) -> Vec<Stamp> {
        let mut files = self.client.secret_files();
        files.extend(self.redis.secret_files().into_iter().chain(self.admin_token_file()));
        tokio::task::spawn_blocking(move || stamps(&files)).await.unwrap_or_default()
    }

    /// Reloads when told to, and when a secret's file has changed, until `stop` is true. What cannot be used is said, and
    /// what was in use stays.
    pub async fn run(
        self: Arc<Self>,
        notify: Notify,
        mut told: mpsc::Receiver<()>,
        mut stop: watch::Receiver<bool>,
    ) {
        let mut known = self.stamps().await;
        loop {
            tokio::select! {
                () = until_true(&mut stop) => return,
                Some(()) = told.recv() => {
                    notify.reloading().await;
                    if let Err(error) = self.reload().await {
                        let error = &error as &dyn std::error::Error;
                        tracing::error!(error, "the settings cannot be used; the old ones stay");
                    }
                    // Whether they could be used or not: the agent goes on.
                    notify.ready().await;
                    known = self.stamps().await;
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

async fn until_true(stop: &mut watch::Receiver<bool>) {
    // A sender that is gone means the same.
    let _ = stop.wait_for(|stop| *stop).await;
}

fn stamps(files: &[PathBuf]) -> Vec<Stamp> {
    let stamp = |file: &PathBuf| {
        let meta = std::fs::metadata(file).ok()?;
        Some((meta.modified().ok()?, meta.len()))
    };
    files.iter().map(stamp).collect()
}
