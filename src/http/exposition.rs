//! Renders metrics in Prometheus' text format once for all requests within a short time.
//!
//! Rendering takes three times as long as the rest of a request: it copies every series and reads `/proc`. A client with a
//! thousand requests per second must not take that time from the pipeline.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::Surface;
use super::health::Health;
use crate::drain::Trouble;
use crate::outbox::metrics::families;
use crate::telemetry::metrics::ScrapedValues;

/// How long a rendering is reused: too short for anyone to notice.
const FRESH_FOR: Duration = Duration::from_millis(20);

/// Serves `/metrics`.
pub(super) struct Exposition {
    surface: Arc<Surface>,
    latest: Latest,
}

impl Exposition {
    pub(super) fn new(surface: Arc<Surface>) -> Self {
        Self { surface, latest: Latest::default() }
    }

    fn render(&self) -> prometheus::Result<Vec<u8>> {
        let Surface { metrics, client, redis_server, outbox, server_id, .. } = &*self.surface;
        let health = Health::of(&self.surface);
        metrics.control_plane_up(health.control_plane_connected);
        for trouble in Trouble::ALL {
            let is_it = health.failing_for() == Some(trouble);
            metrics.control_plane_failing.with_label_values(&[trouble.label()]).set(i64::from(is_it));
        }
        let mut expiries = client.expiries();
        expiries.extend(redis_server.expiries());
        let moment = ScrapedValues { clock_skew_seconds: client.clock_skew().as_seconds_f64(), expiries };
        let of_outbox = families(&outbox.durable_stats(), crate::time::now().0, server_id);
        metrics.expose(&moment, of_outbox)
    }
}

/// The latest rendering.
#[derive(Default)]
struct Latest(Mutex<Option<(Instant, Bytes)>>);

impl Latest {
    /// The latest text while it is fresh, else a new one from `render`. Concurrent callers wait a fraction of a millisecond.
    fn text<E>(&self, now: Instant, render: impl FnOnce() -> Result<Vec<u8>, E>) -> Result<Bytes, E> {
        let mut latest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, text)) = &*latest
            && now.saturating_duration_since(*at) < FRESH_FOR
        {
            return Ok(text.clone());
        }
        let text = Bytes::from(render()?);
        *latest = Some((now, text.clone()));
        Ok(text)
    }
}

/// Metrics in Prometheus' text format.
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "metrics",
    responses((status = 200, description = "Prometheus text format", body = String, content_type = "text/plain"))
)]
pub(super) async fn metrics(State(exposition): State<Arc<Exposition>>) -> Response {
    match exposition.latest.text(Instant::now(), || exposition.render()) {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "cannot render the metrics");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fresh_text_is_reused_and_a_failure_is_not() {
        let (latest, begun) = (Latest::default(), Instant::now());
        let ask = |after, made: Result<&str, &str>| {
            latest.text(begun + after, || made.map(|text| text.as_bytes().to_vec()).map_err(str::to_owned))
        };
        assert_eq!(ask(Duration::ZERO, Err("cannot")), Err("cannot".to_owned()));
        assert_eq!(ask(Duration::ZERO, Ok("first")), Ok("first".into()));
        assert_eq!(ask(FRESH_FOR / 2, Ok("not made")), Ok("first".into()));
        assert_eq!(ask(FRESH_FOR, Ok("second")), Ok("second".into()));
        assert_eq!(ask(FRESH_FOR * 2, Err("cannot")), Err("cannot".to_owned()));
        assert_eq!(ask(FRESH_FOR * 2, Ok("third")), Ok("third".into()));
    }
}
