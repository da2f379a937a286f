//! The API for servers: registration, heartbeats, commands and their results, keys.

use super::*;

#[tokio::test]
async fn a_server_registers_beats_and_can_be_forgotten() {
    let peer = peer();
    let register =
        || peer.request(Method::POST, "servers/register").json(&json!({"server_id": "edge-1", "port": 8000}));
    let beat = || peer.request(Method::PUT, "servers/edge-1/heartbeat").json(&json!({"status": "online"}));
    assert_eq!(status(beat()).await, 404);
    let (status_of_registration, body) = answer(register()).await;
    assert_eq!((status_of_registration.as_u16(), &body["data"]["server_id"]), (200, &json!("edge-1")));
    assert_eq!(peer.get("servers").await["servers"]["edge-1"]["last_heartbeat"], Value::Null);
    assert_eq!(status(beat()).await, 200);
    assert_eq!(
        peer.get("servers").await,
        json!({"servers": {"edge-1": {
            "registration": {"server_id": "edge-1", "port": 8000}, "last_heartbeat": {"status": "online"}
        }}})
    );

    assert_eq!(status(peer.operator(Method::DELETE, "servers")).await, 204);
    assert_eq!(status(beat()).await, 404, "as after a restart of the ControlPlane");
    assert_eq!((status(register()).await, status(beat()).await), (200, 200));
    assert_eq!(status(peer.request(Method::POST, "servers/edge-1/shutdown")).await, 200);
    let accounts = peer.accounts().await;
    let counts = ["registrations", "heartbeats", "shutdown_notices"].map(|name| accounts[name].as_u64());
    assert_eq!(counts, [Some(2), Some(2), Some(1)]);
    for body in [r#"{"server_id":""}"#, r#"{"server_id":7}"#, "{}", "[]"] {
        assert_eq!(status(peer.request(Method::POST, "servers/register").body(body)).await, 422, "{body}");
    }
}

#[tokio::test]
async fn a_command_is_handed_out_until_its_result_arrives() {
    let peer = peer();
    let queue = |command: Value| answer(peer.operator(Method::POST, "commands").json(&command));
    let (status_of_all, for_all) = queue(json!({"command_type": "ping", "command_id": "c1"})).await;
    let (_, for_one) =
        queue(json!({"command_type": "reload", "server_id": "edge-1", "parameters": {"a": 1}})).await;
    assert_eq!((status_of_all.as_u16(), &for_all["command_id"]), (201, &json!("c1")));
    assert!(for_one["command_id"].is_string() && for_one["timestamp"].is_string(), "filled in: {for_one}");

    let handed_out = async |server: &str| {
        answer(peer.request(Method::GET, &format!("servers/{server}/commands"))).await.1["commands"].clone()
    };
    assert_eq!(handed_out("edge-1").await, json!([for_all, for_one]));
    assert_eq!(handed_out("edge-1").await, json!([for_all, for_one]), "a lost answer does not lose it");
    assert_eq!(handed_out("edge-2").await, json!([for_all]));

    let result = json!({"command_id": "c1", "success": true, "result": {}});
    let report = |result: &Value| peer.request(Method::POST, "servers/edge-1/command-results").json(result);
    assert_eq!(status(report(&result)).await, 200);
    assert_eq!(handed_out("edge-1").await, json!([for_one]));
    let mut with_server = result.clone();
    with_server["server_id"] = json!("edge-1");
    assert_eq!(peer.get("commands").await, json!({"pending": [for_one], "results": [with_server]}));
    assert_eq!(peer.accounts().await["command_results"], 1);

    assert_eq!(status(report(&json!({"success": true}))).await, 422);
    assert_eq!(queue(json!({"command_id": "c"})).await.0, 422);
}

#[tokio::test]
async fn a_signed_command_verifies_against_the_key_set_that_is_handed_out() {
    let peer = peer();
    let sign = json!({"command_type": "set_rate_limit", "server_id": "edge-1", "parameters": {"a": 1}, "sign": true});
    let (status_of_it, command) = answer(peer.operator(Method::POST, "commands").json(&sign)).await;
    assert_eq!(status_of_it, 201, "{command}");
    assert!(command.get("sign").is_none(), "{command}");
    let keys = async || answer(peer.request(Method::GET, "auth/public-keys")).await.1["data"].clone();
    let claims = |keys: &Value| {
        let keys: jsonwebtoken::jwk::JwkSet = serde_json::from_value(keys.clone()).unwrap();
        let key = jsonwebtoken::DecodingKey::from_jwk(&keys.keys[0]).unwrap();
        let mut validation = jsonwebtoken::Validation::new(jsonwebtoken::Algorithm::RS256);
        validation.set_audience(&["edge-1"]);
        let token = command["token"].as_str().unwrap();
        jsonwebtoken::decode::<Value>(token, &key, &validation).map(|token| token.claims)
    };
    let good = claims(&keys().await).unwrap();
    assert_eq!((&good["jti"], &good["parameters"]), (&command["command_id"], &json!({"a": 1})));
    assert_eq!(status(peer.operator(Method::POST, "public-keys")).await, 200);
    assert!(claims(&keys().await).is_err(), "another key");

    for wrong in [
        json!({"command_type": "ping", "sign": true}),
        json!({"command_type": "ping", "server_id": "edge-1", "sign": 1}),
    ] {
        assert_eq!(status(peer.operator(Method::POST, "commands").json(&wrong)).await, 422, "{wrong}");
    }
}

#[tokio::test]
async fn the_key_set_is_the_one_that_was_put() {
    let peer = peer();
    let keys = async || answer(peer.request(Method::GET, "auth/public-keys")).await.1["data"].clone();
    assert_eq!(keys().await, json!({"keys": []}));
    let set = json!({"keys": [{"kty": "RSA", "kid": "1"}]});
    assert_eq!(status(peer.operator(Method::PUT, "public-keys").json(&set)).await, 200);
    assert_eq!(keys().await, set);
    assert_eq!(status(peer.operator(Method::PUT, "public-keys").json(&json!({"keys": 1}))).await, 422);
    assert_eq!(keys().await, set);
    assert_eq!(answer(peer.request(Method::GET, "health")).await.1["data"]["status"], "healthy");
}
