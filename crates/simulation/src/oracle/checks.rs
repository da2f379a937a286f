//! The checks of single invariants.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use dataplane_agent::drain::SessionOrder;
use dataplane_agent::outbox::{DeadLetter, Payload, Reason};
use dataplane_agent::record::Kind;

use crate::agent::QUOTA_RESPONSE;
use crate::plan::{Fate, Fault, What};
use crate::world::State;

/// The longest time between scrapes; the drain checks expiry at least every second.
const GLANCE: Duration = Duration::from_secs(5);

/// Checks that an outage is quiet: few probes of a link that is down.
pub(super) fn check_quiet(state: &mut State) {
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
pub(super) fn number_of(state: &State, letter: &DeadLetter) -> Option<usize> {
    match &letter.payload {
        Payload::Record(record) => state.by_key.get(&record.key()).copied(),
        Payload::Raw { bytes, .. } => state.records.iter().position(|truth| *truth.message == **bytes),
    }
}

/// Checks that the brake limits how many good records become dead letters while the ControlPlane refuses everything.
pub(super) fn check_refused<'a>(state: &mut State, letters: impl Iterator<Item = &'a DeadLetter>) {
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
pub(super) fn check_letter(state: &mut State, letter: &DeadLetter, now: Duration) {
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
pub(super) fn check_order(state: &mut State, has_replays: bool, dead_lettered: &BTreeSet<usize>) {
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
pub(super) fn check_quota(state: &mut State, dead_lettered: &BTreeMap<usize, u32>) {
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
