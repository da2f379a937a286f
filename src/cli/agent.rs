//! HTTP client of a running agent: its public pages, and `/admin` with the token.

use std::fmt;
use std::time::Duration;

use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::http::admin::ErrorBody;

/// Longer than the 30 seconds after which the agent itself gives up.
const ANSWER_WITHIN: Duration = Duration::from_secs(35);
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// An agent at work on a long job reports several times a second.
const SILENCE: Duration = Duration::from_secs(60);
/// Far more than any line of a long job's answer or any page of an export.
const LINE_BYTES: usize = 64 << 20;

/// Why a call to an agent failed, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub(super) enum AdminClientError {
    /// The address is invalid.
    #[error("{0:?} is not an agent's address: use http://host:port")]
    Address(String),
    /// The HTTP client cannot be built.
    #[error("cannot create an HTTP client")]
    Client(#[source] reqwest::Error),
    /// The connection failed.
    #[error("no agent answers at {url}: is it running? It listens on its SERVER_HOST and SERVER_PORT")]
    Nobody {
        url: String,
        #[source]
        source: reqwest::Error,
    },
    /// The connection broke, or timed out.
    #[error("the answer of the agent at {url} was cut off or timed out")]
    Cut {
        url: String,
        #[source]
        source: reqwest::Error,
    },
    /// Another service answered.
    #[error("the service at {0} is not a dataplane-agent: is this its SERVER_PORT?")]
    NotAnAgent(String),
    /// The token is missing on this side.
    #[error(
        "the agent at {0} requires its admin token: set ADMIN_TOKEN here to the agent's value (or ADMIN_TOKEN_FILE, or --admin-token-file); with --url only the environment and that option are read"
    )]
    NoToken(String),
    /// The token is wrong.
    #[error("wrong admin token for the agent at {0}: set ADMIN_TOKEN here to the agent's value")]
    WrongToken(String),
    /// The admin API is off.
    #[error("the admin API of the agent at {0} is off: set ADMIN_TOKEN for it, and restart or reload it")]
    Off(String),
    /// The agent denies access from this address.
    #[error(
        "the agent at {0} denies access from this machine: check its TRUSTED_IPS and, for the host name used, TRUSTED_HOSTS"
    )]
    NotTrusted(String),
    /// The agent refused.
    #[error("{text}")]
    Refused {
        /// Its status.
        status: StatusCode,
        /// Its reason.
        text: String,
    },
    /// This release cannot parse the answer.
    #[error("cannot parse the answer of the agent at {url}: is it another release?")]
    Unknown {
        url: String,
        #[source]
        source: serde_json::Error,
    },
}

/// A client of a running agent.
pub(crate) struct AdminClient {
    base: Url,
    token: Option<String>,
    http: reqwest::Client,
}

impl fmt::Display for AdminClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.base.as_str().trim_end_matches('/'))
    }
}

