//! What counts as progress, and what the bandwidth limit delays.

use std::num::NonZeroU64;
use std::sync::Arc;

use super::*;

/// A peer that reads slowly.
fn slow_reader(every: Duration, most: usize) -> (String, tokio::sync::mpsc::UnboundedReceiver<usize>) {
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(8 << 10).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(16).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let sender = sender.clone();
            tokio::spawn(async move {
                let (mut read, mut buffer) = (0, vec![0; 16 << 10]);
                while read < most {
                    match stream.read(&mut buffer).await {
                        Ok(bytes @ 1..) => read += bytes,
                        _ => break,
                    }
                    tokio::time::sleep(every).await;
                }
                let _ = sender.send(read);
                let _ = stream.write_all(http("200 OK", "", "{}").as_bytes()).await;
                std::future::pending::<()>().await;
            });
        }
    });
    (url, receiver)
}

#[tokio::test]
async fn an_upload_that_progresses_is_never_timed_out_and_one_that_stands_still_is() {
    let body = Bytes::from(vec![b'x'; 1 << 20]);
    let patience = Duration::from_millis(800);
    let (url, _read) = slow_reader(Duration::from_millis(20), 1 << 20);
    let client = Client::new(Settings { timeout: patience, ..settings(&url) }).unwrap();
    let answer = client.deliver_batch(batch(body.clone(), 1)).await;
    assert_eq!(answer.result.unwrap().status, 200);
    assert!(answer.elapsed > patience, "{:?}", answer.elapsed);
    assert!(answer.upload > patience / 2 && answer.upload <= answer.elapsed, "{:?}", answer.upload);
    assert!(answer.wire_bytes > 1 << 20 && answer.wire_bytes < (1 << 20) + 1000, "{}", answer.wire_bytes);

    let (url, _read) = slow_reader(Duration::from_hours(1), 1 << 20);
    let client = Client::new(Settings { timeout: patience, ..settings(&url) }).unwrap();
    assert_eq!(client.deliver_batch(batch(body, 1)).await.result, Err(Failure::Timeout { connected: true }));
}

#[tokio::test]
async fn an_answer_that_progresses_is_not_timed_out() {
    let url = peer(|mut stream| async move {
        receive(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await.unwrap();
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let chunk = format!("{:x}\r\n{}\r\n", 5_000, " ".repeat(5_000));
            stream.write_all(chunk.as_bytes()).await.unwrap();
        }
        stream.write_all(b"2\r\n{}\r\n0\r\n\r\n").await.unwrap();
        receive(&mut stream).await;
    })
    .await;
    let client = Client::new(Settings { timeout: Duration::from_millis(600), ..settings(&url) }).unwrap();
    let answer = client.deliver(delivery("s")).await;
    assert_eq!(answer.result.unwrap().meaning, Meaning::Delivered);
    assert!(answer.elapsed > Duration::from_millis(900));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bandwidth_limit_holds_back_the_backlog_and_nothing_urgent() {
    let (url, _received) = answering(http("200 OK", "X-Correlation-ID: corr-2\r\n", "{}")).await;
    let client = Arc::new(Client::new(settings(&url)).unwrap());
    client.set_bandwidth(NonZeroU64::new(100_000));
    let started = std::time::Instant::now();
    let backlog: Vec<_> = (0..3)
        .map(|_| {
            let client = Arc::clone(&client);
            tokio::spawn(async move {
                let body = Bytes::from(vec![b'x'; 70_000]);
                client.deliver_batch(batch(body, 1)).await.result.unwrap();
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(100)).await;
    // Answered while all of that still waits.
    let quota = Delivery { kind: Kind::Quota, correlation_id: "corr-2", ..delivery("s") };
    assert_eq!(client.deliver(quota.clone()).await.result.unwrap().status, 200);
    assert!(backlog.iter().all(|one| !one.is_finished()));
    for one in backlog {
        one.await.unwrap();
    }
    assert!(started.elapsed() > Duration::from_millis(1_900), "{:?}", started.elapsed());
    let (sent, received) = client.wire_totals();
    assert!((210_000..215_000).contains(&sent) && (100..2_000).contains(&received), "{sent} {received}");

    // A limit that would delay it for hours is lifted.
    client.set_bandwidth(NonZeroU64::new(1));
    let waiting = Arc::clone(&client);
    let waiting =
        tokio::spawn(async move { waiting.deliver_batch(batch(Bytes::from(vec![0; 10_000]), 1)).await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    let urgent = tokio::time::timeout(PATIENCE, client.deliver(quota)).await;
    assert_eq!(urgent.unwrap().result.unwrap().status, 200);
    client.set_bandwidth(None);
    waiting.await.unwrap().result.unwrap();
}

#[tokio::test]
async fn waiting_for_the_bandwidth_limit_is_no_time_out() {
    let (url, _received) = answering(http("200 OK", "", "{}")).await;
    let client = Client::new(Settings { timeout: Duration::from_millis(600), ..settings(&url) }).unwrap();
    client.set_bandwidth(NonZeroU64::new(5_000));
    let answer = client.deliver_batch(batch(Bytes::from(vec![0; 10_000]), 1)).await;
    assert_eq!(answer.result.unwrap().status, 200);
    assert!(answer.elapsed > Duration::from_millis(1_000), "{:?}", answer.elapsed);
}
