//! A deadline on the wall clock that no step of the clock moves.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::Moment;
use crate::record::Timestamp;

/// A change of the wall clock beyond this is a step; below it is drift.
const STEP: i64 = 1_000_000;
/// Most steps remembered within a deadline; beyond this the oldest two are merged.
const STEPS: usize = 64;

/// Accesses this process' observations of the wall clock.
#[cfg(not(feature = "simulation"))]
fn with_clock<T>(act: impl FnOnce(&mut Steady) -> T) -> T {
    use std::sync::{LazyLock, Mutex, PoisonError};
    static CLOCK: LazyLock<Mutex<Steady>> = LazyLock::new(|| Mutex::new(Steady::begin(Moment::now())));
    act(&mut CLOCK.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Accesses this thread's observations of the simulated wall clock.
#[cfg(feature = "simulation")]
fn with_clock<T>(act: impl FnOnce(&mut Steady) -> T) -> T {
    use std::cell::RefCell;
    thread_local! {
        static CLOCK: RefCell<Steady> = RefCell::new(Steady::begin(Moment::now()));
    }
    CLOCK.with_borrow_mut(act)
}

/// The lowest wall clock time within the last `window`, which is measured on the monotonic clock.
///
/// A stamp below it is older than `window`, whether or not the wall clock was set in between; a stamp made within `window`
/// is never below it. After a step back, some older stamps pass as younger, for `window` plus the width of the step.
pub fn lowest_within(window: Duration) -> Timestamp {
    with_clock(|clock| clock.lowest_within(window, Moment::now()))
}

/// Starts watching the wall clock, if nothing has yet.
pub(super) fn watch() {
    with_clock(|_| ());
}

/// Forgets all observations, as a new process would.
#[cfg(feature = "simulation")]
pub(super) fn begin_anew() {
    with_clock(|clock| *clock = Steady::begin(Moment::now()));
}

/// The observations of the wall clock that are still needed.
#[derive(Debug)]
struct Steady {
    began: Instant,
    seen: Instant,
    /// The offset of the wall clock from the time passed since the beginning, with the start of each offset.
    steps: VecDeque<(Instant, i64)>,
}

impl Steady {
    fn begin(moment: Moment) -> Self {
        let steps = VecDeque::from([(moment.monotonic, moment.wall.0)]);
        Self { began: moment.monotonic, seen: moment.monotonic, steps }
    }

    /// Microseconds since the beginning; negative for earlier times.
    fn passed(&self, at: Instant) -> i64 {
        let micros = |duration: Duration| i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
        match at.checked_duration_since(self.began) {
            Some(after) => micros(after),
            None => -micros(self.began.duration_since(at)),
        }
    }

    fn lowest_within(&mut self, window: Duration, moment: Moment) -> Timestamp {
        self.see(moment);
        let window = i64::try_from(window.as_micros()).unwrap_or(i64::MAX);
        let from = self.passed(moment.monotonic).saturating_sub(window);
        // The wall clock is lowest at the start of each interval between steps; the first interval extends to before this
        // run.
        let ends = self.steps.iter().skip(1).map(|(since, _)| self.passed(*since)).chain([i64::MAX]);
        let begins = self
            .steps
            .iter()
            .enumerate()
            .map(|(n, (since, offset))| (if n == 0 { i64::MIN } else { self.passed(*since) }, *offset));
        let within = begins.zip(ends).filter(|(_, end)| *end > from);
        let lowest = within.map(|((begin, offset), _)| begin.max(from).saturating_add(offset)).min();
        Timestamp(lowest.unwrap_or(moment.wall.0.saturating_sub(window)))
    }

    /// Observes the wall clock.
    fn see(&mut self, moment: Moment) {
        let offset = moment.wall.0.saturating_sub(self.passed(moment.monotonic));
        match self.steps.back_mut() {
            Some((_, last)) if offset.saturating_sub(*last).saturating_abs() <= STEP => *last = offset,
            // The step happened at some time since the last observation: stamps made since then may be from before or after
            // it.
            _ => self.steps.push_back((self.seen, offset)),
        }
        if self.steps.len() > STEPS
            && let Some((since, older)) = self.steps.pop_front()
            && let Some((begin, offset)) = self.steps.front_mut()
        {
            (*begin, *offset) = (since, older.min(*offset));
        }
        self.seen = moment.monotonic;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::tests::TestClock;

    const NOW: Timestamp = Timestamp(1_764_000_000_000_000);
    const TTL: Duration = Duration::from_mins(5);
    const HOUR: i64 = 3600;

    /// A run observed every second, as by the drain.
    struct Watched {
        run: TestClock,
        clock: Steady,
    }

    impl Watched {
        fn begin() -> Self {
            let run = TestClock::begin(NOW);
            let clock = Steady::begin(run.now);
            Self { run, clock }
        }

        fn pass(&mut self, seconds: u64) {
            for _ in 0..seconds {
                self.run.pass(Duration::from_secs(1));
                self.clock.lowest_within(TTL, self.run.now);
            }
        }

        fn is_expired(&mut self, stamped: Timestamp) -> bool {
            stamped < self.clock.lowest_within(TTL, self.run.now)
        }
    }

    #[test]
    fn without_a_step_it_is_the_clock_less_the_window() {
        let mut watched = Watched::begin();
        assert_eq!(watched.clock.lowest_within(TTL, watched.run.now), Timestamp(NOW.0 - 300_000_000));
        watched.pass(1000);
        assert_eq!(watched.clock.lowest_within(TTL, watched.run.now), Timestamp(NOW.0 + 700_000_000));
        assert!(watched.is_expired(Timestamp(NOW.0 - 1)), "from an earlier run");
    }

    #[test]
    fn what_waits_through_a_step_is_as_old_as_it_is() {
        for seconds in [HOUR, -HOUR, 24 * HOUR, 10, -10] {
            let mut watched = Watched::begin();
            watched.pass(1000);
            let stamped = watched.run.now.wall;
            watched.pass(100);
            watched.run.step(seconds);
            let after = watched.run.now.wall;
            assert!(!watched.is_expired(stamped) && !watched.is_expired(after), "{seconds}");
            watched.pass(199);
            assert!(!watched.is_expired(stamped), "{seconds}: it has waited for 299 s");
            watched.pass(2);
            assert_eq!(
                watched.is_expired(stamped),
                seconds > -100,
                "{seconds}: after 301 s; after a wide step back later"
            );
            assert!(!watched.is_expired(after), "{seconds}");
            watched.pass(98);
            assert!(!watched.is_expired(after), "{seconds}: it has waited 299 s");
            watched.pass(2);
            assert!(watched.is_expired(after), "{seconds}");
            watched.pass(seconds.unsigned_abs());
            assert!(watched.is_expired(stamped), "{seconds}: at last");
        }
    }

    #[test]
    fn what_is_stamped_between_a_step_and_the_next_look_is_not_taken_for_older() {
        for seconds in [HOUR, -HOUR] {
            let mut watched = Watched::begin();
            watched.pass(1000);
            watched.run.step(seconds);
            // No observation for a while.
            let stamped = watched.run.pass(Duration::from_secs(2)).wall;
            watched.run.pass(Duration::from_secs(100));
            assert!(!watched.is_expired(stamped), "{seconds}");
            watched.pass(150);
            assert!(!watched.is_expired(stamped), "{seconds}");
        }
    }

    #[test]
    fn however_often_the_clock_is_set_nothing_young_expires_and_no_history_piles_up() {
        let mut watched = Watched::begin();
        let mut stamps = VecDeque::new();
        for round in 0..1000 {
            watched.run.step(if round % 3 == 0 { HOUR } else { -HOUR / 2 });
            stamps.push_back(watched.run.now.wall);
            watched.pass(1);
            if stamps.len() > 290 {
                stamps.pop_front();
            }
            let lowest = watched.clock.lowest_within(TTL, watched.run.now);
            assert!(stamps.iter().all(|stamp| *stamp >= lowest), "{round}");
        }
        assert!(watched.clock.steps.len() <= STEPS);
    }
}
