//! Logs refused requests at most once a minute, which keeps them from filling the disk.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const LOG_EVERY: Duration = Duration::from_mins(1);

/// Requests refused for the same reason.
#[derive(Debug, Default)]
pub struct Refusals(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    logged: Option<Instant>,
    count: u64,
}

impl Refusals {
    /// Counts a request. Returns the count since the last message, if a message is due.
    pub(super) fn count(&self) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.count += 1;
        if state.logged.is_some_and(|at| at.elapsed() < LOG_EVERY) {
            return None;
        }
        state.logged = Some(Instant::now());
        Some(std::mem::take(&mut state.count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_logged_at_once_and_the_others_a_minute_later_with_their_number() {
        let refusals = Refusals::default();
        assert_eq!([refusals.count(), refusals.count(), refusals.count()], [Some(1), None, None]);
        let earlier = Instant::now().checked_sub(LOG_EVERY).unwrap();
        refusals.0.lock().unwrap().logged = Some(earlier);
        assert_eq!([refusals.count(), refusals.count()], [Some(3), None]);
    }
}
