//! What is sent, and the result of every misbehaviour of a peer.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hyper::header::{HeaderMap, SET_COOKIE};

use super::*;
use crate::secret::Secret;

async fn deliver_to(url: &str) -> Answer {
    Client::new(settings(url)).unwrap().deliver(delivery("s 1/ü")).await
}

/// The answer to one delivery if the peer sends these bytes and closes the connection.
async fn answer_and_close(bytes: impl Into<Vec<u8>>) -> Result<Response, Failure> {
    let bytes = Arc::new(bytes.into());
    let url = peer(move |mut stream| {
        let bytes = Arc::clone(&bytes);
        async move {
            receive(&mut stream).await;
            let _ = stream.write_all(&bytes).await;
        }
    })
    .await;
    deliver_to(&url).await.result
}

#[tokio::test]
async fn a_delivery_carries_what_the_contract_says() {
    let (url, mut received) = answering(http("201 Created", "Retry-After: 3\r\n", "{}")).await;
    let client = Client::new(settings(&format!("{url}/base/"))).unwrap();
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let answer = client.deliver(Delivery { traceparent: Some(parent), ..delivery("s 1/ü") }).await;
    let response = answer.result.unwrap();
    assert_eq!((response.status, &response.body[..], response.truncated), (201, &b"{}"[..], false));
    assert_eq!(response.retry_after, Some(Duration::from_secs(3)));
    assert!(answer.elapsed > Duration::ZERO);

    let request = received.recv().await.unwrap();
    assert_eq!(request.line(), "POST /base/api/v1/sessions/s%201%2F%C3%BC/usage-records HTTP/1.1");
    assert_eq!(request.body, b"{\"a\":1}");
    for (name, value) in [
        ("x-api-key", "hunter2"),
        ("user-agent", "DataPlane-Agent/1.2.3"),
        ("content-type", "application/json"),
        ("x-correlation-id", "corr-1"),
        ("idempotency-key", "00000000-0000-0000-0000-000000000007"),
        ("traceparent", parent),
    ] {
        assert_eq!(request.header(name), Some(value), "{name}");
    }
    assert_eq!(request.header("accept-encoding"), Some("gzip, zstd"));
    for name in ["authorization", "cookie", "content-encoding", "referer"] {
        assert_eq!(request.header(name), None, "{name}");
    }
}

#[tokio::test]
async fn an_id_unfit_for_a_header_does_not_block_its_record() {
    let (url, mut received) = answering(http("200 OK", "", "")).await;
    let client = Client::new(settings(&url)).unwrap();
    let odd = Delivery { correlation_id: "a\r\nX-Evil: 1", traceparent: Some("b\0"), ..delivery("s") };
    assert_eq!(client.deliver(odd).await.result.unwrap().status, 200);
    let request = received.recv().await.unwrap();
    assert_eq!(request.header("x-correlation-id"), request.header("idempotency-key"));
    assert_eq!((request.header("x-evil"), request.header("traceparent")), (None, None));
}

#[tokio::test]
async fn a_batch_goes_to_its_endpoint_and_says_when_it_is_compressed() {
    let (url, mut received) = answering(http("200 OK", "", "{}")).await;
    let client = Client::new(settings(&url)).unwrap();
    let body = Bytes::from_static(b"\x1f\x8b\x08");
    for (encoding, header) in
        [(Encoding::Gzip, Some("gzip")), (Encoding::Zstd, Some("zstd")), (Encoding::Identity, None)]
    {
        client.deliver_batch(BatchRequest { encoding, ..batch(body.clone(), 3) }).await.result.unwrap();
        let request = received.recv().await.unwrap();
        assert_eq!(request.line(), "POST /api/v1/records/batch HTTP/1.1");
        assert_eq!(request.body, b"\x1f\x8b\x08");
        assert_eq!(request.header("content-encoding"), header);
    }
}

#[tokio::test]
async fn a_record_that_no_url_can_name_is_never_sent() {
    let (url, mut received) = answering(http("200 OK", "", "")).await;
    let client = Client::new(settings(&url)).unwrap();
    let long = "x".repeat(100_000);
    for id in [".", "..", "", &long] {
        assert!(matches!(client.deliver(delivery(id)).await.result, Err(Failure::Unsendable(_))), "{id:.9}");
    }
    assert!(received.try_recv().is_err());
}

