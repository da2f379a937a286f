//! Hours at a steady rate, in changing weather, with one agent: its memory, descriptors and disk must stay flat.
//!
//! A seed is a leg of several minutes with its own account; Redis, the sandbox and the agent run through all legs. At the end
//! of a run, the samples are reported as a slope per hour.

use std::cell::RefCell;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rand::RngExt as _;
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use crate::account::{Account, Outcome};
use crate::load::Load;
use crate::oracle::{Rules, audit};
use crate::slope::Slope;
use crate::stage::{Rig, Stage};

/// Duration of the load; the account takes extra time.
pub(crate) const LEG_SECONDS: u32 = 300;
const RECORDS_A_SECOND: usize = 1000;
/// Pushes per second.
const PUSHES: u32 = 10;
const SAMPLED_EVERY: Duration = Duration::from_secs(10);
/// Duration of a spell of weather, in seconds.
const WEATHER: std::ops::Range<u64> = 5..40;
/// Warm-up: buffers, caches and the allocator grow this long, and samples are ignored. In a shorter run: the first third.
const WARMS_UP: Duration = Duration::from_secs(600);

/// What runs through all legs.
struct Soak {
    stage: Stage<'static>,
    begun: Instant,
    last_sample: Instant,
    samples: Vec<Sample>,
}

/// The agent's resource usage at a time.
#[derive(Clone, Copy)]
struct Sample {
    at: Duration,
    resident: f64,
    descriptors: f64,
    disk: f64,
}

thread_local! {
    static SOAK: RefCell<Option<Soak>> = const { RefCell::new(None) };
}

pub(crate) fn play(rig: &Rig, seed: u64) -> Result<Outcome> {
    SOAK.with_borrow_mut(|soak| {
        let soak = match soak {
            Some(soak) => soak,
            None => soak.insert(Soak::begin(rig, seed)?),
        };
        soak.leg(rig, seed)
    })
}

/// Ends the run; optionally reports the trend of the agent's memory, descriptors and disk.
pub(crate) fn end(tells: bool) {
    if let Some(soak) = SOAK.take() {
        if tells {
            soak.tell();
        }
        soak.stage.close();
    }
}

impl Soak {
    fn begin(rig: &Rig, seed: u64) -> Result<Self> {
        // It lives as long as the process.
        let rig: &'static Rig = Box::leak(Box::new(rig.clone()));
        let mut stage = Stage::set(rig, "soak", seed)?;
        stage.start_agent()?;
        let now = Instant::now();
        Ok(Self { stage, begun: now, last_sample: now, samples: Vec::new() })
    }

    fn leg(&mut self, rig: &Rig, seed: u64) -> Result<Outcome> {
        let stage = &mut self.stage;
        stage.dice = StdRng::seed_from_u64(seed);
        stage.load = Load::new(seed);
        stage.account = Account::default();
        let before = stage.agent.metrics().context("the agent does not tell its metrics")?;
        stage.enqueued_before = before.sum("dataplane_outbox_enqueued_total", None);
        stage.letters_before = stage.agent.last_dead_letter(stage.letters_before)?;
        let (begun, length) =
            (Instant::now(), Duration::from_secs(u64::from(rig.per_seed.unwrap_or(LEG_SECONDS))));
        let (mut weather_until, mut pushes) = (Duration::ZERO, 0);
        while begun.elapsed() < length && !rig.stops() {
            if begun.elapsed() >= weather_until {
                self.stage.change_weather()?;
                weather_until = begun.elapsed() + Duration::from_secs(self.stage.dice.random_range(WEATHER));
            }
            let due = Duration::from_secs(1) / PUSHES * pushes;
            std::thread::sleep(due.saturating_sub(begun.elapsed()));
            self.stage.push(RECORDS_A_SECOND / PUSHES as usize)?;
            pushes += 1;
            self.sample()?;
        }
        self.stage.account.rounds += 1;
        *self.stage.account.events.entry("seconds of load".to_owned()).or_default() +=
            begun.elapsed().as_secs();
        audit(&mut self.stage, Rules::default())?;
        self.sample()?;
        // Nothing can reappear: the agent is never killed here and has settled everything.
        self.stage.forget_settled()?;
        let (account, violations) = (std::mem::take(&mut self.stage.account), self.stage.violations.clone());
        Ok(Outcome { account, violations })
    }

    fn sample(&mut self) -> Result<()> {
        if !self.samples.is_empty() && self.last_sample.elapsed() < SAMPLED_EVERY {
            return Ok(());
        }
        self.last_sample = Instant::now();
        self.stage.check_counters();
        let process =
            Path::new("/proc").join(self.stage.agent.pid().context("the agent has ended")?.to_string());
        let status = fs::read_to_string(process.join("status"))?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let resident = resident.and_then(|kib| kib.trim().trim_end_matches(" kB").parse::<f64>().ok());
        self.samples.push(Sample {
            at: self.begun.elapsed(),
            resident: resident.context("VmRSS")? * 1024.0,
            descriptors: fs::read_dir(process.join("fd"))?.count() as f64,
            disk: bytes_below(&self.stage.folder.join("outbox"))? as f64,
        });
        Ok(())
    }

    fn tell(&self) {
        let lasted = self.begun.elapsed();
        let warm = WARMS_UP.min(lasted / 3);
        let samples: Vec<&Sample> = self.samples.iter().filter(|sample| sample.at >= warm).collect();
        println!(
            "{} samples in {:.0} s, the first {:.0} s left out:",
            samples.len(),
            lasted.as_secs_f64(),
            warm.as_secs_f64()
        );
        for (name, unit, scale, of) in [
            ("memory", "MiB", 1_048_576.0, (|sample| sample.resident) as fn(&Sample) -> f64),
            ("descriptors", "", 1.0, |sample| sample.descriptors),
            ("disk", "MiB", 1_048_576.0, |sample| sample.disk),
        ] {
            let points = samples.iter().map(|sample| (sample.at.as_secs_f64() / 3600.0, of(sample) / scale));
            match Slope::of(points) {
                Some(slope) => println!("  {name:11} {slope} {unit}"),
                None => println!("  {name:11} too few samples for a slope"),
            }
        }
    }
}

/// Disk usage of the files below a folder.
fn bytes_below(folder: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    let mut sum = 0;
    for entry in fs::read_dir(folder)? {
        // Segments may disappear meanwhile.
        let Ok(meta) = entry.as_ref().map_err(drop).and_then(|entry| entry.metadata().map_err(drop)) else {
            continue;
        };
        sum += if meta.is_dir() { bytes_below(&entry?.path()).unwrap_or(0) } else { meta.blocks() * 512 };
    }
    Ok(sum)
}
