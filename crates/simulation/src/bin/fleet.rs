//! A fleet meets a `ControlPlane` of fixed capacity: prints a table and draws a chart.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use simulation::fleet::{Event, Outcome, Scenario, Strategy, chart, quantile, run};

/// Plays a fleet of agents that meets a ControlPlane of fixed capacity, in virtual time; beside it other ways to retry
#[derive(Parser)]
struct Flags {
    /// How many agents
    #[arg(long, default_value_t = 10_000)]
    agents: u32,
    /// Requests a second that the ControlPlane takes, for each agent
    #[arg(long, default_value_t = 2.0)]
    requests: f64,
    /// Bytes a second that it takes, for each agent
    #[arg(long, default_value_t = 6_000.0)]
    bytes: f64,
    /// The seed of all chance
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Plays the agent alone, without the other strategies
    #[arg(long)]
    alone: bool,
    /// Draws what the ControlPlane took and shed to this file, as SVG
    #[arg(long, conflicts_with = "alone")]
    draw: Option<PathBuf>,
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    let agents = f64::from(flags.agents);
    println!(
        "{} agents with an hour's backlog; the ControlPlane takes {:.0} requests and {:.1} MB a second",
        flags.agents,
        flags.requests * agents,
        flags.bytes * agents / 1e6
    );
    println!(
        "| event | strategy | goodput | shed | drained | all, x ideal | last, x median | quota p99 | in the first minute |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    let (mut rows, mut fails) = (Vec::new(), false);
    for event in Event::ALL {
        let scenario = Scenario {
            agents: flags.agents,
            requests: flags.requests * agents,
            bytes: flags.bytes * agents,
            event,
            seed: flags.seed,
        };
        let mut outcomes = Vec::new();
        for strategy in Strategy::ALL {
            if flags.alone && strategy != Strategy::Agent {
                continue;
            }
            let outcome = run(scenario, strategy);
            println!("{}", row(&outcome, strategy));
            if strategy == Strategy::Agent {
                let shortcomings = outcome.shortcomings();
                for what in &shortcomings {
                    println!("FAILED: {}: {what}", event.label());
                }
                fails |= !shortcomings.is_empty();
            }
            outcomes.push(outcome);
        }
        rows.push((event.label(), outcomes));
    }
    if let Some(path) = &flags.draw
        && let Err(error) = std::fs::write(path, chart::draw(&rows))
    {
        eprintln!("{}: {error}", path.display());
        return ExitCode::FAILURE;
    }
    if fails { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn row(outcome: &Outcome, strategy: Strategy) -> String {
    let (goodput, shed) = outcome.goodput_and_shed();
    let ratio = |of: Option<f64>, to: Option<f64>| match (of, to) {
        (Some(of), Some(to)) => format!("{:.2}", of / to),
        _ => "–".to_owned(),
    };
    let p99 = |sorted: &[f64]| quantile(sorted, 0.99).map_or("–".to_owned(), |wait| format!("{wait:.1} s"));
    format!(
        "| {} | {} | {goodput:.2} | {:.1} % | {:.1} % | {} | {} | {} | {} |",
        outcome.scenario.event.label(),
        strategy.label(),
        shed * 100.0,
        outcome.drained.len() as f64 * 100.0 / f64::from(outcome.scenario.agents),
        ratio(outcome.drained(1.0), Some(outcome.scenario.ideal())),
        ratio(outcome.drained(1.0), outcome.drained(0.5)),
        p99(&outcome.later_quota),
        p99(&outcome.early_quota),
    )
}
