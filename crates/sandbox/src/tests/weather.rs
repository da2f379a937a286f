//! Each control of the weather does what its description says.

use std::{io, time::Instant};

use tokio::net::TcpStream;

use super::*;

#[tokio::test]
async fn down_closes_port_and_connections_and_up_takes_the_same_port_back() {
    let peer = peer();
    assert_eq!(status(peer.usage("s", "t1")).await, 200);
    peer.forecast(json!({"hang": 1})).await;
    let in_flight = tokio::spawn(peer.usage("s", "t2").send());
    peer.until(|accounts| accounts["in_flight"] == 1).await;

    peer.forecast(json!({"down": true, "hang": 0})).await;
    let error = in_flight.await.unwrap().expect_err("the connection is cut");
    assert!(!error.is_timeout(), "at once: {error:?}");
    assert!(peer.usage("s", "t2").send().await.unwrap_err().is_connect());
    let refused = TcpStream::connect(peer.address).await.unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    assert_eq!(peer.get("weather").await["down"], true, "the operator's port stays");

    peer.forecast(json!({"down": false})).await;
    assert_eq!(status(peer.usage("s", "t2")).await, 200);
    assert_eq!(peer.totals("usage").await, [2, 2, 0, 0]);
}

#[tokio::test]
async fn a_port_that_would_have_no_way_back_is_not_taken_down() {
    let peer = peer();
    let weather = format!("http://{}/sandbox/weather", peer.address);
    let (status, body) = answer(peer.client.patch(&weather).json(&json!({"down": true}))).await;
    assert_eq!((status.as_u16(), peer.get("weather").await["down"].as_bool()), (409, Some(false)), "{body}");
    let (status, _) = answer(peer.client.patch(&weather).json(&json!({"latency_ms": 1}))).await;
    assert_eq!(status, 200, "anything else can be changed there too");
    let weather = Weather { down: true, ..Weather::default() };
    let args = Args { listen: FREE_PORT, weather, ..Args::default() };
    assert!(Sandbox::bind(args.clone()).is_err());
    let peer = peer_with(args);
    peer.accounts().await;
    assert!(peer.usage("s", "t").send().await.unwrap_err().is_connect(), "down from the start");
    peer.forecast(json!({"down": false})).await;
    assert_eq!(super::status(peer.usage("s", "t")).await, 200);
}

#[tokio::test]
async fn hang_takes_a_request_and_never_answers() {
    let peer = peer();
    peer.forecast(json!({"hang": 1})).await;
    let hanging = tokio::spawn(peer.usage("s", "t").send());
    peer.until(|accounts| accounts["in_flight"] == 1).await;
    assert!(!hanging.is_finished());
    hanging.abort();
    peer.until(|accounts| accounts["requests"]["usage"]["hang"] == 1 && accounts["in_flight"] == 0).await;
    assert_eq!(peer.totals("usage").await, [0; 4]);
}

#[tokio::test]
async fn reset_processes_nothing_and_a_lost_answer_everything() {
    let peer = peer();
    peer.forecast(json!({"reset": 1, "always": 500})).await;
    let error = peer.usage("s", "t").send().await.unwrap_err();
    assert!(error.is_request() && !error.is_connect() && !error.is_timeout(), "{error:?}");
    assert_eq!(peer.totals("usage").await, [0; 4]);

    peer.forecast(json!({"reset": 0, "always": null, "lost_answer": 1})).await;
    peer.usage("s", "t").send().await.unwrap_err();
    assert_eq!(peer.totals("usage").await, [1, 1, 0, 0]);

    peer.forecast(json!({"lost_answer": 0})).await;
    assert_eq!(status(peer.usage("s", "t")).await, 409, "it was processed");
    let requests = &peer.accounts().await["requests"]["usage"];
    assert_eq!(requests, &json!({"reset": 1, "lost_answer": 1, "409": 1}));
}

#[tokio::test]
async fn statuses_come_as_often_as_they_should_and_nothing_of_theirs_is_processed() {
    let peer = peer();
    peer.forecast(json!({"status": {"500": 0.3, "429": 0.2}})).await;
    let mut seen = std::collections::BTreeMap::new();
    for n in 0..200 {
        *seen.entry(status(peer.usage("s", &format!("t{n}"))).await).or_insert(0u64) += 1;
    }
    assert!((30..=90).contains(&seen[&500]) && (15..=65).contains(&seen[&429]), "{seen:?}");
    assert_eq!(peer.totals("usage").await, [seen[&200], seen[&200], 0, 0]);
    assert_eq!(peer.accounts().await["requests"]["usage"]["500"], seen[&500]);
}

