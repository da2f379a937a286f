//! The parts that a reload replaces: the credentials, and the TLS settings of the connections that carry them.

use std::sync::Arc;

use hyper::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, HeaderMap, HeaderValue, USER_AGENT};

use super::auth::{KeyError, Tokens, api_key_header};
use super::decode;
use super::settings::{Settings, UnreadableFile, read_again};
use super::target::Target;
use super::transport::{Meter, Tls, Transport};
use crate::secret::expiry::{self, Expiry};

/// Why a client cannot be created or reloaded.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The base URL is invalid.
    #[error("the ControlPlane's URL: {0}")]
    Url(&'static str),
    /// The server's ID cannot be part of a URL.
    #[error("the server's id: {0}")]
    ServerId(&'static str),
    /// The version cannot be part of a header.
    #[error("the version has characters that are not allowed in a header")]
    Version,
    /// The API key or its header is invalid.
    #[error("the API key: {0}")]
    ApiKey(&'static str),
    /// The signing key is invalid.
    #[error("cannot use the signing key for tokens")]
    JwtKey(#[from] KeyError),
    /// A file cannot be read.
    #[error(transparent)]
    File(#[from] UnreadableFile),
    /// A certificate was given without its key, or a key without its certificate.
    #[error("a client certificate and its key must be given together")]
    HalfAnIdentity,
    /// The proxy is invalid.
    #[error("the proxy: {0}")]
    Proxy(&'static str),
    /// The certificates are invalid.
    #[error("TLS: {0}")]
    Tls(String),
}

/// Replaced by a reload, entirely or not at all.
pub(super) struct Credentials {
    /// Headers of every request.
    pub(super) headers: HeaderMap,
    pub(super) transport: Transport,
    pub(super) tokens: Option<Tokens>,
    /// When these credentials expire. Our own tokens are renewed long before that.
    pub(super) expiries: Vec<Expiry>,
}

impl Credentials {
    pub(super) fn load(settings: &Settings, target: &Target, meter: Arc<Meter>) -> Result<Self, ClientError> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static(decode::ACCEPTED));
        let agent = format!("DataPlane-Agent/{}", settings.version);
        headers.insert(USER_AGENT, HeaderValue::try_from(agent).map_err(|_| ClientError::Version)?);
        let tokens = if settings.auth.sends_jwt() {
            let key = settings.jwt_key.as_ref().ok_or(KeyError::Missing).map(read_again)??;
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
            let key = read_again(key)?;
            expiries.extend(expiry::of_token("control_plane_api_key", key.expose()));
            let (name, value) =
                api_key_header(&settings.api_key_header, &key).map_err(ClientError::ApiKey)?;
            headers.insert(name, value);
        }
        let tls = Tls::load(settings, target.is_https, &mut expiries)?;
        let transport = Transport::new(settings, &target.uri, tls.as_ref(), meter)?;
        Ok(Self { headers, transport, tokens, expiries })
    }
}
