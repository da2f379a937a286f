//! What a reload replaces: the credentials, and the HTTP client that carries them over TLS.

use std::time::Duration;

use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue, USER_AGENT};

use super::auth::{KeyError, Tokens, api_key_header};
use super::settings::{Settings, UnreadableFile, read_file};
use super::target::Target;
use crate::expiry::{self, Expiry};

/// A host that is there answers a handshake well within this, on the worst of links. Half of a shorter time-out
/// at most, so that a host that is not there is told from one that does not answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Shorter than the 60 s after which common load balancers close, so that they seldom close under a request.
const IDLE_TIMEOUT: Duration = Duration::from_secs(50);

/// What keeps a client from being made, or from taking in what changed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The base URL cannot be used.
    #[error("the ControlPlane's URL: {0}")]
    Url(&'static str),
    /// The server's id cannot be part of a URL.
    #[error("the server's id: {0}")]
    ServerId(&'static str),
    /// The version cannot be part of a header.
    #[error("the version: it holds what no header can carry")]
    Version,
    /// The API key or its header cannot be used.
    #[error("the API key: {0}")]
    ApiKey(&'static str),
    /// The key for tokens cannot be used.
    #[error("the key for tokens")]
    JwtKey(#[from] KeyError),
    /// A file cannot be read.
    #[error(transparent)]
    File(#[from] UnreadableFile),
    /// A certificate is given without its key, or a key without its certificate.
    #[error("a client certificate and its key must be given together")]
    HalfAnIdentity,
    /// Certificates that cannot be used.
    #[error("TLS: {0}")]
    Tls(String),
}

/// What a reload replaces, all of it or nothing.
pub(super) struct Credentials {
    pub(super) http: reqwest::Client,
    pub(super) tokens: Option<Tokens>,
    /// When what of it ends by itself does so. Our own tokens are minted anew long before.
    pub(super) expiries: Vec<Expiry>,
}

impl Credentials {
    pub(super) fn load(settings: &Settings, target: &Target) -> Result<Self, ClientError> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        let agent = format!("DataPlane-Agent/{}", settings.version);
        headers.insert(USER_AGENT, HeaderValue::try_from(agent).map_err(|_| ClientError::Version)?);
        let tokens = if settings.auth.sends_jwt() {
            let key = settings.jwt_key.as_ref().ok_or(KeyError::Missing)?.read()?;
            let Settings { jwt_algorithm, jwt_key_id, server_id, .. } = settings;
            Some(Tokens::new(&key, *jwt_algorithm, jwt_key_id.clone(), server_id, &target.origin)?)
        } else {
            headers.extend(target.basic.clone().map(|basic| (AUTHORIZATION, basic)));
            None
        };
        let mut expiries = Vec::new();
        if settings.auth.sends_api_key()
            && let Some(key) = &settings.api_key
        {
            let key = key.read()?;
            expiries.extend(expiry::of_token("control_plane_api_key", key.expose()));
            let (name, value) =
                api_key_header(&settings.api_key_header, &key).map_err(ClientError::ApiKey)?;
            headers.insert(name, value);
        }
        let http = http_client(settings, target, headers, &mut expiries)?;
        Ok(Self { http, tokens, expiries })
    }
}

fn http_client(
    settings: &Settings,
    target: &Target,
    headers: HeaderMap,
    expiries: &mut Vec<Expiry>,
) -> Result<reqwest::Client, ClientError> {
    let mut builder = reqwest::Client::builder()
        .default_headers(headers)
        .http1_only()
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .retry(reqwest::retry::never())
        .tls_version_min(reqwest::tls::Version::TLS_1_2)
        .tcp_nodelay(true)
        .timeout(settings.timeout)
        .connect_timeout(CONNECT_TIMEOUT.min(settings.timeout / 2))
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_max_idle_per_host(settings.max_idle_connections);
    builder = match &settings.proxy {
        Some(proxy) => builder.proxy(reqwest::Proxy::all(proxy.url.expose()).map_err(|e| tls_error(&e))?),
        None => builder.no_proxy(),
    };
    if let Some(path) = &settings.ca_file {
        let pem = read_file(path)?;
        let authorities = reqwest::Certificate::from_pem_bundle(&pem).map_err(|e| tls_error(&e))?;
        if authorities.is_empty() {
            return Err(ClientError::Tls(format!("{} holds no certificate in PEM", path.display())));
        }
        expiries.extend(expiry::of_authorities("control_plane_ca", &pem));
        builder = builder.tls_certs_only(authorities);
    } else if !target.is_https {
        // Plain HTTP needs no authorities: a host without any must not fail for it, nor keep them in memory.
        builder = builder.tls_certs_only([]);
    }
    match (&settings.client_cert_file, &settings.client_key_file) {
        (Some(certificate), Some(key)) => {
            let certificate = read_file(certificate)?;
            expiries.extend(expiry::of_chain("control_plane_client", &certificate));
            let pem = [certificate, b"\n".to_vec(), read_file(key)?].concat();
            builder = builder.identity(reqwest::Identity::from_pem(&pem).map_err(|e| tls_error(&e))?);
        }
        (None, None) => {}
        _ => return Err(ClientError::HalfAnIdentity),
    }
    builder.build().map_err(|e| tls_error(&e))
}

fn tls_error(error: &reqwest::Error) -> ClientError {
    let cause = std::error::Error::source(error);
    ClientError::Tls(cause.map_or_else(|| error.to_string(), ToString::to_string))
}
