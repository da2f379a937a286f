//! The way to Redis: address, login, TLS, and how long anything may take.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::io::tcp::{TcpSettings, socket2};
use redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, ConnectionAddr, IntoConnectionInfo, TlsCertificates,
};
use tokio::sync::Mutex;

use super::Settings;
use crate::config::{RedisConfig, SentinelUrl};
use crate::expiry::{self, Expiry};

/// A connection on which nothing comes is probed after so long, and then this often: a peer that vanished without a
/// word is noticed even where nothing is asked of it.
const KEEPALIVE: Duration = Duration::from_secs(15);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);

/// Why there is no way to Redis that could be tried.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// A file with a certificate or key cannot be read.
    #[error("{variable}: cannot read {path}")]
    File {
        /// The variable that names it.
        variable: &'static str,
        /// The file.
        path: String,
        /// What went wrong.
        #[source]
        source: std::io::Error,
    },
    /// The address or the certificates are none.
    #[error("the way to Redis")]
    Redis(#[from] redis::RedisError),
}

/// How Redis is reached. Clones share it.
#[derive(Clone)]
pub struct Server {
    way: Way,
    expiries: Vec<Expiry>,
}

impl Server {
    /// When the certificates end that are in use.
    pub fn expiries(&self) -> Vec<Expiry> {
        self.expiries.clone()
    }
}

#[derive(Clone)]
enum Way {
    Direct(Box<Client>),
    /// Sentinels are asked for the primary with every connection: after a fail-over it is another.
    Sentinel(Arc<Mutex<SentinelClient>>),
}

/// The configured Redis. Connects to nothing yet.
pub fn server(config: &RedisConfig) -> Result<Server, ClientError> {
    let mut expiries = Vec::new();
    let way = match config.sentinel() {
        Some(url) => Way::Sentinel(Arc::new(Mutex::new(sentinel(url, tcp(config))?))),
        None => Way::Direct(Box::new(client(config, &mut expiries)?)),
    };
    Ok(Server { way, expiries })
}

fn sentinel(url: SentinelUrl, tcp: TcpSettings) -> redis::RedisResult<SentinelClient> {
    let sentinels = url.sentinels.into_iter().map(|(host, port)| ConnectionAddr::Tcp(host, port));
    let mut builder = SentinelClientBuilder::new(sentinels, url.name, SentinelServerType::Master)?
        .set_client_to_redis_db(i64::from(url.db))
        .set_client_to_redis_tcp_settings(tcp.clone())
        .set_client_to_sentinel_tcp_settings(tcp);
    if let Some(user) = url.user {
        builder = builder.set_client_to_redis_username(user);
    }
    if let Some(password) = url.password {
        builder = builder.set_client_to_redis_password(password);
    }
    builder.build()
}

fn tcp(config: &RedisConfig) -> TcpSettings {
    TcpSettings::default()
        .set_nodelay(true)
        .set_keepalive(socket2::TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE_INTERVAL))
        // What was sent and is not confirmed: without it the kernel retries for a quarter of an hour.
        .set_user_timeout(config.socket_timeout)
}

fn client(config: &RedisConfig, expiries: &mut Vec<Expiry>) -> Result<Client, ClientError> {
    let info = match &config.url {
        Some(url) => url.expose().trim().into_connection_info()?,
        None => {
            let mut login = redis::RedisConnectionInfo::default().set_db(i64::from(config.db));
            if let Some(password) = &config.password {
                login = login.set_password(password.expose());
            }
            ConnectionAddr::Tcp(config.host.clone(), config.port)
                .into_connection_info()?
                .set_redis_settings(login)
        }
    };
    let info = info.set_tcp_settings(tcp(config));
    if matches!(info.addr(), ConnectionAddr::TcpTls { .. }) {
        let certificates = certificates(config)?;
        let authorities = certificates.root_cert.as_deref();
        expiries.extend(authorities.and_then(|pem| expiry::of_authorities("redis_ca", pem)));
        let own = certificates.client_tls.as_ref();
        expiries.extend(own.and_then(|own| expiry::of_chain("redis_client", &own.client_cert)));
        return Ok(Client::build_with_tls(info, certificates)?);
    }
    Ok(Client::open(info)?)
}

fn certificates(config: &RedisConfig) -> Result<TlsCertificates, ClientError> {
    let client_tls = match (&config.client_cert_file, &config.client_key_file) {
        (Some(cert), Some(key)) => Some(ClientTlsConfig {
            client_cert: read("REDIS_CLIENT_CERT_FILE", cert)?,
            client_key: read("REDIS_CLIENT_KEY_FILE", key)?,
        }),
        _ => None,
    };
    let root_cert = config.ca_file.as_deref().map(|path| read("REDIS_CA_FILE", path)).transpose()?;
    Ok(TlsCertificates { client_tls, root_cert })
}

fn read(variable: &'static str, path: &Path) -> Result<Vec<u8>, ClientError> {
    std::fs::read(path).map_err(|source| ClientError::File {
        variable,
        path: path.display().to_string(),
        source,
    })
}

/// Connects with time-outs; `patience` is added for commands that block.
pub(super) async fn connect(
    settings: &Settings,
    patience: Duration,
) -> redis::RedisResult<MultiplexedConnection> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(settings.timeout))
        .set_response_timeout(Some(settings.timeout + patience));
    match &settings.server.way {
        Way::Direct(client) => client.get_multiplexed_async_connection_with_config(&config).await,
        Way::Sentinel(sentinels) => {
            // Asking takes several connections, of which each has a time-out of its own.
            let asked = async { sentinels.lock().await.get_async_connection_with_config(&config).await };
            let late = || std::io::Error::from(std::io::ErrorKind::TimedOut);
            tokio::time::timeout(settings.timeout, asked).await.unwrap_or_else(|_| Err(late().into()))
        }
    }
}
