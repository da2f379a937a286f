//! Goal: messages in flight with the previous agent, or with this one before a crash, are delivered once.

use super::harness::{Agent, RedisServer, Sandbox, Stage, USAGE, load};

#[tokio::test]
async fn the_previous_agents_in_flight_list_is_taken_over_in_its_order() {
    let (redis, sandbox) = (RedisServer::start().await, Sandbox::start(&[]));
    let mut agent = Agent::new(&redis, &sandbox.url);
    // Oldest first: three in flight, two more in the queue.
    let records: Vec<String> = (0..5).map(|n| load::usage("s", n)).collect();
    redis.push(&format!("{USAGE}:processing"), &records[..3]).await;
    redis.push(USAGE, &records[3..]).await;
    agent.start();
    agent.ready().await;
    let mut stage = Stage { redis, sandbox, agent };
    stage.drained().await;
    let accounts = stage.sandbox.accounts().await;
    assert_eq!(accounts.kind("usage", "processed"), 5);
    accounts.assert_in_order_and_recognisable();
    assert_eq!(stage.redis.len(&format!("{USAGE}:processing")).await, 0);
}

#[tokio::test]
async fn its_own_in_flight_list_is_taken_over_too() {
    let (redis, sandbox) = (RedisServer::start().await, Sandbox::start(&[]));
    let mut agent = Agent::new(&redis, &sandbox.url);
    let records: Vec<String> = (0..4).map(|n| load::usage("s", n)).collect();
    redis.push(&format!("{USAGE}:processing:edge-test-1"), &records[..2]).await;
    redis.push(USAGE, &records[2..]).await;
    agent.start();
    agent.ready().await;
    let mut stage = Stage { redis, sandbox, agent };
    stage.drained().await;
    let accounts = stage.sandbox.accounts().await;
    assert_eq!(accounts.kind("usage", "processed"), 4);
    accounts.assert_in_order_and_recognisable();
}
