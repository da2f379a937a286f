//! The `ControlPlane`'s clock, learned from the `Date` of answers, and how far this machine's differs from it.
//!
//! Between answers its time passes by the monotonic clock. If it followed this machine's, a step of that clock would make
//! valid tokens expire, and forget commands whose tokens are still valid.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use chrono::{DateTime, TimeDelta, Utc};
use tokio::time::Instant;

/// Differences up to this are attributed to the network. Verifiers of tokens tolerate at least as much.
pub(super) const TOLERANCE: TimeDelta = TimeDelta::seconds(5);

/// Hosts behind one name may disagree; the log need not follow each of them.
const SAY_AGAIN_AFTER: Duration = Duration::from_mins(10);

/// The known skew between the two clocks.
#[derive(Debug, Default)]
pub(super) struct ClockSkew {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    skew: TimeDelta,
    /// The `ControlPlane`'s time at its last answer.
    time: Option<(DateTime<Utc>, Instant)>,
    said: TimeDelta,
    said_at: Option<Instant>,
    /// The last date that certainly came from the `ControlPlane`, and when it arrived.
    date: Option<(SystemTime, Instant)>,
}

impl ClockSkew {
    /// How far the `ControlPlane`'s clock is ahead of ours; zero within the tolerance.
    pub(super) fn skew(&self) -> TimeDelta {
        self.lock().skew
    }

    /// Seconds since the Unix epoch on the `ControlPlane`'s clock; on this machine's before its first answer.
    pub(super) fn corrected_unix_seconds(&self) -> i64 {
        self.corrected().timestamp()
    }

    /// The same in microseconds.
    pub(super) fn corrected_unix_micros(&self) -> i64 {
        self.corrected().timestamp_micros()
    }

    fn corrected(&self) -> DateTime<Utc> {
        match self.lock().time {
            Some((time, at)) => time + at.elapsed(),
            None => crate::time::wall_clock().into(),
        }
    }

    /// Microseconds since the Unix epoch by the last confirmed date plus the time passed since; `None` before the first in
    /// this run. This machine's wall clock plays no part.
    pub(super) fn confirmed_unix_micros(&self) -> Option<i64> {
        let (date, at) = self.lock().date?;
        let since_epoch = date.duration_since(SystemTime::UNIX_EPOCH).ok()?;
        i64::try_from((since_epoch + at.elapsed()).as_micros()).ok()
    }

    /// Records the date of an answer that only the `ControlPlane` can have given. Deletion by age uses it.
    pub(super) fn confirm(&self, date: SystemTime) {
        self.lock().date = Some((date, Instant::now()));
    }

    /// Records the date of an answer to a request sent and answered at these times of ours. Tokens use it.
    pub(super) fn observe(&self, date: SystemTime, sent: SystemTime, answered: SystemTime) {
        let skew = skew_between(date, sent, answered);
        let mut state = self.lock();
        state.skew = skew;
        state.time = Some((DateTime::<Utc>::from(answered) + skew, Instant::now()));
        if (skew - state.said).abs() <= TOLERANCE
            || state.said_at.is_some_and(|t| t.elapsed() < SAY_AGAIN_AFTER)
        {
            return;
        }
        state.said = skew;
        state.said_at = Some(Instant::now());
        drop(state);
        if skew.is_zero() {
            tracing::info!("this machine's clock agrees with the ControlPlane's again");
        } else {
            tracing::warn!(
                seconds = skew.num_seconds().abs(),
                "this machine's clock is {} the ControlPlane's: synchronise it. Until then tokens use the ControlPlane's time",
                if skew > TimeDelta::zero() { "behind" } else { "ahead of" }
            );
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The smallest skew that explains the date: the peer wrote it at some moment between sending and answer, rounded down to a
/// whole second.
fn skew_between(date: SystemTime, sent: SystemTime, answered: SystemTime) -> TimeDelta {
    let [date, sent, answered] = [date, sent, answered].map(chrono::DateTime::<chrono::Utc>::from);
    let least = date - answered;
    let most = date + TimeDelta::seconds(1) - sent;
    let skew = if least > TimeDelta::zero() { least } else { most.min(TimeDelta::zero()) };
    if skew.abs() <= TOLERANCE { TimeDelta::zero() } else { skew }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn only_what_the_requests_duration_does_not_explain_is_skew() {
        for (date, sent, answered, skew) in [
            (1000, 1000, 1000, 0),
            (1005, 1000, 1000, 0),
            (1006, 1000, 1000, 6),
            (994, 1000, 1000, 0),
            (993, 1000, 1000, -6),
            (1029, 1000, 1030, 0),
            (1040, 1000, 1030, 10),
            (900, 1000, 1030, -99),
        ] {
            let found = skew_between(at(date), at(sent), at(answered));
            assert_eq!(found, TimeDelta::seconds(skew), "{date} {sent} {answered}");
        }
    }

    #[test]
    fn the_corrected_time_is_the_peers() {
        let clock = ClockSkew::default();
        let now = SystemTime::now();
        clock.observe(now + Duration::from_hours(1), now, now);
        assert_eq!(clock.skew().num_minutes(), 60);
        let ahead = clock.corrected_unix_seconds() - chrono::Utc::now().timestamp();
        assert!((3595..=3605).contains(&ahead), "{ahead}");
        clock.observe(now, now, now);
        assert_eq!(clock.skew(), TimeDelta::zero());
    }

    #[test]
    fn a_step_of_this_machines_clock_does_not_move_the_corrected_time() {
        let clock = ClockSkew::default();
        // This machine's clock was an hour ahead when the answer came, and has been set since.
        let then = SystemTime::now() + Duration::from_hours(1);
        clock.observe(then, then, then);
        let ahead = clock.corrected_unix_seconds() - chrono::Utc::now().timestamp();
        assert!((3595..=3605).contains(&ahead), "{ahead}");
    }

    #[test]
    fn the_confirmed_time_is_independent_of_this_machines_clock() {
        let clock = ClockSkew::default();
        assert_eq!(clock.confirmed_unix_micros(), None, "no date yet");
        for seconds in [4_000_000_000, 1_000] {
            clock.confirm(at(seconds));
            let confirmed = clock.confirmed_unix_micros().unwrap();
            // However long the request takes.
            let micros = seconds as i64 * 1_000_000;
            assert!((micros..micros + 600_000_000).contains(&confirmed), "{confirmed}");
        }
    }
}
