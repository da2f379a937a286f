//! What came of a fleet: the `ControlPlane`'s seconds, the agents' times, and the requirements that were missed.

use super::{SETTLING, Scenario};

/// One second at the `ControlPlane`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Second {
    /// Requests it took.
    pub served: u32,
    /// Requests it shed.
    pub shed: u32,
    /// Bytes received, without those of shed requests.
    pub bytes: f64,
}

/// The outcome of a fleet.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The `ControlPlane`'s seconds.
    pub seconds: Vec<Second>,
    /// When each agent was drained, in seconds, sorted. Agents that never were are missing.
    pub drained: Vec<f64>,
    /// Waiting times of the first minute's quota requests, in seconds, sorted.
    pub early_quota: Vec<f64>,
    /// Those of later quota requests.
    pub later_quota: Vec<f64>,
    /// The scenario.
    pub scenario: Scenario,
}

/// The value at this share of sorted values.
pub fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    sorted.get(((sorted.len() as f64 * share) as usize).min(sorted.len().checked_sub(1)?)).copied()
}

impl Outcome {
    /// The share of the capacity used for what was taken, from the first minute until nine of ten agents were drained; and the
    /// share of requests shed in that time.
    pub fn goodput_and_shed(&self) -> (f64, f64) {
        let end = self.drained(0.9).map_or(self.seconds.len(), |at| at as usize);
        let busy = SETTLING as usize..end.max(SETTLING as usize + 1).min(self.seconds.len());
        let (mut used, mut there, mut served, mut shed) = (0.0, 0.0, 0.0, 0.0);
        for (at, second) in busy.clone().zip(&self.seconds[busy]) {
            let capacity = self.scenario.capacity(at as f64);
            let requests = f64::from(second.served) / (self.scenario.requests * capacity);
            let bytes = second.bytes / (self.scenario.bytes * capacity);
            (used, there) = (used + requests.max(bytes), there + 1.0);
            (served, shed) = (served + f64::from(second.served), shed + f64::from(second.shed));
        }
        (used / there, shed / f64::max(served + shed, 1.0))
    }

    /// When this share of the agents was drained, in seconds.
    pub fn drained(&self, share: f64) -> Option<f64> {
        let place = (f64::from(self.scenario.agents) * share).ceil() as usize;
        self.drained.get(place.max(1) - 1).copied()
    }

    /// The requirements that were missed.
    pub fn shortcomings(&self) -> Vec<String> {
        let (goodput, shed) = self.goodput_and_shed();
        let last = self.drained(1.0).unwrap_or(f64::INFINITY);
        let fair = last / self.drained(0.5).unwrap_or(f64::INFINITY);
        let quota = quantile(&self.later_quota, 0.99).unwrap_or(f64::INFINITY);
        let asked = [
            (goodput >= 0.9, format!("goodput {goodput:.2}, asked 0.9")),
            (shed < 0.05, format!("{shed:.3} of the requests shed, asked 0.05")),
            (
                last <= 1.3 * self.scenario.ideal(),
                format!("drained after {last:.0} s, ideal {:.0} s", self.scenario.ideal()),
            ),
            (fair <= 1.5, format!("the last agent takes {fair:.2} times as long as the median, asked 1.5")),
            (quota < 2.0, format!("quota requests wait {quota:.2} s (p99), asked 2 s")),
        ];
        asked.into_iter().filter(|(holds, _)| !holds).map(|(_, what)| what).collect()
    }
}
