//! What makes a token valid, and how long commands are remembered.

use std::time::Duration;

use jsonwebtoken::jwk::{Jwk, JwkSet};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};

use super::journal::{BeginError, Begun, Journal};
use super::once::outcome;
use super::token::{CommandAlgorithm, TokenError, TokenVerifier};
use crate::control_plane::{Command, parse_commands};
use crate::outbox::{Durability, Outbox, Settings, Threads};

const NOW: i64 = 1_800_000_000;

/// A private key and its public JWK.
struct Pair {
    private: EncodingKey,
    algorithm: Algorithm,
    jwk: Value,
}

fn pair(algorithm: Algorithm, kid: &str) -> Pair {
    let pem = |kind| rcgen::KeyPair::generate_for(kind).unwrap().serialize_pem();
    let private = match algorithm {
        Algorithm::ES256 => EncodingKey::from_ec_pem(pem(&rcgen::PKCS_ECDSA_P256_SHA256).as_bytes()).unwrap(),
        Algorithm::ES384 => EncodingKey::from_ec_pem(pem(&rcgen::PKCS_ECDSA_P384_SHA384).as_bytes()).unwrap(),
        Algorithm::EdDSA => {
            let pair = aws_lc_rs::signature::Ed25519KeyPair::generate().unwrap();
            EncodingKey::from_ed_der(pair.to_pkcs8v1().unwrap().as_ref())
        }
        _ => EncodingKey::from_rsa_pem(pem(&rcgen::PKCS_RSA_SHA256).as_bytes()).unwrap(),
    };
    let mut jwk = serde_json::to_value(Jwk::from_encoding_key(&private, algorithm).unwrap()).unwrap();
    jwk["kid"] = kid.into();
    Pair { private, algorithm, jwk }
}

impl Pair {
    fn sign(&self, kid: Option<&str>, claims: &Value) -> String {
        self.sign_critically(kid, None, claims)
    }

    /// Signs with a `crit` header: extensions that a verifier must know.
    fn sign_critically(&self, kid: Option<&str>, critical: Option<&[&str]>, claims: &Value) -> String {
        let mut header = Header::new(self.algorithm);
        header.kid = kid.map(Into::into);
        header.crit = critical.map(|names| names.iter().map(ToString::to_string).collect());
        if let Some(name) = critical.and_then(|names| names.first()) {
            header.extras.insert(*name, true);
        }
        jsonwebtoken::encode(&header, claims, &self.private).unwrap()
    }
}

fn set(keys: &[&Value]) -> JwkSet {
    serde_json::from_value(json!({"keys": keys})).unwrap()
}

fn command(parameters: &Value, token: &str) -> Command {
    let command = json!({
        "command_id": "c-1", "command_type": "set_rate_limit", "parameters": parameters, "token": token,
    });
    parse_commands(json!({"commands": [command]}).to_string().as_bytes()).unwrap().commands.remove(0)
}

fn claims() -> Value {
    json!({
        "exp": NOW + 60, "aud": "edge-1", "jti": "c-1",
        "command_type": "set_rate_limit", "parameters": {"rate_limit": 5},
    })
}

fn with(changes: &Value) -> Value {
    let mut claims = claims();
    for (name, value) in changes.as_object().unwrap() {
        claims[name] = value.clone();
    }
    claims
}

fn without(name: &str) -> Value {
    let mut claims = claims();
    claims.as_object_mut().unwrap().remove(name);
    claims
}

fn rs256() -> TokenVerifier {
    TokenVerifier::new(CommandAlgorithm::RS256, "edge-1")
}

