//! Requests to the `ControlPlane` by route over the last half minute: their rate, errors and durations.

use std::collections::{BTreeMap, VecDeque};

use prometheus::core::Collector as _;
use prometheus::proto::MetricFamily;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::telemetry::metrics::Metrics;

/// The window of rates and durations, in seconds.
const SECONDS: f64 = 30.0;

/// A route's recent requests.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = Route)]
pub(crate) struct RouteBody {
    /// The route's name, as in the metrics.
    pub endpoint: String,
    /// Requests per second.
    pub per_second: f64,
    /// Requests per second without the ControlPlane's own answer, or with an error: all but its 2xx, 409 and 429.
    pub errors_per_second: f64,
    /// Requests per second answered 429.
    pub too_many_per_second: f64,
    /// Median duration; null if no request has ended.
    pub p50_seconds: Option<f64>,
    /// 99th percentile of the durations.
    pub p99_seconds: Option<f64>,
}

/// A route's counters.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Counted {
    all: u64,
    errors: u64,
    too_many: u64,
    /// Upper bounds in seconds, each with the number of requests that took no longer.
    pub buckets: Vec<(f64, u64)>,
}

impl Counted {
    /// Adds requests that ended with this code: a status, or the name of a failure.
    pub(crate) fn add(&mut self, code: &str, count: u64) {
        self.all += count;
        match code.parse::<u16>() {
            Ok(429) => self.too_many += count,
            Ok(200..=299 | 409) => {}
            _ => self.errors += count,
        }
    }
}

/// The counters at moments of the last half minute.
#[derive(Debug, Default)]
pub(crate) struct Requests(VecDeque<(f64, RouteCounts)>);

/// Counters by route.
pub(crate) type RouteCounts = BTreeMap<String, Counted>;

impl Requests {
    /// Adds the current counters, `at` seconds after the start.
    pub(super) fn note(&mut self, at: f64, metrics: &Metrics) {
        self.push(at, count(&metrics.requests.collect(), &metrics.request_seconds.collect()));
    }

    /// Adds the counters of another agent.
    pub(crate) fn push(&mut self, at: f64, counted: RouteCounts) {
        self.0.push_back((at, counted));
        // The newest of the older samples stays: with rare samples, the window starts there.
        while self.0.get(1).is_some_and(|(second, _)| *second <= at - SECONDS) {
            self.0.pop_front();
        }
    }

    /// The routes with recent requests, busiest first.
    pub(crate) fn routes(&self) -> Vec<RouteBody> {
        let (Some((from, before)), Some((to, now))) = (self.0.front(), self.0.back()) else {
            return Vec::new();
        };
        let seconds = to - from;
        if seconds <= 0.0 {
            return Vec::new();
        }
        let none = Counted::default();
        let mut routes = Vec::new();
        for (endpoint, now) in now {
            let before = before.get(endpoint).unwrap_or(&none);
            let rate =
                |now: u64, before: u64| (now.saturating_sub(before) as f64 / seconds * 10.0).round() / 10.0;
            if now.all <= before.all {
                continue;
            }
            routes.push(RouteBody {
                endpoint: endpoint.clone(),
                per_second: rate(now.all, before.all),
                errors_per_second: rate(now.errors, before.errors),
                too_many_per_second: rate(now.too_many, before.too_many),
                p50_seconds: quantile(0.5, before, now),
                p99_seconds: quantile(0.99, before, now),
            });
        }
        routes.sort_by(|a, b| b.per_second.total_cmp(&a.per_second));
        routes
    }
}

/// The quantile `part` of the durations between two moments, interpolated within its bucket.
fn quantile(part: f64, before: &Counted, now: &Counted) -> Option<f64> {
    let counts = now.buckets.iter().enumerate().map(|(n, (bound, count))| {
        (*bound, count - before.buckets.get(n).map_or(0, |(_, count)| *count).min(*count))
    });
    let counts: Vec<(f64, u64)> = counts.collect();
    let wanted = counts.last().map(|(_, all)| *all as f64 * part).filter(|wanted| *wanted > 0.0)?;
    let (mut lower, mut below) = (0.0, 0);
    for (bound, count) in counts {
        if count as f64 >= wanted {
            if bound.is_infinite() {
                break;
            }
            let inside = (wanted - below as f64) / (count - below).max(1) as f64;
            return Some(lower + (bound - lower) * inside);
        }
        (lower, below) = (bound, count);
    }
    Some(lower)
}

