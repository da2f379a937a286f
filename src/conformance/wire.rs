//! Sends requests through the agent's own client, one at a time, and describes each answer.
//!
//! The client limits each request's time and each answer's size. `Retry-After` of a 429 or 503 is obeyed. The run stops
//! sending after three requests in a row without an answer, after [`REQUESTS_MOST`] requests, or after [`RUN_MOST`].

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::header::{CONTENT_TYPE, RETRY_AFTER};
use tokio::time::{Instant, sleep};
use url::Url;
use uuid::Uuid;

use crate::control_plane::{Answer, Auth, Client, ClientError, Failure, Meaning, Response, Settings};
use crate::secret::{HIDDEN, Secret};

/// Requests in a row without an answer after which the run stops.
const SILENT_MOST: u32 = 3;
/// The most requests of a run, not counting a burst.
pub const REQUESTS_MOST: u32 = 200;
/// The longest time for which a run sends requests.
const RUN_MOST: Duration = Duration::from_secs(600);
/// The longest `Retry-After` that a run waits for.
pub(super) const WAIT_MOST: Duration = Duration::from_secs(10);
/// How often a request is repeated after 429 or 503.
const AGAIN_MOST: u32 = 5;
/// How every JWT starts: `{"` in Base64.
const TOKEN: &str = "eyJ";
/// How much of an answer is shown.
const SHOWN_CHARS: usize = 400;

/// One request and its answer.
#[derive(Clone, Debug)]
pub(super) struct Exchange {
    /// A description of the request.
    pub(super) sent: String,
    /// A description of the answer.
    pub(super) received: String,
    pub(super) result: Result<Response, Failure>,
}

impl Exchange {
    pub(super) fn meaning(&self) -> Option<Meaning> {
        self.result.as_ref().ok().map(|response| response.meaning)
    }

    pub(super) fn status(&self) -> Option<u16> {
        self.result.as_ref().ok().map(|response| response.status)
    }

    pub(super) fn body(&self) -> &[u8] {
        self.result.as_ref().map_or(&[], |response| &response.body)
    }

    /// Whether the agent forgets the record after this answer.
    pub(super) fn is_settled(&self) -> bool {
        matches!(self.meaning(), Some(Meaning::Delivered | Meaning::Duplicate))
    }

    pub(super) fn is_delivered(&self) -> bool {
        self.meaning() == Some(Meaning::Delivered)
    }

    /// What the agent does after such an answer.
    pub(super) fn consequence(&self) -> Option<&'static str> {
        Some(match self.result.as_ref().map(|response| response.meaning) {
            Ok(Meaning::Delivered | Meaning::Duplicate) => return None,
            Ok(Meaning::InProgress) => {
                "the agent waits for the first attempt to finish, and sends the record again"
            }
            Ok(Meaning::Refused) => "the agent makes the record a dead letter: nobody is billed for it",
            Ok(Meaning::NotFound) => {
                "the agent regards the session as unknown; after SESSION_UNKNOWN_GRACE_SECONDS its records are dead letters"
            }
            Ok(Meaning::Credentials) => {
                "the agent regards its credentials as wrong: the link is down, no record is delivered"
            }
            Ok(Meaning::Overloaded) | Err(Failure::Timeout { .. } | Failure::Cut(_)) => {
                "the agent backs off and sends the request again, for as long as it takes"
            }
            Ok(Meaning::Failing) => {
                "the agent sends the record again; after POISON_ATTEMPTS it is a dead letter"
            }
            Ok(Meaning::Misconfigured) => {
                "the agent regards the URL or a proxy as wrong: the link is down, no record is delivered"
            }
            Ok(Meaning::Foreign) => {
                "the agent concludes that another host answered: nothing is settled, the link is down"
            }
            Ok(Meaning::Mismatched) => {
                "the agent concludes that this answers another request: nothing is settled, the connection is closed"
            }
            Err(_) => "the link is down; the agent probes until the server answers",
        })
    }
}

/// The first answer of each of these kinds in the run.
#[derive(Default)]
pub(super) struct FirstSeen {
    /// Not JSON where the agent needs JSON.
    pub(super) foreign: Option<Exchange>,
    /// The answer to another request.
    pub(super) mismatched: Option<Exchange>,
    /// 429 or 503 without `Retry-After`.
    pub(super) shed: Option<Exchange>,
    /// With a valid `Retry-After`.
    pub(super) asked_to_wait: Option<Exchange>,
    /// With an invalid `Retry-After`.
    pub(super) unreadable_wait: Option<Exchange>,
    /// The number of answers.
    pub(super) answers: u32,
}

