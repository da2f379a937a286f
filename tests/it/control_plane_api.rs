//! Goal: `docs/contract/control-plane.openapi.yaml` matches the sandbox's handlers, a sandbox's answers, and an agent's
//! requests. Method: the file is written from the sandbox's description (`BLESS=1 cargo test --test it control_plane_api`
//! updates it). Requests of a real agent and answers of a real sandbox are validated against the schemas.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use axum::Json;
use axum::response::{IntoResponse as _, Response};
use reqwest::Method;
use serde_json::{Value, json};

use super::harness::{
    Agent, LIFECYCLE, QUOTA, Received, RedisServer, Sandbox, Scripted, USAGE, taken, until,
};
use super::openapi::Description;
use super::reference::assert_page;

/// The reading order; the rest follows by name.
const ORDER: [&str; 20] = [
    "openapi",
    "info",
    "title",
    "version",
    "security",
    "tags",
    "paths",
    "components",
    "name",
    "in",
    "tag",
    "summary",
    "description",
    "operationId",
    "type",
    "format",
    "parameters",
    "requestBody",
    "required",
    "properties",
];
const BEGIN: &str = "\
# What dataplane-agent expects of a ControlPlane. Generated from the sandbox's handlers:
# BLESS=1 cargo test --test it control_plane_api
";

/// Whether the name needs no quotes in YAML.
fn is_plain(name: &str) -> bool {
    let begins = name.starts_with(|c: char| c.is_ascii_alphabetic() || matches!(c, '_' | '/' | '$'));
    let is_kept = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '/' | '.' | '{' | '}' | '$');
    begins
        && name.chars().all(is_kept)
        && !matches!(name, "null" | "true" | "false" | "yes" | "no" | "on" | "off")
}

/// Writes a value as block YAML; strings are written as in JSON, which YAML accepts.
fn write_yaml(value: &Value, indent: usize, out: &mut String) {
    let pad = "  ".repeat(indent);
    let nested = |value: &Value, out: &mut String| match value {
        Value::Object(fields) if !fields.is_empty() => {
            out.push('\n');
            write_yaml(value, indent + 1, out);
        }
        Value::Array(items) if !items.is_empty() => {
            out.push('\n');
            write_yaml(value, indent + 1, out);
        }
        scalar => writeln!(out, " {scalar}").unwrap(),
    };
    match value {
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().collect();
            fields
                .sort_by_key(|(name, _)| ORDER.iter().position(|known| known == name).unwrap_or(ORDER.len()));
            for (name, value) in fields {
                let name = if is_plain(name) { name.clone() } else { Value::from(name.as_str()).to_string() };
                write!(out, "{pad}{name}:").unwrap();
                nested(value, out);
            }
        }
        Value::Array(items) => {
            for item in items {
                let mut text = String::new();
                write_yaml(item, indent + 1, &mut text);
                match item {
                    Value::Object(_) | Value::Array(_) if text.len() > 2 => {
                        write!(out, "{pad}- {}", text.trim_start()).unwrap();
                    }
                    scalar => writeln!(out, "{pad}- {scalar}").unwrap(),
                }
            }
        }
        _ => {}
    }
}

fn client() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().build().expect("a client")
}

async fn description(sandbox: &Sandbox) -> Description {
    let answer = client().get(format!("{}/sandbox/openapi.json", sandbox.url)).send().await;
    Description(answer.expect("it answers").json().await.expect("JSON"))
}

impl Description {
    /// The path and operation of a request.
    fn operation(&self, method: &str, path: &str) -> Option<(&str, &Value)> {
        let fits = |described: &str| {
            let (described, asked) = (described.split('/'), path.split('/'));
            described.clone().count() == asked.clone().count()
                && described
                    .zip(asked)
                    .all(|(described, asked)| described.starts_with('{') || described == asked)
        };
        let (described, item) = self.0["paths"].as_object()?.iter().find(|(described, _)| fits(described))?;
        let operation = &item[method.to_lowercase()];
        operation.is_object().then_some((described.as_str(), operation))
    }

