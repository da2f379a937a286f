//! Decides when a refusal is believed.
//!
//! A refusal must be given twice, over different connections: a single one may come from a middlebox, or from one bad
//! server among several. If a refused record is then delivered, answers depend on the backend. For a while after that,
//! eight confirmations are required: with two servers of which one refuses everything, nine refusals in a row hit two
//! records in a thousand.

use std::time::Duration;

use tokio::time::Instant;

use crate::drain::queues::{AttemptHistory, CONFIRMED};

/// Refusals required after a contradiction.
const ENOUGH_IN_DOUBT: u8 = 9;
/// How long a contradiction counts.
const DOUBT: Duration = Duration::from_secs(600);
/// The first confirmation is requested at once, each further one within this time.
const WAIT: Duration = Duration::from_secs(2);

/// Tracks whether refusals are contradicted.
#[derive(Debug, Default)]
pub(in crate::drain) struct Confirmation {
    in_doubt_until: Option<Instant>,
}

impl Confirmation {
    /// A record was refused again. True if that is enough to believe it.
    pub(in crate::drain) fn refused(&self, history: &mut AttemptHistory, now: Instant) -> bool {
        history.refusals = history.refusals.saturating_add(1);
        history.refusals >= if self.is_in_doubt(now) { ENOUGH_IN_DOUBT } else { CONFIRMED }
    }

    /// Whether answers seem to depend on the backend.
    pub(in crate::drain) fn is_in_doubt(&self, now: Instant) -> bool {
        self.in_doubt_until.is_some_and(|until| until > now)
    }

    /// A record was delivered.
    pub(in crate::drain) fn delivered(&mut self, history: &AttemptHistory, now: Instant) {
        if history.is_suspect() {
            self.in_doubt_until = Some(now + DOUBT);
        }
    }

    /// How long a refused record waits before its next attempt.
    pub(in crate::drain) fn wait(history: &AttemptHistory) -> Duration {
        if history.refusals <= 1 { Duration::ZERO } else { WAIT.mul_f64(crate::time::random_part()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The number of refusals required.
    fn refusals(confirmation: &Confirmation, now: Instant) -> u8 {
        let mut history = AttemptHistory::NONE;
        while !confirmation.refused(&mut history, now) {}
        history.refusals
    }

    #[test]
    fn a_refusal_is_confirmed_once_and_eight_times_while_answers_contradict_each_other() {
        let (mut confirmation, now) = (Confirmation::default(), Instant::now());
        assert_eq!(refusals(&confirmation, now), 2);
        confirmation.delivered(&AttemptHistory::NONE, now);
        assert_eq!(refusals(&confirmation, now), 2, "a record never refused contradicts nothing");
        confirmation.delivered(&AttemptHistory { refusals: 1, ..AttemptHistory::NONE }, now);
        assert_eq!(refusals(&confirmation, now + DOUBT / 2), 9);
        assert_eq!(refusals(&confirmation, now + DOUBT), 2);
    }
}
