//! Which connections requests use: unrequested data, failures, repetitions, and connections that must not be used again.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

/// A peer that counts its connections; `handle` gets the number of each, from 1.
async fn counted<F>(
    handle: impl Fn(TcpStream, usize) -> F + Send + Sync + 'static,
) -> (String, Arc<AtomicUsize>)
where
    F: Future<Output = ()> + Send + 'static,
{
    let connections = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&connections);
    let url = peer(move |stream| handle(stream, count.fetch_add(1, Ordering::SeqCst) + 1)).await;
    (url, connections)
}

fn of(connections: &AtomicUsize) -> usize {
    connections.load(Ordering::SeqCst)
}

async fn status(client: &Client, delivery: Delivery<'_>) -> u16 {
    client.deliver(delivery).await.result.unwrap().status
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_surplus_answer_is_never_taken_for_the_next_requests() {
    for delay in [None, Some(0), Some(1), Some(2)] {
        let (url, connections) = counted(move |mut stream, _| async move {
            while receive(&mut stream).await.is_some() {
                let (answer, surplus) = (http("200 OK", "", "{}"), http("500 Surplus", "", "{}"));
                match delay {
                    None => stream.write_all([answer, surplus].concat().as_bytes()).await.unwrap(),
                    Some(delay) => {
                        stream.write_all(answer.as_bytes()).await.unwrap();
                        tokio::time::sleep(Duration::from_millis(delay)).await;
                        if stream.write_all(surplus.as_bytes()).await.is_err() {
                            break;
                        }
                    }
                }
            }
        })
        .await;
        let client = Client::new(settings(&url)).unwrap();
        for n in 0..40 {
            assert_eq!(status(&client, delivery("s")).await, 200, "request {n}, surplus after {delay:?} ms");
        }
        assert!(of(&connections) >= 39, "{} connections", of(&connections));
    }
}

#[tokio::test]
async fn bytes_on_an_idle_connection_are_never_an_answer() {
    let (url, connections) = counted(|mut stream, _| async move {
        receive(&mut stream).await;
        stream.write_all(http("200 OK", "X-Correlation-ID: corr-1\r\n", "{}").as_bytes()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(30)).await;
        stream.write_all(http("500 Surplus", "", "").as_bytes()).await.unwrap();
        receive(&mut stream).await;
    })
    .await;
    let client = Client::new(settings(&url)).unwrap();
    for _ in 0..3 {
        assert_eq!(status(&client, delivery("s")).await, 200);
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
    assert_eq!(of(&connections), 3);
}

#[tokio::test]
async fn an_answer_to_another_request_closes_its_connection() {
    let bodies = [r#"{"success":true,"data":{"transaction_id":"another"}}"#, "{}"];
    for (headers, body) in [("", bodies[0]), ("X-Correlation-ID: another\r\n", bodies[1])] {
        let (url, connections) = counted(move |mut stream, n| async move {
            while receive(&mut stream).await.is_some() {
                let (headers, body) = if n == 1 { (headers, body) } else { ("", "{}") };
                stream.write_all(http("200 OK", headers, body).as_bytes()).await.unwrap();
            }
        })
        .await;
        let client = Client::new(settings(&url)).unwrap();
        let first = client.deliver(delivery("s")).await.result.unwrap();
        assert_eq!(first.meaning, Meaning::Mismatched);
        let second = client.deliver(delivery("s")).await.result.unwrap();
        assert_eq!((second.meaning, of(&connections)), (Meaning::Delivered, 2));
    }
}

#[tokio::test]
async fn a_session_that_is_not_known_is_asked_for_over_another_connection() {
    const NAMED: &str = "X-Correlation-ID: corr-1\r\n";
    let of_a_batch = |exceptions: &str| {
        let key = batch(Bytes::new(), 2).key;
        let data = format!(r#"{{"batch":"{key}","count":2,"exceptions":[{exceptions}]}}"#);
        http("200 OK", "", &format!(r#"{{"success":true,"data":{data}}}"#))
    };
    let unknown = of_a_batch(r#"{"index":0,"status":404},{"index":1,"status":424}"#);
    let one_unknown = of_a_batch(r#"{"index":1,"status":404}"#);
    for (answer, is_batch, expected) in [
        (http("404 Not Found", NAMED, "{}"), false, 3),
        (http("410 Gone", NAMED, ""), false, 3),
        (http("422 Unprocessable Content", NAMED, "{}"), false, 1),
        (unknown, true, 3),
        (one_unknown, true, 1),
    ] {
        let (url, connections) = counted(move |mut stream, _| {
            let answer = answer.clone();
            async move {
                while receive(&mut stream).await.is_some() {
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            }
        })
        .await;
        let client = Client::new(settings(&url)).unwrap();
        for _ in 0..3 {
            let answer = if is_batch {
                client.deliver_batch(batch(Bytes::new(), 2)).await
            } else {
                client.deliver(delivery("s")).await
            };
            assert!(answer.result.is_ok());
        }
        assert_eq!(of(&connections), expected);
    }
}

#[tokio::test]
async fn a_connection_is_not_used_again_after_a_time_out_or_a_cut() {
    let heads: [&'static [u8]; 3] = [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n",
    ];
    for head in heads {
        let (url, connections) = counted(move |mut stream, n| async move {
            while receive(&mut stream).await.is_some() {
                let whole = http("200 OK", "", "{}");
                let answer = if n == 1 { head } else { whole.as_bytes() };
                stream.write_all(answer).await.unwrap();
                if n == 1 && head.ends_with(b"\r\n\r\n") {
                    let _ = stream.write_all(&vec![b'x'; 300_000]).await;
                }
            }
        })
        .await;
        let patience = Duration::from_millis(300);
        let client = Client::new(Settings { timeout: patience, ..settings(&url) }).unwrap();
        client.deliver(delivery("s")).await.result.map(|response| assert!(response.truncated)).ok();
        assert_eq!(status(&client, delivery("s")).await, 200);
        assert_eq!(of(&connections), 2);
    }
}

#[tokio::test]
async fn a_request_lost_on_a_reused_connection_is_repeated_at_once_on_a_new_one() {
    let (sender, mut keys) = tokio::sync::mpsc::unbounded_channel();
    let (url, connections) = counted(move |mut stream, n| {
        let keys = sender.clone();
        async move {
            while let Some(request) = receive(&mut stream).await {
                keys.send(request.header("idempotency-key").unwrap().to_owned()).unwrap();
                if n == 1 && request.line().contains("/swallowed/") {
                    return;
                }
                stream.write_all(http("200 OK", "", "{}").as_bytes()).await.unwrap();
            }
        }
    })
    .await;
    let client = Client::new(settings(&url)).unwrap();
    assert_eq!(status(&client, delivery("s")).await, 200);
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(status(&client, delivery("swallowed")).await, 200);
    assert_eq!(of(&connections), 2);
    let keys = [keys.recv().await, keys.recv().await, keys.recv().await];
    assert!(keys[0].is_some() && keys[0] == keys[1] && keys[1] == keys[2], "{keys:?}");
}

#[tokio::test]
async fn a_request_lost_on_a_new_connection_or_during_its_answer_is_not_repeated() {
    let (url, connections) = counted(|mut stream, n| async move {
        if n > 1 {
            receive(&mut stream).await;
            stream.write_all(http("200 OK", "", "{}").as_bytes()).await.unwrap();
        }
        receive(&mut stream).await;
        let _ = stream.write_all(if n == 1 { b"" } else { b"HTTP/1.1 2" }).await;
    })
    .await;
    let client = Client::new(settings(&url)).unwrap();
    let cut = |answer: Answer| assert!(matches!(answer.result, Err(Failure::Cut(_))), "{:?}", answer.result);
    cut(client.deliver(delivery("s")).await);
    assert_eq!(of(&connections), 1);
    assert_eq!(status(&client, delivery("s")).await, 200);
    tokio::time::sleep(Duration::from_millis(20)).await;
    cut(client.deliver(delivery("s")).await);
    assert_eq!(of(&connections), 2);
}

#[tokio::test]
async fn a_connection_that_the_peer_has_closed_is_not_tried() {
    let (url, connections) = counted(|mut stream, _| async move {
        receive(&mut stream).await;
        stream.write_all(http("200 OK", "", "{}").as_bytes()).await.unwrap();
    })
    .await;
    let client = Client::new(settings(&url)).unwrap();
    for n in 1..=5 {
        let answer = client.deliver(Delivery { connection: ConnectionChoice::Any, ..delivery("s") }).await;
        assert_eq!((answer.result.unwrap().status, of(&connections)), (200, n));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_fresh_connection_that_does_well_replaces_those_that_do_not() {
    // As if a name had moved: the previous host answers 503 permanently.
    let (url, connections) = counted(|mut stream, n| async move {
        while receive(&mut stream).await.is_some() {
            let status = if n == 1 { "503 Gone Elsewhere" } else { "200 OK" };
            stream.write_all(http(status, "X-Correlation-ID: corr-1\r\n", "{}").as_bytes()).await.unwrap();
        }
    })
    .await;
    let client = Client::new(settings(&url)).unwrap();
    for _ in 0..3 {
        assert_eq!(status(&client, delivery("s")).await, 503);
    }
    assert_eq!(of(&connections), 1, "kept, out of consideration for an overloaded host");
    let probe = Delivery { connection: ConnectionChoice::New, ..delivery("s") };
    assert_eq!(status(&client, probe.clone()).await, 200);
    for _ in 0..3 {
        let (one, other) = tokio::join!(client.deliver(delivery("s")), client.deliver(delivery("t")));
        assert_eq!((one.result.unwrap().status, other.result.unwrap().status), (200, 200));
    }
    assert_eq!(of(&connections), 3);
    assert_eq!(status(&client, probe).await, 200);
    assert_eq!(of(&connections), 4, "a probe always uses a new connection");
    assert_eq!(status(&client, delivery("s")).await, 200);
    assert_eq!(of(&connections), 4, "which then serves others");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_connections_are_opened_than_requests_are_under_way() {
    for headers in ["", "X-Correlation-ID: corr-1\r\n"] {
        let (url, connections) = counted(move |mut stream, _| async move {
            while receive(&mut stream).await.is_some() {
                stream.write_all(http("200 OK", headers, "{}").as_bytes()).await.unwrap();
            }
        })
        .await;
        let client = Client::new(Settings { max_idle_connections: 8, ..settings(&url) }).unwrap();
        let client = Arc::new(client);
        let workers = (0..8).map(|_| {
            let client = Arc::clone(&client);
            tokio::spawn(async move {
                for _ in 0..50 {
                    assert_eq!(status(&client, delivery("s")).await, 200);
                }
            })
        });
        for worker in workers.collect::<Vec<_>>() {
            worker.await.unwrap();
        }
        assert!(of(&connections) <= 8, "{} connections", of(&connections));
    }
}

#[tokio::test]
async fn a_quota_request_has_a_connection_of_its_own() {
    // The connection that each request used.
    let served = Arc::new(std::sync::Mutex::new(Vec::new()));
    let log = Arc::clone(&served);
    let (url, _) = counted(move |mut stream, n| {
        let log = Arc::clone(&log);
        async move {
            while receive(&mut stream).await.is_some() {
                log.lock().unwrap().push(n);
                let answer = http("200 OK", "X-Correlation-ID: corr-1\r\n", "{}");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        }
    })
    .await;
    let client = Client::new(settings(&url)).unwrap();
    for kind in [Kind::Quota, Kind::Usage, Kind::Usage, Kind::Quota, Kind::Usage, Kind::Quota] {
        assert_eq!(status(&client, Delivery { kind, ..delivery("s") }).await, 200);
    }
    assert_eq!(*served.lock().unwrap(), [1, 2, 2, 1, 2, 1]);
}

#[tokio::test]
async fn answers_in_any_valid_form_are_read() {
    let gzip = |plain: &[u8]| {
        use std::io::Write as _;
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap()
    };
    let with = |head: &str, body: &[u8]| {
        [format!("HTTP/1.1 200 OK\r\n{head}content-length: {}\r\n\r\n", body.len()).as_bytes(), body].concat()
    };
    let text = |text: &str| text.as_bytes().to_vec();
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    for answer in [
        with("", b"{}"),
        with("", b"\xef\xbb\xbf{}"),
        with("content-encoding: gzip\r\n", &gzip(b"\xef\xbb\xbf{}")),
        with("Content-Encoding: zstd\r\n", &zstd::encode_all(&b"{}"[..], 1).unwrap()),
        with("Connection: close\r\n", b"{}"),
        text(&format!("{chunked}1\r\n{{\r\n1;x=y\r\n}}\r\n0\r\nX-Trailer: 1\r\n\r\n")),
        text("HTTP/1.1 200 OK\r\n\r\n{}"),
        text("HTTP/1.0 200 OK\r\n\r\n{}"),
        [text("HTTP/1.1 100 Continue\r\n\r\n"), with("", b"{}")].concat(),
        [text("HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 102 P\r\n\r\n"), with("", b"{}")]
            .concat(),
    ] {
        let (url, _) = counted(move |mut stream, _| {
            let answer = answer.clone();
            async move {
                receive(&mut stream).await;
                // Data arriving in two parts gives the same result.
                let (one, other) = answer.split_at(answer.len() / 2);
                stream.write_all(one).await.unwrap();
                tokio::time::sleep(Duration::from_millis(2)).await;
                stream.write_all(other).await.unwrap();
            }
        })
        .await;
        let response = Client::new(settings(&url)).unwrap().deliver(delivery("s")).await.result.unwrap();
        assert_eq!((response.meaning, &response.body[..]), (Meaning::Delivered, &b"{}"[..]));
    }
    let bomb = with("Content-Encoding: gzip\r\n", &gzip(&vec![b' '; 32 << 20]));
    let (url, _received) = answering(bomb).await;
    let response = Client::new(settings(&url)).unwrap().deliver(delivery("s")).await.result.unwrap();
    assert_eq!((response.meaning, response.body.len()), (Meaning::Foreign, 256 << 10));
}

#[tokio::test]
async fn an_answer_says_which_encodings_are_taken() {
    let (url, _received) = answering(http("415 No", "accept-encoding: zstd, gzip;q=0\r\n", "")).await;
    let response = Client::new(settings(&url)).unwrap().deliver(delivery("s")).await.result.unwrap();
    assert_eq!(response.accepts, Some(Accepts { gzip: false, zstd: true }));
}
