//! The wall clock, and what can be told of time when it is wrong.
//!
//! A wall clock is set: by NTP after a start without a network, by hand, by a battery that is empty. What must not happen
//! then is that something is taken for old and given up. [`ConfirmedClock`] is the time that another machine has confirmed;
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
    // What is stamped before the clock is set must not be older for that: it is watched before anything is stamped.
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

/// One moment, on both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// What the wall clock shows.
    pub wall: Timestamp,
    /// On the clock that nobody sets.
    pub monotonic: Instant,
}

impl Moment {
    /// This moment.
    pub fn now() -> Self {
        Self { wall: wall(), monotonic: Instant::now() }
    }
}

/// For tests: moments of a run that began at some time, whatever the machine's clocks show.
#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use super::{Instant, Moment, Timestamp};

    /// Both clocks of a run; the wall clock can be set.
    pub(crate) struct TestClock {
        began: Instant,
        /// The moment that it is now.
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

        /// The wall clock is set by so many seconds.
        pub(crate) fn step(&mut self, seconds: i64) -> Moment {
            self.now.wall.0 += seconds * 1_000_000;
            self.now
        }

        pub(crate) fn elapsed(&self) -> Duration {
            self.now.monotonic - self.began
        }
    }
}
