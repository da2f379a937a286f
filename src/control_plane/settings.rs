//! The client's settings: the `ControlPlane`'s address, our identity, and the credentials.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;

use crate::secret::{Secret, read_small};

/// Everything the client needs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `http://` or `https://`, a host, optionally a port and a path below which the API lives. User info becomes Basic
    /// authentication if no JWT is used, which makes the URL a secret.
    pub url: Secret,
    /// The longest time without progress, while sending and then until the answer.
    pub timeout: Duration,
    /// The most idle connections kept: as many as are ever used at once.
    pub max_idle_connections: usize,
    /// Part of every path about this server, and of tokens.
    pub server_id: String,
    /// The version in `User-Agent`.
    pub version: String,
    /// Which credentials to send.
    pub auth: Auth,
    /// The header that carries the API key.
    pub api_key_header: String,
    /// The API key. Without one, the header is not sent.
    pub api_key: Option<Secret>,
    /// The key that signs tokens: a private key in PEM, or an HMAC secret.
    pub jwt_key: Option<Secret>,
    /// The tokens' algorithm; `None`: determined by the key.
    pub jwt_algorithm: Option<JwtAlgorithm>,
    /// The tokens' `kid`, if the `ControlPlane` identifies our key by a name.
    pub jwt_key_id: Option<String>,
    /// Trust only these authorities (PEM); `None`: the system's.
    pub ca_file: Option<PathBuf>,
    /// Our certificate chain (PEM), for mutual TLS.
    pub client_cert_file: Option<PathBuf>,
    /// Its private key (PEM).
    pub client_key_file: Option<PathBuf>,
    /// The HTTP version.
    pub http: HttpVersion,
    /// The DSCP of outgoing packets, 0 to 63; `None`: the system's.
    pub dscp: Option<u8>,
    /// The proxy for every request; `None`: direct, whatever the environment says.
    pub proxy: Option<ProxySettings>,
}

/// A proxy between the agent and the `ControlPlane`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxySettings {
    /// Its URL: one of [`Self::SCHEMES`], a host, a port unless it is the default, optionally user info.
    pub url: Secret,
    /// Hosts reached without it. `CONTROL_PLANE_URL` is not among them.
    pub no_proxy: Vec<String>,
}

impl ProxySettings {
    /// The supported schemes and their default ports.
    pub const SCHEMES: [(&str, u16); 4] = [("http", 80), ("https", 443), ("socks5", 1080), ("socks5h", 1080)];
}

impl fmt::Display for ProxySettings {
    /// Without its user info.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let url = self.url.expose().trim_end_matches('/');
        let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
        match rest.rsplit_once('@') {
            Some((_, host)) => write!(f, "{scheme}://***@{host}"),
            None => write!(f, "{scheme}://{rest}"),
        }
    }
}

/// Which credentials a request carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Auth {
    /// The API key's header.
    #[default]
    ApiKey,
    /// `Authorization: Bearer` with a token we sign.
    Jwt,
    /// Both.
    Both,
}

impl Auth {
    pub(super) fn sends_api_key(self) -> bool {
        self != Self::Jwt
    }

    pub(super) fn sends_jwt(self) -> bool {
        self != Self::ApiKey
    }
}

/// The HTTP version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum HttpVersion {
    /// Chosen by the host through ALPN; 1.1 without TLS.
    #[default]
    Auto,
    /// HTTP/1.1.
    #[value(name = "1.1")]
    Http1,
    /// HTTP/2, even without TLS.
    #[value(name = "2")]
    Http2,
}

/// The algorithm of our tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "verbatim")]
pub enum JwtAlgorithm {
    /// HMAC with SHA-256.
    HS256,
    /// RSA PKCS #1 v1.5 with SHA-256.
    RS256,
    /// ECDSA on P-256 with SHA-256.
    ES256,
    /// Ed25519.
    EdDSA,
}

/// A file of keys or certificates that could not be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {path}: {reason}", path = path.display())]
pub struct UnreadableFile {
    path: PathBuf,
    reason: String,
}

impl UnreadableFile {
    fn new(path: &Path, reason: impl fmt::Display) -> Self {
        Self { path: path.to_owned(), reason: reason.to_string() }
    }
}

/// Reads a small file; a large or endless file is an error.
pub(super) fn read_file(path: &Path) -> Result<Vec<u8>, UnreadableFile> {
    read_small(path).map_err(|error| UnreadableFile::new(path, error))
}

/// The current content of a secret's file, without surrounding white space.
pub(super) fn read_again(secret: &Secret) -> Result<Secret, UnreadableFile> {
    let Some(path) = secret.file() else { return Ok(secret.clone()) };
    let secret = Secret::read(path).map_err(|error| UnreadableFile::new(path, error))?;
    Ok(Secret::new(secret.expose().trim()))
}
