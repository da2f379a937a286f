//! A long round trip costs latency but not throughput: many records are sent per round trip, even of one session.
//!
//! Requests and bytes are counted, never time.

use crate::harness::{Agent, RedisServer, Sandbox, USAGE, load};

const RECORDS: u32 = 3_000;

#[tokio::test]
async fn the_backlog_of_one_session_takes_few_requests_and_few_bytes() {
    let (redis, sandbox) = (RedisServer::start().await, Sandbox::start(&["--link", "rtt=50ms"]));
    let messages: Vec<String> = (0..RECORDS).map(|n| load::usage("busy", n)).collect();
    redis.push(USAGE, &messages).await;
    let mut agent = Agent::new(&redis, &sandbox.url);
    agent.set("DELIVERY_MODE", "batch");
    agent.start();
    agent.ready().await;
    agent.outbox_emptied().await;
    crate::harness::until("all is processed", async || {
        (sandbox.accounts().await.processed() == u64::from(RECORDS)).then_some(())
    })
    .await;
    let accounts = sandbox.accounts().await;
    accounts.assert_in_order_and_recognisable();
    let requests = accounts.all_requests("batch") + accounts.all_requests("usage");
    assert!(requests <= u64::from(RECORDS) / 30, "{requests} requests for {RECORDS} records");
    let carried = sandbox.link().await;
    let bytes = |way: &str| carried[way]["bytes"].as_u64().expect("bytes") / u64::from(RECORDS);
    let (up, down) = (bytes("up"), bytes("down"));
    assert!(up < 200 && down < 50, "{up} bytes up and {down} down a record");
}
