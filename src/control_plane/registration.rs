//! Calls about the server itself: registration, heartbeats, commands, shutdown.

use hyper::Method;
use jsonwebtoken::jwk::JwkSet;
use serde::Serialize;
use serde_json::{Value, json};
use std::time::Duration;
use uuid::Uuid;

use super::answers::{BadAnswer, Commands, parse_commands, parse_key_set};
use super::client::Client;
use super::failure::Failure;
use super::heard::HEALTH;
use super::meaning::{Asked, Meaning};
use super::request::{ConnectionChoice, Encoding, Outgoing, Priority};
use super::response::Response;

/// Room for many hundred commands, or for every key ever used.
const ANSWER_MAX_BYTES: usize = 1 << 20;

/// The endpoint for commands, and the maximum size of its answer.
const COMMANDS: &str = "commands";
const COMMANDS_MAX_BYTES: usize = 16 << 20;

/// A server's registration; the client adds its ID and version.
#[derive(Clone, Debug, Serialize)]
pub struct Registration {
    /// Its region.
    pub region: String,
    /// The address of its speech server.
    pub ip_address: String,
    /// The port of its speech server.
    pub port: u16,
    /// Its capabilities.
    pub capabilities: Capabilities,
}

/// A server's capabilities.
#[derive(Clone, Debug, Serialize)]
pub struct Capabilities {
    /// Concurrent sessions.
    pub max_concurrent_sessions: u32,
    /// Product codes, separated by commas.
    pub supported_products: String,
    /// Language codes, separated by commas.
    pub supported_languages: String,
}

/// A server's state in a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ServerStatus {
    /// Nothing needs attention.
    Online,
    /// Some of it does not work.
    Degraded,
}

/// The outcome of a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heartbeat {
    /// Accepted.
    Heard,
    /// The `ControlPlane` does not know this server (any more): it must register again.
    Forgotten,
}

/// The result of a command.
#[derive(Clone, Debug, Serialize)]
pub struct CommandResult {
    /// The command's ID.
    pub command_id: String,
    /// Whether it was executed.
    pub success: bool,
    /// Its output; null if there is none.
    pub result: Value,
    /// Why it was not executed.
    pub error_message: Option<String>,
    /// When it was executed, in RFC 3339.
    pub execution_timestamp: String,
}

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// There was no answer.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// The answer was not a success.
    #[error("answered {status}{}", .meaning.remark())]
    Status {
        /// Its HTTP status.
        status: u16,
        /// What it means.
        meaning: Meaning,
        /// How long the answer asks us to wait.
        retry_after: Option<Duration>,
    },
    /// The answer's content is invalid.
    #[error("answered, but the answer is invalid: {0}")]
    BadAnswer(#[from] BadAnswer),
}

