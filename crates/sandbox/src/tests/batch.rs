//! Batches: which records are taken, in which order, and how the promise is broken.

use super::accounts::violations;
use super::*;

fn sequenced(transaction: &str, sequence: u64) -> (&'static str, Value) {
    ("usage_record", json!({"transaction_id": transaction, "sequence": sequence}))
}

#[tokio::test]
async fn whole_sessions_are_taken_in_one_request() {
    let peer = peer();
    let whole = |n: u32| {
        let event = |kind: &'static str| (kind, json!({"transaction_id": format!("{kind}-{n}")}));
        let usage = (0..3).map(|at| sequenced(&format!("t{n}-{at}"), at));
        let mut records = vec![event("session_started")];
        records.extend(usage);
        records.push(event("session_completed"));
        records
    };
    let (status, body) = answer(peer.batch(&[("a", whole(1)), ("b", whole(2))])).await;
    assert_eq!((status.as_u16(), &body["success"]), (200, &json!(true)));
    assert_eq!((&body["data"]["count"], &body["data"]["exceptions"]), (&json!(10), &json!([])));
    for (kind, records) in [("started", 2), ("usage", 6), ("completed", 2)] {
        assert_eq!(peer.totals(kind).await, [records, records, 0, 0], "{kind}");
    }
    let accounts = peer.accounts().await;
    assert_eq!((&accounts["sessions"], &accounts["largest_batch"]), (&json!(2), &json!(10)));
    assert!(violations(&peer, "order_violations").await.is_empty());
    assert!(violations(&peer, "key_violations").await.is_empty());
    assert_eq!(accounts["missing"]["idempotency_key"], 0);
    let seen = peer.get("seen?kind=completed&transaction_id=session_completed-2").await;
    let expected = key("session_completed", "session_completed-2").to_string();
    assert_eq!((&seen["session"], &seen["key"]), (&json!("b"), &json!(expected)));
    let newest = &peer.get("records?limit=1").await["records"][0];
    assert_eq!((&newest["kind"], &newest["session"]), (&json!("completed"), &json!("b")));
}

#[tokio::test]
async fn the_answer_names_the_batch_by_its_key_and_a_wrong_key_is_told() {
    let peer = peer();
    let expected = Uuid::new_v5(&KEY_NAMESPACE, key("usage_record", "t").as_bytes()).to_string();
    let (_, body) = answer(peer.batch(&[("s", vec![usage("t")])])).await;
    assert_eq!(body["data"]["batch"], expected);
    let sessions = json!({"sessions": [{"api_session_id": "s", "records": [{"kind": "usage_record", "body": {"transaction_id": "t"}}]}]});
    let send = |key: &str| {
        peer.request(Method::POST, "records/batch").header("idempotency-key", key).json(&sessions)
    };
    let wrong = Uuid::nil().to_string();
    assert_eq!(answer(send(&wrong)).await.1["data"]["batch"], wrong);
    let told = violations(&peer, "key_violations").await;
    assert_eq!(told, [format!("a batch came with the key {wrong}, its records give {expected}")]);
    let (_, body) = answer(peer.request(Method::POST, "records/batch").json(&sessions)).await;
    assert_eq!(body["data"]["batch"], expected, "without a key");
    assert_eq!(peer.accounts().await["missing"]["idempotency_key"], 1);
}

#[tokio::test]
async fn after_a_failed_record_its_session_stops_and_others_continue() {
    let peer = peer();
    peer.forecast(
        json!({"poison_transactions": "poison", "refuse_transactions": "bad", "unknown_sessions": "ghost"}),
    )
    .await;
    let sessions = [
        ("a", vec![sequenced("a1", 1), sequenced("poison", 2), sequenced("a3", 3), sequenced("a4", 4)]),
        ("b", vec![sequenced("b1", 1), sequenced("bad", 2), sequenced("b3", 3)]),
        ("ghost", vec![sequenced("g1", 1), sequenced("g2", 2)]),
        ("c", vec![sequenced("c1", 1)]),
        ("a", vec![sequenced("a5", 5)]),
    ];
    let expected = [(1, 500), (2, 424), (3, 424), (5, 422), (7, 404), (8, 424), (10, 424)];
    assert_eq!(peer.exceptions(&sessions).await, expected);
    assert_eq!(peer.totals("usage").await, [11, 4, 0, 7]);

    peer.forecast(json!({"poison_transactions": [], "refuse_transactions": [], "unknown_sessions": []}))
        .await;
    let expected = [(0, 409), (4, 409), (6, 409), (9, 409)];
    assert_eq!(peer.exceptions(&sessions).await, expected, "records taken before are reported as such");
    let told = violations(&peer, "order_violations").await;
    assert_eq!(
        told,
        ["session b: usage bad with sequence 2 after 3"],
        "a refused record must not be repeated"
    );
}

