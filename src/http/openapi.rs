//! The OpenAPI description. Handlers describe their parameters and answers; this module adds what the layers around the
//! handlers do.

use std::sync::LazyLock;

use axum::body::Bytes;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use utoipa::openapi::path::Operation;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{self, Content, OpenApi, Ref, ResponseBuilder};
use utoipa::{Modify, OpenApi as _};

use super::live::StatusSnapshot;
use super::{admin, assets, exposition, live, pages};

const TOKEN: &str = "admin_token";
/// Paths that also exist with a trailing slash.
const TWICE: [&str; 6] = ["/health", "/metrics", "/runbook", "/docs", "/redoc", "/openapi.json"];
/// Paths, besides `/admin`, that require a trusted host name.
const BY_NAME: [&str; 3] = ["/events", "/history", "/status"];

/// The description's general part.
#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "dataplane-agent",
        description = "Health, metrics, the status page and the admin API of the agent on an edge server.\n\n\
            Only addresses in `TRUSTED_IPS` have access. The admin API under `/admin` also requires the token in \
            `ADMIN_TOKEN`; without that setting it is off. Paths that show records or change anything require a `Host` \
            that is an address of the agent, `localhost` or one of `TRUSTED_HOSTS`.",
    ),
    paths(
        super::health, super::detailed, super::alive, super::ready, exposition::metrics, super::metrics_json,
        pages::status_page, pages::runbook, pages::docs, pages::redoc, assets::asset, description,
        live::events, live::history, live::status,
        admin::outbox_stats, admin::waiting, admin::waiting_record,
        admin::dead_letters, admin::dead_letter, admin::replay, admin::drop_letters,
        admin::drain, admin::pause, admin::resume, admin::probe, admin::release_brake, admin::audit, admin::rate_limit, admin::bandwidth,
        admin::log_level, admin::set_log_level, admin::reload,
        admin::jobs::verify_all, admin::jobs::salvage_all, admin::jobs::begin_export, admin::jobs::export_page,
        admin::jobs::confirm_page, admin::jobs::end_export, admin::jobs::import,
    ),
    components(schemas(admin::ErrorBody, StatusSnapshot)),
    tags(
        (name = "health", description = "Health and readiness"),
        (name = "metrics", description = "Metrics"),
        (name = "outbox", description = "Records waiting for delivery"),
        (name = "dead letters", description = "Records and messages that are not delivered until an operator replays them"),
        (name = "drain", description = "Sending: pause, limits, probes"),
        (name = "audit", description = "Operator actions"),
        (name = "settings", description = "Settings that change at run time"),
        (name = "page", description = "The status page and its data"),
        (name = "documentation", description = "This"),
    ),
    modifiers(&LayerResponses),
)]
struct Description;

/// Describes what the layers around the handlers do.
struct LayerResponses;

impl Modify for LayerResponses {
    fn modify(&self, api: &mut OpenApi) {
        let token = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some("The value of `ADMIN_TOKEN`."))
            .build();
        api.components.get_or_insert_default().add_security_scheme(TOKEN, SecurityScheme::Http(token));
        for path in TWICE {
            let Some(mut item) = api.paths.paths.get(path).cloned() else { continue };
            if let Some(get) = &mut item.get {
                get.operation_id = get.operation_id.take().map(|id| id + "_with_slash");
            }
            api.paths.paths.insert(format!("{path}/"), item);
        }
        for (path, item) in &mut api.paths.paths {
            let operations = [&mut item.get, &mut item.put, &mut item.post, &mut item.delete];
            for operation in operations.into_iter().filter_map(Option::as_mut) {
                let is_by_name = path.starts_with("/admin/") || BY_NAME.contains(&path.as_str());
                let refused = if is_by_name {
                    "The client's address is not in `TRUSTED_IPS`, or `Host` is not a trusted name"
                } else {
                    "The client's address is not in `TRUSTED_IPS`"
                };
                answer(operation, "403", told(refused));
                answer(operation, "504", openapi::Response::new("The request timed out"));
                if path.starts_with("/admin/") {
                    guarded(operation);
                }
            }
        }
    }
}

