//! The invariants: at every scrape, at every end of the agent, and at the end of a run.

mod checks;

use std::collections::{BTreeMap, BTreeSet};

use dataplane_agent::outbox::{DeadLetter, Stats};
use dataplane_agent::record::Kind;
use serde_json::Value;

use crate::agent::{DEAD_LETTERS, QUEUES, SERVER_ID};
use crate::plan::{Fate, Plan};
use crate::world::{State, World};
use checks::{check_letter, check_order, check_quiet, check_quota, check_refused, number_of};

/// A commit is atomic, so an outbox may exceed its limit by one. The largest here holds three rounds.
const COMMIT_BYTES: u64 = 4 << 20;

/// What has been observed of the agent and must remain true.
#[derive(Default)]
pub struct Seen {
    durable: Option<Stats>,
    letters: BTreeMap<u64, DeadLetter>,
    /// The records that became dead letters.
    dead_lettered: BTreeSet<usize>,
}

fn sum(values: &[u64; 5]) -> u64 {
    values.iter().sum()
}

impl Seen {
    /// Where to continue reading dead letters.
    pub fn next_letter(&self, plan: &Plan) -> u64 {
        if plan.has_replays() {
            return 0;
        }
        self.letters.last_key_value().map_or(0, |(id, _)| id + 1)
    }

    /// Checks a scrape.
    pub fn stats(&mut self, world: &World, stats: &Stats, durable: &Stats) {
        let mut state = world.state();
        for (name, stats) in [("now", stats), ("durable", durable)] {
            for kind in 0..5 {
                let dead_lettered: u64 = stats.dead_lettered[kind].iter().sum();
                let gone =
                    stats.delivered[kind] + stats.duplicates[kind] + stats.exported[kind] + dead_lettered;
                if stats.enqueued[kind] != gone + stats.depth[kind] {
                    let text = format!(
                        "{name}: {} enqueued of kind {kind} are not {gone} gone and {} waiting",
                        stats.enqueued[kind], stats.depth[kind]
                    );
                    state.violation(text);
                }
            }
        }
        let (enqueued, acknowledged) = (sum(&stats.enqueued), state.redis.acknowledged);
        if acknowledged > enqueued {
            state.violation(format!("{acknowledged} are acknowledged, {enqueued} are in the outbox"));
        }
        let has_replays = state.plan.has_replays();
        let pushed = state.pushed as u64;
        if state.replayed().is_some_and(|replayed| enqueued > pushed + replayed) {
            state.violation(format!("{enqueued} are enqueued, {pushed} were pushed"));
        }
        if sum(&stats.exported) > 0 || stats.quarantined_segments > 0 {
            let text = format!(
                "quarantined, and nothing is damaged: {} segments, {} exported",
                stats.quarantined_segments,
                sum(&stats.exported)
            );
            state.violation(text);
        }
        if stats.dead_letters_expired > 0 {
            state.violation("a dead letter has expired, and none is old".into());
        }
        if stats.counted_bytes > state.plan.settings.outbox_bytes + COMMIT_BYTES {
            state.violation(format!("the outbox takes {} bytes", stats.counted_bytes));
        }
        if let Some(before) = &self.durable {
            let went_back = |of: fn(&Stats) -> u64| of(durable) < of(before);
            if went_back(|stats| sum(&stats.enqueued))
                || went_back(|stats| sum(&stats.delivered))
                || went_back(|stats| sum(&stats.duplicates))
                || went_back(|stats| stats.dead_lettered.iter().flatten().sum())
                || !has_replays && went_back(|stats| stats.dead_letters)
            {
                state.violation("a durable counter went back".into());
            }
        }
        let line = format!(
            "scrape {:?} {:?} {:?} {}",
            stats.enqueued, stats.delivered, stats.duplicates, stats.dead_letters
        );
        state.note(&line);
        self.durable = Some(durable.clone());
    }

    /// Checks dead letters as they are read; `is_all`: all of them, from the first on.
    pub fn letters(&mut self, world: &World, letters: Vec<DeadLetter>, is_all: bool) {
        let mut state = world.state();
        let now = state.now();
        if state.plan.has_replays() {
            // A replayed dead letter is gone.
            self.letters.retain(|_, before| letters.contains(before));
        } else if is_all {
            for (id, before) in &self.letters {
                if !letters.iter().any(|letter| letter == before) {
                    state.violation(format!("the dead letter {id} is gone, or another"));
                }
            }
        }
        for letter in letters {
            if let Some(before) = self.letters.get(&letter.id) {
                if *before != letter {
                    state.violation(format!("the dead letter {} has become another", letter.id));
                }
                continue;
            }
            check_letter(&mut state, &letter, now);
            self.dead_lettered.extend(number_of(&state, &letter));
            self.letters.insert(letter.id, letter);
        }
    }

    /// The planned records that are neither taken nor dead letters.
    pub fn undone(&self, state: &State) -> Vec<usize> {
        let planned = 0..state.plan.pushes.len();
        planned.filter(|n| state.records[*n].taken.is_none() && !self.dead_lettered.contains(n)).collect()
    }

