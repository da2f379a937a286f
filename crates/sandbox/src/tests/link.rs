//! The link over real sockets is no faster than configured. Its exactness is tested in [`link`].

use std::time::Instant;

use super::*;

fn slow(link: &str) -> Peer {
    peer_with(Args { link: Some(link.parse().unwrap()), ..Args::default() })
}

/// A batch of this many incompressible bytes; its answer is about as large.
fn large(peer: &Peer, bytes: usize) -> RequestBuilder {
    let record = json!({"kind": "x".repeat(bytes), "body": 7});
    let body = json!({"sessions": [{"api_session_id": "s", "records": [record]}]});
    peer.request(Method::POST, "records/batch").json(&body)
}

#[tokio::test]
async fn a_handshake_and_a_request_take_a_round_trip_each() {
    let peer = slow("rtt=60ms");
    let start = Instant::now();
    assert_eq!(status(peer.usage("s", "t1")).await, 200);
    assert!(start.elapsed() >= Duration::from_millis(120), "{:?}", start.elapsed());
    let start = Instant::now();
    assert_eq!(status(peer.usage("s", "t2")).await, 200);
    assert!(start.elapsed() >= Duration::from_millis(60), "{:?}", start.elapsed());
    assert_eq!(peer.accounts().await["connections"], 1, "kept alive, and the other port has no link");
}

#[tokio::test]
async fn a_rate_holds_each_way_and_bytes_are_counted() {
    let peer = slow("rate=8mbit");
    let start = Instant::now();
    let answers = (0..4).map(|_| large(&peer, 100_000).send());
    for answer in futures_util::future::join_all(answers).await {
        assert_eq!(answer.unwrap().bytes().await.unwrap().len() / 1000, 100);
    }
    // 400 KB each way at 1 MB/s; each answer follows its request.
    assert!(start.elapsed() >= Duration::from_millis(400), "{:?}", start.elapsed());
    let report = peer.get("link").await;
    for way in ["up", "down"] {
        let bytes = report[way]["bytes"].as_u64().unwrap();
        assert!((400_000..410_000).contains(&bytes), "{way}: {report}");
        assert!(report[way]["longest_queue_bytes"].as_u64().unwrap() <= 256 << 10, "{report}");
    }
    status(peer.operator(Method::DELETE, "accounts")).await;
    assert_eq!(peer.get("link").await["up"]["bytes"], 0);
}

#[tokio::test]
async fn a_full_queue_holds_its_sender_back_and_loses_nothing() {
    let peer = slow("rtt=10ms,rate=80mbit,queue=2k,window=8k");
    for bytes in [10, 100_000, 1_000_000] {
        let (status, body) = answer(large(&peer, bytes)).await;
        assert_eq!(status, 200);
        let error = body["data"]["exceptions"][0]["error"].as_str().unwrap();
        assert_eq!(error.len(), bytes + "kind:  is in no batch".len());
    }
    let report = peer.get("link").await;
    assert!(report["up"]["longest_queue_bytes"].as_u64().unwrap() <= 50_000, "a chunk: {report}");
}

#[tokio::test]
async fn the_link_is_changed_under_way() {
    let peer = slow("rate=1bit");
    let stuck = tokio::spawn(answer(peer.usage("s", "t")));
    peer.until(|accounts| accounts["connections"] == 1).await;
    let set = |link: &'static str| answer(peer.operator(Method::PUT, "link").body(link));
    let (status, report) = set("rtt=1ms,rate=1gbit").await;
    assert_eq!(
        (status.as_u16(), &report["link"]),
        (200, &json!("rtt=1ms,rate=1000000000bit,queue=262144,window=4194304"))
    );
    assert!(set("rtt=1").await.1["error"].as_str().unwrap().starts_with("rtt=1: "));
    // Bytes sent at the old rate arrive as scheduled: a new connection does not wait for them.
    assert_eq!(super::status(peer.usage("s", "u")).await, 200);
    stuck.abort();
    let plain = super::peer();
    let (status, body) = answer(plain.operator(Method::PUT, "link").body("rtt=1ms")).await;
    assert_eq!(status, 409, "{body}");
}

#[tokio::test]
async fn the_weather_is_the_same_behind_a_link() {
    let peer = slow("rtt=2ms");
    peer.forecast(json!({"reset": 1})).await;
    peer.usage("s", "t").send().await.unwrap_err();
    peer.forecast(json!({"reset": 0, "lost_answer": 1})).await;
    peer.usage("s", "t").send().await.unwrap_err();
    peer.forecast(json!({"lost_answer": 0, "hang": 1})).await;
    let hanging = tokio::spawn(peer.usage("s", "t").send());
    peer.until(|accounts| accounts["in_flight"] == 1).await;
    hanging.abort();
    peer.until(|accounts| accounts["requests"]["usage"]["hang"] == 1).await;
    peer.forecast(json!({"hang": 0, "down": true})).await;
    assert!(peer.usage("s", "t").send().await.unwrap_err().is_connect());
    peer.forecast(json!({"down": false})).await;
    assert_eq!(status(peer.usage("s", "t")).await, 409);
    assert_eq!(peer.totals("usage").await, [2, 1, 1, 0]);
}
