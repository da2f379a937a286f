//! `dataplane-agent check`: one line per dependency, with advice.

use std::process::ExitCode;

use serde_json::json;

use super::out::{print_json, say};
use super::{exit_code, installed, on_runtime};
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
        let report = check::run(&config).await;
        let printed = if args.json { print_json(&report) } else { report.checks.iter().try_for_each(line) };
        anyhow::ensure!(report.ok, "the agent cannot work with this configuration: see the failed checks");
        printed
    }))
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
