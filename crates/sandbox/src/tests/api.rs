//! The API for records: authentication, parsing, and answers.

use super::*;

#[tokio::test]
async fn an_expected_api_key_is_insisted_on() {
    let api_key = Some("hunter2".parse().unwrap());
    let args = Args { api_key, ..Args::default() };
    assert!(!format!("{args:?}").contains("hunter2"));
    let peer = peer_with(args);
    let usage = |transaction: &str| {
        let body = json!({"transaction_id": transaction});
        peer.request(Method::POST, "sessions/s/usage-records").json(&body)
    };
    assert_eq!(status(usage("t1")).await, 401);
    assert_eq!(status(usage("t1").header("x-api-key", "hunter")).await, 401);
    assert_eq!(status(usage("t1").header("authorization", "Bearer hunter2")).await, 401);
    assert_eq!(status(peer.request(Method::GET, "health")).await, 401, "everywhere");
    assert_eq!(peer.totals("usage").await, [0; 4]);
    assert_eq!(status(usage("t1").header("X-API-Key", "hunter2")).await, 200);
}

#[tokio::test]
async fn what_is_no_record_is_refused_with_the_reason() {
    let peer = peer();
    for (body, expected, reason) in [
        (&b"{"[..], 400, "not JSON: "),
        (b"\"\xff\"", 400, "not UTF-8"),
        (b"[]", 422, "not a JSON object"),
        (b"{}", 422, "transaction_id: missing or empty"),
        (br#"{"transaction_id":7}"#, 422, "transaction_id: not a text"),
        (
            br#"{"transaction_id":"t","api_session_id":"z"}"#,
            422,
            "api_session_id: not the session of the path",
        ),
    ] {
        let request = peer.request(Method::POST, "sessions/s/usage-records").body(body.to_vec());
        let (status, body) = answer(request).await;
        assert_eq!((status.as_u16(), &body["success"]), (expected, &json!(false)));
        assert!(body["error"].as_str().unwrap().starts_with(reason), "{body}");
    }
    assert_eq!(peer.totals("usage").await, [6, 0, 0, 6]);
    for (path, body, expected) in [
        ("records/batch", "[]", 422),
        ("records/batch", "{", 400),
        ("usage-records/batch", r#"{"records":[]}"#, 404),
        ("nowhere", "", 404),
    ] {
        assert_eq!(status(peer.request(Method::POST, path).body(body)).await, expected, "{path} {body}");
    }
    assert_eq!(peer.accounts().await["requests"]["unknown"]["404"], 2);
}

#[tokio::test]
async fn a_quota_refresh_is_answered_with_a_quota() {
    let peer = peer();
    let (status, body) = answer(peer.delivery("s", "refresh", "k", &json!({"transaction_id": "t"}))).await;
    let data = body["data"].as_object().unwrap();
    let names: Vec<_> = data.keys().map(String::as_str).collect();
    assert_eq!((status.as_u16(), &body["success"]), (200, &json!(true)));
    assert_eq!(names, ["api_session_id", "final_quota", "new_quota_amount", "timestamp", "transaction_id"]);
    assert_eq!((&data["api_session_id"], &data["transaction_id"]), (&json!("s"), &json!("t")));
}

#[tokio::test]
async fn duplicates_can_be_answered_as_if_they_were_new() {
    let peer = peer_with(Args { duplicates: Duplicates::Ok, ..Args::default() });
    assert_eq!((status(peer.usage("s", "t")).await, status(peer.usage("s", "t")).await), (200, 200));
    assert_eq!(peer.totals("usage").await, [2, 1, 1, 0]);
}

#[tokio::test]
async fn a_control_plane_without_batches_answers_404_to_them() {
    let peer = peer_with(Args { no_batch: true, ..Args::default() });
    assert_eq!(status(peer.batch(&[("s", vec![usage("t")])])).await, 404);
    assert_eq!(peer.totals("usage").await, [0; 4]);
    assert_eq!(status(peer.usage("s", "t")).await, 200);
}

#[tokio::test]
async fn it_ends_when_it_is_told_to_and_gives_its_port_back() {
    let sandbox = Sandbox::bind(Args { listen: FREE_PORT, ..Args::default() }).unwrap();
    let address = sandbox.addr();
    assert_eq!(sandbox.control_addr(), None);
    sandbox.serve(async {}).await;
    tokio::net::TcpListener::bind(address).await.unwrap();
    let taken = tokio::net::TcpListener::bind(FREE_PORT).await.unwrap();
    let args = Args { listen: taken.local_addr().unwrap(), ..Args::default() };
    let error = Sandbox::bind(args).err().unwrap();
    assert!(error.to_string().starts_with("cannot listen on 127.0.0.1:"), "{error}");
}
