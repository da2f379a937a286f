//! Runs seeds of the simulation. A failing seed is shrunk and printed as a command.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use simulation::bugs::Bug;
use simulation::run::run;
use simulation::shrink::{Without, shrink};

/// Runs the whole agent under simulation, once a seed.
#[derive(Parser)]
struct Flags {
    /// How many seeds to run
    #[arg(long, default_value_t = 300)]
    seeds: u64,
    /// The first of them
    #[arg(long, default_value_t = 1)]
    first: u64,
    /// Runs this seed alone and prints everything that happens
    #[arg(long)]
    seed: Option<u64>,
    /// Prints nothing of what happens
    #[arg(long, requires = "seed")]
    quiet: bool,
    /// Leaves out faults of the seed's plan, by their numbers
    #[arg(long, value_delimiter = ',', requires = "seed")]
    without_faults: Vec<usize>,
    /// Leaves out ends of the agent
    #[arg(long, value_delimiter = ',', requires = "seed")]
    without_ends: Vec<usize>,
    /// Leaves out sessions
    #[arg(long, value_delimiter = ',', requires = "seed")]
    without_sessions: Vec<usize>,
    /// Leaves out all commands
    #[arg(long, requires = "seed")]
    without_commands: bool,
    /// Plants this bug
    #[arg(long)]
    bug: Option<Bug>,
    /// Goes on after a failure
    #[arg(long)]
    all: bool,
    /// Does not make a failing seed smaller
    #[arg(long)]
    whole: bool,
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    // A single run prints its panics.
    if flags.seed.is_none() {
        std::panic::set_hook(Box::new(|_| {}));
    }
    match flags.seed {
        Some(seed) => one(&flags, seed),
        None => many(&flags),
    }
}

fn one(flags: &Flags, seed: u64) -> ExitCode {
    let without = Without {
        faults: flags.without_faults.iter().copied().collect(),
        ends: flags.without_ends.iter().copied().collect(),
        sessions: flags.without_sessions.iter().copied().collect(),
        commands: flags.without_commands,
    };
    let plan = without.of(seed);
    if !flags.quiet {
        println!("{:#?}", plan.settings);
        plan.faults.iter().for_each(|fault| println!("{fault:?}"));
        plan.ends.iter().for_each(|end| println!("{end:?}"));
        plan.commands.iter().for_each(|command| println!("{command:?}"));
    }
    let outcome = run(plan, flags.bug, !flags.quiet);
    let (hash, lines) = outcome.digest;
    println!(
        "seed {seed}: {lines} events, {hash:016x}, {:.1} s of its own time",
        outcome.lasted.as_secs_f64()
    );
    outcome.violations.iter().for_each(|violation| println!("VIOLATION: {violation}"));
    if outcome.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn many(flags: &Flags) -> ExitCode {
    let begun = Instant::now();
    let (mut failed, mut records, mut lives, mut lasted, mut slowest) =
        (0, 0, 0, Duration::ZERO, (Duration::ZERO, 0));
    for seed in flags.first..flags.first + flags.seeds {
        let at = Instant::now();
        let outcome = run(Without::default().of(seed), flags.bug, false);
        slowest = slowest.max((at.elapsed(), seed));
        records += outcome.records;
        lives += outcome.lives;
        lasted += outcome.lasted;
        if outcome.violations.is_empty() {
            continue;
        }
        failed += 1;
        println!("seed {seed} FAILED:");
        outcome.violations.iter().take(5).for_each(|violation| println!("  {violation}"));
        if flags.all {
            continue;
        }
        if flags.whole {
            return ExitCode::FAILURE;
        }
        let smaller = shrink(seed, flags.bug);
        let left = run(smaller.of(seed), flags.bug, false);
        println!("made smaller, it fails so:");
        left.violations.iter().take(5).for_each(|violation| println!("  {violation}"));
        let bug = flags.bug.and_then(|bug| clap::ValueEnum::to_possible_value(&bug));
        let bug = bug.map_or(String::new(), |bug| format!(" --bug {}", bug.get_name()));
        println!(
            "repeat it: cargo run --profile simulation -p simulation --bin simulate -- --seed {seed}{}{bug}",
            smaller.flags()
        );
        return ExitCode::FAILURE;
    }
    println!(
        "{} seeds from {} on, {failed} failed: {records} records, {lives} lives of the agent, {:.1} hours of their time in {:.1} s \
         (slowest: seed {} in {:.1} s)",
        flags.seeds,
        flags.first,
        lasted.as_secs_f64() / 3600.0,
        begun.elapsed().as_secs_f64(),
        slowest.1,
        slowest.0.as_secs_f64(),
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
