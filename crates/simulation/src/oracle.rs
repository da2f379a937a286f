//! The invariants: at every scrape, at every end of the agent, and at the end of a run.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use dataplane_agent::drain::SessionOrder;
use dataplane_agent::outbox::{DeadLetter, Payload, Reason, Stats};
use dataplane_agent::record::Kind;
use serde_json::Value;

use crate::agent::{DEAD_LETTERS, QUEUES, QUOTA_RESPONSE, SERVER_ID};
use crate::plan::{Fate, Fault, Plan, What};
use crate::world::{State, World};

/// A commit is atomic, so an outbox may exceed its limit by one. The largest here holds three rounds.
const COMMIT_BYTES: u64 = 4 << 20;
/// The longest time between scrapes; the drain checks expiry at least every second.
const GLANCE: Duration = Duration::from_secs(5);

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
                "set aside, and nothing is damaged: {} segments, {} exported",
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

/// Checks that an outage is quiet: few probes of a link that is down.
fn check_quiet(state: &mut State) {
    let mut loud = Vec::new();
    for (n, fault) in state.plan.faults.iter().enumerate().filter(|(_, fault)| fault.what == What::LinkDown) {
        let sent = state.server.sent_into.get(&n).copied().unwrap_or(0) as f64;
        let lasted = fault.until.checked_sub(fault.from).unwrap().as_secs_f64();
        let most = 20.0
            + state.plan.settings.concurrency as f64
            + 4.0 * lasted / state.plan.settings.initial_delay.as_secs_f64();
        if sent > most {
            loud.push(format!("{sent} requests into a link that was down for {lasted:.0} s"));
        }
    }
    for text in loud {
        state.violation(text);
    }
}

/// The number of the record or message behind a dead letter.
fn number_of(state: &State, letter: &DeadLetter) -> Option<usize> {
    match &letter.payload {
        Payload::Record(record) => state.by_key.get(&record.key()).copied(),
        Payload::Raw { bytes, .. } => state.records.iter().position(|truth| *truth.message == **bytes),
    }
}

/// Checks that the brake limits how many good records become dead letters while the ControlPlane refuses everything.
fn check_refused<'a>(state: &mut State, letters: impl Iterator<Item = &'a DeadLetter>) {
    let (plan, settings) = (&state.plan, &state.plan.settings);
    let refused = letters.filter(|letter| letter.reason == Reason::Refused);
    let is_good = |number: &usize| !matches!(state.records[*number].push.fate, Fate::Refused(_));
    let good = refused.filter_map(|letter| number_of(state, letter)).filter(is_good).count();
    let refuses = |fault: &&Fault| {
        matches!(fault.what, What::RefusesAll(_) | What::FailingKind(_, 400 | 422) | What::Portal(..))
    };
    // The brake can engage once per kind in each outage, and again after a restart.
    let outages = plan.faults.iter().filter(refuses).count() + state.ends.len();
    let most = (settings.refusal_brake as usize + settings.concurrency) * 4 * outages;
    let is_released = plan.faults.iter().any(|fault| fault.what == What::BrakeReleased);
    if settings.refusal_brake > 0 && good > most && !is_released {
        state.violation(format!("{good} good records were refused to the end, and the brake allows {most}"));
    }
}

/// Whether some records fail while others pass, so that the failures of one may look like its own.
fn fails_in_part(fault: &Fault) -> bool {
    match fault.what {
        What::FailingRecords(..) | What::FailingSessions(_) => true,
        What::Failing(_, likely) | What::NotSuccessful(likely) | What::Portal(_, likely) => likely < 1.0,
        _ => false,
    }
}

