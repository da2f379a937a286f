//! What every campaign must guarantee: each pushed record was taken by the ControlPlane once, under its key, or is a correct
//! dead letter, or still waits; sessions keep their order; the agent's counters add up.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use serde_json::Value;
use uuid::Uuid;

use crate::load::{Kind, Pushed};
use crate::plant::Plant;
use crate::stage::Stage;

/// The namespace of the keys: docs/contract/keys.md.
const NAMESPACE: Uuid = Uuid::from_u128(0x7a1b_3741_a713_569c_ae9b_a8cf_bb86_aeab);
/// Examples printed for each kind of violation.
const EXAMPLES: usize = 5;

/// Exceptions that a campaign allows.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rules {
    /// Redis lost acknowledged data (a fail-over): the agent takes records again, and quota answers may be lost. Keys must still
    /// be the same.
    pub redis_forgets: bool,
}

/// The key that a record must have.
pub(crate) fn key(record: &Pushed) -> String {
    Uuid::new_v5(&NAMESPACE, format!("{}:{}", record.kind.names().1, record.id).as_bytes()).to_string()
}

fn number(value: &Value, pointer: &str) -> u64 {
    value.pointer(pointer).and_then(Value::as_u64).unwrap_or(0)
}

/// Reports a violation: its count, and the first few examples.
fn tell(violations: &mut Vec<String>, what: &str, which: &[String]) {
    if !which.is_empty() {
        let examples: Vec<_> = which.iter().take(EXAMPLES).map(String::as_str).collect();
        violations.push(format!("{} {what}: {}", which.len(), examples.join(", ")));
    }
}

/// Accounts for everything pushed on this stage.
pub(crate) fn audit(stage: &mut Stage<'_>, rules: Rules) -> Result<()> {
    let waiting = stage.at_rest()?;
    let mut wrong = Vec::new();
    stage.account.waiting += waiting;
    if waiting > 0 {
        wrong.push(format!("{waiting} records still wait, and their number does not shrink"));
    }
    let mut letters = BTreeMap::<String, u64>::new();
    let mut reasons = BTreeMap::new();
    for letter in stage.agent.dead_letters(stage.letters_before)? {
        reasons.insert(letter.id.clone(), format!("{} ({}: {})", letter.id, letter.reason, letter.detail));
        *letters.entry(letter.id).or_default() += 1;
    }
    records(stage, waiting, &mut letters, &mut wrong)?;
    // A refused record that Redis hands out again is refused again.
    let may_repeat = |id: &str| {
        rules.redis_forgets && stage.load.pushed.iter().any(|pushed| pushed.must_die() && pushed.id == id)
    };
    let unmade = letters.iter().filter(|(id, count)| **count > 0 && !may_repeat(id));
    let unmade: Vec<String> = unmade.map(|(id, _)| reasons[id].clone()).collect();
    tell(&mut wrong, "dead letters that are wrong or duplicated", &unmade);
    control_plane(stage, rules, &mut wrong)?;
    counters(stage, waiting, rules, &mut wrong)?;
    quota_answers(stage, rules, &mut wrong)?;
    stage.violations.append(&mut wrong);
    Ok(())
}

/// Checks each record. Removes the correct ones from the dead letters.
fn records(
    stage: &mut Stage<'_>,
    waiting: u64,
    letters: &mut BTreeMap<String, u64>,
    wrong: &mut Vec<String>,
) -> Result<()> {
    let (must_die, must_live): (Vec<&Pushed>, Vec<&Pushed>) =
        stage.load.pushed.iter().partition(|pushed| pushed.must_die());
    let mut sightings = stage.sandbox.sightings(&must_live)?;
    match stage.rig.plant {
        Some(Plant::LoseOne) => sightings.iter_mut().take(1).for_each(|sighting| sighting.seen = 0),
        Some(Plant::OtherKey) => {
            sightings.iter_mut().take(1).for_each(|sighting| sighting.key = Uuid::nil().to_string());
        }
        _ => {}
    }
    let (mut missing, mut keys, mut both) = (Vec::new(), Vec::new(), Vec::new());
    for (record, sighting) in must_live.iter().zip(&sightings) {
        let is_letter = letters.contains_key(&record.id);
        match (sighting.seen, is_letter) {
            (0, false) => missing.push(record.id.clone()),
            (0, true) => {}
            (_, true) => both.push(record.id.clone()),
            (_, false) if sighting.key != key(record) => keys.push(format!("{} {}", record.id, sighting.key)),
            _ => {}
        }
        stage.account.delivered += u64::from(sighting.seen > 0);
    }
    let sightings_of_dead: Vec<&Pushed> =
        must_die.iter().copied().filter(|record| record.kind != Kind::Malformed).collect();
    let taken: Vec<String> = sightings_of_dead
        .iter()
        .zip(stage.sandbox.sightings(&sightings_of_dead)?)
        .filter(|(_, sighting)| sighting.seen > 0)
        .map(|(record, _)| record.id.clone())
        .collect();
    for record in &must_die {
        match letters.get_mut(&record.id) {
            Some(count) if *count > 0 => {
                *count -= 1;
                stage.account.dead_letters += 1;
            }
            _ => missing.push(record.id.clone()),
        }
    }
    let lost = (missing.len() as u64).saturating_sub(waiting);
    stage.account.lost += lost;
    if lost > 0 {
        tell(wrong, "records LOST", &missing);
    }
    stage.account.unrecognisable += keys.len() as u64;
    tell(wrong, "records with another key", &keys);
    tell(wrong, "records delivered, and dead letters as well", &both);
    tell(wrong, "records delivered although they are refused", &taken);
    Ok(())
}

