//! Applies the weather to a request before and after it is processed.

use std::{future, sync::Arc, time::Instant};

use axum::{
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::{
    Shared, body,
    encoding::Encoding,
    headers::API_KEY,
    listener::Cut,
    traffic::{Endpoint, Outcome},
    transcode,
    weather::Weather,
};

/// What happens to a request before any of it is processed.
enum Treatment {
    Pass,
    Hang,
    Reset,
    /// A 200 that processes nothing.
    SuccessFalse,
    Answer(StatusCode),
}

/// Passes a request of the `ControlPlane`'s API through the weather.
pub(super) async fn pass(
    State((shared, endpoint)): State<(Arc<Shared>, Endpoint)>,
    request: Request,
    next: Next,
) -> Response {
    let weather = shared.weather();
    let accepted = Encoding::accepted(request.headers());
    let answer = meet(&shared, &weather, endpoint, request, next).await;
    transcode::finish(answer, accepted, &weather).await
}

async fn meet(
    shared: &Shared,
    weather: &Weather,
    endpoint: Endpoint,
    request: Request,
    next: Next,
) -> Response {
    let exchange = Exchange::begin(shared, endpoint, &request);
    let (mut parts, sent) = request.into_parts();
    // Read in any case: otherwise a client that is still sending would see a broken pipe instead of its answer.
    let sent = match body::read(sent).await {
        Ok(sent) => sent,
        Err(answer) => return exchange.answer(answer),
    };
    shared.traffic().body(sent.len(), Encoding::of(&parts.headers));

    let latency = shared.dice().latency(weather);
    if !latency.is_zero() {
        tokio::time::sleep(latency).await;
    }
    match treatment(shared, weather, endpoint) {
        Treatment::Pass => {}
        Treatment::Hang => return exchange.hang().await,
        Treatment::Reset => return exchange.cut(Outcome::Reset),
        Treatment::SuccessFalse => return exchange.answer(body::success_false()),
        Treatment::Answer(status) => return exchange.answer(instead(status, weather)),
    }
    if !admitted(shared.api_key.as_deref(), &parts.headers) {
        return exchange.answer(body::error(StatusCode::UNAUTHORIZED, "not the expected API key"));
    }
    let plain = match transcode::decode(&parts.headers, weather, sent) {
        Ok(plain) => plain,
        Err(answer) => return exchange.answer(answer),
    };
    parts.headers.remove(header::CONTENT_ENCODING);

    let answer = next.run(Request::from_parts(parts, Body::from(plain))).await;
    if shared.dice().throw(weather.lost_answer) {
        return exchange.cut(Outcome::LostAnswer);
    }
    let spoils = || weather.bad_body_chance.is_none_or(|chance| shared.dice().throw(chance));
    match weather.bad_body {
        Some(kind) if answer.status().is_success() && spoils() => {
            exchange.answer(body::spoilt(answer.status(), kind))
        }
        _ => exchange.answer(answer),
    }
}

fn treatment(shared: &Shared, weather: &Weather, endpoint: Endpoint) -> Treatment {
    let mut dice = shared.dice();
    if dice.throw(weather.hang) {
        return Treatment::Hang;
    }
    if dice.throw(weather.reset) {
        return Treatment::Reset;
    }
    if let Some(status) = weather.always {
        return Treatment::Answer(status.code());
    }
    if !dice.has_capacity(weather.capacity, Instant::now()) {
        return Treatment::Answer(StatusCode::TOO_MANY_REQUESTS);
    }
    if dice.throw(weather.success_false) {
        return Treatment::SuccessFalse;
    }
    let by_record = endpoint == Endpoint::Batch && f64::from(weather.partial_batch) > 0.0;
    match dice.status(&weather.status) {
        Some(status) if !by_record => Treatment::Answer(status.code()),
        _ => Treatment::Pass,
    }
}

/// The answer given by the weather, with the headers that belong to its status.
fn instead(status: StatusCode, weather: &Weather) -> Response {
    let mut answer = if let (Some(_), Some(kind)) = (weather.always, weather.bad_body) {
        body::spoilt(status, kind)
    } else if status.is_success() {
        body::done()
    } else {
        body::error(status, format_args!("the weather: {status}"))
    };
    *answer.status_mut() = status;
    let header = match status {
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
            weather.retry_after.as_ref().map(|value| (header::RETRY_AFTER, value))
        }
        _ if status.is_redirection() => weather.location.as_ref().map(|value| (header::LOCATION, value)),
        _ => None,
    };
    if let Some((name, value)) = header
        && let Ok(value) = HeaderValue::from_str(value)
    {
        answer.headers_mut().insert(name, value);
    }
    answer
}

/// Accepts any credentials unless an API key is expected.
fn admitted(expected: Option<&str>, headers: &HeaderMap) -> bool {
    expected
        .is_none_or(|expected| headers.get(API_KEY).is_some_and(|key| key.as_bytes() == expected.as_bytes()))
}

/// A request in flight. Its end is counted exactly once.
struct Exchange<'a> {
    shared: &'a Shared,
    endpoint: Endpoint,
    outcome: Outcome,
}

impl<'a> Exchange<'a> {
    fn begin(shared: &'a Shared, endpoint: Endpoint, request: &Request) -> Self {
        shared.traffic().begin(request.method(), request.headers());
        Self { shared, endpoint, outcome: Outcome::Abandoned }
    }

    fn answer(mut self, answer: Response) -> Response {
        self.outcome = Outcome::Answered(answer.status());
        answer
    }

    fn cut(mut self, outcome: Outcome) -> Response {
        self.outcome = outcome;
        let mut answer = StatusCode::NO_CONTENT.into_response();
        answer.extensions_mut().insert(Cut);
        answer
    }

    /// Waits until the client disconnects, which drops this future.
    async fn hang(mut self) -> Response {
        self.outcome = Outcome::Hung;
        future::pending().await
    }
}

impl Drop for Exchange<'_> {
    fn drop(&mut self) {
        self.shared.traffic().end(self.endpoint, self.outcome);
    }
}
