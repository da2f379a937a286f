//! The random numbers (seeded) and the token bucket behind the weather.

use std::time::{Duration, Instant};

use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};

use super::{
    chance::{Probability, Status, StatusChances},
    weather::Weather,
};

/// The same seed gives the same throws in the same order.
pub(super) struct Dice {
    random: Xoshiro256PlusPlus,
    bucket: Bucket,
}

/// One second's worth of requests, refilled steadily.
struct Bucket {
    taken: f64,
    at: Instant,
}

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        let bucket = Bucket { taken: 0.0, at: Instant::now() };
        Self { random: Xoshiro256PlusPlus::seed_from_u64(seed), bucket }
    }

    /// Whether an event of this probability happens now.
    pub(super) fn throw(&mut self, probability: Probability) -> bool {
        let probability = f64::from(probability);
        // Probabilities 0 and 1 use no throw, which would shift all later throws.
        probability >= 1.0 || (probability > 0.0 && self.random.random::<f64>() < probability)
    }

    /// Draws a status by its probability; `None`: an ordinary answer.
    pub(super) fn status(&mut self, chances: &StatusChances) -> Option<Status> {
        if chances.sum() > 0.0 { chances.at(self.random.random()) } else { None }
    }

    /// The status with which a record of a batch fails alone, if it does.
    pub(super) fn partial(&mut self, weather: &Weather) -> Option<Status> {
        if !self.throw(weather.partial_batch) {
            return None;
        }
        let point = self.random.random::<f64>() * weather.status.sum();
        Some(weather.status.at(point).unwrap_or(Status::INTERNAL_SERVER_ERROR))
    }

    /// The latency of this request.
    pub(super) fn latency(&mut self, weather: &Weather) -> Duration {
        let jitter = if weather.jitter_ms == 0 { 0 } else { self.random.random_range(0..=weather.jitter_ms) };
        Duration::from_millis(weather.latency_ms.saturating_add(jitter))
    }

    /// Whether another request is within `capacity` requests per second.
    pub(super) fn has_capacity(&mut self, capacity: u32, now: Instant) -> bool {
        if capacity == 0 {
            return true;
        }
        let capacity = f64::from(capacity);
        let refilled = now.saturating_duration_since(self.bucket.at).as_secs_f64() * capacity;
        let taken = (self.bucket.taken - refilled).max(0.0);
        let enough = taken + 1.0 <= capacity;
        self.bucket = Bucket { taken: if enough { taken + 1.0 } else { taken }, at: now };
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_throws_the_same() {
        let half = "0.5".parse().unwrap();
        let throws = |seed| {
            let mut dice = Dice::new(seed);
            (0..64).map(|_| dice.throw(half)).collect::<Vec<_>>()
        };
        assert_eq!(throws(1), throws(1));
        assert_ne!(throws(1), throws(2));
    }

    #[test]
    fn frequencies_follow_the_probabilities() {
        let mut dice = Dice::new(1);
        let weather = Weather { partial_batch: "0.5".parse().unwrap(), ..Weather::default() };
        let chances = "500=0.1,429=0.3".parse().unwrap();
        let drawn: Vec<_> = (0..10_000).filter_map(|_| dice.status(&chances)).map(u16::from).collect();
        let of = |status| drawn.iter().filter(|&&drawn| drawn == status).count();
        assert!((900..1100).contains(&of(500)) && (2800..3200).contains(&of(429)), "{} {}", of(500), of(429));
        let failed = (0..10_000).filter(|_| dice.partial(&weather).is_some()).count();
        assert!((4800..5200).contains(&failed), "{failed}");
    }

    #[test]
    fn capacity_is_a_second_of_burst_then_the_rate() {
        let mut dice = Dice::new(1);
        let start = Instant::now();
        let within = |dice: &mut Dice, at| (0..100).filter(|_| dice.has_capacity(10, at)).count();
        assert_eq!(within(&mut dice, start), 10);
        assert_eq!(within(&mut dice, start + Duration::from_millis(510)), 5);
        assert_eq!(within(&mut dice, start + Duration::from_secs(60)), 10);
    }
}
