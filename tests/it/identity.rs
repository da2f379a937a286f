//! Goal: a running agent remains one server to the ControlPlane, whatever a reload reads. Method: a ControlPlane that keeps
//! every request, and a settings file that changes while the agent runs.

use axum::response::IntoResponse as _;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::{Value, json};

use super::harness::{Agent, Received, RedisServer, SERVER_ID, Scripted, until};

const KEY: &str = "an-hmac-s3cret-of-some-length";
const NEW_KEY: &str = "another-hmac-s3cret-of-some-length";

/// The claims of a request's token, if this key signed it.
fn claims(request: &Received, key: &str) -> Option<Value> {
    let token = request.headers.get("authorization")?.to_str().ok()?.strip_prefix("Bearer ")?;
    let mut validation = Validation::new(Algorithm::HS256);
    validation.validate_aud = false;
    let token = jsonwebtoken::decode::<Value>(token, &DecodingKey::from_secret(key.as_bytes()), &validation);
    Some(token.ok()?.claims)
}

#[tokio::test]
async fn a_reload_changes_secrets_at_once_and_the_identity_not_at_all() {
    let redis = RedisServer::start().await;
    let plane =
        Scripted::start_all(|_| axum::Json(json!({"success": true, "commands": []})).into_response()).await;
    let proxy = Scripted::start_all(|_| axum::http::StatusCode::BAD_GATEWAY.into_response()).await;
    let mut agent = Agent::new(&redis, &plane.url);
    let file = agent.dir().join("settings");
    let write = |text: &str| std::fs::write(&file, text).expect("a file");
    agent.set("DATAPLANE_ENV_FILE", "settings");
    agent.set("HEARTBEAT_INTERVAL", "0.1");
    agent.set("ADMIN_TOKEN", "a-token-of-the-operator");
    agent.set("CONTROL_PLANE_AUTH", "jwt");
    agent.unset("SERVER_ID");
    write(&format!("SERVER_ID={SERVER_ID}\nAPP_VERSION=1.2.3\nCONTROL_PLANE_JWT_KEY={KEY}\n"));
    agent.start();
    agent.ready().await;
    let beat = async |key: &str| {
        until("a heartbeat with this key", async || {
            let beats = plane.received().into_iter().filter(|request| request.path.ends_with("/heartbeat"));
            beats.rev().find(|request| claims(request, key).is_some())
        })
        .await
    };
    beat(KEY).await;

    write(&format!(
        "SERVER_ID=edge-2\nAPP_VERSION=9.9.9\nCONTROL_PLANE_JWT_KEY={NEW_KEY}\nHTTP_PROXY={}\n",
        proxy.url
    ));
    let http = reqwest::Client::builder().no_proxy().build().expect("a client");
    let reload = http.post(agent.url("/admin/reload")).bearer_auth("a-token-of-the-operator");
    let said: Value = reload.send().await.expect("it answers").json().await.expect("JSON");
    assert_eq!(said, json!({"need_restart": ["SERVER_ID", "APP_VERSION", "HTTP_PROXY"]}));

    let request = beat(NEW_KEY).await;
    let claims = claims(&request, NEW_KEY).expect("it is signed with the new key");
    assert_eq!((&claims["iss"], &claims["sub"]), (&json!(SERVER_ID), &json!(SERVER_ID)));
    assert_eq!(request.headers["user-agent"], "DataPlane-Agent/1.2.3");
    assert_eq!(request.path, format!("/api/v1/servers/{SERVER_ID}/heartbeat"));
    assert_eq!(proxy.received().len(), 0);
}
