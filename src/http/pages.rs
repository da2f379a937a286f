//! The pages: status at `/`, the runbook, and Swagger UI and Redoc. Each may fetch from this agent only.

use axum::body::Body;
use axum::http::header;
use axum::response::{Html, IntoResponse, Response};

use super::runbook;

/// Allows its own files and nothing else: no frames, forms, inline scripts or inline styles.
const STATUS_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
    img-src data:; form-action 'none'; base-uri 'none'; frame-ancestors 'none'";
/// Swagger UI sets inline styles, and embeds its icons in its style sheet.
const DOCS_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; \
    connect-src 'self'; img-src 'self' data:; form-action 'none'; base-uri 'none'; frame-ancestors 'none'";
/// Redoc generates its styles at run time.
const REDOC_POLICY: &str = DOCS_POLICY;

fn page(policy: &'static str, text: impl Into<Body>) -> Response {
    ([(header::CONTENT_SECURITY_POLICY, policy)], Html(text.into())).into_response()
}

/// Rewrites a page's links for a URL one level down. Links are relative, since a proxy may serve the agent under a path.
fn one_level_up(text: &str) -> String {
    let links = ["href=\"assets/", "src=\"assets/", "href=\"openapi.json", "href=\"./"];
    links.iter().fold(text.to_owned(), |text, link| text.replace(link, &link.replacen('"', "\"../", 1)))
}

/// The status page.
#[utoipa::path(
    get,
    path = "/",
    tag = "page",
    responses((status = 200, description = "A page", body = String, content_type = "text/html"))
)]
pub(super) async fn status_page() -> Response {
    page(STATUS_POLICY, include_str!("pages/page.html"))
}

/// What to do about each alert.
#[utoipa::path(
    get,
    path = "/runbook",
    tag = "page",
    responses((status = 200, description = "A page with a section for each alert", body = String, content_type = "text/html"))
)]
pub(super) async fn runbook() -> Response {
    page(STATUS_POLICY, runbook::PAGE.as_str())
}

/// The same with a trailing slash.
pub(super) async fn runbook_below() -> Response {
    page(STATUS_POLICY, one_level_up(&runbook::PAGE))
}

/// This description in Swagger UI.
#[utoipa::path(
    get,
    path = "/docs",
    tag = "documentation",
    responses((status = 200, description = "A page", body = String, content_type = "text/html"))
)]
pub(super) async fn docs() -> Response {
    page(DOCS_POLICY, include_str!("pages/docs.html"))
}

/// The same with a trailing slash: what it fetches is one level up.
pub(super) async fn docs_below() -> Response {
    page(DOCS_POLICY, one_level_up(include_str!("pages/docs.html")))
}

/// This description in Redoc.
#[utoipa::path(
    get,
    path = "/redoc",
    tag = "documentation",
    responses((status = 200, description = "A page", body = String, content_type = "text/html"))
)]
pub(super) async fn redoc() -> Response {
    page(REDOC_POLICY, include_str!("pages/redoc.html"))
}

/// The same with a trailing slash.
pub(super) async fn redoc_below() -> Response {
    page(REDOC_POLICY, one_level_up(include_str!("pages/redoc.html")))
}