impl FirstSeen {
    fn note(&mut self, exchange: &Exchange) {
        let Ok(response) = &exchange.result else { return };
        self.answers += 1;
        let keep = |place: &mut Option<Exchange>| {
            place.get_or_insert_with(|| exchange.clone());
        };
        match (response.meaning, response.status) {
            (Meaning::Foreign, _) | (Meaning::Failing, 400 | 409 | 414 | 415 | 422) => {
                keep(&mut self.foreign);
            }
            (Meaning::Mismatched, _) => keep(&mut self.mismatched),
            _ => {}
        }
        match (response.headers.contains_key(RETRY_AFTER), response.retry_after, response.status) {
            (true, Some(_), _) => keep(&mut self.asked_to_wait),
            (true, None, _) => keep(&mut self.unreadable_wait),
            (false, _, 429 | 503) => keep(&mut self.shed),
            _ => {}
        }
    }
}

/// Who sends a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Caller {
    /// The agent, with its credentials.
    Agent,
    /// A client without credentials.
    Nobody,
    /// A client with wrong credentials.
    Stranger,
    /// A server that never registered, with valid credentials.
    Unregistered,
}

/// The clients and the limits of the run.
pub(super) struct ApiClients {
    clients: [(Caller, Client); 4],
    heard: Arc<Mutex<Vec<Answer>>>,
    secrets: Vec<Secret>,
    silent: u32,
    /// Why every further request would fail.
    over: Option<String>,
    until: Instant,
    requests_most: u32,
    pub(super) requests: u32,
    pub(super) seen: FirstSeen,
}

impl ApiClients {
    /// Reads the files that the settings name; sends nothing.
    pub(super) fn new(settings: Settings, run: &str, burst: u32) -> Result<Self, ClientError> {
        let heard = Arc::<Mutex<Vec<Answer>>>::default();
        let client = |settings: Settings| {
            let heard = Arc::clone(&heard);
            let listen = move |_: &'static str, answer: &Answer| {
                heard.lock().unwrap_or_else(PoisonError::into_inner).push(answer.clone());
            };
            Ok::<_, ClientError>(Client::new(settings)?.observed(Box::new(listen)))
        };
        let bare = Settings {
            url: without_user_info(&settings.url),
            auth: Auth::ApiKey,
            api_key: None,
            jwt_key: None,
            ..settings.clone()
        };
        let wrong = || Some(Secret::new(format!("wrong-{}-{}", Uuid::new_v4(), Uuid::new_v4())));
        let wrong = Settings {
            auth: settings.auth,
            api_key: settings.api_key.as_ref().and_then(|_| wrong()),
            jwt_key: settings.jwt_key.as_ref().and_then(|_| wrong()),
            jwt_algorithm: None,
            ..bare.clone()
        };
        let unregistered = Settings { server_id: unregistered(run), ..settings.clone() };
        let mut secrets = password(&settings.url);
        secrets.extend([&settings.api_key, &settings.jwt_key].into_iter().flatten().cloned());
        Ok(Self {
            clients: [
                (Caller::Agent, client(settings)?),
                (Caller::Nobody, client(bare)?),
                (Caller::Stranger, client(wrong)?),
                (Caller::Unregistered, client(unregistered)?),
            ],
            heard,
            secrets,
            silent: 0,
            over: None,
            until: Instant::now() + RUN_MOST,
            requests_most: REQUESTS_MOST.saturating_add(burst),
            requests: 0,
            seen: FirstSeen::default(),
        })
    }

    /// Why nothing more is sent; `None` if requests may still be sent.
    pub(super) fn is_over(&self) -> Option<String> {
        if self.over.is_some() {
            return self.over.clone();
        }
        if self.silent >= SILENT_MOST {
            return Some(format!("{SILENT_MOST} requests in a row got no answer"));
        }
        if self.requests >= self.requests_most {
            return Some(format!("the limit of {} requests is reached", self.requests_most));
        }
        let is_late = Instant::now() >= self.until;
        is_late.then(|| format!("the run took more than {} s", RUN_MOST.as_secs()))
    }

    /// Stops the run after an answer that every other request would get too.
    pub(super) fn stop_if_hopeless(&mut self, exchange: &Exchange) {
        self.over = match exchange.meaning() {
            None => Some("the server does not answer".to_owned()),
            Some(Meaning::Credentials) => Some(
                "the server does not accept the credentials: check CONTROL_PLANE_API_KEY or CONTROL_PLANE_JWT_KEY, \
                 CONTROL_PLANE_AUTH and API_KEY_HEADER"
                    .to_owned(),
            ),
            Some(_) => None,
        };
    }

    /// Sends one request; repeats it after a 429 or 503 with `Retry-After`.
    pub(super) async fn send(&mut self, by: Caller, sent: String, call: impl AsyncFn(&Client)) -> Exchange {
        let mut again = 0;
        loop {
            let Some(exchange) = self.together(by, &sent, &call).await.into_iter().next() else {
                return self.unsent(sent);
            };
            let wait = exchange.result.as_ref().ok().and_then(|response| match response.status {
                429 | 503 => response.retry_after.filter(|wait| *wait <= WAIT_MOST),
                _ => None,
            });
            match wait {
                Some(wait) if again < AGAIN_MOST => sleep(wait).await,
                _ => return exchange,
            }
            again += 1;
        }
    }

    /// Runs `call`, which may send several requests at once. Repeats nothing.
    pub(super) async fn together(
        &mut self,
        by: Caller,
        sent: &str,
        call: impl AsyncFn(&Client),
    ) -> Vec<Exchange> {
        if self.is_over().is_some() {
            return Vec::new();
        }
        let [(_, agent), others @ ..] = &self.clients;
        let client = others.iter().find(|(who, _)| *who == by).map_or(agent, |(_, client)| client);
        call(client).await;
        let answers = std::mem::take(&mut *self.heard.lock().unwrap_or_else(PoisonError::into_inner));
        answers.into_iter().map(|answer| self.note(sent.to_owned(), answer)).collect()
    }

    fn note(&mut self, sent: String, answer: Answer) -> Exchange {
        self.requests += 1;
        self.silent = if answer.result.is_ok() { 0 } else { self.silent + 1 };
        let received = match &answer.result {
            Ok(response) => self.in_words(response),
            Err(failure) => format!("no answer: {failure}"),
        };
        let exchange = Exchange { sent, received, result: answer.result };
        self.seen.note(&exchange);
        exchange
    }

    /// The exchange of a request that was not sent.
    fn unsent(&self, sent: String) -> Exchange {
        let why = self.is_over().unwrap_or_else(|| "it cannot be sent".to_owned());
        Exchange {
            sent,
            received: format!("not sent: {why}"),
            result: Err(Failure::Unsendable("the run has ended")),
        }
    }

    /// Describes an answer on one line that a terminal can show. Hides secrets: a server may repeat what it was sent, and
    /// commands carry tokens.
    fn in_words(&self, response: &Response) -> String {
        let mut words = format!("HTTP {}", response.status);
        for name in [CONTENT_TYPE, RETRY_AFTER] {
            if let Some(value) = response.headers.get(&name) {
                words.extend([", ", name.as_str(), ": ", &String::from_utf8_lossy(value.as_bytes())]);
            }
        }
        let body =
            if response.body.is_empty() { "no body".into() } else { String::from_utf8_lossy(&response.body) };
        words.extend([", ", &body]);
        for secret in &self.secrets {
            words = words.replace(secret.expose(), HIDDEN);
        }
        words = without_tokens(&words);
        if let Some((end, _)) = words.char_indices().nth(SHOWN_CHARS) {
            words.truncate(end);
            words.extend(["… (", &response.body.len().to_string(), " bytes)"]);
        }
        words.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
    }
}