impl AdminClient {
    /// The agent at `http://host:port` or `host:port`. Sends nothing yet.
    pub(super) fn at(address: &str, token: Option<String>) -> Result<Self, AdminClientError> {
        let bad = || AdminClientError::Address(address.to_owned());
        let with_scheme =
            if address.contains("://") { address.to_owned() } else { format!("http://{address}") };
        let mut base = Url::parse(&with_scheme).map_err(|_| bad())?;
        if !matches!(base.scheme(), "http" | "https") || base.host_str().is_none_or(str::is_empty) {
            return Err(bad());
        }
        // An address pasted from a browser may have a query.
        base.set_query(None);
        base.set_fragment(None);
        if !base.path().ends_with('/') {
            base.set_path(&format!("{}/", base.path()));
        }
        let mut http = reqwest::Client::builder();
        if base.scheme() == "http" {
            // No certificate authorities: a container may have none, and plain HTTP needs none.
            http = http.tls_certs_only([]);
        }
        let http = http
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_WITHIN)
            .read_timeout(SILENCE)
            // The agent closes idle connections; reconnecting is cheaper than telling a closed connection from a lost agent.
            .pool_max_idle_per_host(0)
            .build()
            .map_err(AdminClientError::Client)?;
        Ok(Self { base, token, http })
    }

    fn url(&self) -> String {
        self.to_string()
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        // Whatever the path, the URL stays below the agent's address.
        let mut url = self.base.clone();
        let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
        url.set_path(&format!("{}{}", self.base.path(), path.trim_start_matches('/')));
        url.set_query(query);
        let request = self.http.request(method, url);
        match &self.token {
            Some(token) if path.starts_with("/admin") => request.bearer_auth(token),
            _ => request,
        }
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, AdminClientError> {
        request.send().await.map_err(|source| {
            if source.is_connect() {
                AdminClientError::Nobody { url: self.url(), source }
            } else {
                AdminClientError::Cut { url: self.url(), source }
            }
        })
    }

    fn cut(&self) -> impl FnOnce(reqwest::Error) -> AdminClientError + use<> {
        let url = self.url();
        |source| AdminClientError::Cut { url, source }
    }

    /// The body of a public path. A 503 counts: an unhealthy agent answers with one.
    pub(super) async fn read(&self, path: &str, within: Duration) -> Result<String, AdminClientError> {
        let response = self.send(self.request(Method::GET, path).timeout(within)).await?;
        match response.status() {
            StatusCode::FORBIDDEN => {
                let text = response.bytes().await.unwrap_or_default();
                let is_ours = serde_json::from_slice::<ErrorBody>(&text).is_ok();
                let error = if is_ours { AdminClientError::NotTrusted } else { AdminClientError::NotAnAgent };
                Err(error(self.url()))
            }
            StatusCode::OK | StatusCode::SERVICE_UNAVAILABLE => response.text().await.map_err(self.cut()),
            _ => Err(AdminClientError::NotAnAgent(self.url())),
        }
    }

    /// Checks that an agent answers and accepts our token.
    pub(super) async fn greet(&self) -> Result<(), AdminClientError> {
        let health = self.read("/health", ANSWER_WITHIN).await?;
        let health: Option<serde_json::Value> = serde_json::from_str(&health).ok();
        if !health.is_some_and(|health| health["outbox"].is_object() && health["version"].is_string()) {
            return Err(AdminClientError::NotAnAgent(self.url()));
        }
        let response = self.send(self.request(Method::GET, "/admin/drain").timeout(ANSWER_WITHIN)).await?;
        match response.status() {
            // An agent whose admin API is off has no such path.
            StatusCode::NOT_FOUND => Err(AdminClientError::Off(self.url())),
            _ => self.good(response).await.map(drop),
        }
    }

    /// The answer, or an error unless it is a success.
    async fn good(&self, response: Response) -> Result<Response, AdminClientError> {
        let status = response.status();
        match status {
            StatusCode::UNAUTHORIZED if self.token.is_none() => Err(AdminClientError::NoToken(self.url())),
            StatusCode::UNAUTHORIZED => Err(AdminClientError::WrongToken(self.url())),
            StatusCode::FORBIDDEN => Err(AdminClientError::NotTrusted(self.url())),
            _ if status.is_success() => Ok(response),
            _ => {
                let text = response.bytes().await.unwrap_or_default();
                Err(refused(status, &text))
            }
        }
    }

    fn parse<T: DeserializeOwned>(&self, text: &[u8]) -> Result<T, AdminClientError> {
        serde_json::from_slice(text).map_err(|source| AdminClientError::Unknown { url: self.url(), source })
    }

    async fn answer<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, AdminClientError> {
        let response = self.send(request.timeout(ANSWER_WITHIN)).await?;
        let response = self.good(response).await?;
        self.parse(&response.bytes().await.map_err(self.cut())?)
    }

    /// GETs a path.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, AdminClientError> {
        self.answer(self.request(Method::GET, path)).await
    }

    /// GETs a path; `None` if it does not exist.
    pub(super) async fn find<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>, AdminClientError> {
        match self.get(path).await {
            Err(AdminClientError::Refused { status: StatusCode::NOT_FOUND, .. }) => Ok(None),
            found => found.map(Some),
        }
    }

    /// POSTs JSON.
    pub(super) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, AdminClientError> {
        self.answer(self.request(Method::POST, path).json(body)).await
    }

    /// POSTs JSON; a 503 answer reports partial work.
    pub(super) async fn post_for_part<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, AdminClientError> {
        let request = self.request(Method::POST, path).json(body).timeout(ANSWER_WITHIN);
        let response = self.send(request).await?;
        let status = response.status();
        if status != StatusCode::SERVICE_UNAVAILABLE {
            return self.parse(&self.good(response).await?.bytes().await.map_err(self.cut())?);
        }
        let text = response.bytes().await.map_err(self.cut())?;
        serde_json::from_slice(&text).map_err(|_| refused(status, &text))
    }

    /// POSTs lines of text.
    pub(super) async fn post_text<T: DeserializeOwned>(
        &self,
        path: &str,
        text: String,
    ) -> Result<T, AdminClientError> {
        self.answer(self.request(Method::POST, path).body(text)).await
    }

    /// DELETEs a path.
    pub(super) async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, AdminClientError> {
        self.answer(self.request(Method::DELETE, path)).await
    }

    /// An answer's status, one of its headers, and its bytes.
    pub(super) async fn raw(
        &self,
        path: &str,
        header: &str,
    ) -> Result<(StatusCode, Option<String>, Vec<u8>), AdminClientError> {
        let response = self.send(self.request(Method::GET, path).timeout(ANSWER_WITHIN)).await?;
        let response = self.good(response).await?;
        let value = response.headers().get(header).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let status = response.status();
        Ok((status, value, response.bytes().await.map_err(self.cut())?.into()))
    }

    /// Runs a long job and passes each line of the answer to `hear` until that returns a result.
    pub(super) async fn job<L: DeserializeOwned, T>(
        &self,
        path: &str,
        mut hear: impl FnMut(L) -> Option<T>,
    ) -> Result<Option<T>, AdminClientError> {
        // Limits the silence, not the duration.
        let response = self.send(self.request(Method::POST, path)).await?;
        let mut response = self.good(response).await?;
        let mut text: Vec<u8> = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(self.cut())? {
            text.extend_from_slice(&chunk);
            while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = text.drain(..=end).collect();
                if let Some(done) = hear(self.parse(&line)?) {
                    return Ok(Some(done));
                }
            }
            if text.len() > LINE_BYTES {
                break;
            }
        }
        Ok(None)
    }
}

/// The agent's reason for a refusal.
fn refused(status: StatusCode, text: &[u8]) -> AdminClientError {
    let said = serde_json::from_slice::<ErrorBody>(text).map(|body| body.error);
    AdminClientError::Refused {
        status,
        text: said.unwrap_or_else(|_| format!("the agent answered {status}")),
    }
}
