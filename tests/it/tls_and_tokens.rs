//! Goal: over TLS the agent authenticates in every configurable way, and trusts only valid servers; keys and tokens never
//! appear in its output. Method: a real TLS server, with generated certificates and keys.

use std::path::Path;

use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use jsonwebtoken::{Algorithm, DecodingKey, TokenData, Validation};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, PKCS_RSA_SHA256, RsaKeySize};
use serde_json::{Value, json};

use super::harness::tls::{Authority, Pair};
use super::harness::{
    API_KEY, Agent, DEAD_LETTERS, QUOTA, Received, RedisServer, SERVER_ID, Scripted, USAGE, load, until,
};

/// A `ControlPlane` that accepts everything.
fn welcome(request: &Received) -> Response {
    if request.is_batch() {
        return request.results(|_| 200);
    }
    let asked = request.json();
    let data = json!({
        "api_session_id": asked["api_session_id"], "transaction_id": asked["transaction_id"],
        "new_quota_amount": 60, "final_quota": false, "timestamp": "2026-01-01T00:00:00Z",
    });
    axum::Json(json!({"success": true, "data": data})).into_response()
}

/// Verifies a request's token as a strict `ControlPlane` does.
fn verify(request: &Received, key: &DecodingKey, algorithm: Algorithm, audience: &str) -> Option<Value> {
    let token = request.headers.get("authorization")?.to_str().ok()?.strip_prefix("Bearer ")?;
    let mut validation = Validation::new(algorithm);
    validation.validate_nbf = true;
    validation.set_audience(&[audience]);
    validation.set_issuer(&[SERVER_ID]);
    validation.set_required_spec_claims(&["exp", "nbf", "aud", "iss", "sub"]);
    let token: TokenData<Value> = jsonwebtoken::decode(token, key, &validation).ok()?;
    Some(token.claims)
}

/// Asserts that nothing an operator or a collector could read contains these secrets, or any token.
async fn assert_tells_no_secret(agent: &Agent, secrets: &[&str]) {
    let mut told = agent.log();
    for path in ["/health", "/health/detailed", "/metrics", "/metrics/json"] {
        told.push_str(&agent.get(path).await.expect("it answers").1);
    }
    assert!(told.contains("[debug]"), "all that it can say was asked for");
    // Every token's header in base64 begins like this.
    assert!(!told.contains("eyJ"), "a token was told:\n{told}");
    for secret in secrets.iter().flat_map(|secret| secret.lines()).filter(|line| !line.starts_with("-----")) {
        assert!(!told.contains(secret), "a secret was told:\n{told}");
    }
}

