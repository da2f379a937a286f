//! The `ControlPlane`'s API for servers: registration, heartbeats, commands and their results, public keys.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use chrono::Utc;
use serde::Serialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    Shared,
    body::{self, Done, Failure, Success},
    delivery::Refusal,
    forms,
    signer::Signer,
};

/// Maximum number of servers, commands and results.
const MAX_KEPT: usize = 10_000;

/// The known servers, and the commands and results exchanged with them.
pub(super) struct Fleet {
    servers: BTreeMap<String, Server>,
    commands: VecDeque<Map<String, Value>>,
    results: VecDeque<Value>,
    keys: Value,
    signer: Option<Signer>,
    counters: Counters,
}

/// A server as it describes itself.
#[derive(Serialize)]
struct Server {
    registration: Value,
    last_heartbeat: Option<Value>,
}

#[derive(Clone, Copy, Default, Serialize)]
struct Counters {
    registrations: u64,
    heartbeats: u64,
    shutdown_notices: u64,
    command_results: u64,
}

impl Default for Fleet {
    fn default() -> Self {
        Self {
            servers: BTreeMap::new(),
            commands: VecDeque::new(),
            results: VecDeque::new(),
            keys: json!({"keys": []}),
            signer: None,
            counters: Counters::default(),
        }
    }
}

impl Fleet {
    /// Queues a command. It is delivered until its result arrives, so a lost answer does not lose it. `"sign": true` adds a
    /// token for the server named in the command.
    pub(super) fn command(&mut self, mut command: Map<String, Value>) -> Result<Map<String, Value>, Refusal> {
        if !command.get("command_type").is_some_and(Value::is_string) {
            return Err(unprocessable("command_type: missing, or not a text"));
        }
        if self.commands.len() >= MAX_KEPT {
            return Err(Refusal::new(
                StatusCode::INSUFFICIENT_STORAGE,
                "too many commands wait for their results",
            ));
        }
        command.entry("command_id").or_insert_with(|| Uuid::new_v4().to_string().into());
        command.entry("timestamp").or_insert_with(|| Utc::now().to_rfc3339().into());
        match command.remove("sign") {
            None | Some(Value::Bool(false)) => {}
            Some(Value::Bool(true)) if command.get("server_id").is_some_and(Value::is_string) => {
                let token = self.signer()?.token(&command)?;
                command.insert("token".to_owned(), token.into());
            }
            Some(Value::Bool(true)) => {
                return Err(unprocessable("server_id: missing; a token is for one server"));
            }
            Some(_) => return Err(unprocessable("sign: neither true nor false")),
        }
        self.commands.push_back(command.clone());
        Ok(command)
    }

    /// The signer, whose key is published.
    fn signer(&mut self) -> Result<&Signer, Refusal> {
        if self.signer.is_none() {
            self.rotate()?;
        }
        self.signer.as_ref().ok_or_else(|| unprocessable("sign: there is no key"))
    }

    /// Signs with a new key from now on, and publishes only that one.
    pub(super) fn rotate(&mut self) -> Result<&Value, Refusal> {
        let signer = Signer::new()?;
        self.keys = signer.key_set();
        self.signer = Some(signer);
        Ok(&self.keys)
    }

    /// Replaces the published key set.
    pub(super) fn set_keys(&mut self, keys: Value) -> Result<(), Refusal> {
        if !keys.get("keys").is_some_and(Value::is_array) {
            return Err(unprocessable("keys: missing, or not a list"));
        }
        // Tokens of the current signer would not verify: the next one needs a new key.
        (self.keys, self.signer) = (keys, None);
        Ok(())
    }

    /// Commands waiting for results, and the results received.
    pub(super) fn exchanged(&self) -> Value {
        json!({"pending": self.commands, "results": self.results})
    }

    pub(super) fn servers(&self) -> Value {
        json!({"servers": self.servers})
    }

    /// Forgets every registration: the next heartbeats are answered 404.
    pub(super) fn forget_servers(&mut self) {
        self.servers.clear();
    }

    /// Resets the counters. Registrations and commands stay.
    pub(super) fn reset(&mut self) {
        self.results.clear();
        self.counters = Counters::default();
    }

    pub(super) fn report(&self) -> impl Serialize + use<> {
        #[derive(Serialize)]
        struct Report {
            registered_servers: Vec<String>,
            #[serde(flatten)]
            counters: Counters,
        }
        Report { registered_servers: self.servers.keys().cloned().collect(), counters: self.counters }
    }
}

fn unprocessable(reason: &'static str) -> Refusal {
    Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, reason)
}

/// Parses a body that must be a JSON object.
pub(super) fn object(body: &[u8]) -> Result<Map<String, Value>, Refusal> {
    match serde_json::from_slice(body) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err(unprocessable("not a JSON object")),
        Err(error) => Err(Refusal::new(StatusCode::BAD_REQUEST, format!("not JSON: {error}"))),
    }
}

