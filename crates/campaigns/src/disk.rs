//! The outbox's disk fails: writes return EIO or ENOSPC or are short; a sync fails and power is cut later; a file system
//! becomes read-only or full.
//!
//! Most seeds preload `tests/it/outbox/lying_disk.c` into the agent; the library knows what a power cut would leave. The others
//! use an ext4 file system in an image.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rand::RngExt as _;

use crate::account::Outcome;
use crate::image::Image;
use crate::oracle::{Rules, audit};
use crate::plant::Plant;
use crate::process::run;
use crate::stage::{Rig, Stage};

const FAULTS: u32 = 10;
/// How long the agent works while waiting for a fault, which may never occur.
const FAILS_WITHIN: Duration = Duration::from_secs(3);

pub(crate) fn play(rig: &Rig, seed: u64) -> Result<Outcome> {
    let mut stage = Stage::set(rig, "disk", seed)?;
    stage.may_end = true;
    stage.agent.set("OUTBOX_MIN_FREE_BYTES", "1MiB");
    // Every fourth seed, independent of the dice, so that few seeds combine both.
    if seed.is_multiple_of(4) && !rig.has(Plant::LyingSync) {
        let mut image = Image::new(&stage.folder, "ext4")?;
        let outcome = on_an_image(&mut stage, &mut image, rig);
        stage.agent.kill()?;
        drop(image);
        outcome.map(|()| stage.close())
    } else {
        below_a_library(&mut stage, rig)?;
        Ok(stage.close())
    }
}

fn on_an_image(stage: &mut Stage<'_>, image: &mut Image, rig: &Rig) -> Result<()> {
    stage.agent.set("OUTBOX_DIR", &image.path().join("outbox").display().to_string());
    stage.agent.start()?;
    for round in 0..rig.per_seed.unwrap_or(FAULTS) {
        if rig.stops() {
            break;
        }
        if round % 3 == 0 {
            stage.change_weather()?;
        }
        let messages = stage.dice.random_range(50..300);
        stage.push(messages)?;
        stage.agent_ready()?;
        let messages = stage.dice.random_range(50..300);
        stage.push(messages)?;
        stage.sleep(0..150);
        stage.check_counters();
        if stage.dice.random_bool(0.5) {
            stage.does("a file system read-only")?;
            image.fail()?;
            stage.push(messages)?;
            stage.sleep(0..400);
            stage.agent.kill()?;
            image.repair()?;
            stage.agent.start()?;
        } else {
            stage.does("a file system full")?;
            let ballast = image.path().join("ballast");
            // Requests more than there is: it fails after taking everything.
            let _ = run("fallocate", &["-l", "1G", &ballast.display().to_string()]);
            fill(&ballast)?;
            stage.push(messages)?;
            stage.sleep(0..400);
            if stage.dice.random_bool(0.3) {
                // The agent must still open, thanks to its reserve.
                stage.agent.kill()?;
                stage.agent.start()?;
                stage.sleep(0..300);
            }
            fs::remove_file(&ballast).context("the ballast")?;
            // Otherwise the error reappears with the next one.
            fs::File::open(image.path())?.sync_all()?;
        }
        stage.account.rounds += 1;
    }
    audit(stage, Rules::default())
}

/// Writes to this file until the disk is full.
fn fill(path: &Path) -> Result<()> {
    use std::io::Write as _;
    let mut file = fs::File::options().create(true).append(true).open(path)?;
    for size in [1 << 20, 4096, 512] {
        while file.write_all(&vec![7; size]).is_ok() {}
    }
    Ok(())
}

/// The preloaded library and its records.
struct Library {
    path: PathBuf,
    outbox: PathBuf,
    shadow: PathBuf,
}

fn below_a_library(stage: &mut Stage<'_>, rig: &Rig) -> Result<()> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/it/outbox/lying_disk.c");
    let library = Library {
        path: stage.folder.join("disk.so"),
        outbox: stage.folder.join("outbox"),
        shadow: stage.folder.join("shadow"),
    };
    let (output, source) = (library.path.display().to_string(), source.display().to_string());
    run("cc", &["-shared", "-fPIC", "-O1", "-o", &output, &source, "-ldl"])?;
    for round in 0..rig.per_seed.unwrap_or(FAULTS) {
        if rig.stops() {
            break;
        }
        if round % 3 == 0 {
            stage.change_weather()?;
        }
        library.round(stage)?;
    }
    audit(stage, Rules::default())
}