#[test]
fn every_claim_has_to_be_there_and_to_say_what_the_command_says() {
    let key = pair(Algorithm::RS256, "k");
    let keys = set(&[&key.jwk]);
    let judge = |claims: &Value| {
        rs256().verify(&command(&json!({"rate_limit": 5}), &key.sign(Some("k"), claims)), &keys, NOW)
    };
    for good in [
        claims(),
        with(&json!({"aud": ["edge-1"]})),
        with(&json!({"exp": NOW + 1})),
        with(&json!({"exp": NOW as f64 + 0.5})),
        with(&json!({"exp": NOW + 366 * 86_400})),
        with(&json!({"nbf": NOW - 1})),
        with(&json!({"iss": "whoever", "sub": 7})),
    ] {
        assert!(judge(&good).is_ok(), "{good}");
    }
    assert_eq!(judge(&claims()).unwrap().expires, NOW + 60);
    for (bad, why) in [
        (without("exp"), TokenError::Claims),
        (with(&json!({"exp": null})), TokenError::Claims),
        (with(&json!({"exp": "2100-01-01T00:00:00Z"})), TokenError::Claims),
        (with(&json!({"exp": NOW})), TokenError::Expired),
        (with(&json!({"exp": NOW - 1})), TokenError::Expired),
        (with(&json!({"exp": 0})), TokenError::Expired),
        (with(&json!({"exp": -1e300})), TokenError::Expired),
        (with(&json!({"exp": NOW + 366 * 86_400 + 1})), TokenError::Lasting),
        // In the year 30000.
        (with(&json!({"exp": 884_541_340_800_i64})), TokenError::Lasting),
        (with(&json!({"nbf": NOW + 60})), TokenError::NotYet),
        (without("aud"), TokenError::Claims),
        (with(&json!({"aud": null})), TokenError::Audience),
        (with(&json!({"aud": "edge-2"})), TokenError::Audience),
        (with(&json!({"aud": "edge-1 "})), TokenError::Audience),
        (with(&json!({"aud": []})), TokenError::Audience),
        (with(&json!({"aud": ["edge-1", "edge-2"]})), TokenError::Audience),
        (without("jti"), TokenError::Claims),
        (with(&json!({"jti": "c-2"})), TokenError::Id),
        (without("command_type"), TokenError::Claims),
        (with(&json!({"command_type": "pause_drain"})), TokenError::Type),
        (without("parameters"), TokenError::Parameters),
        (with(&json!({"parameters": {"rate_limit": 6}})), TokenError::Parameters),
        (with(&json!({"parameters": {"rate_limit": 5, "burst": 1}})), TokenError::Parameters),
        (with(&json!({"parameters": "{\"rate_limit\":5}"})), TokenError::Parameters),
    ] {
        assert_eq!(judge(&bad), Err(why), "{bad}");
    }
}

#[test]
fn no_parameters_are_the_same_in_every_form_and_others_are_not() {
    let key = pair(Algorithm::RS256, "k");
    let keys = set(&[&key.jwk]);
    let nothing =
        [without("parameters"), with(&json!({"parameters": null})), with(&json!({"parameters": {}}))];
    for claims in &nothing {
        for given in [json!(null), json!({})] {
            let command = command(&given, &key.sign(Some("k"), claims));
            assert!(rs256().verify(&command, &keys, NOW).is_ok(), "{claims} {given}");
        }
        let command = command(&json!({"rate_limit": 1}), &key.sign(Some("k"), claims));
        assert_eq!(rs256().verify(&command, &keys, NOW), Err(TokenError::Parameters));
    }
}

