//! SIGKILL under load, repeatedly, on one outbox.

use anyhow::Result;
use rand::RngExt as _;

use crate::account::Outcome;
use crate::oracle::{Rules, audit};
use crate::stage::{Rig, Stage};

const KILLS: u32 = 50;

pub(crate) fn play(rig: &Rig, seed: u64) -> Result<Outcome> {
    let mut stage = Stage::set(rig, "kill", seed)?;
    stage.agent.start()?;
    for round in 0..rig.per_seed.unwrap_or(KILLS) {
        if rig.stops() {
            break;
        }
        if round % 5 == 0 {
            stage.change_weather()?;
        }
        let messages = stage.dice.random_range(10..120);
        stage.push(messages)?;
        // Some kills hit the agent while it opens the outbox or checks in-flight messages, most while it works.
        if stage.dice.random_bool(0.3) {
            stage.sleep(0..60);
        } else {
            stage.agent_ready()?;
            let messages = stage.dice.random_range(10..200);
            stage.push(messages)?;
            stage.sleep(0..80);
            stage.check_counters();
        }
        stage.does("kills")?;
        stage.agent.kill()?;
        stage.account.rounds += 1;
        stage.agent.start()?;
    }
    audit(&mut stage, Rules::default())?;
    Ok(stage.close())
}