/// The answer to a registration.
#[derive(Serialize, ToSchema)]
pub(super) struct Registered {
    server_id: String,
}

/// Registers a server, or registers it again.
#[utoipa::path(
    post,
    path = "/api/v1/servers/register",
    tag = "servers",
    request_body = forms::Registration,
    responses((status = 200, description = "Registered", body = Success<Registered>))
)]
pub(super) async fn register(State(shared): State<Arc<Shared>>, body: Bytes) -> Result<Response, Refusal> {
    let registration = object(&body)?;
    let id = match registration.get("server_id") {
        Some(Value::String(id)) if !id.is_empty() => id.clone(),
        _ => return Err(unprocessable("server_id: missing, empty, or not a text")),
    };
    let mut fleet = shared.fleet();
    if fleet.servers.len() >= MAX_KEPT && !fleet.servers.contains_key(&id) {
        return Err(Refusal::new(StatusCode::INSUFFICIENT_STORAGE, "too many servers"));
    }
    fleet.counters.registrations += 1;
    let server = Server { registration: registration.into(), last_heartbeat: None };
    fleet.servers.insert(id.clone(), server);
    Ok(body::success(Registered { server_id: id }))
}

/// Reports that a server is alive, and its state.
#[utoipa::path(
    put,
    path = "/api/v1/servers/{server_id}/heartbeat",
    tag = "servers",
    params(("server_id" = String, Path, description = "`SERVER_ID`")),
    request_body = forms::Heartbeat,
    responses(
        (status = 200, description = "Heard", body = Done),
        (status = 404, description = "The server is not registered: it registers anew", body = Failure)
    )
)]
pub(super) async fn heartbeat(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<Response, Refusal> {
    let heartbeat = object(&body)?;
    let mut fleet = shared.fleet();
    let Some(server) = fleet.servers.get_mut(&id) else {
        return Err(Refusal::new(StatusCode::NOT_FOUND, "the server is not registered"));
    };
    server.last_heartbeat = Some(heartbeat.into());
    fleet.counters.heartbeats += 1;
    Ok(body::done())
}

/// Announces that a server is about to stop.
#[utoipa::path(
    post,
    path = "/api/v1/servers/{server_id}/shutdown",
    tag = "servers",
    params(("server_id" = String, Path, description = "`SERVER_ID`")),
    responses((status = 200, description = "Heard", body = Done))
)]
pub(super) async fn shutdown(State(shared): State<Arc<Shared>>) -> Response {
    shared.fleet().counters.shutdown_notices += 1;
    body::done()
}

/// Lists the commands waiting for a server, each until its result arrives.
#[utoipa::path(
    get,
    path = "/api/v1/servers/{server_id}/commands",
    tag = "servers",
    params(("server_id" = String, Path, description = "`SERVER_ID`")),
    responses((status = 200, description = "What waits", body = forms::Commands))
)]
pub(super) async fn commands(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> Response {
    let fleet = shared.fleet();
    // Commands without a `server_id`, and those for this server.
    let is_its_own =
        |command: &&Map<String, Value>| command.get("server_id").is_none_or(|server| *server == *id);
    let commands: Vec<_> = fleet.commands.iter().filter(is_its_own).collect();
    Json(json!({"commands": commands})).into_response()
}

/// Reports a command's result. The key is the command's: a repetition is harmless.
#[utoipa::path(
    post,
    path = "/api/v1/servers/{server_id}/command-results",
    tag = "servers",
    params(("server_id" = String, Path, description = "`SERVER_ID`")),
    request_body = forms::CommandResult,
    responses((status = 200, description = "Heard", body = Done))
)]
pub(super) async fn command_result(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<Response, Refusal> {
    let mut result = object(&body)?;
    let Some(command) = result.get("command_id").cloned() else {
        return Err(unprocessable("command_id: missing"));
    };
    let mut fleet = shared.fleet();
    fleet.commands.retain(|queued| queued.get("command_id") != Some(&command));
    if fleet.results.len() >= MAX_KEPT {
        fleet.results.pop_front();
    }
    result.insert("server_id".to_owned(), id.into());
    fleet.results.push_back(result.into());
    fleet.counters.command_results += 1;
    Ok(body::done())
}

/// Lists the keys that verify commands' tokens.
#[utoipa::path(
    get,
    path = "/api/v1/auth/public-keys",
    tag = "servers",
    responses((status = 200, description = "A JWK Set; one that is bare is understood, too", body = Success<forms::KeySet>))
)]
pub(super) async fn public_keys(State(shared): State<Arc<Shared>>) -> Response {
    body::success(&shared.fleet().keys)
}
