//! Calls about the server: registration, heartbeats, keys, commands and their results, shutdown.

use std::time::Duration;

use jsonwebtoken::jwk::JwkSet;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::Run;
use super::answers::{EXPECTED, GOOD, good, status};
use super::rule::{NotPassed, Rule, RuleVerdict, fail, fail_by, not_seen, pass};
use super::wire::{Caller, Exchange, unregistered};
use crate::control_plane::{
    Client, Command, CommandResult, Meaning, ServerStatus, parse_commands, parse_key_set,
};
use crate::fleet::commands::check_token;
use crate::time;

/// How often the server is asked for a command that the run waits for.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// The only command answered without this run having queued it: it changes nothing.
const HARMLESS: &str = "health_check";

pub(super) static FIRST: [Rule; 3] = [
    Rule { name: "register", page: "control-plane.md", sentence: GOOD, check: |run| Box::pin(register(run)) },
    Rule {
        name: "heartbeat",
        page: "control-plane.md",
        sentence: GOOD,
        check: |run| Box::pin(heartbeat(run)),
    },
    Rule {
        name: "heartbeat_unregistered",
        page: "control-plane.md",
        sentence: "The agent registers at startup, and again when a heartbeat is answered 404.",
        check: |run| Box::pin(heartbeat_unregistered(run)),
    },
];

pub(super) static LAST: [Rule; 5] = [
    Rule {
        name: "public_keys",
        page: "control-plane.md",
        sentence: "answer: a JWK Set under `data`, or bare",
        check: |run| Box::pin(public_keys(run)),
    },
    Rule {
        name: "commands",
        page: "control-plane.md",
        sentence: "answer: `{\"commands\":[…]}`",
        check: |run| Box::pin(commands(run)),
    },
    Rule {
        name: "command_token",
        page: "commands.md",
        sentence: "A JWT, signed with `JWT_ALGORITHM` (RS256) and no other, by a key of the ControlPlane's JWK Set",
        check: |run| Box::pin(token(run)),
    },
    Rule {
        name: "command_result",
        page: "commands.md",
        sentence: "A command is delivered until its result has been accepted, and a repeated result does no harm.",
        check: |run| Box::pin(result(run)),
    },
    Rule { name: "shutdown", page: "control-plane.md", sentence: GOOD, check: |run| Box::pin(shutdown(run)) },
];

/// A command that is waiting for this run's server.
#[derive(Clone)]
pub(super) struct WaitingCommand {
    command: Command,
    /// Whether the run may answer it: the run queued it, or it changes nothing.
    is_ours: bool,
}

async fn register(run: &mut Run) -> RuleVerdict {
    let registration = run.registration();
    let sent = format!("POST /api/v1/servers/register, server_id {}", run.setup.client.server_id);
    let register = async |client: &Client| drop(client.register(&registration).await);
    let exchange = run.wire.send(Caller::Agent, sent, register).await;
    run.wire.stop_if_hopeless(&exchange);
    good(exchange)
}

async fn beat(run: &mut Run, by: Caller, server_id: &str) -> Exchange {
    let sent = format!("PUT /api/v1/servers/{server_id}/heartbeat, status online");
    let metrics = json!({"usage_records_processed": 0, "outbox_depth": 0, "uptime_seconds": 1});
    let heartbeat = async |client: &Client| {
        drop(client.heartbeat(ServerStatus::Online, metrics.clone()).await);
    };
    run.wire.send(by, sent, heartbeat).await
}

async fn heartbeat(run: &mut Run) -> RuleVerdict {
    let server_id = run.setup.client.server_id.clone();
    good(beat(run, Caller::Agent, &server_id).await)
}

async fn heartbeat_unregistered(run: &mut Run) -> RuleVerdict {
    let exchange = beat(run, Caller::Unregistered, &unregistered(&run.id)).await;
    match exchange.meaning() {
        Some(Meaning::NotFound) => pass(status(&exchange)),
        Some(Meaning::Delivered) => pass(format!("{}: a heartbeat is enough to be known", status(&exchange))),
        _ => fail("404, so that the agent registers again; or a good answer", &exchange),
    }
}

async fn fetch_keys(run: &mut Run) -> Exchange {
    let sent = "GET /api/v1/auth/public-keys".to_owned();
    run.wire.send(Caller::Agent, sent, async |client| drop(client.public_keys().await)).await
}

async fn public_keys(run: &mut Run) -> RuleVerdict {
    let exchange = fetch_keys(run).await;
    match keys_of(&exchange) {
        Ok(keys) if keys.keys.is_empty() => {
            pass("no keys yet: the agent refuses every command that needs a token")
        }
        Ok(keys) => pass(format!("{} keys", keys.keys.len())),
        Err(reason) => fail(format!("{EXPECTED}, here a JWK Set; this answer: {reason}"), &exchange),
    }
}

fn keys_of(exchange: &Exchange) -> Result<JwkSet, String> {
    if !exchange.is_delivered() {
        return Err("not a good answer".to_owned());
    }
    parse_key_set(exchange.body()).map_err(|error| error.to_string())
}

async fn ask_for_commands(run: &mut Run) -> Exchange {
    let sent = format!("GET /api/v1/servers/{}/commands", run.setup.client.server_id);
    run.wire.send(Caller::Agent, sent, async |client| drop(client.commands().await)).await
}

