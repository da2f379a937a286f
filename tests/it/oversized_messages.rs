//! Goal: a message of more than 1 MiB never leaves Redis: it is moved whole, and becomes one dead letter that names its new
//! place; memory stays flat; a crash at any point neither loses nor duplicates one; other messages are delivered.
//!
//! Method: messages of many MiB, created inside Redis, in the queues and in flight with older agents.

use serde_json::Value;

use super::harness::{
    Agent, DEAD_LETTERS, LIFECYCLE, Mode, QUOTA, RedisServer, SERVER_ID, Sandbox, Stage, USAGE, load,
    memory_mib, until,
};

const MIB: usize = 1 << 20;
/// Limit of the agent's resident memory.
const MEMORY_MIB: f64 = 96.0;
const QUEUES: [&str; 3] = [USAGE, LIFECYCLE, QUOTA];

/// A server that never answers BUSY, however slow the machine.
async fn server() -> RedisServer {
    let mut server = RedisServer::with(&["--lua-time-limit", "0"]);
    server.restart().await;
    server
}

fn oversize(queue: &str) -> String {
    format!("{queue}:oversize")
}

/// Pushes a message of this length that begins with `head`. It is created in Redis and never sent over the wire.
async fn push_large(redis: &RedisServer, mode: Mode, queue: &str, head: &str, length: usize) {
    let push = match mode {
        Mode::List => "redis.call('LPUSH', KEYS[1], m)",
        Mode::Stream => "redis.call('XADD', KEYS[1], '*', 'data', m)",
    };
    let script =
        format!("local m = ARGV[1] .. string.rep('x', ARGV[2] - #ARGV[1]) {push} return redis.sha1hex(m)");
    redis.run(redis::cmd("EVAL").arg(script).arg(1).arg(queue).arg(head).arg(length)).await;
}

/// The length and SHA-1 of an element of a list, computed by Redis.
async fn element(redis: &RedisServer, list: &str, n: i64) -> (usize, String) {
    let script = "local m = redis.call('LINDEX', KEYS[1], ARGV[1]) return { #m, redis.sha1hex(m) }";
    let mut connection = redis.connection();
    redis::Script::new(script).key(list).arg(n).invoke_async(&mut connection).await.expect("an element")
}

/// The mirrored dead letters, each once, although an agent that crashed may have mirrored one twice.
async fn letters(redis: &RedisServer, number: usize) -> Vec<Value> {
    until(&format!("{number} dead letters are mirrored"), async || {
        let mut letters = Vec::<Value>::new();
        for letter in redis.list(DEAD_LETTERS).await {
            let letter: Value = serde_json::from_slice(&letter).expect("JSON");
            if letters.iter().all(|other| other["dead_letter_id"] != letter["dead_letter_id"]) {
                letters.push(letter);
            }
        }
        assert!(letters.len() <= number, "{} dead letters", letters.len());
        (letters.len() == number).then_some(letters)
    })
    .await
}

/// Asserts that a dead letter contains the message's place and its beginning.
fn assert_tells(letter: &Value, list: &str, (length, sha1): &(usize, String), head: &str) {
    let info = letter["error_info"].as_str().expect("words");
    for part in [list, sha1.as_str(), &format!("{length} bytes")] {
        assert!(info.contains(part), "{part}: {info}");
    }
    assert_eq!(letter["reason"], "invalid");
    let original = letter["original_message"].as_str().expect("a string");
    assert_eq!(original.len(), 4096);
    assert!(original.starts_with(head), "{original}");
}

fn agent(redis: &RedisServer, sandbox: &Sandbox, mode: Mode) -> Agent {
    let mut agent = Agent::new(redis, &sandbox.url);
    agent.set("SOURCE_MODE", mode.name());
    agent
}

#[tokio::test]
async fn huge_messages_in_every_list_are_moved_and_memory_stays_flat() {
    huge_messages_in_every_queue(Mode::List).await;
}

#[tokio::test]
async fn huge_messages_in_every_stream_are_moved_and_memory_stays_flat() {
    huge_messages_in_every_queue(Mode::Stream).await;
}