#[tokio::test]
async fn always_is_the_one_answer_to_everything_with_the_headers_of_its_status() {
    let peer = peer();
    let date = "Sat, 31 Jan 2026 12:00:00 GMT";
    for (always, retry_after, location) in [
        (429, Some("7"), None),
        (503, Some("7"), None),
        (500, None, None),
        (307, None, Some("https://other.example/")),
        (200, None, None),
        (401, None, None),
    ] {
        peer.forecast(json!({"always": always, "retry_after": 7, "location": "https://other.example/"}))
            .await;
        let requests = [
            peer.usage("s", "t"),
            peer.request(Method::GET, "health"),
            peer.request(Method::GET, "no-such-route"),
            peer.request(Method::PUT, "servers/x/heartbeat"),
        ];
        for request in requests {
            let response = request.send().await.unwrap();
            let header = |name| response.headers().get(name).map(|value| value.to_str().unwrap());
            assert_eq!(response.status(), always);
            assert_eq!((header("retry-after"), header("location")), (retry_after, location), "{always}");
        }
    }
    peer.forecast(json!({"always": 429, "retry_after": date})).await;
    assert_eq!(peer.usage("s", "t").send().await.unwrap().headers()["retry-after"], date);
    assert_eq!(peer.totals("usage").await, [0; 4], "200s included");
}

#[tokio::test]
async fn capacity_answers_429_above_so_many_requests_a_second() {
    let peer = peer();
    let start = Instant::now();
    peer.forecast(json!({"capacity": 5, "retry_after": 1})).await;
    let mut passed = 0;
    let mut turned_away = 0;
    for n in 0..30 {
        let response = peer.usage("s", &format!("t{n}")).send().await.unwrap();
        match response.status().as_u16() {
            200 => passed += 1,
            429 => turned_away += u64::from(response.headers().contains_key("retry-after")),
            other => panic!("{other}"),
        }
    }
    let most = 5.0 + start.elapsed().as_secs_f64() * 5.0;
    assert!(passed >= 5 && passed as f64 <= most, "{passed} of {most}");
    assert_eq!(passed + turned_away, 30);
    assert_eq!(peer.totals("usage").await, [passed, passed, 0, 0]);
}

#[tokio::test]
async fn latency_is_spent_before_anything_is_processed() {
    let peer = peer();
    peer.forecast(json!({"latency_ms": 40, "jitter_ms": 1})).await;
    let start = Instant::now();
    assert_eq!(status(peer.usage("s", "t1")).await, 200);
    assert!(start.elapsed() >= Duration::from_millis(40));
    peer.forecast(json!({"latency_ms": 3_600_000})).await;
    let slow = tokio::spawn(peer.usage("s", "t2").send());
    peer.until(|accounts| accounts["in_flight"] == 1).await;
    assert_eq!(peer.totals("usage").await, [1, 1, 0, 0]);
    slow.abort();
    peer.until(|accounts| accounts["requests"]["usage"]["abandoned"] == 1).await;
}

#[tokio::test]
async fn faults_of_single_records_follow_the_prefix_of_their_ids() {
    let peer = peer();
    peer.forecast(json!({
        "unknown_sessions": ["ghost"], "refuse_transactions": "bad", "poison_transactions": ["poison", "venom"]
    }))
    .await;
    for (session, transaction, expected) in [
        ("s", "t", 200),
        ("ghost-1", "t2", 404),
        ("s", "bad-1", 422),
        ("s", "venom-1", 500),
        ("s", "not-bad", 200),
    ] {
        assert_eq!(status(peer.usage(session, transaction)).await, expected, "{session} {transaction}");
    }
    assert_eq!(peer.totals("usage").await, [5, 2, 0, 3]);
    assert_eq!(peer.get("seen?kind=usage&transaction_id=bad-1").await["seen"], 0);
}

#[tokio::test]
async fn a_refused_record_always_has_the_same_status_and_may_fail_its_batch() {
    let peer = peer();
    peer.forecast(json!({"refuse_transactions": "bad", "refuse_with": [400, 413, 415]})).await;
    let mut seen = std::collections::BTreeSet::new();
    for n in 0..32 {
        let transaction = format!("bad-{n}");
        let refusal = status(peer.usage("s", &transaction)).await;
        assert_eq!(status(peer.usage("s", &transaction)).await, refusal, "{transaction}");
        seen.insert(refusal);
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), [400, 413, 415]);

    let send = |ids: [&str; 2]| status(peer.batch(&[("s", ids.map(usage).to_vec())]));
    assert_eq!(send(["good", "bad-1"]).await, 200, "each by itself");
    peer.forecast(json!({"refuse_transactions": "bad", "refuse_batch": 1})).await;
    assert!([400, 413, 415].contains(&send(["better", "bad-1"]).await));
    assert_eq!(
        peer.get("seen?kind=usage&transaction_id=better").await["seen"],
        0,
        "nothing of it is processed"
    );
    assert_eq!(send(["better", "best"]).await, 200);
}