    fn operations(&self) -> BTreeSet<String> {
        let paths = self.0["paths"].as_object().expect("paths").iter();
        let of = |(path, item): (&String, &Value)| {
            let methods: Vec<_> = item.as_object().expect("methods").keys().cloned().collect();
            let path = path.clone();
            methods.into_iter().map(move |method| format!("{} {path}", method.to_uppercase()))
        };
        paths.flat_map(of).collect()
    }

    fn schema_fault(&self, name: &str, value: &Value) -> Result<(), String> {
        self.fault(value, &json!({"$ref": format!("#/components/schemas/{name}")}), name)
    }
}

#[tokio::test]
async fn the_file_matches_the_sandbox() {
    let description = description(&Sandbox::start(&[])).await;
    let mut page = BEGIN.to_owned();
    write_yaml(&description.0, 0, &mut page);
    assert_page("docs/contract/control-plane.openapi.yaml", &page);
    assert_eq!(description.operations().len(), 12);
}

/// A ControlPlane that accepts everything and sends a command.
fn answer(received: &Received) -> Response {
    let body = received.json();
    if received.is_batch() {
        return received.results(|_| 200);
    }
    let last = received.path.rsplit('/').next().unwrap_or_default();
    match last {
        "refresh" => {
            let data = json!({
                "api_session_id": body["api_session_id"], "transaction_id": body["transaction_id"],
                "new_quota_amount": 1, "final_quota": false, "timestamp": "2026-01-01T00:00:00Z",
            });
            Json(json!({"success": true, "data": data})).into_response()
        }
        "commands" => {
            let command = |kind: &str| json!({"command_id": kind, "command_type": kind});
            Json(json!({"commands": [command("get_metrics"), command("refresh_public_keys"), command("x")]}))
                .into_response()
        }
        "public-keys" => Json(json!({"success": true, "data": {"keys": []}})).into_response(),
        _ => taken(),
    }
}

/// What is wrong with an agent's request.
fn request_fault(description: &Description, received: &Received) -> Result<String, String> {
    let Received { method, path, .. } = received;
    let (described, operation) =
        description.operation(method, path).ok_or_else(|| format!("{method} {path} is not described"))?;
    for parameter in operation["parameters"].as_array().into_iter().flatten() {
        let name = parameter["name"].as_str().unwrap_or_default();
        if parameter["in"] == "header" && !received.headers.contains_key(name) {
            return Err(format!("{method} {path} lacks the header {name}"));
        }
    }
    let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
    if schema.is_object() {
        description.fault(&received.json(), schema, path)?;
    } else if !received.body.is_empty() {
        return Err(format!("{method} {path} has a body"));
    }
    for session in received.json()["sessions"].as_array().into_iter().flatten() {
        for record in session["records"].as_array().into_iter().flatten() {
            let form = match record["kind"].as_str().unwrap_or_default() {
                "usage_record" => "UsageRecord",
                "session_started" => "SessionStarted",
                _ => "SessionCompleted",
            };
            description.schema_fault(form, &record["body"])?;
        }
    }
    Ok(format!("{method} {described}"))
}