impl Library {
    fn round(&self, stage: &mut Stage<'_>) -> Result<()> {
        fs::create_dir(&self.shadow)?;
        let (name, variable, fault) = draw(stage);
        self.preload(stage, Some((variable, &fault)));
        stage.agent.start()?;
        let (begun, note) = (Instant::now(), self.shadow.join("failed"));
        while !note.exists() && begun.elapsed() < FAILS_WITHIN {
            let messages = stage.dice.random_range(20..150);
            stage.push(messages)?;
            stage.sleep(10..60);
            if stage.agent.ended()?.is_some() {
                break;
            }
        }
        if note.exists() {
            stage.account.rounds += 1;
            stage.does(name)?;
        } else {
            stage.does("faults that never came")?;
        }
        // The agent continues on a disk that has recovered or will recover.
        stage.push(50)?;
        stage.sleep(0..400);
        stage.check_counters();
        if stage.agent.ended()?.is_some() {
            stage.does("the agent ended by itself")?;
        }
        stage.agent.kill()?;
        if stage.dice.random_bool(0.3) {
            self.preload(stage, None);
            stage.agent.start()?;
            stage.push(50)?;
            stage.sleep(50..500);
            stage.agent.kill()?;
        }
        if name.starts_with("failed sync") || stage.dice.random_bool(0.5) {
            stage.does("power cuts behind a fault")?;
            cut_power(&self.outbox, &self.shadow)?;
        }
        stage.agent.extra.clear();
        fs::remove_dir_all(&self.shadow).context("the shadow")?;
        if stage.dice.random_bool(0.5) {
            // Every now and then it opens the outbox and catches up.
            stage.agent.start()?;
            stage.agent_ready()?;
            stage.sleep(0..300);
            stage.check_counters();
            stage.agent.kill()?;
        }
        Ok(())
    }

    fn preload(&self, stage: &mut Stage<'_>, fault: Option<(&str, &str)>) {
        let mut extra = vec![
            ("LD_PRELOAD", self.path.display().to_string()),
            ("DISK_ROOT", self.outbox.display().to_string()),
            ("DISK_SHADOW", self.shadow.display().to_string()),
        ];
        extra.extend(fault.map(|(name, value)| (name, value.to_owned())));
        if stage.rig.has(Plant::LyingSync) {
            extra.push(("DISK_LIES", "1".to_owned()));
        }
        stage.agent.extra = extra.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    }
}

/// A fault: its name, and the library's variable with its value.
fn draw(stage: &mut Stage<'_>) -> (&'static str, &'static str, String) {
    let dice = &mut stage.dice;
    let part = ["*", "ledger/db", "segments/", "ledger"][dice.random_range(0..4)];
    let count = if dice.random_bool(0.5) { 1 } else { dice.random_range(2..30) };
    match dice.random_range(0..5) {
        0 => ("EIO of a write", "DISK_WRITES", format!("EIO:{part}:{}:{count}", dice.random_range(0..60))),
        1 => (
            "ENOSPC of a write",
            "DISK_WRITES",
            format!("ENOSPC:{part}:{}:{count}", dice.random_range(0..60)),
        ),
        2 => ("short writes", "DISK_WRITES", format!("SHORT:{part}:{}:{count}", dice.random_range(0..60))),
        3 => ("failed sync, once", "DISK_FAILS", format!("{part}:{}:1", dice.random_range(0..30))),
        _ => ("failed syncs", "DISK_FAILS", format!("{part}:{}:{count}", dice.random_range(0..30))),
    }
}

/// Restores what is on the disk, as a power cut would leave it.
fn cut_power(folder: &Path, shadow: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            cut_power(&entry.path(), shadow)?;
            continue;
        }
        let on_disk = shadow.join(entry.metadata()?.ino().to_string());
        if on_disk.exists() {
            fs::write(entry.path(), fs::read(on_disk)?)?;
        }
    }
    Ok(())
}