#[test]
fn only_the_configured_algorithm_counts_with_a_key_that_is_for_it() {
    let (own, other) = (pair(Algorithm::RS256, "k"), pair(Algorithm::RS256, "k"));
    let judge = |token: &str, keys: &[&Value]| {
        rs256().verify(&command(&json!({"rate_limit": 5}), token), &set(keys), NOW).map(|_| ())
    };
    let good = own.sign(Some("k"), &claims());
    assert_eq!(judge(&good, &[&own.jwk]), Ok(()));
    assert_eq!(judge(&own.sign(None, &claims()), &[&other.jwk, &own.jwk]), Ok(()), "without a name, any key");
    assert_eq!(judge(&good, &[&other.jwk]), Err(TokenError::Signature), "another key of the same name");
    assert_eq!(judge(&good, &[&other.jwk, &own.jwk]), Ok(()), "two of the same name");
    assert_eq!(judge(&own.sign(Some("x"), &claims()), &[&own.jwk]), Err(TokenError::UnknownKey));
    assert_eq!(judge(&own.sign(None, &claims()), &[&other.jwk]), Err(TokenError::UnknownKey));
    assert_eq!(judge(&good, &[]), Err(TokenError::UnknownKey));

    // The right key with another algorithm.
    let rs512 = Pair { private: own.private.clone(), algorithm: Algorithm::RS512, jwk: own.jwk.clone() };
    assert_eq!(judge(&rs512.sign(Some("k"), &claims()), &[&own.jwk]), Err(TokenError::Algorithm));
    // HMAC with the public key as its secret, even if the set contains a symmetric key of that name.
    for secret in [own.jwk["n"].as_str().unwrap(), &own.jwk.to_string(), ""] {
        let mut header = Header::new(Algorithm::HS256);
        header.kid = Some("k".into());
        let key = EncodingKey::from_secret(secret.as_bytes());
        let token = jsonwebtoken::encode(&header, &claims(), &key).unwrap();
        let symmetric = json!({"kty": "oct", "k": "AAAA", "kid": "k"});
        assert_eq!(judge(&token, &[&own.jwk, &symmetric]), Err(TokenError::Algorithm));
    }
    // Unsigned: `{"alg":"none"}`, and a valid algorithm with an empty signature.
    let parts: Vec<&str> = good.split('.').collect();
    for (token, why) in [
        (format!("eyJhbGciOiJub25lIn0.{}.", parts[1]), TokenError::Malformed),
        (format!("{}.{}.", parts[0], parts[1]), TokenError::Signature),
        (format!("{}.{}", parts[0], parts[1]), TokenError::Malformed),
        (format!("{good}.{}", parts[2]), TokenError::Malformed),
        ("x".repeat(100_000), TokenError::Malformed),
        (String::new(), TokenError::Missing),
    ] {
        assert_eq!(judge(&token, &[&own.jwk]), Err(why), "{token:.80}");
    }
    // Keys for other purposes.
    for (name, value) in [
        ("use", json!("enc")),
        ("alg", json!("RS512")),
        ("alg", json!("RSA-OAEP")),
        ("key_ops", json!(["encrypt"])),
    ] {
        let mut key = own.jwk.clone();
        key[name] = value;
        assert_eq!(judge(&good, &[&key]), Err(TokenError::UnknownKey), "{key}");
    }
    for (name, value) in [("use", json!("sig")), ("alg", json!("RS256")), ("key_ops", json!(["verify"]))] {
        let mut key = own.jwk.clone();
        key[name] = value;
        assert_eq!(judge(&good, &[&key]), Ok(()), "{key}");
    }
}

#[test]
fn a_token_with_an_extension_that_has_to_be_known_is_refused() {
    let own = pair(Algorithm::RS256, "k");
    for critical in [&["b64"][..], &["exp"], &["urn:example:once", "b64"], &[]] {
        let token = own.sign_critically(Some("k"), Some(critical), &claims());
        let command = command(&json!({"rate_limit": 5}), &token);
        assert_eq!(rs256().token(&command), Err(TokenError::Critical), "{critical:?}");
        assert_eq!(
            rs256().verify(&command, &set(&[&own.jwk]), NOW),
            Err(TokenError::Critical),
            "{critical:?}"
        );
    }
    // Unknown non-critical headers are ignored.
    let mut header = Header::new(Algorithm::RS256);
    header.extras.insert("urn:example:once", true);
    let token = jsonwebtoken::encode(&header, &claims(), &own.private).unwrap();
    let command = command(&json!({"rate_limit": 5}), &token);
    assert!(rs256().verify(&command, &set(&[&own.jwk]), NOW).is_ok());
}

#[test]
fn each_algorithm_that_can_be_configured_works() {
    for (configured, algorithm) in [
        (CommandAlgorithm::RS384, Algorithm::RS384),
        (CommandAlgorithm::RS512, Algorithm::RS512),
        (CommandAlgorithm::ES256, Algorithm::ES256),
        (CommandAlgorithm::ES384, Algorithm::ES384),
        (CommandAlgorithm::EdDSA, Algorithm::EdDSA),
    ] {
        let (own, other) = (pair(algorithm, "k"), pair(algorithm, "k"));
        let verifier = TokenVerifier::new(configured, "edge-1");
        let command = command(&json!({"rate_limit": 5}), &own.sign(Some("k"), &claims()));
        assert!(verifier.verify(&command, &set(&[&own.jwk]), NOW).is_ok(), "{configured:?}");
        let other = verifier.verify(&command, &set(&[&other.jwk]), NOW);
        assert_eq!(other, Err(TokenError::Signature), "{configured:?}");
        assert_eq!(rs256().verify(&command, &set(&[&own.jwk]), NOW), Err(TokenError::Algorithm));
    }
}

