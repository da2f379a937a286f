//! The agent's HTTP surface: health, metrics, the status page, and the operator API.
//!
//! | path | answers |
//! |---|---|
//! | `GET /` | the status page; its files are under `/assets/` |
//! | `GET /runbook` | what to do about each alert |
//! | `GET /events` | the status page's data, live; `/status` and `/history` give it once |
//! | `GET /health`, `/health/` | whether the process can work |
//! | `GET /healthz` | liveness, for orchestrators |
//! | `GET /readyz` | readiness, for orchestrators, as in `/health/detailed` |
//! | `GET /health/detailed` | health with metrics; also 503 when Redis is away or the outbox is full |
//! | `GET /metrics`, `/metrics/` | Prometheus' text format |
//! | `GET /metrics/json` | the same state as JSON, for scripts |
//! | `GET /openapi.json`, `/docs`, `/redoc` | the description of these paths, generated from the handlers |
//! | `/admin/…` | see [`admin`] |
//!
//! `/events`, `/status`, `/history` and `/admin` require a trusted host name: see [`hosts`].

pub mod admin;
mod assets;
mod connection_limit;
mod exposition;
mod health;
mod history;
mod hosts;
mod live;
mod openapi;
mod pages;
mod refusals;
pub(crate) mod requests;
mod reserve;
mod runbook;
mod server;
mod socket;
mod trusted_hosts;
mod trusted_ips;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::control_plane::Client;
use crate::drain::{LinkStatus, Orders};
use crate::intake::{self, Names, RedisStatus};
use crate::outbox::Outbox;
use crate::telemetry::metrics::Metrics;
use admin::Admin;
use exposition::Exposition;
use health::{DetailedHealth, Health, HealthBody, MetricsBody};
pub use hosts::Hosts;
pub use live::{Live, Sampler};
pub use refusals::Refusals;
pub use server::listen;
pub use trusted_hosts::TrustedHosts;
pub use trusted_ips::TrustedIps;

/// Timeout of an answer, which is made from memory.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Maximum length of a correlation id.
const CORRELATION_ID_MAX: usize = 128;

