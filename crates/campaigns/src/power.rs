//! Power cuts under load, repeatedly, on one outbox. Redis and the ControlPlane run on other machines.

use anyhow::{Context as _, Result};
use rand::RngExt as _;

use crate::account::Outcome;
use crate::image::{Cut, Image};
use crate::oracle::{Rules, audit};
use crate::plant::Plant;
use crate::stage::{Rig, Stage};

const CUTS: u32 = 10;

pub(crate) fn play(rig: &Rig, seed: u64) -> Result<Outcome> {
    let mut stage = Stage::set(rig, &format!("power-{}", rig.file_system), seed)?;
    let mut image = Image::new(&stage.folder, &rig.file_system)?;
    let outcome = cuts(&mut stage, &mut image, rig);
    // The agent has files open on the image.
    stage.agent.kill()?;
    drop(image);
    outcome.map(|()| stage.close())
}

fn cuts(stage: &mut Stage<'_>, image: &mut Image, rig: &Rig) -> Result<()> {
    stage.agent.set("OUTBOX_DIR", &image.path().join("outbox").display().to_string());
    if rig.has(Plant::NoSync) {
        stage.agent.set("OUTBOX_DURABILITY", "process");
    }
    stage.agent.start()?;
    for round in 0..rig.per_seed.unwrap_or(CUTS) {
        if rig.stops() {
            break;
        }
        if round % 3 == 0 {
            stage.change_weather()?;
        }
        let messages = stage.dice.random_range(50..400);
        stage.push(messages)?;
        // Some cuts hit the agent while it opens the outbox, most while it works.
        if stage.dice.random_bool(0.2) {
            stage.sleep(0..80);
        } else {
            stage.agent_ready()?;
            stage.sleep(0..60);
            let messages = stage.dice.random_range(50..400);
            stage.push(messages)?;
            stage.sleep(0..250);
            stage.check_counters();
        }
        let cut = if rig.file_system == "btrfs" || stage.dice.random_bool(0.5) {
            Cut::Device
        } else {
            Cut::FileSystem
        };
        image.cut_power(cut).context("the power cannot be cut")?;
        stage.account.event(if cut == Cut::Device {
            "cuts at the device"
        } else {
            "cuts by the file system"
        });
        stage.account.rounds += 1;
        // Whatever the agent does in between has no effect: it can no longer write.
        stage.sleep(0..40);
        stage.agent.kill()?;
        image.remount()?;
        stage.agent.start()?;
    }
    audit(stage, Rules::default())
}