impl Client {
    /// Registers this server.
    pub async fn register(&self, registration: &Registration) -> Result<(), CallError> {
        #[derive(Serialize)]
        struct RegistrationBody<'a> {
            server_id: &'a str,
            version: &'a str,
            #[serde(flatten)]
            registration: &'a Registration,
        }
        let (server_id, version) = self.server();
        let body = RegistrationBody { server_id, version, registration };
        let url = self.target().path("/api/v1/servers/register");
        done(
            self.call("register", Method::POST, url, Some(to_json(&body)?), crate::time::random_uuid())
                .await?,
        )
    }

    /// Reports that this server is alive, with its state.
    pub async fn heartbeat(&self, status: ServerStatus, metrics: Value) -> Result<Heartbeat, CallError> {
        let body = json!({ "status": status, "metrics": metrics });
        let url = self.server_url("/heartbeat")?;
        let response = self
            .call("heartbeat", Method::PUT, url, Some(to_json(&body)?), crate::time::random_uuid())
            .await?;
        match response.meaning {
            Meaning::NotFound => Ok(Heartbeat::Forgotten),
            _ => done(response).map(|()| Heartbeat::Heard),
        }
    }

    /// Announces that this server is about to stop.
    pub async fn shutdown_notice(&self) -> Result<(), CallError> {
        done(
            self.call(
                "shutdown",
                Method::POST,
                self.server_url("/shutdown")?,
                None,
                crate::time::random_uuid(),
            )
            .await?,
        )
    }

    /// Asks for the `ControlPlane`'s health.
    pub async fn health(&self) -> Result<(), CallError> {
        let url = self.target().path("/api/v1/health");
        answered(self.call(HEALTH, Method::GET, url, None, crate::time::random_uuid()).await?).map(drop)
    }

    /// Asks for the commands waiting for this server.
    pub async fn commands(&self) -> Result<Commands, CallError> {
        let url = self.server_url("/commands")?;
        let response = self.call(COMMANDS, Method::GET, url, None, crate::time::random_uuid()).await?;
        // An invalid character makes the whole answer invalid JSON, but belongs to one command: each is judged separately.
        if let (200, Meaning::Foreign, Err(error)) =
            (response.status, response.meaning, std::str::from_utf8(&response.body))
            && error.error_len().is_some()
            && let Ok(commands) = parse_commands(&response.body)
        {
            return Ok(commands);
        }
        Ok(parse_commands(&answered(response)?)?)
    }

    /// Reports the result of a command. Repeating it is harmless: the idempotency key is the command's.
    pub async fn command_result(&self, result: &CommandResult) -> Result<(), CallError> {
        let key =
            Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("command_result:{}", result.command_id).as_bytes());
        let url = self.server_url("/command-results")?;
        done(self.call("command_results", Method::POST, url, Some(to_json(result)?), key).await?)
    }

    /// Asks for the keys that verify commands' tokens.
    pub async fn public_keys(&self) -> Result<JwkSet, CallError> {
        let url = self.target().path("/api/v1/auth/public-keys");
        let body =
            answered(self.call("public_keys", Method::GET, url, None, crate::time::random_uuid()).await?)?;
        Ok(parse_key_set(&body)?)
    }

    fn server_url(&self, what: &str) -> Result<String, Failure> {
        self.target().server(self.server().0, what).map_err(Failure::Unsendable)
    }

    async fn call(
        &self,
        endpoint: &'static str,
        method: Method,
        url: String,
        body: Option<Vec<u8>>,
        id: Uuid,
    ) -> Result<Response, Failure> {
        let key = (method != Method::GET).then_some(id);
        self.send(Outgoing {
            endpoint,
            method,
            url,
            body: body.map(Into::into),
            encoding: Encoding::Identity,
            key,
            asked: Asked {
                correlation_id: id.hyphenated().encode_lower(&mut Uuid::encode_buffer()),
                ..Asked::default()
            },
            traceparent: None,
            // One command that is far too large must not block the others.
            answer_max_bytes: if endpoint == COMMANDS { COMMANDS_MAX_BYTES } else { ANSWER_MAX_BYTES },
            connection: ConnectionChoice::Any,
            priority: Priority::Urgent,
        })
        .await
        .result
    }
}

fn to_json(body: &impl Serialize) -> Result<Vec<u8>, Failure> {
    serde_json::to_vec(body).map_err(|_| Failure::Unsendable("its body cannot be written as JSON"))
}

/// Checks that a change was made, now or before.
fn done(response: Response) -> Result<(), CallError> {
    if response.meaning == Meaning::Duplicate { Ok(()) } else { answered(response).map(drop) }
}

/// The complete body of a good answer.
fn answered(response: Response) -> Result<bytes::Bytes, CallError> {
    let Response { status, retry_after, meaning, body, truncated, .. } = response;
    match meaning {
        Meaning::Delivered => Ok(body),
        Meaning::Foreign if truncated => Err(BadAnswer::TooLong.into()),
        _ => Err(CallError::Status { status, meaning, retry_after }),
    }
}