fn commands_of(exchange: &Exchange) -> Result<Vec<Command>, String> {
    if !exchange.is_delivered() {
        return Err("not a good answer".to_owned());
    }
    match parse_commands(exchange.body()) {
        Ok(commands) if commands.malformed == 0 => Ok(commands.commands),
        Ok(commands) => Err(format!("{} commands without command_id or command_type", commands.malformed)),
        Err(error) => Err(error.to_string()),
    }
}

/// Queues a command if the server can, and polls; keeps polling for a while if somebody else has to queue one.
async fn commands(run: &mut Run) -> RuleVerdict {
    let queued = queue(run).await;
    let until = Instant::now() + run.setup.wait;
    loop {
        let exchange = ask_for_commands(run).await;
        let waiting = match commands_of(&exchange) {
            Ok(waiting) => waiting,
            Err(reason) => {
                let expected = r#"200 with {"commands":[{"command_id","command_type",…},…]}"#;
                return fail(format!("{expected}; this answer: {reason}"), &exchange);
            }
        };
        let is_ours = |command: &Command| match &queued {
            Some(id) => command.command_id == *id,
            None => command.command_type == HARMLESS,
        };
        let handed = waiting.iter().find(|command| is_ours(command)).or(waiting.first());
        run.command =
            handed.map(|command| WaitingCommand { command: command.clone(), is_ours: is_ours(command) });
        match (&queued, &run.command) {
            (Some(id), None | Some(WaitingCommand { is_ours: false, .. })) => {
                return fail(format!("the command {id}, which the run queued for its server"), &exchange);
            }
            (None, None) if Instant::now() < until => sleep(LOOK_EVERY).await,
            _ => return pass(format!("{} commands wait", waiting.len())),
        }
    }
}

/// Queues a command that needs a token, if the server supports that.
async fn queue(run: &Run) -> Option<String> {
    let command: Value = json!({
        "command_type": "set_log_level",
        "parameters": {"level": "INFO"},
        "server_id": run.setup.client.server_id,
        "sign": true,
    });
    run.accounts.as_ref()?.queue(&command).await.ok()
}

/// The command that waits for the run's server.
fn waiting_command(run: &Run) -> Result<WaitingCommand, NotPassed> {
    let none = || {
        not_seen(
            "no command waits for the run's server",
            format!(
                "run with --wait 60 and queue a {HARMLESS}, or a command with a token, for the server that the run names at its \
             start; or use --server-id to name a test server that has one"
            ),
        )
    };
    run.command.clone().map_or_else(none, Ok)
}

async fn token(run: &mut Run) -> RuleVerdict {
    let WaitingCommand { command, .. } = waiting_command(run)?;
    if command.token.is_none() {
        return not_seen(
            format!("the waiting {} has no token, and may need none", command.command_type),
            "queue a set_log_level with a token",
        );
    }
    let keys = fetch_keys(run).await;
    let (server_id, algorithm) = (run.setup.client.server_id.clone(), run.setup.algorithm);
    let now = time::now().0 / 1_000_000;
    let verified = keys_of(&keys).and_then(|keys| check_token(&command, &keys, algorithm, &server_id, now));
    match verified {
        Ok(()) => pass(format!("the token of {} verifies", command.command_type)),
        Err(reason) => fail_by(
            "a token for this server, with jti, command_type, parameters and exp, that verifies with /api/v1/auth/public-keys",
            format!("GET /api/v1/servers/{server_id}/commands"),
            format!("the {} {}: {reason}", command.command_type, command.command_id),
        ),
    }
}

/// Answers the command twice, then checks that the server no longer delivers it.
async fn result(run: &mut Run) -> RuleVerdict {
    let WaitingCommand { command, is_ours } = waiting_command(run)?;
    if !is_ours {
        return not_seen(
            format!("a {} waits; the run answers only a {HARMLESS}", command.command_type),
            format!("queue a {HARMLESS}, which changes nothing"),
        );
    }
    let outcome = CommandResult {
        command_id: command.command_id.clone(),
        success: false,
        result: Value::Null,
        error_message: Some("conformance: the command is answered, not executed".to_owned()),
        execution_timestamp: time::now().to_rfc3339(),
    };
    for times in ["", ", once more"] {
        let server_id = &run.setup.client.server_id;
        let sent = format!("POST /api/v1/servers/{server_id}/command-results, {}{times}", command.command_id);
        let report = async |client: &Client| drop(client.command_result(&outcome).await);
        let exchange = run.wire.send(Caller::Agent, sent, report).await;
        let is_heard = if times.is_empty() { exchange.is_delivered() } else { exchange.is_settled() };
        if !is_heard {
            return fail(EXPECTED, &exchange);
        }
    }
    let exchange = ask_for_commands(run).await;
    let is_gone = |waiting: &[Command]| waiting.iter().all(|other| other.command_id != command.command_id);
    match commands_of(&exchange) {
        Ok(waiting) if is_gone(&waiting) => {
            pass("the result was accepted twice, the command waits no longer")
        }
        _ => {
            fail(format!("{} no longer in the list: its result was accepted", command.command_id), &exchange)
        }
    }
}

async fn shutdown(run: &mut Run) -> RuleVerdict {
    let sent = format!("POST /api/v1/servers/{}/shutdown, without a body", run.setup.client.server_id);
    let notice = async |client: &Client| drop(client.shutdown_notice().await);
    good(run.wire.send(Caller::Agent, sent, notice).await)
}
