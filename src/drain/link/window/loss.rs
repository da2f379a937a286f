//! Tells loss from a queue: loss delays some requests, a queue delays all of them.

/// Spread of the answers' lateness from which a link counts as lossy, and below which it no longer does.
const LOSSY_FROM: f64 = 0.3;
const CLEAN_BELOW: f64 = 0.15;
/// Weight of one answer in the mean lateness and its spread.
const SPREAD_GAIN: f64 = 0.03;
/// Round trip below which loss is not considered: retransmission is too fast to matter.
const LOSSY_WAY: f64 = 0.02;

/// How late answers are, as the logarithm of delay to shortest delay.
#[derive(Debug, Default)]
pub(super) struct Loss {
    mean: f64,
    /// The mean deviation from it.
    spread: f64,
    is_lossy: bool,
}

impl Loss {
    /// A request took `delay` seconds instead of `best`.
    pub(super) fn observe(&mut self, best: f64, delay: f64) {
        let lateness = if best < LOSSY_WAY { 0.0 } else { (delay / best).ln() };
        self.spread += ((lateness - self.mean).abs() - self.spread) * SPREAD_GAIN;
        self.mean += (lateness - self.mean) * SPREAD_GAIN;
        self.is_lossy = self.spread > if self.is_lossy { CLEAN_BELOW } else { LOSSY_FROM };
    }

    /// Whether the link loses packets.
    pub(super) fn is_lossy(&self) -> bool {
        self.is_lossy
    }
}