#[tokio::test]
async fn an_agent_sends_every_described_request_and_no_other() {
    let description = description(&Sandbox::start(&[])).await;
    let mut seen = BTreeSet::new();
    for mode in ["single", "batch"] {
        let (server, redis) = (Scripted::start_all(answer).await, RedisServer::start().await);
        let mut agent = Agent::new(&redis, &server.url);
        for (name, value) in [
            ("DELIVERY_MODE", mode),
            ("HEARTBEAT_INTERVAL", "0.2"),
            ("COMMAND_POLL_INTERVAL", "1"),
            ("CONTROL_PLANE_HEALTH_CHECK_INTERVAL", "1"),
        ] {
            agent.set(name, value);
        }
        for (queue, sample) in [
            (LIFECYCLE, "lifecycle/started-with-client-info"),
            (LIFECYCLE, "lifecycle/started"),
            (LIFECYCLE, "lifecycle/completed-with-summary-and-metadata"),
            (LIFECYCLE, "lifecycle/completed-without-reason"),
            (LIFECYCLE, "lifecycle/completed"),
            (USAGE, "usage/plain"),
            (USAGE, "usage/defaults"),
            (QUOTA, "quota/plain"),
        ] {
            let file = format!("{}/data/samples/good/{sample}.json", env!("CARGO_MANIFEST_DIR"));
            redis.push(queue, &[std::fs::read(&file).expect("a sample")]).await;
        }
        agent.start();
        agent.ready().await;
        let last = ["/heartbeat", "/command-results", "/public-keys", "/refresh"];
        until("all has been asked", async || {
            let received = server.received();
            let is_asked = |end: &str| received.iter().any(|received| received.path.ends_with(end));
            let depth = agent.health().await?["outbox"]["depth"] == 0;
            (depth && last.iter().all(|end| is_asked(end))).then_some(())
        })
        .await;
        agent.stop().await;
        for received in server.received() {
            seen.insert(request_fault(&description, &received).unwrap_or_else(|fault| panic!("{fault}")));
        }
    }
    // A busy agent does not probe the health.
    seen.insert("GET /api/v1/health".to_owned());
    assert_eq!(seen, description.operations());
}

#[tokio::test]
async fn a_sandbox_answers_what_is_described() {
    let sandbox = Sandbox::start(&["--api-key", "key"]);
    let description = description(&sandbox).await;
    sandbox.command(json!({"command_type": "set_rate_limit", "parameters": {"rate_limit": 1}, "server_id": "a", "sign": true})).await;
    let http = client();
    let record = |id: &str| json!({"transaction_id": id, "api_session_id": "s"});
    let batch = json!({"sessions": [{"api_session_id": "s", "records": [
        {"kind": "usage_record", "body": record("u3")},
        {"kind": "usage_record", "body": record("u1")},
        {"kind": "usage_record", "body": {}},
    ]}]});
    let result = json!({"command_id": "c", "success": true});
    let mut unseen = description.operations();
    for (method, path, body, status) in [
        ("POST", "sessions/s/started", record("a"), 200),
        ("POST", "sessions/s/usage-records", record("u1"), 200),
        ("POST", "sessions/s/usage-records", record("u1"), 409),
        ("POST", "sessions/other/usage-records", record("u2"), 422),
        ("POST", "sessions/s/usage-records", Value::Null, 422),
        ("POST", "sessions/s/refresh", record("q"), 200),
        ("POST", "sessions/s/completed", record("z"), 200),
        ("POST", "records/batch", batch, 200),
        ("POST", "records/batch", json!({}), 422),
        ("PUT", "servers/a/heartbeat", json!({"status": "online"}), 404),
        ("POST", "servers/register", json!({"server_id": "a"}), 200),
        ("PUT", "servers/a/heartbeat", json!({"status": "online"}), 200),
        ("GET", "servers/a/commands", Value::Null, 200),
        ("POST", "servers/a/command-results", result, 200),
        ("POST", "servers/a/shutdown", Value::Null, 200),
        ("GET", "auth/public-keys", Value::Null, 200),
        ("GET", "health", Value::Null, 200),
    ] {
        let path = format!("/api/v1/{path}");
        let (described, operation) = description.operation(method, &path).expect("a described path");
        let ask = |key: &'static str| {
            let method = Method::from_bytes(method.as_bytes()).expect("a method");
            http.request(method, format!("{}{path}", sandbox.url)).header("X-API-Key", key).json(&body).send()
        };
        for (key, status) in [("key", status), ("wrong", 401)] {
            let answer = ask(key).await.expect("it answers");
            assert_eq!(answer.status().as_u16(), status, "{method} {path}");
            let described = &operation["responses"][status.to_string()];
            let schema = &described["content"]["application/json"]["schema"];
            assert!(schema.is_object(), "{method} {path}: {status} is not described");
            let answer = answer.json().await.expect("JSON");
            assert_eq!(
                description.fault(&answer, schema, &path),
                Ok(()),
                "{method} {path} {status}: {answer}"
            );
        }
        unseen.remove(&format!("{method} {described}"));
    }
    assert_eq!(unseen, BTreeSet::new(), "nothing is left out here");
}
