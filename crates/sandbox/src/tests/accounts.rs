//! The accounts are exact: every delivery is processed, a duplicate, or turned away, and each wrong order is reported.

use super::*;

/// Counts of duplicates: with the same key and body, and with another.
async fn duplicates(peer: &Peer) -> [u64; 2] {
    let usage = &peer.accounts().await["kinds"]["usage"];
    ["duplicates_same_key_and_body", "duplicates_different"].map(|name| usage[name].as_u64().unwrap())
}

pub(super) async fn violations(peer: &Peer, of: &str) -> Vec<String> {
    let violations = &peer.accounts().await[of];
    let examples = violations["examples"].as_array().unwrap();
    assert_eq!(violations["count"], examples.len());
    examples.iter().map(|example| example.as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn duplicates_are_told_apart_by_key_and_body() {
    let peer = peer();
    let body = json!({"transaction_id": "t", "api_session_id": "s"});
    let other = json!({"transaction_id": "t", "api_session_id": "s", "more": 1});
    let send = |key: &str, body: &Value| status(peer.delivery("s", "usage-records", key, body));
    assert_eq!(send("k", &body).await, 200);
    assert_eq!((send("k", &body).await, duplicates(&peer).await), (409, [1, 0]));
    assert_eq!((send("k", &other).await, duplicates(&peer).await), (409, [1, 1]));
    assert!(violations(&peer, "key_violations").await.is_empty());

    assert_eq!((send("k2", &body).await, duplicates(&peer).await), (409, [1, 2]));
    assert_eq!(violations(&peer, "key_violations").await, ["usage t came with two keys"]);
    let another = json!({"transaction_id": "u", "api_session_id": "s"});
    assert_eq!((send("k", &another).await, duplicates(&peer).await), (409, [1, 3]));
    assert_eq!(violations(&peer, "key_violations").await[1], "usage u came with another record's key");
    assert_eq!(peer.totals("usage").await, [5, 1, 4, 0]);
}

#[tokio::test]
async fn a_record_has_the_same_key_and_body_alone_and_in_a_batch() {
    let peer = peer();
    let body = |id: &str| json!({"transaction_id": id, "api_session_id": "s"});
    assert_eq!(status(peer.usage("s", "t1")).await, 200);
    let records =
        vec![("usage_record", body("t1")), ("usage_record", body("t2")), ("usage_record", body("t2"))];
    assert_eq!(peer.exceptions(&[("s", records)]).await, [(0, 409), (2, 409)]);
    assert_eq!(status(peer.usage("s", "t2")).await, 409);
    assert_eq!(duplicates(&peer).await, [3, 0]);

    let with_more = ("usage_record", json!({"transaction_id": "t1", "api_session_id": "s", "more": 1}));
    assert_eq!(peer.exceptions(&[("s", vec![with_more])]).await, [(0, 409)]);
    assert_eq!(duplicates(&peer).await, [3, 1], "its bytes are compared however it is delivered");
    status(peer.delivery("s", "usage-records", "another key", &body("t2"))).await;
    assert_eq!(violations(&peer, "key_violations").await, ["usage t2 came with two keys"]);
    assert_eq!(peer.totals("usage").await, [7, 2, 5, 0]);
}

#[tokio::test]
async fn the_same_transaction_of_another_kind_is_another_record() {
    let peer = peer();
    let body = json!({"transaction_id": "t"});
    for (what, kind) in
        [("started", "started"), ("usage-records", "usage"), ("refresh", "quota"), ("completed", "completed")]
    {
        let send = || peer.delivery("s", what, kind, &body);
        assert_eq!((status(send()).await, status(send()).await), (200, 409), "{kind}");
        assert_eq!(peer.totals(kind).await, [2, 1, 1, 0]);
        let seen = peer.get(&format!("seen?kind={kind}&transaction_id=t")).await;
        assert_eq!((&seen["seen"], &seen["session"]), (&json!(2), &json!("s")));
    }
    assert_eq!(peer.accounts().await["sessions"], 1);
    assert!(violations(&peer, "order_violations").await.is_empty());
}

#[tokio::test]
async fn what_comes_out_of_order_is_told() {
    let peer = peer();
    let send = |what: &'static str, transaction: &'static str, sequence: i64| {
        let body = json!({"transaction_id": transaction, "sequence": sequence});
        status(peer.delivery("s", what, transaction, &body))
    };
    for (what, transaction, sequence) in [
        ("usage-records", "t1", 1),
        ("usage-records", "t3", 3),
        ("usage-records", "t2", 2),
        ("started", "b", 0),
        ("completed", "e", 0),
        ("usage-records", "t4", 4),
        ("refresh", "q", 0),
    ] {
        assert_eq!(send(what, transaction, sequence).await, 200);
    }
    let expected = [
        "session s: usage t2 with sequence 2 after 3",
        "session s: started b after 3 usage records",
        "session s: usage t4 after completed",
    ];
    assert_eq!(violations(&peer, "order_violations").await, expected);
    assert_eq!(send("usage-records", "t2", 2).await, 409);
    assert_eq!(
        violations(&peer, "order_violations").await,
        expected,
        "a duplicate does not count in the order"
    );
}

#[tokio::test]
async fn seen_says_how_often_with_which_key_and_where() {
    let peer = peer();
    let key = "78a4eae5-daf6-5110-a4ab-5f5c809ed06a";
    for _ in 0..3 {
        status(peer.delivery(
            "a/b".replace('/', "%2F").as_str(),
            "usage-records",
            key,
            &json!({"transaction_id": "t"}),
        ))
        .await;
    }
    let seen = peer.get("seen?kind=usage&transaction_id=t").await;
    assert_eq!(seen, json!({"seen": 3, "key": key, "session": "a/b"}));
    let unseen = json!({"seen": 0, "key": null, "session": null});
    assert_eq!(peer.get("seen?kind=started&transaction_id=t").await, unseen);
    assert_eq!(status(peer.operator(Method::GET, "seen?kind=letter&transaction_id=t")).await, 400);
}

#[tokio::test]
async fn the_last_bodies_are_kept_as_they_came() {
    let peer = peer();
    for n in 0..3 {
        let body = format!(r#"{{"transaction_id" : "t{n}", "x":1.50}}"#);
        status(peer.request(Method::POST, "sessions/s/usage-records").body(body)).await;
    }
    let records = peer.get("records?limit=2").await;
    assert_eq!(
        records["records"],
        json!([
            {"kind": "usage", "session": "s", "duplicate": false, "body": r#"{"transaction_id" : "t2", "x":1.50}"#},
            {"kind": "usage", "session": "s", "duplicate": false, "body": r#"{"transaction_id" : "t1", "x":1.50}"#},
        ])
    );
    assert_eq!(peer.get("records").await["records"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn what_requests_should_carry_and_do_not_is_counted() {
    let peer = peer();
    status(peer.usage("s", "t1").header("user-agent", "DataPlane-Agent/1.2.3")).await;
    status(peer.request(Method::POST, "sessions/s/usage-records").body(r#"{"transaction_id":"t2"}"#)).await;
    status(peer.request(Method::GET, "health").header("authorization", "Bearer x")).await;
    let accounts = peer.accounts().await;
    assert_eq!(accounts["missing"], json!({"idempotency_key": 1, "correlation_id": 2, "credentials": 1}));
    assert_eq!(accounts["first_user_agent"], "DataPlane-Agent/1.2.3");
    assert_eq!(accounts["requests"], json!({"usage": {"200": 2}, "health": {"200": 1}}));
    assert_eq!((&accounts["max_in_flight"], &accounts["connections"]), (&json!(1), &json!(1)), "kept alive");
}

#[tokio::test]
async fn accounts_begin_anew_when_they_are_deleted() {
    let peer = peer();
    let fresh = peer.accounts().await;
    status(peer.usage("s", "t")).await;
    status(peer.request(Method::POST, "servers/register").json(&json!({"server_id": "edge-1"}))).await;
    assert_eq!(status(peer.operator(Method::DELETE, "accounts")).await, 204);
    let accounts = peer.accounts().await;
    for (name, value) in fresh.as_object().unwrap().iter().filter(|(name, _)| *name != "registered_servers") {
        assert_eq!(&accounts[name], value, "{name}");
    }
    assert_eq!(accounts["registered_servers"], json!(["edge-1"]), "registrations are not accounts");
    assert_eq!(peer.get("records").await["records"], json!([]));
    assert_eq!(status(peer.usage("s", "t")).await, 200, "nothing was processed before");
}