#[test]
fn why_a_token_is_refused_does_not_repeat_it() {
    let refused =
        rs256().verify(&command(&json!({}), "hunter2.hunter2.hunter2"), &set(&[]), NOW).unwrap_err();
    assert!(!format!("{refused} {refused:?}").contains("hunter2"));
}

fn outbox(dir: &std::path::Path) -> (Outbox, Threads) {
    Outbox::open(Settings {
        dir: dir.to_path_buf(),
        max_bytes: 1 << 30,
        min_free_bytes: 0,
        segment_bytes: 1 << 20,
        durability: Durability::Process,
        dead_letter_retention: Duration::from_hours(24),
        commit_seconds: prometheus::Histogram::with_opts(prometheus::HistogramOpts::new("c", "c")).unwrap(),
    })
    .unwrap()
}

fn now() -> i64 {
    crate::time::now().0
}

fn begun(id: &str, is_change: bool, expires: Option<i64>) -> Begun<'_> {
    Begun { id, kind: "replay_dead_letters", is_change, expires }
}

#[tokio::test]
async fn begun_commands_and_results_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (open, threads) = outbox(dir.path());
    let mut journal = Journal::open(open, Duration::from_hours(1)).await.unwrap();
    let cut = journal.begin(begun("cut", true, None), None, now()).await.unwrap();
    let done = journal.begin(begun("done", true, None), None, now()).await.unwrap();
    journal.finish(done, outcome(Ok(json!({"replayed": 3})))).await;
    let heard =
        journal.begin(begun("heard", false, None), Some(outcome(Err("no".into()))), now()).await.unwrap();
    journal.reported(heard).await;
    assert_eq!(journal.unreported(), [done], "an unfinished command has nothing to report");
    assert!(!journal.is_earlier(done));
    drop(journal);
    assert!(threads.join());

    let (open, threads) = outbox(dir.path());
    let mut journal = Journal::open(open, Duration::from_hours(1)).await.unwrap();
    assert_eq!(journal.unreported(), [cut, done]);
    assert!(journal.is_earlier(done));
    let told = journal.note(cut).unwrap().outcome.clone().unwrap();
    assert!(!told.success && told.error.unwrap().starts_with("interrupted"));
    assert_eq!(journal.note(done).unwrap().outcome.as_ref().unwrap().result, r#"{"replayed":3}"#);
    assert_eq!((journal.find("heard"), journal.find("other")), (Some(heard), None));
    let next = journal.begin(begun("next", true, None), None, now()).await.unwrap();
    assert!(next > heard && !journal.is_earlier(next));
    drop(journal);
    assert!(threads.join());
}

#[tokio::test]
async fn an_id_is_forgotten_after_its_time_but_not_while_its_token_is_good_or_its_result_unheard() {
    let dir = tempfile::tempdir().unwrap();
    let (open, threads) = outbox(dir.path());
    let mut journal = Journal::open(open, Duration::ZERO).await.unwrap();
    // By the ControlPlane's clock, from which all others here differ: tokens valid by it are remembered, and no others.
    let mut now = NOW * 1_000_000;
    for (id, expires, is_heard) in
        [("over", Some(NOW), true), ("good", Some(NOW + 3600), true), ("unheard", Some(NOW), false)]
    {
        let outcome = Some(outcome(Ok(Value::Null)));
        let number = journal.begin(begun(id, true, expires), outcome, now).await.unwrap();
        if is_heard {
            journal.reported(number).await;
        }
        // One microsecond later its time is over.
        now += 1;
    }
    journal.begin(begun("next", false, None), None, now).await.unwrap();
    let known = |journal: &Journal| ["over", "good", "unheard"].map(|id| journal.find(id).is_some());
    assert_eq!(known(&journal), [false, true, true]);
    drop(journal);
    assert!(threads.join());
    let (open, threads) = outbox(dir.path());
    let journal = Journal::open(open, Duration::ZERO).await.unwrap();
    assert_eq!(known(&journal), [false, true, true], "on the disk, too");
    drop(journal);
    assert!(threads.join());
}

