//! A campaign: it plays seed after seed until it has enough rounds, and keeps a state from which the next run continues.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::account::Outcome;
use crate::stage::Rig;
use crate::state::{State, date};

/// Plays one seed of a campaign.
pub(crate) type Play = fn(&Rig, u64) -> Result<Outcome>;

pub(crate) struct Campaign {
    /// The name on the command line and of the state.
    pub name: String,
    /// The command that repeats a seed, without the seed.
    pub command: String,
    pub play: Play,
    /// The total number of rounds of all runs.
    pub rounds: u64,
    /// Rounds between printed lines.
    pub line_every: u64,
    /// Whether to continue after a failed seed.
    pub goes_on: bool,
    /// The duration of this run.
    pub seconds: Option<u64>,
    pub first: u64,
}

impl Campaign {
    /// Runs the campaign. Returns whether there were no failures.
    pub(crate) fn run(&self, rig: &Rig) -> Result<bool> {
        let mut state = State::open(&rig.folder, &self.name, self.first)?;
        state.note_versions(&rig.agent)?;
        let begun = Instant::now();
        let (at_begin, mut is_well) = (state.totals.rounds, true);
        println!(
            "{}: {} of {} rounds done, from seed {} on",
            self.name, state.totals.rounds, self.rounds, state.next_seed
        );
        let mut next_line = (state.totals.rounds / self.line_every + 1) * self.line_every;
        while state.totals.rounds < self.rounds && !rig.stops() {
            if self.seconds.is_some_and(|seconds| begun.elapsed() >= Duration::from_secs(seconds)) {
                break;
            }
            let (seed, at) = (state.next_seed, Instant::now());
            let outcome = self.seed(rig, seed);
            let is_whole = outcome.violations.is_empty();
            if !is_whole {
                state.failed.insert(seed);
            }
            state.add(&outcome.account, at.elapsed().as_secs_f64().round() as u64)?;
            if !is_whole {
                self.tell(rig, seed, &outcome);
                is_well = false;
                if !self.goes_on {
                    break;
                }
            }
            if state.totals.rounds >= next_line {
                next_line = (state.totals.rounds / self.line_every + 1) * self.line_every;
                println!(
                    "{:6} of {} rounds, seed {seed}: {}",
                    state.totals.rounds, self.rounds, state.totals
                );
            }
        }
        let rounds = state.totals.rounds - at_begin;
        if rounds > 0 {
            let each = begun.elapsed().as_secs_f64() / rounds as f64;
            println!("{rounds} rounds in {:.0} s, {each:.2} s each", begun.elapsed().as_secs_f64());
        }
        state.save()?;
        self.account(&state);
        Ok(is_well)
    }

    /// Plays a seed. A failure of the rig counts too: for instance, the cause of a server that never came back is unknown.
    pub(crate) fn seed(&self, rig: &Rig, seed: u64) -> Outcome {
        (self.play)(rig, seed).unwrap_or_else(|error| Outcome {
            violations: vec![format!("the round could not be ended: {error:#}")],
            ..Outcome::default()
        })
    }

    /// Prints what was wrong with a seed.
    pub(crate) fn tell(&self, rig: &Rig, seed: u64, outcome: &Outcome) {
        println!("{}: seed {seed} FAILED", self.name);
        outcome.violations.iter().for_each(|violation| println!("  {violation}"));
        println!("  {}", outcome.account);
        println!("  kept: {}", rig.folder.join(format!("{}-{seed}", self.name)).display());
        println!("  repeat it: {} --seed {seed}", self.command);
    }

    fn account(&self, state: &State) {
        let totals = &state.totals;
        println!("--- {}: the account of {} runs ---", self.name, state.runs);
        println!(
            "rounds     {} of seeds {} to {}",
            totals.rounds,
            state.first_seed,
            state.next_seed.saturating_sub(1)
        );
        println!("records    {totals}");
        if !state.failed.is_empty() {
            let failed: Vec<_> = state.failed.iter().map(u64::to_string).collect();
            println!("FAILED     {} seeds: {}", failed.len(), failed.join(", "));
        }
        if totals.answers_missing > 0 {
            println!(
                "answers    {} to quota requests are missing (409 tells none, or Redis lost them)",
                totals.answers_missing
            );
        }
        for (name, count) in &totals.events {
            println!("           {count} × {name}");
        }
        println!("took       {} s, {} to {}", state.seconds, date(state.started), date(state.last));
        println!("versions   {}", state.versions.iter().map(String::as_str).collect::<Vec<_>>().join(", "));
    }
}
