//! Reads what a server counted, where it reports that as the sandbox does, and has it queue commands.

use std::time::Duration;

use reqwest::{Method, Url, redirect};
use serde::Deserialize;
use serde_json::Value;

use super::Unable;
use crate::record::Kind;

const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// A sandbox's accounts take a few KiB.
const ANSWER_MAX_BYTES: usize = 1 << 20;

/// Records that were processed, each counted once.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Processed {
    kinds: Kinds,
    /// How often a session's records were processed out of order.
    #[serde(default)]
    order_violations: Option<Violations>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Kinds {
    usage: Total,
    started: Total,
    completed: Total,
    quota: Total,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
struct Total {
    processed: u64,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Violations {
    count: u64,
    #[serde(default)]
    examples: Vec<String>,
}

impl Processed {
    /// The kinds, with their names in the accounts.
    pub(super) const KINDS: [(Kind, &'static str); 4] = [
        (Kind::Usage, "usage"),
        (Kind::Started, "started"),
        (Kind::Completed, "completed"),
        (Kind::Quota, "quota"),
    ];

    pub(super) fn of(&self, kind: Kind) -> u64 {
        match kind {
            Kind::Usage => self.kinds.usage,
            Kind::Started => self.kinds.started,
            Kind::Completed | Kind::Lifecycle => self.kinds.completed,
            Kind::Quota => self.kinds.quota,
        }
        .processed
    }

    /// Order violations since `before`, and an example of one; `None` if the server does not count them.
    pub(super) fn disorder_since(&self, before: &Self) -> Option<(u64, Option<&str>)> {
        let now = self.order_violations.as_ref()?;
        let then = before.order_violations.as_ref().map_or(0, |violations| violations.count);
        Some((now.count.saturating_sub(then), now.examples.last().map(String::as_str)))
    }
}

/// A client of the server's accounts.
pub(super) struct Accounts {
    url: Url,
    http: reqwest::Client,
}

impl Accounts {
    /// Builds the client; sends nothing.
    pub(super) fn at(url: Url) -> Result<Self, Unable> {
        let mut http = reqwest::Client::builder();
        if url.scheme() == "http" {
            // No certificate authorities: a container may have none, and accounts are read over plain HTTP.
            http = http.tls_certs_only([]);
        }
        match http.no_proxy().redirect(redirect::Policy::none()).timeout(ANSWER_WITHIN).build() {
            Ok(http) => Ok(Self { url, http }),
            Err(error) => Err(Unable::Accounts { url: shown(&url), reason: error.to_string() }),
        }
    }

    pub(super) fn unable(&self, reason: String) -> Unable {
        Unable::Accounts { url: shown(&self.url), reason }
    }

    /// What was processed so far.
    pub(super) async fn processed(&self) -> Result<Processed, String> {
        let body = self.ask(Method::GET, self.url.clone(), None).await?;
        serde_json::from_slice(&body).map_err(|error| format!("they differ from the sandbox's: {error}"))
    }

    /// Queues a command through `POST commands` beside the accounts. Returns its id.
    pub(super) async fn queue(&self, command: &Value) -> Result<String, String> {
        #[derive(Deserialize)]
        struct Queued {
            command_id: String,
        }
        let url = self.url.join("commands").map_err(|error| error.to_string())?;
        let body = self.ask(Method::POST, url, Some(command)).await?;
        let queued: Queued = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
        Ok(queued.command_id)
    }

    async fn ask(&self, method: Method, url: Url, body: Option<&Value>) -> Result<Vec<u8>, String> {
        let mut request = self.http.request(method, url);
        if let Some(body) = body {
            request = request.json(body);
        }
        let in_words = |error: reqwest::Error| error.without_url().to_string();
        let mut response = request.send().await.map_err(in_words)?;
        if !response.status().is_success() {
            return Err(format!("it answers {}", response.status()));
        }
        let mut text = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(in_words)? {
            text.extend_from_slice(&chunk);
            if text.len() > ANSWER_MAX_BYTES {
                return Err("the answer is too long".to_owned());
            }
        }
        Ok(text)
    }
}

/// The URL without its user info.
fn shown(url: &Url) -> String {
    let mut url = url.clone();
    // Both fail only for a URL without a host.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.into()
}