/// The name of a run's server that never registers.
pub(super) fn unregistered(run: &str) -> String {
    format!("conformance-nobody-{run}")
}

/// Hides JWTs in a text, the agent's and those of commands.
fn without_tokens(text: &str) -> String {
    let is_of_a_token = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let (mut hidden, mut rest) = (String::new(), text);
    while let Some((before, token)) = rest.split_once(TOKEN) {
        hidden.extend([before, HIDDEN]);
        rest = token.trim_start_matches(is_of_a_token);
    }
    hidden.push_str(rest);
    hidden
}

/// The URL's password, plain and as the header encodes it together with the name.
fn password(url: &Secret) -> Vec<Secret> {
    let Ok(url) = Url::parse(url.expose().trim()) else { return Vec::new() };
    let Some(password) = url.password() else { return Vec::new() };
    let decoded = |text| percent_encoding::percent_decode_str(text).decode_utf8_lossy();
    let (name, password) = (decoded(url.username()), decoded(password));
    let basic = STANDARD.encode(format!("{name}:{password}"));
    vec![Secret::new(password), Secret::new(basic)]
}

/// The URL without name and password, which are credentials too.
fn without_user_info(url: &Secret) -> Secret {
    let Ok(mut url) = Url::parse(url.expose().trim()) else { return url.clone() };
    // Both fail only for a URL without a host, and a base URL has one.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    Secret::new(url.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_in_the_url_are_left_out_of_a_request_without_credentials() {
        let bare = without_user_info(&Secret::new("https://user:hunter2@cp.example:8443/base"));
        assert_eq!(bare.expose(), "https://cp.example:8443/base");
    }

    #[test]
    fn no_token_and_no_password_is_shown() {
        assert_eq!(
            without_tokens(r#"{"a":"eyJ0.eyJx_-.s","b":1} eyJ"#),
            r#"{"a":"[hidden]","b":1} [hidden]"#
        );
        assert_eq!(without_tokens("HTTP 200"), "HTTP 200");
        let secrets = password(&Secret::new("https://user:pa%40ss@cp.example"));
        assert_eq!(secrets.iter().map(Secret::expose).collect::<Vec<_>>(), ["pa@ss", "dXNlcjpwYUBzcw=="]);
        assert!(password(&Secret::new("https://cp.example")).is_empty());
    }
}