fn count(requests: &[MetricFamily], seconds: &[MetricFamily]) -> RouteCounts {
    let mut routes = RouteCounts::new();
    for metric in requests.iter().flat_map(MetricFamily::get_metric) {
        let label = |name: &str| {
            let found = metric.get_label().iter().find(|label| label.name() == name);
            found.map(|label| label.value().to_owned()).unwrap_or_default()
        };
        let count = metric.get_counter().get_value() as u64;
        routes.entry(label("endpoint")).or_default().add(&label("code"), count);
    }
    for metric in seconds.iter().flat_map(MetricFamily::get_metric) {
        let endpoint = metric.get_label().iter().find(|label| label.name() == "endpoint");
        let Some(route) = endpoint.and_then(|label| routes.get_mut(label.value())) else { continue };
        let histogram = metric.get_histogram();
        let buckets = histogram.get_bucket().iter();
        route.buckets = buckets.map(|bucket| (bucket.upper_bound(), bucket.cumulative_count())).collect();
        route.buckets.push((f64::INFINITY, histogram.get_sample_count()));
    }
    routes
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn counted(all: u64, errors: u64, too_many: u64, buckets: &[(f64, u64)]) -> Counted {
        Counted { all, errors, too_many, buckets: buckets.to_vec() }
    }

    #[test]
    fn rates_and_times_are_those_between_the_first_tick_and_the_last() {
        let (mut requests, at) = (Requests::default(), f64::from);
        assert_eq!(requests.routes(), []);
        let before = [(0.1, 1000), (1.0, 1000), (f64::INFINITY, 1000)];
        requests.push(at(0), [("batch".to_owned(), counted(1000, 3, 0, &before))].into());
        assert_eq!(requests.routes(), [], "one sample gives no rate");
        let now = [(0.1, 1090), (1.0, 1100), (f64::INFINITY, 1100)];
        requests.push(at(10), [("batch".to_owned(), counted(1100, 13, 20, &now))].into());
        let [route] = &requests.routes()[..] else { panic!("{requests:?}") };
        assert_eq!((route.per_second, route.errors_per_second, route.too_many_per_second), (10.0, 1.0, 2.0));
        assert!(route.p50_seconds.is_some_and(|p50| (0.05..0.1).contains(&p50)), "{route:?}");
        assert!(route.p99_seconds.is_some_and(|p99| (0.9..0.95).contains(&p99)), "{route:?}");
        for second in 11..60 {
            requests.push(at(second), [("batch".to_owned(), counted(1100, 13, 20, &now))].into());
        }
        assert_eq!(requests.routes(), [], "not lately");
        assert!(requests.0.len() <= SECONDS as usize + 1);
        // Sampled once a minute, the window is that minute.
        for (minute, all) in [(1, 1200), (2, 1800)] {
            requests.push(at(59 + 60 * minute), [("batch".to_owned(), counted(all, 13, 20, &now))].into());
        }
        assert!((requests.routes()[0].per_second - 10.0).abs() < 0.1);
    }

    #[test]
    fn durations_beyond_the_last_bound_are_reported_as_that_bound() {
        let slow = counted(2, 0, 0, &[(0.1, 0), (1.0, 0), (f64::INFINITY, 2)]);
        assert_eq!(quantile(0.5, &Counted::default(), &slow), Some(1.0));
        assert_eq!(quantile(0.5, &slow, &slow), None);
    }

    #[test]
    fn answers_are_told_apart_by_their_codes() {
        let metrics = Metrics::new("edge-1").unwrap();
        for code in ["200", "204", "409", "429", "503", "timeout", "302", "404", "foreign_answer"] {
            metrics.request("batch", code, Duration::from_millis(20));
        }
        let counted = count(&metrics.requests.collect(), &metrics.request_seconds.collect());
        let batch = &counted["batch"];
        assert_eq!((batch.all, batch.errors, batch.too_many), (9, 5, 1));
        assert_eq!(batch.buckets.last(), Some(&(f64::INFINITY, 9)));
    }
}
