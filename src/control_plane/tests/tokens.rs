//! Tokens as the `ControlPlane` sees them, verified with the public half of the key.

use std::collections::HashSet;

use jsonwebtoken::{Algorithm, DecodingKey, TokenData, Validation};
use rcgen::{
    KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256, RsaKeySize,
};
use serde_json::Value;

use super::*;
use crate::secret::Secret;

fn with_key(url: &str, key: &str) -> Settings {
    let jwt_key = Some(Secret::new(key));
    Settings { auth: Auth::Jwt, jwt_key, ..settings(url) }
}

fn rsa() -> KeyPair {
    KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap()
}

fn bearer(request: &Received) -> &str {
    request.header("authorization").unwrap().strip_prefix("Bearer ").unwrap()
}

fn verify(token: &str, key: &DecodingKey, algorithm: Algorithm, audience: &str) -> TokenData<Value> {
    let mut validation = Validation::new(algorithm);
    validation.leeway = 0;
    validation.validate_nbf = true;
    validation.set_audience(&[audience]);
    validation.set_issuer(&["edge-1"]);
    validation.set_required_spec_claims(&["exp", "nbf", "aud", "iss", "sub"]);
    jsonwebtoken::decode(token, key, &validation).unwrap()
}

#[tokio::test]
async fn a_token_of_each_algorithm_verifies_against_the_public_key() {
    let ec = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let ed = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let rsa = rsa();
    // A PKCS #8 key of 2048 bits is the PKCS #1 key after 26 bytes.
    let pkcs1 = pem::encode(&pem::Pem::new("RSA PRIVATE KEY", &rsa.serialized_der()[26..]));
    let rsa_public = DecodingKey::from_rsa_pem(rsa.public_key_pem().as_bytes()).unwrap();
    let ec_public = DecodingKey::from_ec_pem(ec.public_key_pem().as_bytes()).unwrap();
    let edwards_public = DecodingKey::from_ed_pem(ed.public_key_pem().as_bytes()).unwrap();
    let (url, mut received) = answering(http("200 OK", "", "")).await;
    for (key, public, algorithm) in [
        ("a secret".to_owned(), DecodingKey::from_secret(b"a secret"), Algorithm::HS256),
        (rsa.serialize_pem(), rsa_public.clone(), Algorithm::RS256),
        (pkcs1, rsa_public, Algorithm::RS256),
        (ec.serialize_pem(), ec_public, Algorithm::ES256),
        (ed.serialize_pem(), edwards_public, Algorithm::EdDSA),
    ] {
        let client = Client::new(Settings { jwt_key_id: Some("k1".into()), ..with_key(&url, &key) }).unwrap();
        client.deliver(delivery("s")).await.result.unwrap();
        let request = received.recv().await.unwrap();
        assert_eq!(request.header("x-api-key"), None);
        let token = verify(bearer(&request), &public, algorithm, &url);
        assert_eq!((token.header.alg, token.header.kid.as_deref()), (algorithm, Some("k1")));
        let claims = token.claims;
        assert_eq!((&claims["iss"], &claims["sub"]), (&"edge-1".into(), &"edge-1".into()));
        assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), 300);
        assert_eq!(Uuid::parse_str(claims["jti"].as_str().unwrap()).unwrap().get_version_num(), 4);
    }
}

#[tokio::test]
async fn a_token_is_reused_until_it_is_renewed() {
    let (url, mut received) = answering(http("200 OK", "", "")).await;
    let client = Client::new(Settings { auth: Auth::Both, ..with_key(&url, "a secret") }).unwrap();
    let mut sent = HashSet::new();
    for _ in 0..3 {
        client.deliver(delivery("s")).await.result.unwrap();
        let request = received.recv().await.unwrap();
        assert_eq!(request.header("x-api-key"), Some("hunter2"));
        sent.insert(bearer(&request).to_owned());
    }
    assert_eq!(sent.len(), 1);
    client.renew_token();
    client.deliver(delivery("s")).await.result.unwrap();
    assert!(sent.insert(bearer(&received.recv().await.unwrap()).to_owned()));
}