#[tokio::test]
async fn each_status_either_stops_its_session_or_does_not() {
    for (failure, behind) in [400, 413, 414, 422]
        .map(|s| (s, s))
        .into_iter()
        .chain([401, 403, 404, 408, 410, 425, 429, 500, 502, 503].map(|s| (s, 424)))
    {
        let peer = peer();
        peer.forecast(json!({"partial_batch": 1, "status": {failure.to_string(): 1}})).await;
        let exceptions = peer.exceptions(&[("s", vec![usage("t1"), usage("t2")])]).await;
        assert_eq!(exceptions, [(0, failure), (1, behind)]);
    }
}

#[tokio::test]
async fn records_fail_by_themselves_as_often_as_they_should_and_batches_do_not() {
    let peer = peer();
    let ids: Vec<String> = (0..100).map(|n| format!("t{n}")).collect();
    let names: Vec<String> = (0..100).map(|n| format!("s{n}")).collect();
    let each_alone: Vec<_> =
        names.iter().zip(&ids).map(|(session, id)| (session.as_str(), vec![usage(id)])).collect();
    peer.forecast(json!({"partial_batch": 0.5, "status": {"503": 1}})).await;
    let exceptions = peer.exceptions(&each_alone).await;
    assert!(exceptions.iter().all(|&(_, status)| status == 503), "{exceptions:?}");
    let failed = exceptions.len() as u64;
    assert!((20..=80).contains(&failed), "{failed}");
    assert_eq!(peer.totals("usage").await, [100, 100 - failed, 0, failed]);
    assert_eq!(status(peer.usage("s", "t")).await, 503, "a single record meets the status as a whole");

    // Over several attempts, one session's records get through in order.
    let one: Vec<_> = (0..50).map(|n| sequenced(&format!("one-{n}"), n)).collect();
    let mut rest = one.as_slice();
    peer.forecast(json!({"partial_batch": 0.2})).await;
    while !rest.is_empty() {
        let exceptions = peer.exceptions(&[("one", rest.to_vec())]).await;
        let taken = exceptions.first().map_or(rest.len(), |&(index, _)| index as usize);
        assert_eq!(exceptions.len(), rest.len() - taken, "nothing is taken after the first: {exceptions:?}");
        rest = &rest[taken..];
    }
    assert!(violations(&peer, "order_violations").await.is_empty());
}

#[tokio::test]
async fn the_promise_can_be_broken() {
    let peer = peer();
    peer.forecast(json!({"poison_transactions": "poison", "break_batch_order": 1})).await;
    let records = || vec![sequenced("t1", 1), sequenced("poison", 2), sequenced("t3", 3)];
    assert_eq!(peer.exceptions(&[("s", records())]).await, [(1, 500)], "t3 is taken");
    peer.forecast(json!({"poison_transactions": []})).await;
    assert_eq!(
        status(peer.delivery(
            "s",
            "usage-records",
            &key("usage_record", "poison").to_string(),
            &records()[1].1
        ))
        .await,
        200
    );
    let told = violations(&peer, "order_violations").await;
    assert_eq!(
        told,
        ["session s: usage poison with sequence 2 after 3"],
        "across batches and single records"
    );
}

#[tokio::test]
async fn another_batchs_answer_names_it_or_its_count() {
    let peer = peer();
    peer.forecast(json!({"foreign_batch": 1})).await;
    let (mut keys, mut counts) = (0, 0);
    for n in 0..50 {
        let id = format!("t{n}");
        let (_, body) = answer(peer.batch(&[("s", vec![usage(&id)])])).await;
        let expected = Uuid::new_v5(&KEY_NAMESPACE, key("usage_record", &id).as_bytes()).to_string();
        keys += u32::from(body["data"]["batch"] != expected);
        counts += u32::from(body["data"]["count"] != 1);
    }
    assert!(keys > 5 && counts > 5 && keys + counts == 50, "one or the other: {keys} {counts}");
    assert_eq!(peer.totals("usage").await, [50, 50, 0, 0], "it is processed nevertheless");
}

#[tokio::test]
async fn an_invalid_record_of_a_batch_is_refused_alone() {
    let peer = peer();
    let sessions = [
        ("s", vec![("usage_record", json!(7)), usage("t1"), ("usage_record", json!({}))]),
        ("", vec![usage("t2")]),
        ("s", vec![("quota_refresh", json!({"transaction_id": "q"})), usage("t3")]),
        ("s", vec![("usage_record", json!({"transaction_id": "t4", "api_session_id": "other"}))]),
    ];
    let (status, body) = answer(peer.batch(&sessions)).await;
    assert_eq!(status, 200);
    let told: Vec<_> = body["data"]["exceptions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|exception| {
            assert_eq!(exception["status"], 422);
            (exception["index"].as_u64().unwrap(), exception["error"].as_str().unwrap())
        })
        .collect();
    assert_eq!(
        told,
        [
            (0, "not a JSON object"),
            (2, "transaction_id: missing or empty"),
            (3, "api_session_id: missing or empty"),
            (4, "kind: quota_refresh is in no batch"),
            (6, "api_session_id: not the session that it stands in"),
        ]
    );
    assert_eq!(peer.totals("usage").await, [6, 2, 0, 4]);
    assert_eq!(super::status(peer.request(Method::POST, "records/batch").body("\"\u{0}")).await, 400);
}
