//! Connections to Redis: address, login, TLS, and timeouts.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster::{ClusterClient, ClusterConfig};
use redis::cluster_async::ClusterConnection;
use redis::io::tcp::{TcpSettings, socket2};
use redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, Cmd, ConnectionAddr, IntoConnectionInfo, Pipeline,
    RedisFuture, RedisResult, TlsCertificates, Value,
};
use tokio::sync::Mutex;

use super::Settings;
use super::address::{ClusterUrl, SentinelUrl, ServerSettings, host_and_port};
use crate::secret::expiry::{self, Expiry};
use crate::secret::{Secret, SecretSource, read_small};

/// Delay and interval of keepalive probes on an idle connection, which detect a vanished peer without a request.
const KEEPALIVE: Duration = Duration::from_secs(15);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);

/// Connect timeout of a node: unreachable nodes must not use up the time for the others.
const NODE_CONNECT: Duration = Duration::from_secs(3);
/// How often a cluster client follows a slot to another node, or waits for a node, within one call. After that the session
/// ends.
const CLUSTER_RETRIES: u32 = 4;
const CLUSTER_RETRY_MS: (u64, u64) = (10, 500);

/// Why the settings do not allow a connection attempt.
#[derive(Debug, thiserror::Error)]
pub enum RedisClientError {
    /// A file with a certificate, key or password cannot be read.
    #[error("{variable}: cannot read {path}")]
    File {
        /// The variable that names the file.
        variable: &'static str,
        /// The file.
        path: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The address or the certificates are invalid.
    #[error("cannot use the Redis settings")]
    Redis(#[from] redis::RedisError),
}

/// The Redis server. Clones share it.
#[derive(Clone)]
pub struct RedisServer(Arc<ServerState>);

struct ServerState {
    settings: ServerSettings,
    loaded: RwLock<Loaded>,
}

/// Reloaded files, ready to use.
pub struct PreparedServer(Loaded);

/// The parts derived from the settings and their files.
struct Loaded {
    client: RedisClient,
    address: String,
    expiries: Vec<Expiry>,
}

#[derive(Clone)]
enum RedisClient {
    Direct(Box<Client>),
    /// Sentinels are asked for the primary at every connection attempt: it changes in a fail-over.
    Sentinel(Arc<Mutex<SentinelClient>>),
    Cluster(Box<ClusterClient>),
    #[cfg(feature = "simulation")]
    Simulated(Arc<dyn super::simulated::Redis>),
}

/// The configured Redis. Connects to nothing yet.
pub fn server(settings: &ServerSettings) -> Result<RedisServer, RedisClientError> {
    let loaded = RwLock::new(Loaded::of(settings)?);
    Ok(RedisServer(Arc::new(ServerState { settings: settings.clone(), loaded })))
}

impl RedisServer {
    /// A simulated Redis.
    #[cfg(feature = "simulation")]
    pub fn simulated(settings: &ServerSettings, redis: Arc<dyn super::simulated::Redis>) -> Self {
        let loaded = RwLock::new(Loaded {
            client: RedisClient::Simulated(redis),
            address: "simulated".to_owned(),
            expiries: Vec::new(),
        });
        Self(Arc::new(ServerState { settings: settings.clone(), loaded }))
    }

    /// Reloads certificates, keys and passwords from their files, for future connections. On an error nothing changes.
    /// Reads files: do not call it on a thread that must not block.
    pub fn reload(&self) -> Result<(), RedisClientError> {
        self.adopt(self.prepare()?);
        Ok(())
    }

    /// The same, but changes nothing until [`Self::adopt`].
    pub fn prepare(&self) -> Result<PreparedServer, RedisClientError> {
        let mut settings = self.0.settings.clone();
        for (variable, secret) in
            [("REDIS_URL", &mut settings.url), ("REDIS_PASSWORD", &mut settings.password)]
        {
            if let Some(SecretSource::File(path)) = secret.as_ref().map(Secret::source) {
                *secret = Some(Secret::read(path).map_err(|source| unreadable(variable, path, source))?);
            }
        }
        Ok(PreparedServer(Loaded::of(&settings)?))
    }

    /// Uses the prepared files for future connections.
    pub fn adopt(&self, prepared: PreparedServer) {
        *self.0.loaded.write().unwrap_or_else(PoisonError::into_inner) = prepared.0;
    }

    /// The files that [`Self::reload`] reads.
    pub fn secret_files(&self) -> Vec<PathBuf> {
        let ServerSettings { url, password, ca_file, client_cert_file, client_key_file, .. } =
            &self.0.settings;
        let secrets = [url, password].into_iter().flatten().filter_map(|secret| match secret.source() {
            SecretSource::File(path) => Some(path),
            SecretSource::Value => None,
        });
        let files = [ca_file, client_cert_file, client_key_file].into_iter().flatten();
        secrets.chain(files).cloned().collect()
    }

    /// Whether keys are spread over nodes.
    pub(super) fn is_cluster(&self) -> bool {
        matches!(self.client(), RedisClient::Cluster(_))
    }

    /// Its address, for people; never the login.
    pub(super) fn address(&self) -> String {
        self.0.loaded.read().unwrap_or_else(PoisonError::into_inner).address.clone()
    }

    /// When the certificates in use expire.
    pub fn expiries(&self) -> Vec<Expiry> {
        self.0.loaded.read().unwrap_or_else(PoisonError::into_inner).expiries.clone()
    }

    fn client(&self) -> RedisClient {
        self.0.loaded.read().unwrap_or_else(PoisonError::into_inner).client.clone()
    }
}

impl Loaded {
    fn of(settings: &ServerSettings) -> Result<Self, RedisClientError> {
        let mut expiries = Vec::new();
        let list = |hosts: &[(String, u16)]| {
            hosts.iter().map(|(host, port)| host_and_port(host, *port)).collect::<Vec<_>>().join(", ")
        };
        let (address, client) = if let Some(url) = settings.sentinel() {
            let address = format!("primary {} of the sentinels {}", url.name, list(&url.sentinels));
            (address, RedisClient::Sentinel(Arc::new(Mutex::new(sentinel(url, tcp(settings))?))))
        } else if let Some(url) = settings.cluster() {
            let address = format!("cluster {}", list(&url.nodes));
            (address, RedisClient::Cluster(Box::new(cluster(url, settings, &mut expiries)?)))
        } else {
            let client = client(settings, &mut expiries)?;
            let address = match client.get_connection_info().addr() {
                ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
                    host_and_port(host, *port)
                }
                other => other.to_string(),
            };
            (address, RedisClient::Direct(Box::new(client)))
        };
        Ok(Self { client, address, expiries })
    }
}

fn cluster(
    url: ClusterUrl,
    settings: &ServerSettings,
    expiries: &mut Vec<Expiry>,
) -> Result<ClusterClient, RedisClientError> {
    let address = |(host, port)| {
        if url.is_encrypted {
            ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None }
        } else {
            ConnectionAddr::Tcp(host, port)
        }
    };
    let (least, most) = CLUSTER_RETRY_MS;
    let mut builder = ClusterClient::builder(url.nodes.into_iter().map(address))
        .tcp_settings(tcp(settings))
        .retries(CLUSTER_RETRIES)
        .min_retry_wait(least)
        .max_retry_wait(most);
    if url.is_encrypted {
        builder = builder.certs(certificates(settings, expiries)?);
    }
    if let Some(user) = url.user {
        builder = builder.username(user);
    }
    if let Some(password) = url.password {
        builder = builder.password(password);
    }
    Ok(builder.build()?)
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

fn tcp(settings: &ServerSettings) -> TcpSettings {
    TcpSettings::default()
        .set_nodelay(true)
        .set_keepalive(socket2::TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE_INTERVAL))
        // Limits how long data may stay unacknowledged: otherwise the kernel retries for a quarter of an hour.
        .set_user_timeout(settings.socket_timeout)
}