#[tokio::test]
async fn one_connection_serves_one_request_after_another() {
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&connections);
    let url = peer(move |mut stream| {
        counted.fetch_add(1, Ordering::SeqCst);
        async move {
            while receive(&mut stream).await.is_some() {
                stream
                    .write_all(http("200 OK", "X-Correlation-ID: corr-1\r\n", "ok").as_bytes())
                    .await
                    .unwrap();
            }
        }
    })
    .await;
    let client = Client::new(settings(&url)).unwrap();
    for _ in 0..10 {
        assert_eq!(client.deliver(delivery("s")).await.result.unwrap().status, 200);
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let (elsewhere, mut heard) = answering(http("200 OK", "", "")).await;
    for status in ["301 Moved", "302 Found", "307 Temporary", "308 Permanent"] {
        let (url, _received) = answering(http(status, &format!("Location: {elsewhere}/x\r\n"), "")).await;
        assert_eq!(deliver_to(&url).await.result.unwrap().status.to_string(), status[..3]);
    }
    // If a redirect were followed, its request would come before this one.
    deliver_to(&format!("{elsewhere}/mine")).await.result.unwrap();
    assert!(heard.recv().await.unwrap().line().contains("/mine/"));
}

#[tokio::test]
async fn any_status_and_any_body_is_an_answer() {
    for (status, body) in
        [("204 No Content", ""), ("200 OK", "<html>\0"), ("500 Oh", ""), ("401 No", "x"), ("599 ?", "")]
    {
        let response = answer_and_close(http(status, "", body)).await.unwrap();
        assert_eq!(response.status.to_string(), status[..3]);
        assert_eq!(response.body, body);
    }
    let old = answer_and_close("HTTP/1.0 200 OK\r\n\r\nuntil the end").await.unwrap();
    assert_eq!((old.status, &old.body[..]), (200, &b"until the end"[..]));
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
    assert_eq!(&answer_and_close(chunked).await.unwrap().body[..], b"abcde");
}

#[tokio::test]
async fn a_huge_body_is_kept_up_to_the_limit_and_read_no_further() {
    let written = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&written);
    let url = peer(move |mut stream| {
        let count = Arc::clone(&count);
        async move {
            receive(&mut stream).await;
            let head = "HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n";
            stream.write_all(head.as_bytes()).await.unwrap();
            while stream.write_all(&[b'x'; 10_000]).await.is_ok() {
                count.fetch_add(10_000, Ordering::SeqCst);
            }
        }
    })
    .await;
    let response = deliver_to(&url).await.result.unwrap();
    assert!(response.truncated);
    assert_eq!(response.body.len(), 256 << 10);
    assert!(written.load(Ordering::SeqCst) < 50_000_000);
}

#[tokio::test]
async fn an_answer_of_just_the_limit_is_whole_and_one_byte_more_is_not() {
    for (length, truncated) in [(256 << 10, false), ((256 << 10) + 1, true)] {
        let response = answer_and_close(http("200 OK", "", &"x".repeat(length))).await.unwrap();
        assert_eq!((response.body.len(), response.truncated), (256 << 10, truncated));
    }
}

#[tokio::test]
async fn a_batchs_answer_may_be_longer_the_more_records_it_is_for() {
    let (url, _received) = answering(http("200 OK", "", &"x".repeat((1 << 20) + 5000))).await;
    let client = Client::new(settings(&url)).unwrap();
    let short = client.deliver_batch(batch(Bytes::new(), 1)).await.result.unwrap();
    assert_eq!((short.body.len(), short.truncated), ((1 << 20) + 1024, true));
    let whole = client.deliver_batch(batch(Bytes::new(), 5)).await.result.unwrap();
    assert_eq!((whole.body.len(), whole.truncated), ((1 << 20) + 5000, false));
}

