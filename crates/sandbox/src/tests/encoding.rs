//! Content encodings of requests and answers, according to what each side accepts.

use std::io::{Read as _, Write as _};

use flate2::{Compression, read::GzDecoder, write::GzEncoder};

use super::*;

const BATCH: &[u8] = br#"{"sessions":[{"api_session_id":"s","records":[{"kind":"usage_record","body":{"transaction_id":"t"}}]}]}"#;

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

fn zstd(plain: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(plain, 1).unwrap()
}

fn send(peer: &Peer, encoding: &str, body: Vec<u8>) -> RequestBuilder {
    peer.request(Method::POST, "records/batch").header("content-encoding", encoding).body(body)
}

/// Status and `Accept-Encoding` of an answer.
async fn takes(request: RequestBuilder) -> (u16, Option<String>) {
    let response = request.send().await.unwrap();
    let named = response.headers().get("accept-encoding").map(|value| value.to_str().unwrap().to_owned());
    (response.status().as_u16(), named)
}

#[tokio::test]
async fn gzip_and_zstd_are_taken_and_named_in_every_answer() {
    let peer = peer();
    let both = Some("gzip, zstd".to_owned());
    let bodies = [("gzip", gzip(BATCH)), ("ZSTD", zstd(BATCH))];
    let bytes: usize = bodies.iter().map(|(_, body)| body.len()).sum();
    for (encoding, body) in bodies {
        assert_eq!(takes(send(&peer, encoding, body)).await, (200, both.clone()), "{encoding}");
    }
    assert_eq!(peer.totals("usage").await, [2, 1, 1, 0]);
    let accounts = peer.accounts().await;
    assert_eq!(accounts["bytes"], bytes, "as they were sent");
    assert_eq!((&accounts["gzip_bodies"], &accounts["zstd_bodies"]), (&json!(1), &json!(1)));

    assert_eq!(takes(send(&peer, "br", gzip(BATCH))).await, (415, both.clone()));
    for (encoding, body) in [("gzip", gzip(BATCH)), ("zstd", zstd(BATCH))] {
        assert_eq!(
            takes(send(&peer, encoding, body[..body.len() - 9].to_vec())).await.0,
            400,
            "{encoding}, cut"
        );
    }
    assert_eq!(takes(peer.request(Method::GET, "nowhere")).await, (404, both));
}

#[tokio::test]
async fn an_encoding_that_is_not_taken_is_answered_415_and_not_named() {
    let peer = peer();
    peer.forecast(json!({"refuse_encodings": ["zstd"]})).await;
    let gzip_only = Some("gzip".to_owned());
    assert_eq!(takes(send(&peer, "zstd", zstd(BATCH))).await, (415, gzip_only.clone()));
    assert_eq!(takes(send(&peer, "gzip", gzip(BATCH))).await, (200, gzip_only));
    peer.forecast(json!({"refuse_encodings": ["gzip", "zstd"]})).await;
    assert_eq!(takes(send(&peer, "gzip", gzip(BATCH))).await, (415, Some("identity".to_owned())));
    peer.forecast(json!({"hide_encodings": true})).await;
    assert_eq!(takes(send(&peer, "gzip", gzip(BATCH))).await, (415, None));
    assert_eq!(takes(peer.request(Method::POST, "records/batch").body(BATCH)).await, (200, None));
}

/// `Content-Encoding` and plain body of the answer to a client that accepts this.
async fn answered(peer: &Peer, accepts: &str, body: &'static [u8]) -> (String, String) {
    let request = peer.request(Method::POST, "records/batch").header("accept-encoding", accepts).body(body);
    let response = request.send().await.unwrap();
    let encoding =
        response.headers().get("content-encoding").map_or("", |value| value.to_str().unwrap()).to_owned();
    let body = response.bytes().await.unwrap();
    let mut plain = String::new();
    match &*encoding {
        "gzip" => drop(GzDecoder::new(&*body).read_to_string(&mut plain).unwrap()),
        "zstd" => plain = String::from_utf8(zstd::stream::decode_all(&*body).unwrap()).unwrap(),
        _ => plain = String::from_utf8(body.to_vec()).unwrap(),
    }
    (encoding, plain)
}

#[tokio::test]
async fn long_answers_are_encoded_as_the_client_accepts_it_and_short_ones_are_not() {
    let peer = peer();
    let records = vec![r#"{"kind":"usage_record","body":7}"#; 100].join(",");
    let long = format!(r#"{{"sessions":[{{"api_session_id":"s","records":[{records}]}}]}}"#);
    let long: &'static [u8] = Box::leak(long.into_bytes().into_boxed_slice());
    let (_, plain) = answered(&peer, "identity", long).await;
    assert!(plain.contains(r#""count":100"#), "{plain}");
    for (accepts, expected) in [
        ("gzip", "gzip"),
        ("zstd", "zstd"),
        ("gzip, zstd", "zstd"),
        ("zstd;q=0, gzip;q=0.5", "gzip"),
        ("gzip;q=0", ""),
        ("br, *", ""),
    ] {
        assert_eq!(answered(&peer, accepts, long).await, (expected.to_owned(), plain.clone()), "{accepts}");
    }
    assert_eq!(answered(&peer, "gzip", BATCH).await.0, "", "short");
}

#[tokio::test]
async fn an_answer_may_be_encoded_unasked_or_claim_an_encoding_that_it_has_not() {
    let peer = peer();
    let (_, plain) = answered(&peer, "identity", BATCH).await;
    let same = |answer: &str| answer.contains(r#""success":true"#);
    assert!(same(&plain));
    for encoding in ["gzip", "zstd", "br"] {
        peer.forecast(json!({"answer_encoding": encoding})).await;
        let (named, plain) = answered(&peer, "identity", BATCH).await;
        assert!(named == encoding && same(&plain), "{encoding}: {named} {plain}");
    }
}
