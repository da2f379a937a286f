//! Campaigns against the real agent: it is killed, its power is cut, its disk and its Redis fail, thousands of times, and every
//! record is accounted for. docs/proof.md explains the purpose.

mod account;
mod agent;
mod campaign;
mod disk;
mod http;
mod image;
mod kill;
mod load;
mod oracle;
mod plant;
mod power;
mod process;
mod redis_faults;
mod redis_server;
mod sandbox;
mod self_test;
mod slope;
mod soak;
mod stage;
mod state;
mod weather;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Parser, ValueEnum};
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::campaign::Campaign;
use crate::plant::Plant;
use crate::stage::Rig;

/// The campaigns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Which {
    /// SIGKILL under load.
    Kill,
    /// Power cuts under load.
    Power,
    /// A disk that fails.
    Disk,
    /// A Redis that is killed, restarted, or replaced by its replica.
    Redis,
    /// Hours of load.
    Soak,
    /// A few rounds of each, and each planted failure.
    SelfTest,
}

/// Runs a campaign until it has enough rounds. It continues where the last run ended; SIGINT and SIGTERM end it after the
/// current round.
#[derive(Parser)]
struct Flags {
    which: Which,
    /// The agent's binary
    #[arg(long, default_value = "target/release/dataplane-agent")]
    agent: PathBuf,
    /// Folder for states and rounds
    #[arg(long, default_value = "target/campaigns")]
    folder: PathBuf,
    /// Total rounds of all runs
    #[arg(long)]
    rounds: Option<u64>,
    /// Ends this run after this many seconds
    #[arg(long)]
    seconds: Option<u64>,
    /// Continues after a failed seed
    #[arg(long)]
    all: bool,
    /// First seed of a new campaign
    #[arg(long, default_value_t = 1)]
    first: u64,
    /// Plays only this seed, without counting it
    #[arg(long)]
    seed: Option<u64>,
    /// Rounds per seed, instead of the default
    #[arg(long, hide = true)]
    per_seed: Option<u32>,
    /// Plants a failure
    #[arg(long, hide = true)]
    plant: Option<Plant>,
    /// Log level of the agent
    #[arg(long, default_value = "INFO")]
    log_level: String,
    /// File system of `power`: ext4, xfs or btrfs
    #[arg(long, default_value = "ext4")]
    file_system: String,
}

fn main() -> ExitCode {
    match run(&Flags::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("campaign: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(flags: &Flags) -> Result<bool> {
    if matches!(flags.which, Which::Power | Which::Disk | Which::SelfTest) && image::missing("ext4").is_none()
    {
        image::enter_namespace()?;
    }
    let rig = rig(flags)?;
    if flags.which == Which::SelfTest {
        return self_test::run(&rig);
    }
    if flags.which == Which::Disk
        && let Some(reason) = image::missing("ext4")
    {
        bail!("the campaign of disks cannot run: {reason}");
    }
    let campaign = campaign(flags);
    let Some(seed) = flags.seed else {
        ensure!(flags.plant.is_none(), "--plant needs --seed: planted failures must not be counted");
        let is_whole = campaign.run(&rig);
        soak::end(true);
        return is_whole;
    };
    let outcome = campaign.seed(&rig, seed);
    soak::end(true);
    let is_whole = outcome.violations.is_empty();
    if is_whole {
        println!("seed {seed}: {} rounds, {}", outcome.account.rounds, outcome.account);
        outcome.account.events.iter().for_each(|(name, count)| println!("  {count} × {name}"));
    } else {
        campaign.tell(&rig, seed, &outcome);
    }
    Ok(is_whole)
}

fn rig(flags: &Flags) -> Result<Rig> {
    let agent = flags.agent.canonicalize();
    let agent = agent.with_context(|| format!("{}: build the agent first", flags.agent.display()))?;
    std::fs::create_dir_all(&flags.folder).with_context(|| flags.folder.display().to_string())?;
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop)).context("signals cannot be caught")?;
    }
    Ok(Rig {
        agent,
        folder: flags.folder.canonicalize()?,
        plant: flags.plant,
        per_seed: flags.per_seed,
        file_system: flags.file_system.clone(),
        log_level: flags.log_level.clone(),
        stop,
    })
}

impl Which {
    fn play(self) -> campaign::Play {
        match self {
            Self::Kill => kill::play,
            Self::Power => power::play,
            Self::Disk => disk::play,
            Self::Redis => redis_faults::play,
            Self::Soak => soak::play,
            Self::SelfTest => |_, _| bail!("the self-test has no seeds"),
        }
    }

    /// The number of rounds, and the number after which a line is printed.
    fn rounds(self) -> (u64, u64) {
        match self {
            Self::Kill => (10_000, 100),
            // Six hours, in legs of five minutes.
            Self::Soak => (72, 1),
            _ => (1_000, 100),
        }
    }
}

fn campaign(flags: &Flags) -> Campaign {
    let name = flags.which.to_possible_value().map_or(String::new(), |value| value.get_name().to_owned());
    let (mut name, command) = (name.clone(), format!("target/release/campaign {name}"));
    let mut options = String::new();
    if flags.which == Which::Power {
        options = format!(" --file-system {}", flags.file_system);
        name = format!("{name}-{}", flags.file_system);
    }
    if let Some(rounds) = flags.per_seed {
        options = format!("{options} --per-seed {rounds}");
    }
    let (rounds, line_every) = flags.which.rounds();
    Campaign {
        command: command + &options,
        name,
        play: flags.which.play(),
        rounds: flags.rounds.unwrap_or(rounds),
        line_every,
        goes_on: flags.all,
        seconds: flags.seconds,
        first: flags.first,
    }
}