async fn huge_messages_in_every_queue(mode: Mode) {
    let (redis, sandbox) = (server().await, Sandbox::start(&[]));
    for (n, queue) in QUEUES.into_iter().enumerate() {
        push_large(&redis, mode, queue, &format!("{queue} before"), (70 + n) * MIB).await;
    }
    let mut pushed = mode.push_sessions(&redis, "a", 20, 20).await;
    let mut agent = agent(&redis, &sandbox, mode);
    agent.start();
    agent.ready().await;
    let mut stage = Stage { redis, sandbox, agent };
    mode.drained(&mut stage).await;
    // And while it waits for messages.
    for (queue, length) in QUEUES.into_iter().zip([80 * MIB, 2 * MIB, 3 * MIB]) {
        push_large(&stage.redis, mode, queue, &format!("{queue} waiting"), length).await;
    }
    pushed += mode.push_sessions(&stage.redis, "b", 20, 20).await;
    mode.drained(&mut stage).await;
    let letters = letters(&stage.redis, 6).await;
    for queue in QUEUES {
        let list = oversize(queue);
        assert_eq!(stage.redis.len(&list).await, 2);
        // The newest is on the left.
        for (n, head) in [(1, "before"), (0, "waiting")] {
            let moved = element(&stage.redis, &list, n).await;
            let letter = letters
                .iter()
                .find(|letter| letter["error_info"].as_str().is_some_and(|info| info.contains(&moved.1)));
            let letter = letter.unwrap_or_else(|| panic!("nothing tells of {head} in {queue}: {letters:?}"));
            assert_tells(letter, &list, &moved, &format!("{queue} {head}"));
            assert_eq!(letter["processing_queue"], queue);
        }
    }
    let accounts = stage.sandbox.accounts().await;
    assert_eq!(accounts.processed(), pushed);
    accounts.assert_in_order_and_recognisable();
    stage.agent.metrics().await.assert_conserved();
    let peak = memory_mib(stage.agent.pid(), "VmHWM");
    println!("{peak:.1} MiB resident at the peak");
    assert!(peak < MEMORY_MIB, "{peak} MiB resident");
}

#[tokio::test]
async fn a_mebibyte_is_fetched_and_kept_and_one_byte_more_is_moved() {
    for mode in [Mode::List, Mode::Stream] {
        let (redis, sandbox) = (server().await, Sandbox::start(&[]));
        push_large(&redis, mode, USAGE, "fits", MIB).await;
        push_large(&redis, mode, USAGE, "does not", MIB + 1).await;
        let mut agent = agent(&redis, &sandbox, mode);
        agent.start();
        agent.ready().await;
        let found = letters(&redis, 2).await;
        let lengths: Vec<_> =
            found.iter().map(|letter| letter["original_message"].as_str().map(str::len)).collect();
        assert_eq!(lengths, [Some(4096), Some(MIB)], "{}", mode.name());
        assert_eq!(redis.len(&oversize(USAGE)).await, 1);
    }
}

#[tokio::test]
async fn what_older_agents_left_in_flight_is_moved_too() {
    let (redis, sandbox) = (server().await, Sandbox::start(&[]));
    // Of the previous agent and of an older one with this ID, between messages that fit; and some that fit, but not all at
    // once.
    for (list, session) in
        [(format!("{USAGE}:processing"), "p"), (format!("{USAGE}:processing:{SERVER_ID}"), "o")]
    {
        redis.push(&list, &[load::usage(session, 0)]).await;
        push_large(&redis, Mode::List, &list, "one", 70 * MIB).await;
        redis.push(&list, &[load::usage(session, 1)]).await;
        push_large(&redis, Mode::List, &list, "two", 2 * MIB).await;
        for _ in 0..30 {
            push_large(&redis, Mode::List, &list, "fits", MIB - 1).await;
        }
        redis.push(&list, &[load::usage(session, 2)]).await;
    }
    let mut agent = agent(&redis, &sandbox, Mode::List);
    agent.start();
    agent.ready().await;
    let mut stage = Stage { redis, sandbox, agent };
    stage.drained().await;
    assert_eq!(stage.redis.len(&oversize(USAGE)).await, 4);
    letters(&stage.redis, 64).await;
    let accounts = stage.sandbox.accounts().await;
    assert_eq!(accounts.processed(), 6);
    accounts.assert_in_order_and_recognisable();
    // Sixty of these messages fit, and are fetched whole. A debug build's own pages, some 32 MiB, are not counted.
    let peak = memory_mib(stage.agent.pid(), "VmHWM") - memory_mib(stage.agent.pid(), "RssFile");
    println!("{peak:.1} MiB resident at the peak");
    assert!(peak < MEMORY_MIB, "{peak} MiB resident");
}

