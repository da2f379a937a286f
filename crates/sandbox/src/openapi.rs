//! The `ControlPlane`'s API as OpenAPI. Handlers describe their parameters and answers; this module adds what the gate in
//! front of them does.

use axum::Json;
use utoipa::openapi::path::{Operation, ParameterBuilder, ParameterIn};
use utoipa::openapi::security::{
    ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme,
};
use utoipa::openapi::{self, Content, ObjectBuilder, OpenApi, Ref, Required, ResponseBuilder, Type};
use utoipa::{Modify, OpenApi as _};

use super::{api, batch, fleet};

const API_KEY: &str = "api_key";
const TOKEN: &str = "token";

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "ControlPlane",
        version = "1",
        description = "What dataplane-agent expects of a ControlPlane. It is generated from the sandbox \
            (`dataplane-agent sandbox`), which speaks all of it.\n\n\
            A good answer is 200, 201 or 202 with a JSON object whose `success` is not `false`, or 204. An answer that says \
            which request it is for (`X-Correlation-ID`, or `transaction_id`, `api_session_id` or `batch` in `data`) cannot be \
            taken for another request's. A record is recognised by its `Idempotency-Key` alone, or by its kind and \
            `transaction_id`; one that was processed before is answered 409. What every other status means: \
            docs/contract/answers.md.",
        license(name = "proprietary"),
    ),
    paths(
        api::usage, api::started, api::completed, api::refresh, batch::receive,
        fleet::register, fleet::heartbeat, fleet::shutdown, fleet::commands, fleet::command_result, fleet::public_keys,
        api::health,
    ),
    components(schemas(super::body::Failure)),
    tags(
        (name = "records", description = "What customers are billed for"),
        (name = "servers", description = "The fleet, and what it is to do"),
        (name = "service", description = "The ControlPlane itself"),
    ),
    modifiers(&Gate),
)]
struct Description;

/// Adds what holds for every operation.
struct Gate;

impl Modify for Gate {
    fn modify(&self, api: &mut OpenApi) {
        let key = ApiKeyValue::with_description("X-API-Key", "`CONTROL_PLANE_API_KEY`");
        let token = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("JWT");
        let token = token.description(Some("Signed by the agent with `CONTROL_PLANE_JWT_KEY`")).build();
        let components = api.components.get_or_insert_default();
        components.add_security_scheme(API_KEY, SecurityScheme::ApiKey(ApiKey::Header(key)));
        components.add_security_scheme(TOKEN, SecurityScheme::Http(token));
        api.security = Some(vec![required(API_KEY), required(TOKEN)]);
        for item in api.paths.paths.values_mut() {
            let changes = [&mut item.put, &mut item.post].into_iter().filter_map(Option::as_mut);
            for operation in changes {
                header(operation, "Idempotency-Key", "The same on every attempt: a UUID");
            }
            let operations = [&mut item.get, &mut item.put, &mut item.post];
            for operation in operations.into_iter().filter_map(Option::as_mut) {
                header(operation, "X-Correlation-ID", "Names the request; an answer may give it back");
                answer(operation, "401", "The credentials are not accepted: the link is down for everything");
                answer(operation, "429", "Too much: `Retry-After` says for how long");
                answer(operation, "503", "Not now: `Retry-After` says for how long");
                if operation.tags.iter().flatten().any(|tag| tag == "records") {
                    answer(operation, "400", "Not JSON: the record is refused");
                    answer(
                        operation,
                        "415",
                        "That encoding is not taken: `Accept-Encoding` names those that are",
                    );
                    answer(operation, "422", "The record is refused");
                }
            }
        }
    }
}

fn required(scheme: &str) -> SecurityRequirement {
    SecurityRequirement::new::<_, [&str; 0], &str>(scheme, [])
}

fn header(operation: &mut Operation, name: &str, description: &str) {
    let parameter = ParameterBuilder::new()
        .name(name)
        .parameter_in(ParameterIn::Header)
        .required(Required::True)
        .description(Some(description))
        .schema(Some(ObjectBuilder::new().schema_type(Type::String)))
        .build();
    operation.parameters.get_or_insert_default().push(parameter);
}

/// Adds an error answer unless the handler has described it.
fn answer(operation: &mut Operation, status: &str, description: &str) {
    let content = Content::new(Some(Ref::from_schema_name("Failure")));
    let response = ResponseBuilder::new().description(description).content("application/json", content);
    let response: openapi::RefOr<openapi::Response> = response.build().into();
    operation.responses.responses.entry(status.to_owned()).or_insert(response);
}

/// Serves the description.
pub(super) async fn serve() -> Json<OpenApi> {
    Json(Description::openapi())
}

#[cfg(test)]
pub(super) fn description() -> OpenApi {
    Description::openapi()
}
