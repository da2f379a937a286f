//! A straight line through samples, by least squares.

use std::fmt;

/// The trend of a figure over time.
pub(crate) struct Slope {
    least: f64,
    mean: f64,
    most: f64,
    per_hour: f64,
}

impl Slope {
    /// For points (hours, figure); `None` if there are fewer than three.
    pub(crate) fn of(points: impl Iterator<Item = (f64, f64)>) -> Option<Self> {
        let points: Vec<(f64, f64)> = points.collect();
        if points.len() < 3 {
            return None;
        }
        let count = points.len() as f64;
        let mean_at = points.iter().map(|(at, _)| at).sum::<f64>() / count;
        let mean = points.iter().map(|(_, figure)| figure).sum::<f64>() / count;
        let covariance: f64 = points.iter().map(|(at, figure)| (at - mean_at) * (figure - mean)).sum();
        let variance: f64 = points.iter().map(|(at, _)| (at - mean_at).powi(2)).sum();
        let figures = || points.iter().map(|(_, figure)| *figure);
        Some(Self {
            least: figures().fold(f64::INFINITY, f64::min),
            mean,
            most: figures().fold(f64::NEG_INFINITY, f64::max),
            per_hour: if variance > 0.0 { covariance / variance } else { 0.0 },
        })
    }
}

impl fmt::Display for Slope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { least, mean, most, per_hour } = self;
        write!(f, "{per_hour:+.2} an hour, {mean:.1} on average, {least:.1} to {most:.1}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leak_is_a_slope_and_noise_is_none() {
        let noise = |n: u32| f64::from(n * 7919 % 11);
        let leak = Slope::of((0..100).map(|n| (f64::from(n) / 100.0, noise(n) + f64::from(n)))).unwrap();
        assert!((leak.per_hour - 100.0).abs() < 5.0, "{leak}");
        let flat = Slope::of((0..100).map(|n| (f64::from(n) / 100.0, 50.0 + noise(n)))).unwrap();
        assert!(flat.per_hour.abs() < 5.0 && flat.least >= 50.0 && flat.most <= 60.0, "{flat}");
        assert!(Slope::of([(0.0, 1.0), (1.0, 2.0)].into_iter()).is_none());
    }
}
