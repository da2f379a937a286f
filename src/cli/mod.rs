//! The command line: subcommands and exit codes (0 done, 1 failed, 2 usage, 78 configuration).

mod agent;
mod audit;
mod check;
mod conformance;
mod dead_letters;
mod export;
mod installed;
mod memory;
mod out;
mod outbox;
mod owner;
mod packaging;
mod signals;
mod stopped;
mod target;
mod top;
mod transfer;
mod user;

use std::process::ExitCode;
use std::sync::LazyLock;

use clap::{CommandFactory as _, Parser, Subcommand};
use sandbox::demo;
use tokio::sync::mpsc;

use crate::app::Agent;
use crate::config::{Config, Flags, Problems, ProxyDecision, Sources};
use crate::telemetry;
use crate::telemetry::log::LogLevel;
use crate::telemetry::metrics::COMMIT;
use signals::{Hangups, Stop};

/// This release and, if known, its commit.
static VERSION: LazyLock<String> = LazyLock::new(|| {
    let release = env!("CARGO_PKG_VERSION");
    COMMIT.map_or_else(|| release.to_owned(), |commit| format!("{release} ({commit})"))
});

/// Carries customers' usage records from this server's Redis to the ControlPlane without losing one.
///
/// Every setting is a flag, an environment variable, or a line of a .env file in the working directory.
#[derive(Parser)]
#[command(name = "dataplane-agent", version = VERSION.as_str(), max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    flags: Flags,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the agent (the default)
    Run(Box<Flags>),
    /// Checks the configuration, Redis, the outbox's disk, the ControlPlane, and the agent if it runs
    Check(Box<check::Args>),
    /// Runs the main job with its own Redis and ControlPlane, and checks that nothing is lost or duplicated
    Demo(demo::Args),
    /// Inspects and moves waiting records, of a stopped agent (OUTBOX_DIR) or a running one (ADMIN_TOKEN)
    Outbox(outbox::Args),
    /// Lists, replays and drops dead letters, of a stopped agent (OUTBOX_DIR) or a running one (ADMIN_TOKEN)
    DeadLetters(dead_letters::Args),
    /// Lists operator actions, of a stopped agent (OUTBOX_DIR) or a running one (ADMIN_TOKEN)
    Audit(audit::Args),
    /// Watches one or more running agents in the terminal
    Top(top::Args),
    /// Checks whether a ControlPlane keeps what the agent relies on: one row per rule of the contract
    Conformance(Box<conformance::Args>),
    /// A ControlPlane to develop against
    Sandbox(Box<sandbox::Args>),
    /// Prints shell completions
    Completions(packaging::CompletionsArgs),
    /// Prints the manual page
    Man(packaging::ManArgs),
}

/// Parses the command line and runs the command.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    // New files hold customers' data: the outbox, an export, the log. Existing files keep their mode.
    rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
    if let Err(error) = signals::survive_the_file_size_limit() {
        return exit_code(Err(error.into()));
    }
    let result = match cli.command {
        None => run(cli.flags),
        Some(Command::Run(flags)) => run(flags.or(cli.flags)),
        Some(Command::Check(args)) => return check::run(*args, cli.flags),
        Some(Command::Conformance(args)) => on_runtime(1, conformance::run(*args, cli.flags)),
        Some(Command::Demo(args)) => on_runtime(1, async move { demo::run(args).await }),
        Some(Command::Outbox(args)) => on_runtime(1, outbox::run(args, cli.flags)),
        Some(Command::DeadLetters(args)) => on_runtime(1, dead_letters::run(args, cli.flags)),
        Some(Command::Audit(args)) => on_runtime(1, audit::run(args, cli.flags)),
        Some(Command::Top(args)) => {
            on_runtime(1, async { top::run(args, cli.flags, Stop::listen()?.told()).await })
        }
        Some(Command::Sandbox(args)) => {
            on_runtime(2, async { sandbox::run(*args, Stop::listen()?.told()).await })
        }
        Some(Command::Completions(args)) => packaging::completions(Cli::command(), &args),
        Some(Command::Man(args)) => packaging::man(Cli::command(), &args),
    };
    exit_code(result)
}

/// Prints the error, if any.
fn exit_code(result: anyhow::Result<()>) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    if error.is::<out::Enough>() {
        return ExitCode::SUCCESS;
    }
    if let Some(problems) = error.downcast_ref::<Problems>() {
        eprintln!("Invalid configuration:\n{problems}");
        return ExitCode::from(Problems::EXIT_CODE);
    }
    eprintln!("dataplane-agent: {}", whole(&error));
    ExitCode::FAILURE
}

/// An error with its causes, without repeating one.
fn whole(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.ends_with(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

fn run(flags: Flags) -> anyhow::Result<()> {
    memory::keep_low();
    // One thread runs everything that waits: handing work over costs more than the work. Storage has its own threads.
    on_runtime(1, async {
        let (stop, hangups) = (Stop::listen()?, Hangups::listen()?);
        let sources = Sources::of_process(flags);
        let config = Config::load(&sources)?;
        let log_level = LogLevel::new(config.log().level);
        let _log = telemetry::log::init(&config.log(), log_level.clone())?;
        for warning in &config.warnings {
            tracing::warn!("{warning}");
        }
        if let ProxyDecision::Through { settings, variable, .. } = &config.control_plane.proxy {
            tracing::info!(proxy = %settings, variable, "using a proxy for requests to the ControlPlane");
        }
        let agent = Agent::build(config, sources, log_level).await;
        let agent = agent.inspect_err(|error| tracing::error!(critical = true, "{}", whole(error)))?;
        for address in agent.addresses() {
            tracing::info!(%address, version = env!("CARGO_PKG_VERSION"), "dataplane-agent is running");
        }
        let (reload, reloads) = mpsc::channel(1);
        let ended = tokio::select! {
            ended = agent.run(stop.told(), reloads) => ended,
            never = hangups.forward(reload) => match never {},
        };
        ended.inspect_err(|error| tracing::error!(critical = true, "{}", whole(error)))?;
        tracing::info!("stopped");
        Ok(())
    })
}

fn on_runtime(threads: usize, work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let mut builder = match threads {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    if threads > 1 {
        builder.worker_threads(threads);
    }
    builder.enable_all().build()?.block_on(work)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_printed_once() {
        let cause = anyhow::anyhow!("no (os error 13)");
        let error = cause.context("a/lock: no (os error 13)").context("stop the agent first");
        assert_eq!(whole(&error), "stop the agent first: a/lock: no (os error 13)");
    }

    #[test]
    fn no_flag_of_a_subcommand_collides_with_a_setting() {
        Cli::command().debug_assert();
    }
}
