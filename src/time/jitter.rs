//! Schedules repeated actions so that a fleet started at once does not act in step.

use std::time::Duration;

use super::random_part;

/// The largest random change of an interval, as a fraction: actions that coincide drift apart.
const JITTER: f64 = 0.1;

/// An action repeated at an interval.
#[derive(Clone, Copy, Debug)]
pub(crate) struct JitteredInterval(Duration);

impl JitteredInterval {
    pub(crate) fn new(interval: Duration) -> Self {
        Self(interval)
    }

    /// The wait before the first action: a random part of the interval.
    pub(crate) fn first(self) -> Duration {
        self.0.mul_f64(random_part())
    }

    /// The wait after each action.
    pub(crate) fn next(self) -> Duration {
        self.0.mul_f64(1.0 - JITTER + 2.0 * JITTER * random_part())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fleet_that_starts_at_once_is_spread_over_the_interval_and_stays_so() {
        let interval = JitteredInterval::new(Duration::from_secs(60));
        let mut fleet: Vec<f64> = (0..2_000).map(|_| interval.first().as_secs_f64()).collect();
        for _ in 0..10 {
            let mut in_each = [0; 6];
            for at in &mut fleet {
                in_each[(*at % 60.0) as usize / 10] += 1;
                let wait = interval.next().as_secs_f64();
                assert!((54.0..=66.0).contains(&wait), "{wait}");
                *at += wait;
            }
            // 333 are expected in each sixth, with a standard deviation of 17.
            assert!(in_each.iter().all(|n| (200..480).contains(n)), "{in_each:?}");
        }
    }
}