fn guarded(operation: &mut Operation) {
    operation.security = Some(vec![SecurityRequirement::new::<_, [&str; 0], &str>(TOKEN, [])]);
    answer(operation, "401", told("The token is missing or wrong"));
    answer(operation, "404", openapi::Response::new("The admin API is off: `ADMIN_TOKEN` is not set"));
    answer(operation, "503", told("Temporarily unavailable"));
    if operation.parameters.as_ref().is_some_and(|parameters| !parameters.is_empty()) {
        answer(operation, "400", told("Invalid parameter"));
    }
    if operation.request_body.is_some() {
        answer(operation, "400", told("The body is not JSON"));
        answer(operation, "413", told("The body is too large"));
        answer(operation, "415", told("`Content-Type` is not JSON"));
        answer(operation, "422", told("Invalid body"));
    }
}

/// An answer that contains the reason.
fn told(description: &str) -> openapi::Response {
    let content = Content::new(Some(Ref::from_schema_name("Error")));
    ResponseBuilder::new().description(description).content("application/json", content).build()
}

/// Adds an answer unless the handler has described it.
fn answer(operation: &mut Operation, status: &str, response: openapi::Response) {
    operation.responses.responses.entry(status.to_owned()).or_insert_with(|| response.into());
}

/// This description.
#[utoipa::path(
    get,
    path = "/openapi.json",
    tag = "documentation",
    responses((status = 200, description = "OpenAPI 3.1", body = Object))
)]
pub(super) async fn description() -> Response {
    // The text never changes while the process lives. It is built at the first request.
    static TEXT: LazyLock<Result<Bytes, String>> = LazyLock::new(|| {
        Description::openapi().to_json().map(Bytes::from).map_err(|error| error.to_string())
    });
    match &*TEXT {
        Ok(text) => ([(header::CONTENT_TYPE, "application/json")], text.clone()).into_response(),
        Err(error) => {
            tracing::error!(error, "cannot write the OpenAPI description");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The text between `begin` and `end`.
    fn between<'a>(text: &'a str, begin: &str, end: &str) -> Option<&'a str> {
        text.split_once(begin)?.1.split(end).next()
    }

    /// The operations of a router, as `GET /path`. Only the router's `Debug` output lists them.
    fn operations(router: &str) -> BTreeSet<String> {
        let (routing, _) = router.split_once("fallback_router").expect("the form that is known here");
        let (methods, paths) = routing.split_once("node: Node").expect("paths behind the methods");
        let mut found = BTreeSet::new();
        for route in methods.split("RouteId(").skip(1) {
            let id = route.split(')').next().expect("a number");
            let path = between(paths, &format!("RouteId({id}): \""), "\"").expect("its path");
            let allowed = between(route, "allow_header: Bytes(b\"", "\"").expect("its methods");
            found.extend(
                allowed
                    .split(',')
                    .filter(|method| *method != "HEAD")
                    .map(|method| format!("{method} {path}")),
            );
        }
        found
    }

    #[test]
    fn every_path_is_described_and_nothing_else() {
        let routers = [
            format!("{:?}", super::super::figures()),
            format!("{:?}", super::super::metrics()),
            format!("{:?}", super::super::page()),
            format!("{:?}", super::super::page_data()),
            format!("{:?}", super::super::documentation()),
            format!("{:?}", admin::paths()),
        ];
        let served: BTreeSet<String> = routers.iter().flat_map(|router| operations(router)).collect();
        let mut described = BTreeSet::new();
        for (path, item) in Description::openapi().paths.paths {
            let operations =
                [("GET", &item.get), ("PUT", &item.put), ("POST", &item.post), ("DELETE", &item.delete)];
            let there = operations.iter().filter(|(_, operation)| operation.is_some());
            described.extend(there.map(|(method, _)| format!("{method} {path}")));
            let others = [&item.patch, &item.head, &item.options, &item.trace];
            assert!(others.iter().all(|operation| operation.is_none()), "{path}");
        }
        assert_eq!(served, described);
        assert!(served.len() > 25 && served.contains("PUT /admin/log-level"), "{served:?}");
    }

    #[test]
    fn only_admin_needs_the_token_and_all_of_it_does() {
        let api = Description::openapi();
        for (path, item) in &api.paths.paths {
            for operation in [&item.get, &item.put, &item.post, &item.delete].into_iter().flatten() {
                assert_eq!(operation.security.is_some(), path.starts_with("/admin/"), "{path}");
                assert!(operation.summary.is_some() && operation.tags.is_some(), "{path}");
            }
        }
    }
}
