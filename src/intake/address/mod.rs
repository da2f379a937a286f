//! The address of Redis, and how to log in.

mod cluster;
mod hosts;
mod sentinel;

use std::path::PathBuf;
use std::time::Duration;

pub(crate) use cluster::{ClusterUrl, hash_tag};
pub(super) use hosts::host_and_port;
pub(crate) use sentinel::SentinelUrl;

use crate::secret::Secret;

/// The Redis server and the credentials for it.
#[derive(Clone, Debug)]
pub struct ServerSettings {
    /// Replaces host, port, database and password.
    pub url: Option<Secret>,
    /// Its address.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// The database.
    pub db: u32,
    /// The password.
    pub password: Option<Secret>,
    /// Timeout for connecting and for one answer.
    pub socket_timeout: Duration,
    /// Certificate authorities in PEM, instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// The client's certificate chain in PEM.
    pub client_cert_file: Option<PathBuf>,
    /// The key of that certificate in PEM.
    pub client_key_file: Option<PathBuf>,
}

impl ServerSettings {
    /// The sentinels that know Redis' address, if the URL names sentinels.
    pub(super) fn sentinel(&self) -> Option<SentinelUrl> {
        SentinelUrl::parse(self.url.as_ref()?.expose().trim()).ok()
    }

    /// Some nodes of the Redis Cluster, if the URL names a cluster.
    pub(super) fn cluster(&self) -> Option<ClusterUrl> {
        ClusterUrl::parse(self.url.as_ref()?.expose().trim()).ok()
    }
}