/// Checks the ControlPlane's totals.
fn control_plane(stage: &mut Stage<'_>, rules: Rules, wrong: &mut Vec<String>) -> Result<()> {
    let accounts = stage.sandbox.accounts()?;
    let sum = |field: &str| {
        let kinds = ["usage", "started", "completed", "quota"].iter();
        kinds.map(|kind| number(&accounts, &format!("/kinds/{kind}/{field}"))).sum::<u64>()
    };
    let account = &mut stage.account;
    account.sent_again += sum("duplicates");
    let order = number(&accounts, "/order_violations/count");
    account.out_of_order += order;
    if order > 0 {
        wrong.push(format!("{order} out of order: {}", accounts["order_violations"]["examples"]));
    }
    let keys = number(&accounts, "/key_violations/count");
    if keys > 0 {
        wrong.push(format!("{keys} keys: {}", accounts["key_violations"]["examples"]));
    }
    let different = sum("duplicates_different");
    if rules.redis_forgets && different > 0 {
        // The record was accepted twice, so the acceptance time in the body differs; the key identifies the record.
        *account.events.entry("repetitions with the same key and a new body".to_owned()).or_default() +=
            different;
    } else if different > 0 {
        wrong.push(format!("{different} repetitions with another key or body"));
    }
    account.unrecognisable += if rules.redis_forgets { keys } else { different };
    let known: BTreeSet<(Kind, &str)> =
        stage.load.pushed.iter().map(|pushed| (pushed.kind, &*pushed.id)).collect();
    if known.len() != stage.load.pushed.len() {
        wrong.push("the load has a record twice".to_owned());
    }
    if sum("processed") > known.len() as u64 {
        wrong.push(format!("{} records processed, {} pushed", sum("processed"), known.len()));
    }
    for name in ["idempotency_key", "correlation_id", "credentials"] {
        let missing = number(&accounts, &format!("/missing/{name}"));
        if missing > 0 {
            wrong.push(format!("{missing} requests without {name}"));
        }
    }
    Ok(())
}

/// Checks the agent's counters.
fn counters(stage: &mut Stage<'_>, waiting: u64, rules: Rules, wrong: &mut Vec<String>) -> Result<()> {
    stage.check_counters();
    let metrics = stage.agent.metrics().context("the agent does not tell its metrics")?;
    let enqueued = metrics.sum("dataplane_outbox_enqueued_total", None) - stage.enqueued_before;
    let pushed = stage.load.pushed.len() as u64;
    let again = enqueued.saturating_sub(pushed);
    stage.account.doubled += again;
    if again > 0 && !rules.redis_forgets {
        wrong.push(format!("{again} records were taken twice: {enqueued} enqueued, {pushed} pushed"));
    }
    if enqueued + waiting < pushed {
        wrong.push(format!("{enqueued} enqueued, {pushed} pushed"));
    }
    for name in [
        "dataplane_quarantined_segments",
        "dataplane_stream_trimmed_total",
        "dataplane_dead_letters_expired_total",
    ] {
        if metrics.sum(name, None) > 0 {
            wrong.push(format!("{name} is {}", metrics.sum(name, None)));
        }
    }
    Ok(())
}

/// Each quota request that the ControlPlane processed has its answer in Redis, except requests that were repeated and answered
/// 409, which carries no quota.
fn quota_answers(stage: &mut Stage<'_>, rules: Rules, wrong: &mut Vec<String>) -> Result<()> {
    let quota: Vec<&Pushed> = stage.load.pushed.iter().filter(|pushed| pushed.kind == Kind::Quota).collect();
    let sightings = stage.sandbox.sightings(&quota)?;
    let mut list = redis::cmd("LRANGE");
    list.arg("queue:quota_response").arg(0).arg(-1);
    let answers: Vec<String> = stage.redis.run(&list)?;
    let answered: BTreeSet<String> = answers
        .iter()
        .filter_map(|answer| {
            serde_json::from_str::<Value>(answer).ok()?["transaction_id"].as_str().map(str::to_owned)
        })
        .collect();
    let missing: Vec<String> = quota
        .iter()
        .zip(sightings)
        .filter(|(request, sighting)| sighting.seen > 0 && !answered.contains(&request.id))
        .map(|(request, _)| request.id.clone())
        .collect();
    stage.account.answers_missing += missing.len() as u64;
    if stage.answers_again && !rules.redis_forgets {
        tell(wrong, "quota answers are not in Redis", &missing);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_those_of_the_contract() {
        let record = Pushed { kind: Kind::Usage, id: "usage-good-1".into() };
        assert_eq!(key(&record), "4761e5a9-b584-5fd0-8786-a8f80afe94f2");
    }
}
