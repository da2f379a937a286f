//! Random waits, and those that an answer asks for.

use std::time::Duration;

use crate::time::random_part;

/// A shorter `Retry-After` is ignored in favour of the backoff.
pub(super) const SHORTEST_ASKED: Duration = Duration::from_secs(1);

/// Full jitter in pairs: both waits of a pair are random, but their sum is constant. A fleet is spread widely, and yet no
/// agent probes much more often than the others in a long outage.
#[derive(Debug, Default)]
pub(in crate::drain) struct Jitter {
    before: Option<f64>,
}

impl Jitter {
    pub(in crate::drain) fn between(&mut self, least: Duration, most: Duration) -> Duration {
        let share = match self.before.take() {
            Some(share) => 1.0 - share,
            None => *self.before.insert(random_part()),
        };
        least + most.saturating_sub(least).mul_f64(share)
    }
}

/// The requested wait, with jitter so that a fleet does not return all at once. Very short waits are ignored.
pub(in crate::drain) fn asked_wait(retry_after: Option<Duration>) -> Option<Duration> {
    retry_after.filter(|wait| *wait >= SHORTEST_ASKED).map(|wait| jittered(wait, wait.mul_f64(1.1)))
}

/// A random wait between the two.
pub(super) fn jittered(least: Duration, most: Duration) -> Duration {
    least + most.saturating_sub(least).mul_f64(random_part())
}