/// An agent that trusts this authority, with a record and a quota request to deliver.
async fn agent(authority: &Authority, url: &str, settings: &[(&str, &str)]) -> (RedisServer, Agent) {
    let redis = RedisServer::start().await;
    let mut agent = Agent::new(&redis, url);
    agent.set("LOG_LEVEL", "DEBUG");
    agent.set("BATCH_COMPRESSION", "none");
    agent.set("CONTROL_PLANE_CA_FILE", path(&authority.file()));
    for (name, value) in settings {
        agent.set(name, value);
    }
    redis.push(USAGE, &[load::usage("s", 0), load::usage("t", 0)]).await;
    redis.push(QUOTA, &[load::quota("s", 0)]).await;
    agent.start();
    agent.ready().await;
    (redis, agent)
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

async fn delivered(agent: &Agent) {
    until("all three are delivered", async || {
        (agent.metrics().await.sum("dataplane_delivered_total", &[]) == 3.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn tokens_of_every_algorithm_are_accepted_over_mutual_tls() {
    let rsa = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).expect("a key");
    let ec = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key");
    let ed = KeyPair::generate_for(&PKCS_ED25519).expect("a key");
    let of = |pem: Result<DecodingKey, jsonwebtoken::errors::Error>| pem.expect("a public key");
    let secret = "an-hmac-s3cret-of-some-length";
    for (name, algorithm, private, public) in [
        ("HS256", Algorithm::HS256, secret.to_owned(), DecodingKey::from_secret(secret.as_bytes())),
        (
            "RS256",
            Algorithm::RS256,
            rsa.serialize_pem(),
            of(DecodingKey::from_rsa_pem(rsa.public_key_pem().as_bytes())),
        ),
        (
            "ES256",
            Algorithm::ES256,
            ec.serialize_pem(),
            of(DecodingKey::from_ec_pem(ec.public_key_pem().as_bytes())),
        ),
        (
            "EdDSA",
            Algorithm::EdDSA,
            ed.serialize_pem(),
            of(DecodingKey::from_ed_pem(ed.public_key_pem().as_bytes())),
        ),
    ] {
        let authority = Authority::new("ours");
        let key = public.clone();
        let server = Scripted::start_tls(authority.good().server(Some(&authority)), move |request| {
            let host = request.headers["host"].to_str().expect("a host");
            match verify(request, &key, algorithm, &format!("https://{host}")) {
                Some(_) => welcome(request),
                None => StatusCode::UNAUTHORIZED.into_response(),
            }
        })
        .await;
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (certificate, key, jwt) =
            (folder.path().join("own.pem"), folder.path().join("own.key"), folder.path().join("jwt"));
        let own = authority.sign("edge-test-1", 2020..2100);
        own.write(&certificate, &key);
        std::fs::write(&jwt, &private).expect("a file");
        let settings = [
            ("CONTROL_PLANE_CLIENT_CERT_FILE", path(&certificate)),
            ("CONTROL_PLANE_CLIENT_KEY_FILE", path(&key)),
            ("CONTROL_PLANE_AUTH", "both"),
            ("CONTROL_PLANE_JWT_KEY_FILE", path(&jwt)),
            ("CONTROL_PLANE_JWT_ALGORITHM", name),
        ];
        let (redis, agent) = agent(&authority, &server.url, &settings).await;
        delivered(&agent).await;
        let received = server.received();
        for request in &received {
            let claims =
                verify(request, &public, algorithm, &server.url).expect("every request has a good token");
            assert_eq!(claims["sub"], SERVER_ID);
            assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), 300, "{name}");
            assert_eq!(request.headers["x-api-key"], API_KEY);
        }
        assert_eq!(redis.len(DEAD_LETTERS).await, 0);
        assert_tells_no_secret(&agent, &[&private, &own.secret(), API_KEY]).await;
    }
}

/// The descriptions of invalid certificates must be understandable.
#[tokio::test]
async fn an_untrusted_server_gets_no_data_and_the_reason_is_described() {
    let authority = Authority::new("ours");
    let foreign = Authority::new("foreign");
    let good = authority.good();
    let wrong: [(&str, Pair, Option<&Authority>, &str); 6] = [
        ("expired", authority.sign("127.0.0.1", 2020..2021), None, "has expired"),
        ("too early", authority.sign("127.0.0.1", 2098..2100), None, "is not valid yet"),
        ("another host", authority.sign("other.example", 2020..2100), None, "is for another host name"),
        ("unknown authority", foreign.good(), None, "signed by an authority that is not trusted here"),
        (
            "no client certificate",
            good,
            Some(&authority),
            "does not accept our client certificate, or requires one",
        ),
        (
            "foreign client certificate",
            authority.good(),
            Some(&foreign),
            "does not accept our client certificate",
        ),
    ];
    for (name, pair, clients, words) in wrong {
        let server = Scripted::start_tls(pair.server(clients), welcome).await;
        let folder = tempfile::tempdir().expect("a temporary folder");
        let own = authority.sign("edge-test-1", 2020..2100);
        let (certificate, key) = (folder.path().join("own.pem"), folder.path().join("own.key"));
        own.write(&certificate, &key);
        let mut settings = vec![("CONTROL_PLANE_AUTH", "both"), ("CONTROL_PLANE_JWT_KEY", "an-hmac-s3cret")];
        if name == "foreign client certificate" {
            settings.push(("CONTROL_PLANE_CLIENT_CERT_FILE", path(&certificate)));
            settings.push(("CONTROL_PLANE_CLIENT_KEY_FILE", path(&key)));
        }
        let (redis, agent) = agent(&authority, &server.url, &settings).await;
        let health = until(&format!("{name}: the link is down"), async || {
            let health = agent.health().await?;
            let link = health["components"]["control_plane"]["link"].as_str()?.to_owned();
            (link.ends_with("tls") && health["outbox"]["depth"] == 3).then_some(health)
        })
        .await;
        let cause = health["components"]["control_plane"]["cause"].as_str().expect("a cause");
        assert!(cause.contains(words), "{name}: {cause}");
        agent.says(cause).await;
        // It keeps trying, and gives up no record because of it.
        until(&format!("{name}: it tries again"), async || {
            let failed =
                agent.metrics().await.sum("dataplane_control_plane_requests_total", &[("code", "tls")]);
            (failed >= 5.0).then_some(())
        })
        .await;
        let metrics = agent.metrics().await;
        assert_eq!(metrics.sum("dataplane_dead_lettered_total", &[]), 0.0, "{name}");
        assert_eq!(metrics.sum("dataplane_outbox_depth", &[]), 3.0, "{name}");
        assert!(server.received().is_empty(), "{name}: nothing was sent");
        assert_eq!(redis.len(DEAD_LETTERS).await, 0, "{name}");
        assert_tells_no_secret(&agent, &["an-hmac-s3cret", &own.secret(), API_KEY]).await;
    }
}