    /// How many records may wait in the outbox again, since they were replayed.
    pub fn replayed(&self, state: &State) -> usize {
        let letters: BTreeSet<usize> =
            self.letters.values().filter_map(|letter| number_of(state, letter)).collect();
        let gone = self.dead_lettered.difference(&letters);
        gone.filter(|n| state.records[**n].taken.is_none() && may_wait(state, **n)).count()
    }

    /// Checks the end of a run: every record is accounted for.
    pub fn end(&self, world: &World, stats: &Stats) {
        let mut state = world.state();
        let pushed = state.pushed as u64;
        let has_replays = state.plan.has_replays();
        if sum(&stats.enqueued) < pushed || sum(&stats.enqueued) > pushed && !has_replays {
            let text = format!("{} were enqueued, {pushed} pushed", sum(&stats.enqueued));
            state.violation(text);
        }
        if stats.dead_letters != self.letters.len() as u64 {
            let text =
                format!("{} dead letters are counted, {} are there", stats.dead_letters, self.letters.len());
            state.violation(text);
        }
        let taken = state.records.iter().filter(|truth| truth.taken.is_some()).count() as u64;
        if sum(&stats.delivered) > taken || sum(&stats.duplicates) > state.server.known_before {
            let text = format!(
                "{} count as delivered and {} as duplicates; {taken} were taken, {} known before",
                sum(&stats.delivered),
                sum(&stats.duplicates),
                state.server.known_before
            );
            state.violation(text);
        }
        let is_exact = !has_replays && !state.has_died();
        let without_quota = |values: &[u64; 5]| sum(values) - values[Kind::Quota as usize - 1];
        let counted = [without_quota(&stats.delivered), without_quota(&stats.duplicates)];
        if is_exact && counted != state.server.told {
            let told = state.server.told;
            state.violation(format!("{counted:?} count as delivered and duplicates, and {told:?} were"));
        }
        check_quiet(&mut state);
        check_refused(&mut state, self.letters.values());
        let mut dead_lettered = BTreeMap::<usize, u32>::new();
        for letter in self.letters.values() {
            if let Some(number) = number_of(&state, letter) {
                *dead_lettered.entry(number).or_default() += 1;
            }
        }
        let mut lost = Vec::new();
        let mut waiting = 0;
        for (number, truth) in state.records.iter().enumerate().take(state.pushed) {
            let is_dead_lettered = dead_lettered.contains_key(&number);
            if truth.taken.is_none() && !is_dead_lettered && may_wait(&state, number) {
                waiting += 1;
            } else if truth.taken.is_none() && !is_dead_lettered {
                lost.push(format!("{} is lost: neither taken nor a dead letter", truth.transaction));
            }
        }
        // An agent that dies between appending the record and removing the dead letter has both.
        let most = if has_replays && state.has_died() { 2 } else { 1 };
        lost.extend(dead_lettered.iter().filter(|(_, count)| **count > most).map(|(number, count)| {
            format!("{} is a dead letter {count} times", state.records[*number].transaction)
        }));
        if stats.total_depth() != waiting {
            lost.push(format!("{} wait in the outbox, {waiting} may", stats.total_depth()));
        }
        for text in lost {
            state.violation(text);
        }
        check_order(&mut state, has_replays, &self.dead_lettered);
        check_quota(&mut state, &dead_lettered);
        self.check_mirror(&mut state);
    }

    fn check_mirror(&self, state: &mut State) {
        if state.plan.settings.mirror_most == 0 {
            return;
        }
        let list = state.redis.lists.get(DEAD_LETTERS).cloned().unwrap_or_default();
        let id = |letter: &Vec<u8>| {
            let letter: Value = serde_json::from_slice(letter).ok()?;
            letter["dead_letter_id"].as_str()?.parse::<u64>().ok()
        };
        let mirrored: Vec<u64> = list.iter().filter_map(id).collect();
        for number in self.letters.keys() {
            if !mirrored.contains(number) {
                state.violation(format!("the dead letter {number} was not mirrored"));
            }
        }
    }
}

/// Whether a record may wait indefinitely: the ControlPlane fails on a record of its session. When few others get through,
/// nothing shows that the record itself is at fault.
pub fn may_wait(state: &State, number: usize) -> bool {
    let session = state.records[number].push.session;
    state.plan.pushes.iter().any(|push| push.session == session && push.fate == Fate::Poison)
}

/// What remains to be done, if anything.
pub fn what_is_left(state: &State, stats: &Stats, waiting_ones: u64) -> Option<String> {
    let in_redis: usize = QUEUES
        .iter()
        .map(|queue| state.redis.len(queue) + state.redis.len(&format!("{queue}:processing:{SERVER_ID}")))
        .sum();
    let (waiting, to_come) = (stats.total_depth(), state.plan.pushes.len().saturating_sub(state.pushed));
    let unreported = state.unreported_commands();
    let left = in_redis > 0 || waiting > waiting_ones || to_come > 0 || unreported > 0;
    left.then(|| {
        format!(
            "{in_redis} in Redis, {waiting} in the outbox, {to_come} to be pushed, {unreported} commands without a result"
        )
    })
}
