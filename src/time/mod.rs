//! The wall clock, and what is known about time when the wall clock is wrong.
//!
//! A wall clock gets set: by NTP after a start without a network, by hand, or because of an empty battery. Records must not
//! be treated as old and given up because of that. [`ConfirmedClock`] is the time confirmed by another machine;
//! [`lowest_within`] is a deadline that no step of the clock moves.

mod confirmed;
mod jitter;
mod seam;
mod steady;

use std::time::UNIX_EPOCH;

use tokio::time::Instant;

use crate::record::Timestamp;

pub use confirmed::ConfirmedClock;
pub(crate) use jitter::JitteredInterval;
#[cfg(feature = "simulation")]
pub use seam::{Machine, simulate};
pub(crate) use seam::{random_part, random_uuid, wall_clock};
pub use steady::lowest_within;

/// Now.
pub fn now() -> Timestamp {
    // The clock must be watched before anything is stamped: a later step must not make the stamp look older.
    steady::watch();
    wall()
}

fn wall() -> Timestamp {
    let micros = |duration: std::time::Duration| i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
    Timestamp(match wall_clock().duration_since(UNIX_EPOCH) {
        Ok(since) => micros(since),
        Err(before) => -micros(before.duration()),
    })
}

/// One moment on both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// The wall clock.
    pub wall: Timestamp,
    /// The monotonic clock.
    pub monotonic: Instant,
}

impl Moment {
    /// The current moment.
    pub fn now() -> Self {
        Self { wall: wall(), monotonic: Instant::now() }
    }
}

/// For tests: moments of a run that began at a chosen time, independent of the machine's clocks.
#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use super::{Instant, Moment, Timestamp};

    /// Both clocks of a run; the wall clock can be set.
    pub(crate) struct TestClock {
        began: Instant,
        /// The current moment.
        pub now: Moment,
    }

    impl TestClock {
        pub(crate) fn begin(wall: Timestamp) -> Self {
            let began = Instant::now();
            Self { began, now: Moment { wall, monotonic: began } }
        }

        pub(crate) fn pass(&mut self, time: Duration) -> Moment {
            self.now.monotonic += time;
            self.now.wall.0 += time.as_micros() as i64;
            self.now
        }

        /// Sets the wall clock forward by `seconds`.
        pub(crate) fn step(&mut self, seconds: i64) -> Moment {
            self.now.wall.0 += seconds * 1_000_000;
            self.now
        }

        pub(crate) fn elapsed(&self) -> Duration {
            self.now.monotonic - self.began
        }
    }
}
