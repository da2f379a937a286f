//! The messages of a run: its sessions, and the storms in which records arrive while the disk and Redis fail.

use std::time::Duration;

use dataplane_agent::outbox::simulated::Crash;
use dataplane_agent::record::Kind;

use super::{End, Fate, Fault, Plan, Push, SECOND, What, When};
use crate::chance::Chance;

/// The most records that the ControlPlane fails on.
const POISONED: u32 = 3;
/// The first session number of those pushed in storms.
const STORMS_FROM: usize = 500;

pub(super) fn pushes(chance: &mut Chance, length: Duration, is_narrow: bool) -> Vec<Push> {
    let sessions = chance.size(1, 60) as usize;
    let most = chance.size(1, 40);
    // A narrow outbox filled with records that wait for the success of others would be stuck.
    let bad = if is_narrow { 0.0 } else { chance.of(&[0.0, 0.0, 0.02, 0.1]) };
    let large = is_narrow || chance.happens(0.1);
    // Many at once, or one after another.
    let bursts = chance.happens(0.5);
    // More than one round can take.
    let rush = chance.happens(0.1);
    let (sessions, most) = if rush { (60, 40) } else { (sessions, most) };
    let mut pushes = Vec::new();
    let mut poisoned = 0;
    for session in 0..sessions {
        let begin = length.mul_f64(if rush { 0.1 } else { chance.part() * 0.8 });
        let lasts = if rush || bursts { SECOND / 20 } else { length.mul_f64(chance.part() * 0.2) };
        let unknown = if chance.happens(bad / 2.0) {
            let until = chance.of(&[10, 60, 86_400]);
            Some(Fate::UnknownUntil(begin + Duration::from_secs(until)))
        } else {
            None
        };
        let usage = if rush { chance.within(1, most) } else { chance.size(1, most) } as usize;
        let mut kinds = Vec::new();
        if chance.happens(0.9) {
            kinds.push(Some(Kind::Started));
        }
        for _ in 0..usage {
            if chance.happens(0.1) {
                kinds.push(Some(Kind::Quota));
            }
            kinds.push(if chance.happens(bad / 2.0) { None } else { Some(Kind::Usage) });
        }
        if chance.happens(0.9) {
            kinds.push(Some(Kind::Completed));
        }
        let count = kinds.len() as u32;
        for (place, kind) in kinds.into_iter().enumerate() {
            let fate = match unknown {
                Some(fate) => fate,
                None if chance.happens(bad / 2.0) => Fate::Refused(chance.of(&[422, 400, 422, 413, 414])),
                // With many failures, a record no longer counts as failing by itself.
                None if chance.happens(bad / 4.0) && poisoned < POISONED => {
                    poisoned += 1;
                    Fate::Poison
                }
                None => Fate::Taken,
            };
            let padding = if large { chance.size(1, 20_000) } else { chance.size(1, 400) } as usize;
            let at = begin + lasts.mul_f64(f64::from(place as u32) / f64::from(count));
            pushes.push(Push { at, number: 0, kind, session, place, fate, padding });
        }
    }
    number(&mut pushes);
    pushes
}

/// Sorts and numbers the messages.
fn number(pushes: &mut [Push]) {
    pushes.sort_by_key(|push| (push.at, push.session, push.place));
    for (number, push) in pushes.iter_mut().enumerate() {
        push.number = number;
    }
}

impl Plan {
    /// Adds times in which records arrive, the disk is so slow that several commits are under way, and Redis fails. The agent
    /// may end in the first of them.
    pub(super) fn add_storms(&mut self, chance: &mut Chance, length: Duration) {
        for storm in 0..chance.within(1, 3) {
            let from = length.mul_f64(chance.part());
            let lasts = chance.time(SECOND, 20 * SECOND);
            let until = from + lasts;
            let often = chance.of(&[0.05, 0.2, 0.5]);
            let redis = chance.of(&[
                What::RedisCutBefore(often),
                What::RedisCutAfter(often),
                What::RedisCutAfter(often),
                What::RedisLate(often),
                What::RedisRefuses(often),
                What::RedisRestart,
            ]);
            let disk =
                [What::DiskSlow(chance.time(SECOND / 10, 5 * SECOND)), What::WritesFail(5, often / 4.0)];
            let failing = if chance.happens(0.3) { &disk[..] } else { &disk[..1] };
            let whats = failing.iter().copied().chain([redis]);
            self.faults.extend(whats.map(|what| Fault { from, until, what }));
            if storm == 0 && chance.happens(0.5) {
                let when = When::After(from + lasts.mul_f64(chance.part()));
                let how = chance.of(&[Some(Crash::Kill), Some(Crash::Power)]);
                self.ends.insert(0, End { when, how, restart_after: chance.time(SECOND / 1000, SECOND) });
            }
            for session in 0..chance.within(1, 8) {
                let usage = chance.size(1, 60) as usize;
                for place in 0..usage + 2 {
                    let kind = match place {
                        0 => Kind::Started,
                        place if place == usage + 1 => Kind::Completed,
                        _ => Kind::Usage,
                    };
                    self.pushes.push(Push {
                        at: from + lasts.mul_f64(place as f64 / (usage + 2) as f64),
                        number: 0,
                        kind: Some(kind),
                        session: STORMS_FROM + (storm * 8 + session) as usize,
                        place,
                        fate: Fate::Taken,
                        padding: 1,
                    });
                }
            }
        }
        number(&mut self.pushes);
    }
}
