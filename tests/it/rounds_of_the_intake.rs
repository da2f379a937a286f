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

/// The messages of each queue that one round returns if it may take so many; a stream's follow their IDs.
async fn messages(redis: &RedisServer, mode: Mode, most: usize) -> Vec<Vec<Value>> {
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
            call.arg(0).arg(0).arg(most);
        }
        call.arg(ROUND).arg(MESSAGE);
    } else {
        call.arg("dataplane-agent").arg("edge").arg(ROUND).arg(MESSAGE);
        for queue in [LIFECYCLE, USAGE, QUOTA] {
            call.key(queue).key(format!("{queue}:oversize")).arg(most).arg("").arg(0).arg(0);
        }
    }
    let reply: Vec<Vec<Value>> = call.invoke_async(&mut connection).await.expect("a round");
    let place = if mode == Mode::List { 2 } else { 4 };
    let of_queue = |queue: &Vec<Value>| match queue.get(place) {
        Some(Value::Array(messages)) => messages.clone(),
        other => panic!("no messages: {other:?}"),
    };
    reply.iter().map(of_queue).collect()
}

/// Their number.
async fn round(redis: &RedisServer, mode: Mode) -> Vec<usize> {
    let each = if mode == Mode::List { 1 } else { 2 };
    messages(redis, mode, 1024).await.iter().map(|of_queue| of_queue.len() / each).collect()
}

/// Oldest first.
async fn in_flight(redis: &RedisServer) -> Vec<Value> {
    let mut range = redis::cmd("LRANGE");
    range.arg(format!("{USAGE}:in-flight")).arg(0).arg(-1);
    let mut all: Vec<Value> = range.query_async(&mut redis.connection()).await.expect("a list");
    all.reverse();
    all
}

fn text(value: &Value) -> String {
    let Value::BulkString(text) = value else { panic!("no message: {value:?}") };
    String::from_utf8(text.clone()).expect("UTF-8")
}

/// A script moves a thousand messages with one command.
#[tokio::test]
async fn a_round_of_more_than_a_thousand_messages_keeps_their_order() {
    for large in [None, Some(999), Some(1000), Some(1001)] {
        let redis = RedisServer::start().await;
        let mut pushed: Vec<String> = (0..1200).map(|number| format!("message {number}")).collect();
        if let Some(place) = large {
            pushed[place] = "x".repeat(MESSAGE + 1);
        }
        Mode::List.push(&redis, USAGE, &pushed).await;
        let is_note = |text: &str| text.starts_with("dataplane-agent: a message that is too large");
        let mut given: Vec<String> = Vec::new();
        // The second begins with messages in flight that its agent does not know, the third has only such.
        for (most, expected) in [(700, 700), (1190, large.map_or(1190, |place| place + 1)), (300, 300)] {
            let messages = messages(&redis, Mode::List, most).await.swap_remove(1);
            assert_eq!(messages.len(), expected, "{large:?}, {most}");
            let held = in_flight(&redis).await;
            assert_eq!(messages, held[..expected], "{large:?}, {most}");
            let read: Vec<String> = messages.iter().map(text).collect();
            given = if read.len() > given.len() { read } else { given };
        }
        for (place, message) in given.iter().enumerate() {
            assert!(
                if large == Some(place) { is_note(message) } else { *message == pushed[place] },
                "{place}"
            );
        }
    }
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