#[tokio::test]
async fn a_peer_that_never_finishes_is_timed_out() {
    let heads: [&'static [u8]; 4] = [
        b"",
        b"HTTP/1.1 200 O",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
    ];
    for head in heads {
        let url = peer(move |mut stream| async move {
            receive(&mut stream).await;
            stream.write_all(head).await.unwrap();
            receive(&mut stream).await;
        })
        .await;
        let client = Client::new(Settings { timeout: Duration::from_millis(150), ..settings(&url) }).unwrap();
        let answer = client.deliver(delivery("s")).await;
        assert_eq!(answer.result, Err(Failure::Timeout { connected: true }));
        assert!(answer.elapsed >= Duration::from_millis(150) && answer.elapsed < PATIENCE);
    }
}

#[tokio::test]
async fn a_body_that_trickles_forever_is_timed_out_too() {
    let url = peer(|mut stream| async move {
        receive(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
        while stream.write_all(b"1\r\nx\r\n").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let client = Client::new(Settings { timeout: Duration::from_millis(200), ..settings(&url) }).unwrap();
    assert_eq!(client.deliver(delivery("s")).await.result, Err(Failure::Timeout { connected: true }));
}

#[tokio::test]
async fn an_answer_that_is_cut_off_is_told_from_one_that_is_whole() {
    for head in [
        "",
        "HTTP/1.1 200",
        "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nab",
    ] {
        let result = answer_and_close(head).await;
        assert!(matches!(result, Err(Failure::Cut(_))), "{head:?}: {result:?}");
    }
}

#[tokio::test]
async fn a_non_http_answer_is_reported_as_such() {
    let bomb = format!("HTTP/1.1 200 OK\r\n{}\r\n", "X-Bomb: 1\r\n".repeat(10_000));
    let long = format!("HTTP/1.1 200 OK\r\nX-Long: {}\r\n\r\n", "x".repeat(4 << 20));
    for answer in ["SSH-2.0-OpenSSH_9\r\n\r\n", "HTTP/1.1 abc OK\r\n\r\n", &bomb, &long] {
        let result = answer_and_close(answer).await;
        assert!(matches!(result, Err(Failure::NotHttp(_))), "{answer:.20}: {result:?}");
    }
}

#[tokio::test]
async fn a_refused_connection_and_an_unknown_name_are_told_apart() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let refused = deliver_to(&url).await.result.unwrap_err();
    assert!(matches!(&refused, Failure::Unreachable(why) if why.contains("refused")), "{refused:?}");
    // No DNS name has such a long label: the resolver fails without a query.
    let nowhere = format!("http://{}.invalid", "x".repeat(64));
    let unknown = deliver_to(&nowhere).await.result.unwrap_err();
    assert!(matches!(unknown, Failure::Dns(_)), "{unknown:?}");
}

#[tokio::test]
async fn no_secret_is_in_anything_that_can_be_printed() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let client = Client::new(settings(&format!("http://user:pa55word@{address}/"))).unwrap();
    let answer = client.deliver(delivery("s")).await;
    let failure = answer.result.clone().unwrap_err();
    let bad_key = Settings { api_key: Some(Secret::new("hunter2\n\u{1}")), ..settings("http://h") };
    let error = Client::new(bad_key).unwrap_err();
    let printed = format!("{client:?} {answer:?} {failure} {error} {error:?}");
    for secret in ["hunter2", "pa55word"] {
        assert!(!printed.contains(secret), "{printed}");
    }
    let response = Response {
        status: 200,
        retry_after: None,
        meaning: Meaning::Foreign,
        body: "customer".into(),
        truncated: false,
        accepts: None,
        headers: HeaderMap::from_iter([(SET_COOKIE, "customer".parse().unwrap())]),
    };
    assert!(!format!("{response:?}").contains("customer"));
}

#[tokio::test]
async fn a_retry_after_date_is_counted_from_the_answers_own_date() {
    let headers = "Date: Tue, 01 Jan 2030 00:00:00 GMT\r\nRetry-After: Tue, 01 Jan 2030 00:01:00 GMT\r\n";
    let response = answer_and_close(http("503 Busy", headers, "")).await.unwrap();
    assert_eq!(response.retry_after, Some(Duration::from_mins(1)));
}
