//! Goal: however large the records of one queue are, a round also takes records of the others.
//!
//! Method: the scripts alone, against a real Redis.

use redis::Value;

use super::harness::{LIFECYCLE, Mode, QUOTA, RedisServer, USAGE};

const LEASE: &str = include_str!("../../src/intake/lease.lua");
const OVERSIZE: &str = include_str!("../../src/intake/oversize.lua");
const LIST: &str = include_str!("../../src/intake/list.lua");
const STREAM: &str = include_str!("../../src/intake/stream.lua");
/// The bytes that a round may return, and the longest message.
const ROUND: usize = 1 << 20;
const MESSAGE: usize = 1 << 20;

/// The number of messages of each queue that one round returns.
async fn round(redis: &RedisServer, mode: Mode) -> Vec<usize> {
    let mut connection = redis.connection();
    let () =
        redis::cmd("SET").arg("lease").arg("held").query_async(&mut connection).await.expect("it is set");
    let script =
        redis::Script::new(&[LEASE, OVERSIZE, if mode == Mode::List { LIST } else { STREAM }].concat());
    let mut call = script.key("lease");
    call.key("agents").arg("held").arg(60_000).arg("edge").arg("held");
    if mode == Mode::List {
        for queue in [LIFECYCLE, USAGE, QUOTA] {
            call.key(queue).key(format!("{queue}:in-flight")).key(format!("{queue}:acked"));
            call.key(format!("{queue}:oversize")).key(format!("{queue}:wakeup"));
            call.arg(0).arg(0).arg(1024);
        }
        call.arg(ROUND).arg(MESSAGE);
    } else {
        call.arg("dataplane-agent").arg("edge").arg(ROUND).arg(MESSAGE);
        for queue in [LIFECYCLE, USAGE, QUOTA] {
            call.key(queue).key(format!("{queue}:oversize")).arg(1024).arg("").arg(0).arg(0);
        }
    }
    let reply: Vec<Vec<Value>> = call.invoke_async(&mut connection).await.expect("a round");
    // A stream's are flat: each message follows its ID.
    let (place, each) = if mode == Mode::List { (2, 1) } else { (4, 2) };
    let messages = |queue: &Vec<Value>| match queue.get(place) {
        Some(Value::Array(messages)) => messages.len() / each,
        other => panic!("no messages: {other:?}"),
    };
    reply.iter().map(messages).collect()
}

#[tokio::test]
async fn large_records_of_one_queue_leave_nothing_of_another_behind() {
    for mode in [Mode::List, Mode::Stream] {
        let redis = RedisServer::start().await;
        let large = vec!["x".repeat(100 << 10); 100];
        mode.push(&redis, USAGE, &large).await;
        mode.push(&redis, QUOTA, &["asks".to_owned()]).await;
        let given = round(&redis, mode).await;
        assert_eq!((given[0], given[2]), (0, 1), "{}: {given:?}", mode.name());
        assert!((10..=64).contains(&given[1]), "{}: {given:?}", mode.name());
    }
}