/// Headers that forbid framing, sniffing, caching, and fetching from elsewhere.
const SECURITY_HEADERS: [(HeaderName, &str); 5] = [
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-store"),
    (header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
];

static CORRELATION_ID: HeaderName = HeaderName::from_static("x-correlation-id");

/// The state that the HTTP server shows.
pub struct Surface {
    /// `SERVER_ID`.
    pub server_id: String,
    /// `SERVER_REGION`.
    pub region: String,
    /// `APP_VERSION`.
    pub version: String,
    /// When this process started.
    pub started: Instant,
    /// The outbox.
    pub outbox: Outbox,
    /// Redis, as the intake sees it.
    pub redis: watch::Receiver<RedisStatus>,
    /// The link, as the drain sees it.
    pub link: watch::Receiver<LinkStatus>,
    /// The operator's orders to the drain.
    pub orders: watch::Receiver<Orders>,
    /// Whether the `ControlPlane` knows this server.
    pub registered: watch::Receiver<bool>,
    /// Why it does not, once that has lasted for a while.
    pub registration_trouble: watch::Receiver<Option<String>>,
    /// Whether the agent is shutting down.
    pub stopping: watch::Receiver<bool>,
    /// The names of the queues.
    pub names: Names,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// The client, which knows whether the `ControlPlane` answers.
    pub client: Arc<Client>,
    /// The Redis server, which knows when its certificates expire.
    pub redis_server: intake::RedisServer,
    /// Addresses with access; `None`: all.
    pub trusted: Option<TrustedIps>,
    /// Counts requests from other addresses.
    pub refused: Refusals,
    /// The trusted host names.
    pub hosts: Arc<Hosts>,
}

impl Surface {
    fn refuse(&self, ip: IpAddr) -> Response {
        if let Some(count) = self.refused.count() {
            tracing::warn!(
                count,
                %ip,
                "security: refused requests from addresses that are not in TRUSTED_IPS, the last from this one; add it there if it may read the agent's state"
            );
        }
        let error = format!("{ip} is not in TRUSTED_IPS");
        (StatusCode::FORBIDDEN, Json(json!({ "error": error }))).into_response()
    }
}

/// Serves until `stop` is true.
pub async fn serve(
    listener: TcpListener,
    surface: Arc<Surface>,
    admin: Arc<Admin>,
    live: Arc<Live>,
    stop: watch::Receiver<bool>,
) {
    let router = router(Arc::clone(&surface), admin, live);
    let router = router.layer(middleware::from_fn_with_state(surface, guard));
    server::serve(listener, router, stop).await;
}

/// All paths. [`openapi`] describes the same ones.
fn router(surface: Arc<Surface>, admin: Arc<Admin>, live: Arc<Live>) -> Router {
    let exposition = Arc::new(Exposition::new(Arc::clone(&surface)));
    let by_name = middleware::from_fn_with_state(Arc::clone(&surface.hosts), hosts::only_by_own_names);
    let figures = figures().with_state(surface).merge(metrics().with_state(exposition));
    let data = page_data().with_state(live).route_layer(by_name.clone());
    let quick = figures.merge(page()).merge(data).merge(documentation());
    quick.layer(middleware::from_fn(answer_quickly)).merge(admin::router(admin).route_layer(by_name))
}

fn figures() -> Router<Arc<Surface>> {
    Router::new()
        .route("/health", get(health))
        .route("/health/", get(health))
        .route("/healthz", get(alive))
        .route("/readyz", get(ready))
        .route("/health/detailed", get(detailed))
        .route("/metrics/json", get(metrics_json))
}

fn metrics() -> Router<Arc<Exposition>> {
    Router::new().route("/metrics", get(exposition::metrics)).route("/metrics/", get(exposition::metrics))
}

fn page() -> Router {
    Router::new()
        .route("/", get(pages::status_page))
        .route("/assets/{name}", get(assets::asset))
        .route("/runbook", get(pages::runbook))
        .route("/runbook/", get(pages::runbook_below))
}

fn page_data() -> Router<Arc<Live>> {
    Router::new()
        .route("/events", get(live::events))
        .route("/history", get(live::history))
        .route("/status", get(live::status))
}

fn documentation() -> Router {
    Router::new()
        .route("/openapi.json", get(openapi::description))
        .route("/openapi.json/", get(openapi::description))
        .route("/docs", get(pages::docs))
        .route("/docs/", get(pages::docs_below))
        .route("/redoc", get(pages::redoc))
        .route("/redoc/", get(pages::redoc_below))
}

/// Access control, and the headers of every answer.
async fn guard(
    State(surface): State<Arc<Surface>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
    next: Next,
) -> Response {
    let correlation = correlation_id(request.headers());
    let ip = peer.ip().to_canonical();
    let trusted = surface.trusted.as_ref().is_none_or(|trusted| trusted.allows(ip));
    let mut response = if trusted { next.run(request).await } else { surface.refuse(ip) };
    let headers = response.headers_mut();
    headers.insert(CORRELATION_ID.clone(), correlation);
    for (name, value) in SECURITY_HEADERS {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}

/// Applies the timeout to answers made from memory.
async fn answer_quickly(request: Request, next: Next) -> Response {
    let answer = tokio::time::timeout(ANSWER_WITHIN, next.run(request)).await;
    answer.unwrap_or_else(|_| StatusCode::GATEWAY_TIMEOUT.into_response())
}

fn correlation_id(headers: &HeaderMap) -> HeaderValue {
    let given =
        headers.get(&CORRELATION_ID).filter(|value| value.len() <= CORRELATION_ID_MAX && !value.is_empty());
    given.cloned().unwrap_or_else(|| {
        HeaderValue::from_str(&uuid::Uuid::new_v4().to_string())
            .unwrap_or_else(|_| HeaderValue::from_static("-"))
    })
}

/// The agent's health.
///
/// An unreachable `ControlPlane` makes it `degraded`: records wait in the outbox.
#[utoipa::path(
    get,
    path = "/health",
    tag = "health",
    responses(
        (status = 200, description = "It can", body = HealthBody),
        (status = 503, description = "The outbox does not accept records, or the agent is stopping", body = HealthBody),
    )
)]
async fn health(State(surface): State<Arc<Surface>>) -> (StatusCode, Json<HealthBody>) {
    let health = Health::of(&surface);
    let code = if health.is_unhealthy() { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    (code, Json(health.body(&surface)))
}

/// Liveness: 200 while the process works, also in an outage or with a full outbox, which a restart would not fix.
#[utoipa::path(
    get,
    path = "/healthz",
    tag = "health",
    responses((status = 200, description = "It works", body = String, content_type = "text/plain"))
)]
async fn alive() -> &'static str {
    "ok\n"
}

/// Readiness, with the same status code as `/health/detailed`.
#[utoipa::path(
    get,
    path = "/readyz",
    tag = "health",
    responses(
        (status = 200, description = "Ready", body = String, content_type = "text/plain"),
        (status = 503, description = "The outbox does not accept records, the agent is stopping, or Redis is unreachable", body = String, content_type = "text/plain"),
    )
)]
async fn ready(State(surface): State<Arc<Surface>>) -> (StatusCode, &'static str) {
    match Health::of(&surface).readiness() {
        StatusCode::OK => (StatusCode::OK, "ready\n"),
        code => (code, "not ready\n"),
    }
}

/// Health with metrics.
#[utoipa::path(
    get,
    path = "/health/detailed",
    tag = "health",
    responses(
        (status = 200, description = "Ready", body = DetailedHealth),
        (status = 503, description = "The outbox does not accept records, the agent is stopping, or Redis is unreachable", body = DetailedHealth),
    )
)]
async fn detailed(State(surface): State<Arc<Surface>>) -> (StatusCode, Json<DetailedHealth>) {
    let health = Health::of(&surface);
    (health.readiness(), Json(health.detailed(&surface)))
}

/// The most important metrics in JSON.
#[utoipa::path(
    get,
    path = "/metrics/json",
    tag = "metrics",
    responses((status = 200, description = "The current values", body = MetricsBody))
)]
async fn metrics_json(State(surface): State<Arc<Surface>>) -> Json<MetricsBody> {
    Json(Health::of(&surface).metrics(&surface))
}