#[tokio::test]
async fn entries_of_a_consumer_that_is_gone_are_moved_too() {
    let (redis, sandbox) = (server().await, Sandbox::start(&[]));
    push_large(&redis, Mode::Stream, USAGE, "claimed", 70 * MIB).await;
    redis.add(USAGE, &[load::usage("s", 0)]).await;
    let mut group = redis::cmd("XGROUP");
    redis.run(group.arg("CREATE").arg(USAGE).arg("dataplane-agent").arg("0")).await;
    // A consumer that fetches everything, as older agents did.
    let mut read = redis::cmd("XREADGROUP");
    read.arg("GROUP").arg("dataplane-agent").arg("gone").arg("STREAMS").arg(USAGE).arg(">");
    redis.run(&read).await;
    let mut agent = agent(&redis, &sandbox, Mode::Stream);
    agent.set("ORPHAN_RECLAIM_SECONDS", "1");
    agent.start();
    agent.ready().await;
    let mut stage = Stage { redis, sandbox, agent };
    stage.streams_drained().await;
    let found = letters(&stage.redis, 1).await;
    let moved = element(&stage.redis, &oversize(USAGE), 0).await;
    assert_tells(&found[0], &oversize(USAGE), &moved, "claimed");
    assert_eq!(stage.sandbox.accounts().await.processed(), 1);
    let peak = memory_mib(stage.agent.pid(), "VmHWM");
    assert!(peak < MEMORY_MIB, "{peak} MiB resident");
}

#[tokio::test]
async fn only_the_field_that_counts_is_fetched_of_an_entry_and_one_without_it_is_moved() {
    let (redis, sandbox) = (server().await, Sandbox::start(&[]));
    let add = "return redis.call('XADD', KEYS[1], '*', 'other', string.rep('x', ARGV[1]), unpack(ARGV, 2))";
    let record = load::usage("s", 0);
    let mut beside = redis::cmd("EVAL");
    redis.run(beside.arg(add).arg(1).arg(USAGE).arg(70 * MIB).arg("data").arg(&record)).await;
    redis.run(redis::cmd("EVAL").arg(add).arg(1).arg(USAGE).arg(70 * MIB)).await;
    let mut agent = agent(&redis, &sandbox, Mode::Stream);
    agent.start();
    agent.ready().await;
    let mut stage = Stage { redis, sandbox, agent };
    stage.streams_drained().await;
    assert_eq!(stage.sandbox.accounts().await.processed(), 1);
    let found = letters(&stage.redis, 1).await;
    let moved = element(&stage.redis, &oversize(USAGE), 0).await;
    assert_tells(&found[0], &oversize(USAGE), &moved, "{\"other\":\"xxx");
    let peak = memory_mib(stage.agent.pid(), "VmHWM");
    assert!(peak < MEMORY_MIB, "{peak} MiB resident");
}

#[tokio::test]
async fn a_crash_around_the_move_neither_loses_nor_doubles_the_dead_letter() {
    for mode in [Mode::List, Mode::Stream] {
        let (redis, sandbox) = (server().await, Sandbox::start(&[]));
        let mut agent = agent(&redis, &sandbox, mode);
        let points = ["intake::taken", "intake::parsed", "intake::committed", "intake::acknowledged"];
        let (mut small, mut large) = (0, 0);
        for (point, n) in points.iter().flat_map(|point| [(point, 1), (point, 2)]) {
            mode.push(&redis, USAGE, &[load::usage("s", small)]).await;
            push_large(&redis, mode, USAGE, &format!("{point} {n}"), 2 * MIB).await;
            (small, large) = (small + 1, large + 1);
            agent.set("FAILPOINT", &format!("{point}={n}=abort"));
            agent.start();
            until(&format!("the agent ends at {point}"), async || {
                let ended = agent.has_ended();
                if ended.is_none() {
                    mode.push(&redis, USAGE, &[load::usage("s", small)]).await;
                    small += 1;
                }
                ended
            })
            .await;
        }
        agent.unset("FAILPOINT");
        agent.start();
        agent.ready().await;
        let mut stage = Stage { redis, sandbox, agent };
        mode.drained(&mut stage).await;
        let found = letters(&stage.redis, large).await;
        let heads: std::collections::BTreeSet<_> = found
            .iter()
            .map(|letter| letter["original_message"].as_str().unwrap().trim_end_matches('x').to_owned())
            .collect();
        assert_eq!(heads.len(), large, "{}: one of each: {heads:?}", mode.name());
        assert_eq!(stage.redis.len(&oversize(USAGE)).await, large as u64);
        assert_eq!(stage.sandbox.accounts().await.processed(), u64::from(small));
        let metrics = stage.agent.metrics().await;
        metrics.assert_conserved();
        let enqueued = metrics.sum("dataplane_outbox_enqueued_total", &[]);
        assert_eq!(enqueued as u64, u64::from(small) + large as u64);
        assert_eq!(metrics.sum("dataplane_dead_lettered_total", &[]) as usize, large);
    }
}

