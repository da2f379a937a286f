//! The time confirmed by the `ControlPlane`, for deletion by age.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::Moment;
use crate::record::Timestamp;

/// Clocks that differ by less agree: no retention time depends on minutes.
const JUMP: i64 = 10 * 60 * 1_000_000;
/// How long no time is trusted after a jump: time for somebody to notice and correct a clock.
const QUARANTINE: Duration = Duration::from_hours(6);

/// The `ControlPlane`'s last reported time in this run, plus the time passed since then on the monotonic clock.
///
/// No clock is trusted on its own, not even the `ControlPlane`'s. If it contradicts its earlier reports, or its difference
/// from this machine's clock changes, one of the two has jumped, and for hours there is no confirmed time.
#[derive(Debug, Default)]
pub struct ConfirmedClock(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    said: Option<(Timestamp, Instant)>,
    /// How far this machine's clock was ahead at the last check.
    ahead: i64,
    jumped_at: Option<Instant>,
}

impl State {
    fn expected(&self, moment: Moment) -> Option<Timestamp> {
        let (said, at) = self.said?;
        let passed = moment.monotonic.saturating_duration_since(at).as_micros();
        Some(Timestamp(said.0.saturating_add(i64::try_from(passed).unwrap_or(i64::MAX))))
    }

    fn jumped(&mut self, moment: Moment, what: &'static str, by: i64) {
        let hours = QUARANTINE.as_secs() / 3600;
        tracing::warn!(
            seconds = by / 1_000_000,
            hours,
            "{what} has jumped or is wrong: no dead letter is deleted for some hours"
        );
        self.jumped_at = Some(moment.monotonic);
    }
}

impl ConfirmedClock {
    /// Confirms that the `ControlPlane`'s time is `date`.
    pub fn confirm(&self, date: Timestamp, moment: Moment) {
        let mut state = self.lock();
        if let Some(expected) = state.expected(moment) {
            let by = date.0.saturating_sub(expected.0);
            if by.saturating_abs() > JUMP {
                state.jumped(moment, "the ControlPlane's clock", by);
                // The difference now comes from the ControlPlane's clock, not from this machine's.
                state.ahead = moment.wall.0.saturating_sub(date.0);
            }
        }
        state.said = Some((date, moment.monotonic));
    }

    /// The current time, if it is known and has been undisputed for hours.
    pub fn now(&self, moment: Moment) -> Option<Timestamp> {
        let mut state = self.lock();
        let now = state.expected(moment)?;
        let ahead = moment.wall.0.saturating_sub(now.0);
        let by = ahead.saturating_sub(state.ahead);
        if by.saturating_abs() > JUMP {
            state.jumped(moment, "this machine's clock", by);
            state.ahead = ahead;
        }
        let since = |at: Instant| moment.monotonic.saturating_duration_since(at);
        if state.jumped_at.is_some_and(|at| since(at) < QUARANTINE) { None } else { Some(now) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::tests::TestClock;

    const NOW: Timestamp = Timestamp(1_764_000_000_000_000);
    const DAY: i64 = 86_400;

    fn days(from: Timestamp, days: i64) -> Timestamp {
        Timestamp(from.0 + days * DAY * 1_000_000)
    }

    #[test]
    fn there_is_no_time_before_the_control_plane_has_said_one() {
        let (clock, mut run) = (ConfirmedClock::default(), TestClock::begin(NOW));
        assert_eq!(clock.now(run.now), None);
        assert_eq!(clock.now(run.pass(Duration::from_hours(1000))), None);
        assert_eq!(clock.now(run.step(31 * DAY)), None);
    }

    #[test]
    fn the_time_goes_on_from_what_was_said_while_nobody_says_it_again() {
        let (clock, mut run) = (ConfirmedClock::default(), TestClock::begin(NOW));
        clock.confirm(NOW, run.now);
        assert_eq!(clock.now(run.now), Some(NOW));
        assert_eq!(clock.now(run.pass(Duration::from_hours(48))), Some(days(NOW, 2)));
    }

    #[test]
    fn a_clock_that_is_ahead_at_the_start_is_not_believed() {
        for seconds in [31 * DAY, -31 * DAY, 3600, -3600] {
            let (clock, mut run) = (ConfirmedClock::default(), TestClock::begin(NOW));
            let moment = run.step(seconds);
            clock.confirm(NOW, moment);
            assert_eq!(clock.now(moment), None, "they disagree by {seconds} s");
            run.pass(Duration::from_secs(QUARANTINE.as_secs() - 1));
            assert_eq!(clock.now(run.now), None);
            // A clock that stays wrong is known by then, and the ControlPlane's time is used.
            let moment = run.pass(Duration::from_secs(1));
            assert_eq!(clock.now(moment).map(|now| now.0 - NOW.0), Some(run.elapsed().as_micros() as i64));
        }
    }

    #[test]
    fn each_jump_of_either_clock_restarts_the_quarantine() {
        let (clock, mut run) = (ConfirmedClock::default(), TestClock::begin(NOW));
        clock.confirm(NOW, run.now);
        assert!(clock.now(run.pass(Duration::from_hours(10))).is_some());
        assert_eq!(clock.now(run.step(31 * DAY)), None, "this machine's");
        run.pass(QUARANTINE);
        assert_eq!(clock.now(run.step(-31 * DAY)), None, "and back");
        assert!(clock.now(run.pass(QUARANTINE)).is_some());
        let truth = |run: &TestClock| Timestamp(NOW.0 + run.elapsed().as_micros() as i64);
        clock.confirm(days(truth(&run), 31), run.now);
        assert_eq!(clock.now(run.now), None, "the ControlPlane's");
        run.pass(QUARANTINE / 2);
        clock.confirm(truth(&run), run.now);
        assert_eq!(clock.now(run.pass(QUARANTINE / 2)), None, "and back");
        assert_eq!(clock.now(run.pass(QUARANTINE / 2)), Some(truth(&run)));
        // Both at once: this machine follows a ControlPlane that is wrong.
        let wrong = days(truth(&run), 31);
        run.step(31 * DAY);
        clock.confirm(wrong, run.now);
        assert_eq!(clock.now(run.now), None);
    }

    #[test]
    fn a_clock_that_is_slewed_does_not_jump() {
        let (clock, mut run) = (ConfirmedClock::default(), TestClock::begin(NOW));
        for _ in 0..100 {
            clock.confirm(Timestamp(NOW.0 + run.elapsed().as_micros() as i64), run.now);
            run.pass(Duration::from_mins(10));
            assert!(clock.now(run.step(5)).is_some());
        }
    }
}
