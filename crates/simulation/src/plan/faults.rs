//! What fails in a run, and when.

use std::time::Duration;

use dataplane_agent::record::Kind;

use super::SECOND;
use crate::chance::Chance;

/// A temporary fault.
#[derive(Clone, Debug)]
pub struct Fault {
    /// Its beginning.
    pub from: Duration,
    /// Its end.
    pub until: Duration,
    /// Its kind.
    pub what: What,
}

/// A kind of fault. An `f64` is the probability of each occurrence.
#[derive(Clone, Copy, Debug, PartialEq)]
#[expect(missing_docs, reason = "each is explained where it is played")]
pub enum What {
    // The network to the ControlPlane.
    LinkDown,
    LinkCutBefore(f64),
    LinkCutAfter(f64),
    LinkSlow(Duration),
    LinkLateAnswers(f64),
    ForeignAnswers(f64),
    Portal(u8, f64),
    Nonsense(u8, f64),
    // The ControlPlane.
    Overloaded(u16, u64, f64),
    Failing(u16, f64),
    FailingRecords(u16, f64),
    FailingKind(Kind, u16),
    FailingSessions(u16),
    Unauthorized(u16),
    Misconfigured(u16),
    RefusesAll(u16),
    NotSuccessful(f64),
    InProgress(f64),
    NoBatches(u16),
    BatchesTooLarge(usize),
    NoEncoding,
    BreaksOrder,
    ForgetsServer,
    // Redis and the way to it.
    RedisDown,
    RedisSlow(Duration),
    RedisLate(f64),
    RedisCutBefore(f64),
    RedisCutAfter(f64),
    RedisRefuses(f64),
    RedisRestart,
    // The disk.
    WritesFail(i32, f64),
    SyncsFail(f64),
    NamesFail(f64),
    DiskSlow(Duration),
    DiskLow,
    // This machine's clock: it is moved by this many seconds when the fault begins.
    ClockJumps(i64),
    // An operator.
    Paused,
    Probed,
    BrakeReleased,
}

impl What {
    /// Whether Redis may execute a command whose reply is lost.
    pub fn may_lose_redis_replies(&self) -> bool {
        matches!(self, Self::RedisSlow(_) | Self::RedisLate(_) | Self::RedisCutAfter(_))
    }
}

pub(super) fn faults(chance: &mut Chance, length: Duration) -> Vec<Fault> {
    let count = chance.of(&[0, 1, 2, 4, 8, 12]);
    let mut faults = Vec::new();
    for _ in 0..count {
        let from = length.mul_f64(chance.part());
        let until = from + chance.time(SECOND / 10, 120 * SECOND);
        faults.push(Fault { from, until, what: what(chance) });
        // Some bugs show only while two things fail at once.
        if chance.happens(0.2) {
            faults.push(Fault { from, until, what: what(chance) });
        }
    }
    faults
}

fn what(chance: &mut Chance) -> What {
    let likely = chance.of(&[0.02, 0.1, 0.3, 0.7, 1.0]);
    match chance.within(0, 19) {
        0..=4 => of_link(chance, likely),
        5..=10 => of_control_plane(chance, likely),
        11..=14 => of_redis(chance),
        15..=17 => of_disk(chance, likely),
        18 => What::ClockJumps(chance.of(&[-86_400 * 20, -3600, -60, -2, 2, 60, 3600, 86_400 * 20])),
        _ => chance.of(&[What::Paused, What::Probed, What::BrakeReleased]),
    }
}

fn of_link(chance: &mut Chance, likely: f64) -> What {
    match chance.within(0, 9) {
        0 => What::LinkDown,
        1 => What::LinkCutBefore(likely),
        2 | 3 => What::LinkCutAfter(likely),
        4 => What::LinkSlow(chance.time(SECOND / 10, 40 * SECOND)),
        5 | 6 => What::LinkLateAnswers(likely),
        // From 10 on, each answer has another page.
        7 => What::Portal(chance.within(0, 14) as u8, likely),
        8 => What::ForeignAnswers(likely),
        _ => chance.of(&[What::ForeignAnswers(likely), What::Nonsense(0, likely), What::Nonsense(1, likely)]),
    }
}

fn of_control_plane(chance: &mut Chance, likely: f64) -> What {
    match chance.within(0, 19) {
        0..=2 => {
            What::Overloaded(chance.of(&[429, 503, 503, 408, 425]), chance.of(&[0, 0, 1, 5, 30]), likely)
        }
        3 => What::Failing(chance.of(&[500, 502, 504]), likely),
        4..=7 => What::FailingRecords(chance.of(&[500, 503, 500, 429]), likely),
        8 => What::FailingKind(
            chance.of(&[Kind::Usage, Kind::Started, Kind::Completed, Kind::Quota]),
            chance.of(&[500, 503, 404, 401, 422]),
        ),
        9 => What::FailingSessions(chance.of(&[500, 404, 503])),
        10 => What::Unauthorized(chance.of(&[401, 403])),
        11 => What::Misconfigured(chance.of(&[301, 302, 402, 405, 407, 451])),
        12 => What::RefusesAll(chance.of(&[400, 422])),
        13 => What::NotSuccessful(likely),
        14 => What::InProgress(likely),
        15 => What::NoBatches(chance.of(&[404, 405, 501])),
        16 => What::BatchesTooLarge(chance.size(1, 50) as usize),
        17 => What::NoEncoding,
        18 => What::BreaksOrder,
        _ => What::ForgetsServer,
    }
}

fn of_redis(chance: &mut Chance) -> What {
    let now_and_then = chance.of(&[0.01, 0.05, 0.2]);
    match chance.within(0, 9) {
        0 => What::RedisDown,
        1 | 2 => What::RedisSlow(chance.time(SECOND / 100, 20 * SECOND)),
        3 | 4 => What::RedisLate(now_and_then),
        5 => What::RedisCutBefore(now_and_then),
        6 | 7 => What::RedisCutAfter(now_and_then),
        8 => What::RedisRefuses(now_and_then),
        _ => What::RedisRestart,
    }
}

fn of_disk(chance: &mut Chance, likely: f64) -> What {
    match chance.within(0, 5) {
        0 | 1 => What::WritesFail(chance.of(&[5, 28]), likely),
        2 => What::SyncsFail(chance.of(&[0.01, 0.05, 0.2])),
        3 => What::NamesFail(likely),
        4 => What::DiskSlow(chance.time(SECOND / 100, 5 * SECOND)),
        _ => What::DiskLow,
    }
}
