//! `dataplane-agent check`: one line per dependency, with advice; and the health of the agent that runs with these settings.

use std::process::ExitCode;
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;

use super::agent::{AdminClient, AdminClientError};
use super::out::{print_json, say};
use super::target::local_address;
use super::{exit_code, installed, on_runtime, whole};
use crate::check::{self, CheckReport};
use crate::config::{Config, Flags, Problems, Setting};
use crate::telemetry::finding::{Finding, FindingState};

/// What to look at.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Prints every setting with its value and its source, secrets hidden; checks nothing
    #[arg(long)]
    print: bool,
    /// Prints JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: Flags,
}

pub(super) fn run(args: Args, flags: Flags) -> ExitCode {
    let config = match Config::load(&installed::sources(args.flags.or(flags))) {
        Ok(config) => config,
        Err(problems) if args.json => {
            let failed = |problem: &crate::config::Problem| {
                Finding::failed(
                    "configuration",
                    format!("{}: {}", problem.variable, problem.text),
                    "correct this setting",
                )
            };
            let report = CheckReport::of(problems.iter().map(failed).collect());
            // A closed output does not change the result.
            let _ = print_json(&report);
            return ExitCode::from(Problems::EXIT_CODE);
        }
        Err(problems) => return exit_code(Err(problems.into())),
    };
    if args.print {
        return exit_code(print(&config, args.json));
    }
    exit_code(on_runtime(1, async {
        let (mut checks, agent) = tokio::join!(check::run(&config), running_agent(&config));
        checks.push(agent);
        let report = CheckReport::of(checks);
        let printed = if args.json { print_json(&report) } else { report.checks.iter().try_for_each(line) };
        anyhow::ensure!(report.ok, "some checks failed: see above");
        printed
    }))
}

const AGENT: &str = "agent";
/// The agent answers from memory.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);

/// The part of `/health/detailed` that says which agent answers, and how it is.
#[derive(Deserialize)]
struct AgentHealth {
    status: String,
    reasons: Vec<String>,
    version: String,
    metrics: AgentIdentity,
}

#[derive(Deserialize)]
struct AgentIdentity {
    server_id: String,
}

/// Checks the address that the agent listens on: whether it is free, or this agent runs there and is well.
async fn running_agent(config: &Config) -> Finding {
    let address = local_address(&config.http);
    let health = match agent_health(&address).await {
        Ok(health) => health,
        Err(AdminClientError::Nobody { .. }) => {
            return Finding::ok(AGENT, format!("not running: nothing listens at {address}"));
        }
        Err(error @ AdminClientError::NotTrusted(_)) => {
            return Finding::warning(
                AGENT,
                error.to_string(),
                "its health is unknown: add this machine's address to TRUSTED_IPS",
            );
        }
        Err(error) => {
            return Finding::failed(
                AGENT,
                format!("{address} is in use: {}", whole(&error.into())),
                "if the agent runs there, see its log; otherwise stop that service, or set another SERVER_PORT",
            );
        }
    };
    let name = format!("{} {}", health.metrics.server_id, health.version);
    if health.metrics.server_id != config.identity.server_id {
        return Finding::failed(
            AGENT,
            format!("another agent, {name}, listens at {address}"),
            "give each agent its own SERVER_PORT",
        );
    }
    let says = format!("{name} runs at {address} and is {}", health.status);
    let says_why = || format!("{says}: {}", health.reasons.join("; "));
    let advice = format!("see {address}/runbook");
    match health.status.as_str() {
        "healthy" => Finding::ok(AGENT, says),
        "degraded" => Finding::warning(AGENT, says_why(), advice),
        _ => Finding::failed(AGENT, says_why(), advice),
    }
}

async fn agent_health(address: &str) -> Result<AgentHealth, AdminClientError> {
    let agent = AdminClient::at(address, None)?;
    let health = agent.read("/health/detailed", ANSWER_WITHIN).await?;
    serde_json::from_str(&health).map_err(|_| AdminClientError::NotAnAgent(address.to_owned()))
}

fn line(finding: &Finding) -> anyhow::Result<()> {
    let state = match finding.state {
        FindingState::Ok => "ok",
        FindingState::Warning => "WARNING",
        FindingState::Failed => "FAILED",
    };
    say!("{state:<8} {:<14} {}", finding.what, finding.says)?;
    let Some(advice) = &finding.advice else { return Ok(()) };
    say!("{:<8} {:<14} -> {advice}", "", "")
}

fn print(config: &Config, as_json: bool) -> anyhow::Result<()> {
    if as_json {
        let settings: Vec<_> = config.describe().iter().map(of_setting).collect();
        return print_json(&json!({
            "settings": settings,
            "proxy": config.control_plane.proxy.to_string(),
            "warnings": config.warnings,
        }));
    }
    let settings = config.describe();
    let text =
        |setting: &Setting| format!("{}={}", setting.name, setting.value.as_deref().unwrap_or_default());
    // Long values need no alignment.
    let width = settings.iter().map(|setting| text(setting).len()).max().unwrap_or(0).min(60);
    for setting in settings {
        say!("{:<width$}  # {}", text(setting), setting.origin)?;
    }
    say!("# Proxy to the ControlPlane: {}", config.control_plane.proxy)?;
    for warning in &config.warnings {
        eprintln!("warning: {warning}");
    }
    Ok(())
}

fn of_setting(setting: &Setting) -> serde_json::Value {
    json!({
        "name": setting.name,
        "value": setting.value,
        "origin": setting.origin.to_string(),
        "default": setting.default,
        "help": setting.help,
    })
}