#[tokio::test]
async fn one_of_two_backends_refuses_by_chance_a_record_or_a_batch() {
    let peer = peer();
    peer.forecast(json!({"refuse_chance": 0.5, "refuse_with": [400]})).await;
    let mut refused = 0;
    for n in 0..100 {
        refused += u64::from(status(peer.usage("s", &format!("t{n}"))).await == 400);
    }
    assert!((20..=80).contains(&refused), "{refused}");
    assert_eq!(peer.totals("usage").await, [100, 100 - refused, 0, refused]);

    let ids: Vec<String> = (0..100).map(|n| format!("u{n}")).collect();
    let records = || vec![("s", ids.iter().map(|id| usage(id)).collect::<Vec<_>>())];
    let exceptions = peer.exceptions(&records()).await;
    assert!((20..=80).contains(&exceptions.len()), "by record: {exceptions:?}");
    assert!(exceptions.iter().all(|&(_, status)| status == 400), "nothing waits for a refused record");

    peer.forecast(json!({"refuse_batch": 1})).await;
    let mut seen = std::collections::BTreeMap::new();
    for _ in 0..50 {
        *seen.entry(status(peer.batch(&records())).await).or_insert(0) += 1;
    }
    assert!((5..=45).contains(&seen[&400]) && seen[&400] + seen[&200] == 50, "as a whole: {seen:?}");
}

#[tokio::test]
async fn success_false_is_no_success_and_takes_nothing() {
    let peer = peer();
    peer.forecast(json!({"success_false": 1})).await;
    for request in [peer.usage("s", "t"), peer.batch(&[("s", vec![usage("t")])])] {
        let (status, body) = answer(request).await;
        assert_eq!((status.as_u16(), &body["success"]), (200, &json!(false)));
    }
    assert_eq!(peer.totals("usage").await, [0; 4]);
}

#[tokio::test]
async fn a_portal_answers_everything_with_its_page_and_takes_nothing() {
    let peer = peer();
    for always in [200, 400, 503] {
        peer.forecast(json!({"always": always, "bad_body": "not_json"})).await;
        let response = peer.usage("s", "t").send().await.unwrap();
        assert_eq!(
            (response.status().as_u16(), response.headers()["content-type"].as_bytes()),
            (always, &b"text/html"[..])
        );
        assert!(response.text().await.unwrap().starts_with("<html>"));
    }
    assert_eq!(peer.totals("usage").await, [0; 4]);
}

#[tokio::test]
async fn a_bad_body_spoils_what_is_good_and_nothing_else() {
    let peer = peer();
    for (n, (kind, text)) in
        [("empty", ""), ("not_json", "<html><body>It works!</body></html>")].into_iter().enumerate()
    {
        peer.forecast(json!({"bad_body": kind})).await;
        let response = peer.usage("s", &format!("t{n}")).send().await.unwrap();
        assert_eq!((response.status().as_u16(), response.text().await.unwrap().as_str()), (200, text));
    }
    for (n, (kind, start)) in
        [("huge", &b"{\"success\":true,"[..]), ("endless", b"aaaa")].into_iter().enumerate()
    {
        peer.forecast(json!({"bad_body": kind})).await;
        let mut response = peer.usage("s", &format!("u{n}")).send().await.unwrap();
        assert_eq!(response.content_length(), None);
        let mut body = Vec::new();
        while body.len() < 1 << 18 {
            body.extend(response.chunk().await.unwrap().expect("more than a client should take"));
        }
        assert!(body.starts_with(start), "{kind}");
    }
    let (status, body) = answer(peer.usage("s", "t0")).await;
    assert_eq!((status.as_u16(), &body["success"]), (409, &json!(false)));
    assert_eq!(peer.totals("usage").await, [5, 4, 1, 0], "all of it was processed");
}

#[tokio::test]
async fn the_weather_is_patched_replaced_and_read() {
    let peer = peer();
    let fair = peer.get("weather").await;
    assert_eq!(fair, serde_json::to_value(Weather::default()).unwrap());
    peer.forecast(json!({"latency_ms": 1})).await;
    peer.forecast(json!({"reset": 0.25})).await;
    let weather = peer.get("weather").await;
    assert_eq!((&weather["latency_ms"], &weather["reset"]), (&json!(1), &json!(0.25)));

    let (status, body) = answer(peer.operator(Method::PUT, "weather").json(&json!({"hang": 0.5}))).await;
    assert_eq!((status.as_u16(), &body["latency_ms"], &body["hang"]), (200, &json!(0), &json!(0.5)));
    assert_eq!(peer.get("weather").await, body);

    for (patch, expected) in [
        (json!({"rain": 1, "hang": 2, "latency_ms": 9}).to_string(), 400),
        (json!({"status": {"500": 0.7, "429": 0.7}}).to_string(), 400),
        (json!(["hang"]).to_string(), 422),
        ("{".to_owned(), 400),
    ] {
        let (status, problem) = answer(peer.operator(Method::PATCH, "weather").body(patch)).await;
        assert_eq!(status.as_u16(), expected, "{problem}");
        assert_eq!(peer.get("weather").await, body, "a patch with a problem changes nothing");
    }
}