fn client(settings: &ServerSettings, expiries: &mut Vec<Expiry>) -> Result<Client, RedisClientError> {
    let info = match &settings.url {
        Some(url) => url.expose().trim().into_connection_info()?,
        None => {
            let mut login = redis::RedisConnectionInfo::default().set_db(i64::from(settings.db));
            if let Some(password) = &settings.password {
                login = login.set_password(password.expose());
            }
            ConnectionAddr::Tcp(settings.host.clone(), settings.port)
                .into_connection_info()?
                .set_redis_settings(login)
        }
    };
    let info = info.set_tcp_settings(tcp(settings));
    if matches!(info.addr(), ConnectionAddr::TcpTls { .. }) {
        return Ok(Client::build_with_tls(info, certificates(settings, expiries)?)?);
    }
    Ok(Client::open(info)?)
}

fn certificates(
    settings: &ServerSettings,
    expiries: &mut Vec<Expiry>,
) -> Result<TlsCertificates, RedisClientError> {
    let client_tls = match (&settings.client_cert_file, &settings.client_key_file) {
        (Some(cert), Some(key)) => Some(ClientTlsConfig {
            client_cert: read("REDIS_CLIENT_CERT_FILE", cert)?,
            client_key: read("REDIS_CLIENT_KEY_FILE", key)?,
        }),
        _ => None,
    };
    let root_cert = settings.ca_file.as_deref().map(|path| read("REDIS_CA_FILE", path)).transpose()?;
    expiries.extend(root_cert.as_deref().and_then(|pem| expiry::of_authorities("redis_ca", pem)));
    let own = client_tls.as_ref();
    expiries.extend(own.and_then(|own| expiry::of_chain("redis_client", &own.client_cert)));
    Ok(TlsCertificates { client_tls, root_cert })
}