/// Checks that a dead letter is justified.
fn check_letter(state: &mut State, letter: &DeadLetter, now: Duration) {
    let Some(number) = number_of(state, letter) else {
        return state.violation(format!("the dead letter {} is nothing that was pushed", letter.id));
    };
    let (truth, settings) = (&state.records[number], &state.plan.settings);
    let is_record = matches!(letter.payload, Payload::Record(_));
    // After a restart only the machine's clock tells a request's age.
    let jumps = state.plan.faults.iter().any(|fault| matches!(fault.what, What::ClockJumps(_)));
    let has_restarted = !state.ends.is_empty();
    let long_enough =
        |since: Option<Duration>, least: Duration| since.is_some_and(|since| now + GLANCE >= since + least);
    let must_be = match letter.reason {
        Reason::Invalid => truth.push.kind.is_none() && !is_record,
        Reason::Refused => truth.refused >= 2 && truth.refused_anew >= 1,
        Reason::Poison => {
            let may_fail_alone =
                truth.push.fate == Fate::Poison || state.plan.faults.iter().any(fails_in_part);
            truth.failed >= settings.poison_attempts && may_fail_alone
        }
        Reason::SessionUnknown => {
            let of_session = state.records.iter().filter(|other| other.session == truth.session);
            long_enough(of_session.filter_map(|other| other.unknown_at).min(), settings.session_grace)
        }
        Reason::Expired => {
            let is_old = jumps && has_restarted || long_enough(truth.pushed_at, settings.quota_ttl);
            truth.push.kind == Some(Kind::Quota) && is_old
        }
    };
    let original = letter.original();
    let is_exact = *original == *truth.message;
    let (name, reason, tried) = (truth.transaction.clone(), letter.reason, truth.tried);
    let (refused, failed) = (truth.refused, truth.failed);
    state.note(&format!("dead letter {} {name} {reason:?}", letter.id));
    if !must_be {
        state.violation(format!(
            "{name} is a dead letter for {reason:?}, and was refused {refused} times, failed {failed} times"
        ));
    }
    if !is_exact {
        state.violation(format!("the dead letter of {name} is not what was pushed"));
    }
    if letter.attempts > tried {
        let attempts = letter.attempts;
        state.violation(format!("{name} is said to have been tried {attempts} times, and was {tried} times"));
    }
}

/// Checks that the ControlPlane takes a session's started event, then usage in order, then the completed event. Replayed
/// records may come at any time.
fn check_order(state: &mut State, has_replays: bool, dead_lettered: &BTreeSet<usize>) {
    let is_strict = state.plan.settings.order == SessionOrder::Strict;
    let mut sessions = BTreeMap::<&str, Vec<(u64, (u8, usize), &str)>>::new();
    for (number, truth) in state.records.iter().enumerate() {
        // A dead letter may be replayed before a scrape shows it.
        let may_be_replayed =
            dead_lettered.contains(&number) || truth.refused + truth.failed > 0 || truth.unknown_at.is_some();
        if has_replays && may_be_replayed {
            continue;
        }
        let (Some(taken), Some(kind)) = (truth.taken, truth.push.kind) else { continue };
        let rank = match kind {
            Kind::Quota => continue,
            Kind::Started => 0,
            Kind::Usage => 1,
            Kind::Completed | Kind::Lifecycle => 2,
        };
        if !truth.is_broken {
            let place = if is_strict { truth.push.place } else { 0 };
            sessions.entry(&truth.session).or_default().push((taken, (rank, place), &truth.transaction));
        }
    }
    let mut broken = Vec::new();
    for (session, mut taken) in sessions {
        taken.sort_unstable();
        for pair in taken.windows(2) {
            if pair[0].1 > pair[1].1 {
                broken.push(format!("in {session}, {} was taken before {}", pair[0].2, pair[1].2));
            }
        }
    }
    for text in broken {
        state.violation(text);
    }
}

/// Checks that each quota request has its answer in Redis, byte for byte, or is a dead letter. No answer is there more often
/// than it was given, unless Redis' replies were lost.
fn check_quota(state: &mut State, dead_lettered: &BTreeMap<usize, u32>) {
    let replies = state.redis.lists.get(QUOTA_RESPONSE).cloned().unwrap_or_default();
    let hears_redis = !state.plan.faults.iter().any(|fault| fault.what.may_lose_redis_replies());
    let mut wrong = Vec::new();
    for reply in &replies {
        let is_one = state.records.iter().any(|truth| truth.quota.as_ref() == Some(reply));
        if !is_one {
            wrong.push(format!(
                "an answer to a quota request that nobody gave: {}",
                String::from_utf8_lossy(reply)
            ));
        }
    }
    for (number, truth) in state.records.iter().enumerate().take(state.pushed) {
        if truth.push.kind == Some(Kind::Quota)
            && !dead_lettered.contains_key(&number)
            && !truth.quota.as_ref().is_some_and(|quota| replies.contains(quota))
        {
            wrong.push(format!("the answer to {} never came to Redis", truth.transaction));
        }
        let in_redis = replies.iter().filter(|reply| truth.quota.as_ref() == Some(*reply)).count();
        if hears_redis && in_redis > truth.quota_answers {
            wrong.push(format!(
                "{} was answered {} times, and is in Redis {in_redis} times",
                truth.transaction, truth.quota_answers
            ));
        }
    }
    for text in wrong {
        state.violation(text);
    }
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