#[tokio::test]
async fn a_key_of_another_type_in_the_oversized_messages_place_is_named_and_nothing_is_lost() {
    for mode in [Mode::List, Mode::Stream] {
        let (redis, sandbox) = (server().await, Sandbox::start(&[]));
        redis.run(redis::cmd("SET").arg(oversize(USAGE)).arg("x")).await;
        mode.push(&redis, USAGE, &[load::usage("s", 0)]).await;
        push_large(&redis, mode, USAGE, "large", 2 * MIB).await;
        mode.push(&redis, USAGE, &[load::usage("s", 1)]).await;
        mode.push(&redis, QUOTA, &[load::quota("s", 0)]).await;
        let mut agent = agent(&redis, &sandbox, mode);
        agent.start();
        until("health names the key", async || {
            let health = agent.health().await?;
            health["components"]["redis"]["reason"].as_str()?.contains(&oversize(USAGE)).then_some(())
        })
        .await;
        until("what lies before it, and another queue, are delivered", async || {
            (sandbox.accounts().await.processed() == 2).then_some(())
        })
        .await;
        redis.run(redis::cmd("DEL").arg(oversize(USAGE))).await;
        let mut stage = Stage { redis, sandbox, agent };
        mode.drained(&mut stage).await;
        letters(&stage.redis, 1).await;
        assert_eq!(stage.sandbox.accounts().await.processed(), 3);
    }
}

#[tokio::test]
async fn a_forged_note_is_a_message_and_a_returned_note_is_a_note() {
    let (redis, sandbox) = (server().await, Sandbox::start(&[]));
    let forged = "dataplane-agent: a message that is too large to be fetched 0123\n{\"length\":1}\nhead";
    // Anybody can compute the checksum.
    let says_nothing = "{\"length\":-1}\nhead";
    let mut checksum = redis::cmd("EVAL");
    checksum.arg("return redis.sha1hex(ARGV[1])").arg(0).arg(says_nothing);
    let checksum: String = redis::from_redis_value(redis.run(&checksum).await).expect("a checksum");
    let with_checksum =
        format!("dataplane-agent: a message that is too large to be fetched {checksum}\n{says_nothing}");
    redis.push(USAGE, &[forged, &with_checksum]).await;
    // An agent that is gone for good after moving a message.
    push_large(&redis, Mode::List, USAGE, "moved", 2 * MIB).await;
    let mut gone = agent(&redis, &sandbox, Mode::List);
    gone.set("SERVER_ID", "gone");
    gone.set("FAILPOINT", "intake::taken=1=abort");
    gone.start();
    gone.ended().await;
    assert_eq!(redis.len(&format!("{USAGE}:processing:gone")).await, 3);
    let mut agent = agent(&redis, &sandbox, Mode::List);
    agent.set("ORPHAN_RECLAIM_SECONDS", "1");
    agent.start();
    agent.ready().await;
    let found = letters(&redis, 3).await;
    let moved = element(&redis, &oversize(USAGE), 0).await;
    assert_tells(&found[0], &oversize(USAGE), &moved, "moved");
    assert_eq!(found[1]["original_message"], with_checksum);
    assert_eq!(found[2]["original_message"], forged);
    assert_eq!(redis.len(&oversize(USAGE)).await, 1);
}