#[tokio::test]
async fn a_flood_of_commands_displaces_none_that_changed_something() {
    let dir = tempfile::tempdir().unwrap();
    let (open, threads) = outbox(dir.path());
    let mut journal = Journal::open(open.clone(), Duration::from_hours(1)).await.unwrap();
    for n in 0..999 {
        journal.begin(begun(&format!("change-{n}"), true, None), None, now()).await.unwrap();
    }
    for n in 0..50 {
        let refused = Some(outcome(Err("refused".into())));
        journal.begin(begun(&format!("flood-{n}"), false, None), refused, now()).await.unwrap();
    }
    assert_eq!(open.command_notes().await.unwrap().len(), 1_000);
    assert!(journal.find("change-0").is_some() && journal.find("flood-48").is_none());
    journal.begin(begun("change-999", true, None), None, now()).await.unwrap();
    let full = journal.begin(begun("change-1000", true, None), None, now()).await;
    assert!(matches!(full, Err(BeginError::Full)));
    assert_eq!(open.command_notes().await.unwrap().len(), 1_000);
    drop((journal, open));
    assert!(threads.join());
}

#[tokio::test]
async fn every_note_fits_and_round_trips() {
    let dir = tempfile::tempdir().unwrap();
    let (open, threads) = outbox(dir.path());
    let mut journal = Journal::open(open.clone(), Duration::from_hours(1)).await.unwrap();
    let (id, long) = ("é".repeat(64), "é".repeat(50_000));
    let begun = Begun { id: &id, kind: &long, is_change: true, expires: Some(i64::MAX) };
    let number = journal.begin(begun, None, now()).await.unwrap();
    journal.finish(number, outcome(Err(long.clone()))).await;
    let (_, note) = open.command_notes().await.unwrap().remove(0);
    let note = note.unwrap();
    assert_eq!((note.command_id, note.command_type.len()), (id, 64));
    assert_eq!(note.outcome.unwrap().error.unwrap().len(), 512);
    journal.finish(number, outcome(Ok(json!({"much": long})))).await;
    let (_, note) = open.command_notes().await.unwrap().remove(0);
    assert_eq!(note.unwrap().outcome.unwrap().result, "null", "truncated JSON is not kept");
    drop((journal, open));
    assert!(threads.join());
}

#[tokio::test]
async fn a_note_that_cannot_be_read_keeps_changes_from_being_made_twice() {
    let dir = tempfile::tempdir().unwrap();
    let (open, threads) = outbox(dir.path());
    let mut journal = Journal::open(open, Duration::from_hours(1)).await.unwrap();
    let number = journal.begin(begun("replayed", true, None), None, now()).await.unwrap();
    drop(journal);
    assert!(threads.join());
    // As a later release might write it.
    let ledger = sled::open(dir.path().join("ledger")).unwrap();
    let key = [&b"m"[..], &number.to_be_bytes()].concat();
    assert!(ledger.insert(key, vec![200]).unwrap().is_some(), "the entry existed");
    drop(ledger);

    let (open, threads) = outbox(dir.path());
    let mut journal = Journal::open(open.clone(), Duration::from_hours(1)).await.unwrap();
    assert_eq!(journal.find("replayed"), None);
    let again = journal.begin(begun("replayed", true, None), None, now()).await;
    assert!(matches!(again, Err(BeginError::Unreadable)));
    // Commands that change nothing may be repeated; and the entry stays as it is.
    let next = journal.begin(begun("figures", false, None), None, number as i64).await.unwrap();
    assert!(next > number);
    assert_eq!(open.command_notes().await.unwrap()[0], (number, None));
    drop((journal, open));
    assert!(threads.join());
}