fn read(variable: &'static str, path: &Path) -> Result<Vec<u8>, RedisClientError> {
    read_small(path).map_err(|source| unreadable(variable, path, source))
}

fn unreadable(variable: &'static str, path: &Path, source: std::io::Error) -> RedisClientError {
    RedisClientError::File { variable, path: path.display().to_string(), source }
}

/// A connection; for a cluster, one to each node.
#[derive(Clone)]
pub(super) enum Connection {
    One(MultiplexedConnection),
    Cluster(ClusterConnection),
    #[cfg(feature = "simulation")]
    Simulated(Arc<dyn super::simulated::RedisConnection>),
}

impl Connection {
    /// A section of `INFO`, from every node.
    pub(super) async fn info(&mut self, section: &str) -> RedisResult<Vec<String>> {
        let mut command = redis::cmd("INFO");
        command.arg(section);
        let answer: Value = command.query_async(self).await?;
        let texts = match answer {
            Value::Map(nodes) => nodes.into_iter().map(|(_, text)| text).collect(),
            text => vec![text],
        };
        texts.into_iter().map(|text| Ok(redis::from_redis_value(text)?)).collect()
    }
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::One(one) => one.req_packed_command(cmd),
            Self::Cluster(cluster) => cluster.req_packed_command(cmd),
            #[cfg(feature = "simulation")]
            Self::Simulated(simulated) => simulated.command(cmd),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::One(one) => one.req_packed_commands(pipeline, offset, count),
            Self::Cluster(cluster) => cluster.req_packed_commands(pipeline, offset, count),
            #[cfg(feature = "simulation")]
            Self::Simulated(simulated) => simulated.commands(pipeline, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::One(one) => one.get_db(),
            Self::Cluster(cluster) => cluster.get_db(),
            #[cfg(feature = "simulation")]
            Self::Simulated(_) => 0,
        }
    }
}

/// Connects with timeouts; `patience` is added for blocking commands.
pub(super) async fn connect(settings: &Settings, patience: Duration) -> RedisResult<Connection> {
    let response = settings.timeout + patience;
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(settings.timeout))
        .set_response_timeout(Some(response));
    match settings.server.client() {
        RedisClient::Direct(client) => {
            client.get_multiplexed_async_connection_with_config(&config).await.map(Connection::One)
        }
        RedisClient::Sentinel(sentinels) => {
            let asked = async { sentinels.lock().await.get_async_connection_with_config(&config).await };
            in_time(settings.timeout, asked).await.map(Connection::One)
        }
        RedisClient::Cluster(client) => {
            let config = ClusterConfig::new()
                .set_connection_timeout(settings.timeout.min(NODE_CONNECT))
                .set_response_timeout(response);
            let asked = client.get_async_connection_with_config(config);
            in_time(settings.timeout, asked).await.map(Connection::Cluster)
        }
        #[cfg(feature = "simulation")]
        RedisClient::Simulated(redis) => {
            in_time(settings.timeout, redis.connect(response)).await.map(Connection::Simulated)
        }
    }
}

/// Applies one timeout to work that opens several connections, each with its own timeout.
async fn in_time<T>(timeout: Duration, asked: impl Future<Output = RedisResult<T>>) -> RedisResult<T> {
    let late = || std::io::Error::from(std::io::ErrorKind::TimedOut);
    tokio::time::timeout(timeout, asked).await.unwrap_or_else(|_| Err(late().into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_told_without_the_login() {
        let plain = ServerSettings {
            url: None,
            host: "::1".into(),
            port: 6379,
            db: 0,
            password: Some(Secret::new("hunter2")),
            socket_timeout: Duration::from_secs(1),
            ca_file: None,
            client_cert_file: None,
            client_key_file: None,
        };
        let told = |url: Option<&str>| {
            let settings = ServerSettings { url: url.map(Secret::new), ..plain.clone() };
            server(&settings).ok().unwrap().address()
        };
        assert_eq!(told(None), "[::1]:6379");
        for (url, address) in [
            ("redis://agent:hunter2@host:1/2", "host:1"),
            ("rediss://:hunter2@[fe80::1]", "[fe80::1]:6379"),
            ("unix:///run/redis.sock?db=1&user=agent&pass=hunter2", "/run/redis.sock"),
            ("redis+sentinel://agent:hunter2@a,b:2/name/0", "primary name of the sentinels a:26379, b:2"),
            ("redis+cluster://agent:hunter2@a,[::1]:2", "cluster a:6379, [::1]:2"),
        ] {
            assert_eq!(told(Some(url)), address);
        }
    }
}