#[tokio::test]
async fn tokens_use_the_control_planes_time_when_the_clocks_differ() {
    let hour = Duration::from_hours(1);
    let date = httpdate::fmt_http_date(std::time::SystemTime::now() + hour);
    let (url, mut received) = answering(http("401 No", &format!("Date: {date}\r\n"), "")).await;
    let client = Client::new(with_key(&url, "a secret")).unwrap();
    let mut issued = Vec::new();
    for _ in 0..2 {
        client.deliver(delivery("s")).await.result.unwrap();
        let mut validation = Validation::new(Algorithm::HS256);
        validation.validate_aud = false;
        let request = received.recv().await.unwrap();
        let key = DecodingKey::from_secret(b"a secret");
        let token: TokenData<Value> = jsonwebtoken::decode(bearer(&request), &key, &validation).unwrap();
        issued.push(token.claims["iat"].as_i64().unwrap());
    }
    assert!((client.clock_skew().num_seconds() - 3600).abs() < 30);
    assert!((issued[1] - issued[0] - 3600).abs() < 30, "{issued:?}");
}

#[tokio::test]
async fn only_the_control_planes_own_answers_confirm_the_time() {
    let date = httpdate::fmt_http_date(std::time::SystemTime::now() + Duration::from_hours(31 * 24));
    let own = [("200 OK", r#"{"success":true}"#), ("204 No Content", ""), ("409 Conflict", "{}")];
    let others = [
        ("200 OK", "<html>"),
        ("400 Bad Request", "<html>"),
        ("400 Bad Request", "{}"),
        ("401 No", ""),
        ("404 Not Found", "<html>"),
        ("405 No", ""),
        ("409 Conflict", "<html>"),
        ("429 Too Many", ""),
        ("500 No", ""),
        ("502 Bad Gateway", "<html>"),
        ("503 Busy", ""),
    ];
    let cached = format!("Date: {date}\r\nAge: 7\r\n");
    let (url, _received) = answering(http("200 OK", &cached, "{}")).await;
    let client = Client::new(with_key(&url, "a secret")).unwrap();
    client.deliver(delivery("s")).await.result.unwrap();
    assert_eq!(client.confirmed_unix_micros(), None, "a cache's");
    for (confirms, answers) in [(true, &own[..]), (false, &others[..])] {
        for (status, body) in answers {
            let (url, _received) = answering(http(status, &format!("Date: {date}\r\n"), body)).await;
            let client = Client::new(with_key(&url, "a secret")).unwrap();
            client.deliver(delivery("s")).await.result.unwrap();
            assert_eq!(client.confirmed_unix_micros().is_some(), confirms, "{status} {body}");
            let has_skew = confirms || status.starts_with("401");
            assert_eq!(client.clock_skew() > chrono::TimeDelta::zero(), has_skew, "{status} {body}");
        }
    }
}

#[test]
fn a_key_that_cannot_sign_is_refused_without_being_shown() {
    let rsa = rsa();
    let p384 = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
    let garbage = "-----BEGIN PRIVATE KEY-----\naHVudGVyMg==\n-----END PRIVATE KEY-----\n";
    for (key, algorithm) in [
        (rsa.public_key_pem().as_str(), None),
        (p384.serialize_pem().as_str(), None),
        (garbage, None),
        (garbage, Some(JwtAlgorithm::HS256)),
        (" ", None),
        ("hunter2", Some(JwtAlgorithm::RS256)),
        (rsa.serialize_pem().as_str(), Some(JwtAlgorithm::HS256)),
        (rsa.serialize_pem().as_str(), Some(JwtAlgorithm::ES256)),
    ] {
        let settings = Settings { jwt_algorithm: algorithm, ..with_key("http://h", key) };
        let Err(error) = Client::new(settings) else { panic!("accepted {key}") };
        assert!(matches!(error, ClientError::JwtKey(_)), "{error:?}");
        let printed = format!("{error} {error:?} {:?}", with_key("http://h", key));
        assert!(!printed.contains("hunter2") && !printed.contains("aHVudGVyMg"), "{printed}");
    }
}

#[tokio::test]
async fn user_info_in_the_url_is_sent_where_no_token_is() {
    let (url, mut received) = answering(http("200 OK", "", "")).await;
    let with_user = url.replace("http://", "http://user:pass@");
    Client::new(settings(&with_user)).unwrap().deliver(delivery("s")).await.result.unwrap();
    assert_eq!(received.recv().await.unwrap().header("authorization"), Some("Basic dXNlcjpwYXNz"));
    Client::new(with_key(&with_user, "a secret")).unwrap().deliver(delivery("s")).await.result.unwrap();
    let request = received.recv().await.unwrap();
    verify(bearer(&request), &DecodingKey::from_secret(b"a secret"), Algorithm::HS256, &url);
}
