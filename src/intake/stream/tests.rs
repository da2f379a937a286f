//! Rounds executed one at a time against a real Redis: the test decides what happens between them.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;

use super::*;

/// A Redis for one test; ends with it.
struct Server {
    child: Child,
    admin: MultiplexedConnection,
    client: redis::Client,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const USAGE: &str = "queue:usage_records";
const EVENTS: &str = "queue:session_lifecycle";

fn names() -> Names {
    Names {
        usage: USAGE.into(),
        lifecycle: EVENTS.into(),
        quota: "queue:quota_refresh".into(),
        quota_response: "queue:quota_response".into(),
        dead_letters: "queue:dead_letter".into(),
        server_id: "edge".into(),
    }
}

impl Server {
    async fn start() -> (Self, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let child = Command::new("redis-server")
            .args(["--port", "0", "--save", "", "--unixsocket"])
            .arg(&socket)
            .current_dir(dir.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let client = redis::Client::open(format!("unix://{}", socket.display())).unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        let admin = loop {
            match client.get_multiplexed_async_connection().await {
                Ok(admin) => break admin,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        (Self { child, admin, client }, dir)
    }

    async fn run<T: redis::FromRedisValue>(&mut self, words: &[&str]) -> T {
        redis::cmd(words[0]).arg(&words[1..]).query_async(&mut self.admin).await.unwrap()
    }

    async fn add(&mut self, stream: &str, data: &str) -> String {
        self.run(&["XADD", stream, "*", "data", data]).await
    }

    /// An agent's view of the streams, with a lease per stream as in a cluster, or with one.
    async fn stream(&self, is_apart: bool) -> Stream {
        let mut connection = Connection::One(self.client.get_multiplexed_async_connection().await.unwrap());
        let names = names();
        let keys = if is_apart { names.lease_keys_apart().into() } else { vec![names.lease_keys()] };
        let mut leases = Vec::new();
        for keys in keys {
            leases.push(Lease::acquire(&mut connection, keys, "edge", uuid::Uuid::nil()).await.unwrap());
        }
        Stream::new(connection, leases, names, Duration::from_secs(60))
    }
}

fn asks(want: usize) -> [Ask; 3] {
    [Ask { want, ..Ask::default() }; 3]
}

fn bodies(given: &Given) -> Vec<&str> {
    given.messages.iter().map(|message| std::str::from_utf8(&message.body).unwrap()).collect()
}

#[tokio::test]
async fn usage_that_was_held_and_claimed_in_a_pause_is_not_given_out_after_it() {
    let (mut server, _dir) = Server::start().await;
    for event in ["a", "b", "c"] {
        server.add(EVENTS, event).await;
    }
    let theirs = server.add(USAGE, "theirs").await;
    server.add(USAGE, "ours").await;
    let mut stream = server.stream(true).await;
    let [events, usage, _] = stream.round(&asks(2), Allowance::full()).await.unwrap();
    assert_eq!((bodies(&events), bodies(&usage)), (vec!["a", "b"], vec![]), "usage waits for the events");
    assert_eq!(usage.left, 2);

    let [_, usage, _] = stream.round(&asks(0), Allowance::full()).await.unwrap();
    assert_eq!(usage.left, 2, "usage is still to be taken");
    let _: redis::Value = server.run(&["XCLAIM", USAGE, GROUP, "other", "0", &theirs]).await;

    let (mut events, mut usage) = (Vec::new(), Vec::new());
    while usage.is_empty() || stream.has_more() {
        let [of_events, of_usage, _] = stream.round(&asks(2), Allowance::full()).await.unwrap();
        events.extend(bodies(&of_events).into_iter().map(str::to_owned));
        usage.extend(bodies(&of_usage).into_iter().map(str::to_owned));
        assert!(usage.is_empty() || events == ["c"], "events go first");
    }
    assert_eq!(usage, ["ours"], "taken once, by one agent");
    let ack = [Ask { ack: 3, ..Ask::default() }, Ask { ack: 1, ..Ask::default() }, Ask::default()];
    stream.round(&ack, Allowance::full()).await.unwrap();
    assert_eq!(server.run::<u64>(&["XLEN", USAGE]).await, 1, "theirs is left to them");
    assert_eq!(server.run::<u64>(&["XLEN", EVENTS]).await, 0);
}

#[tokio::test]
async fn entries_that_nobody_is_given_any_more_hold_up_nothing_and_are_not_waited_for() {
    for is_apart in [true, false] {
        let (mut server, _dir) = Server::start().await;
        for queue in [EVENTS, USAGE] {
            // Somebody acknowledged it without deleting it.
            let id = server.add(queue, "gone").await;
            let () = server.run(&["XGROUP", "CREATE", queue, GROUP, "0"]).await;
            let read = ["XREADGROUP", "GROUP", GROUP, "somebody", "STREAMS", queue, ">"];
            let _: redis::Value = server.run(&read).await;
            assert_eq!(server.run::<u64>(&["XACK", queue, GROUP, &id]).await, 1);
        }
        server.add(USAGE, "usage").await;
        let mut stream = server.stream(is_apart).await;
        let [_, usage, _] = stream.round(&asks(9), Allowance::full()).await.unwrap();
        assert_eq!(bodies(&usage), ["usage"]);
        let [events, usage, _] = stream.round(&asks(9), Allowance::full()).await.unwrap();
        assert_eq!(
            (events.left, usage.left),
            (0, 0),
            "what a completed event waits for is only what can come"
        );
        assert!(!stream.has_more());
    }
}

#[test]
fn each_form_of_an_entry_is_read() {
    let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
    let note = "a message 0123\n{\"length\":2000000,\"list\":\"q:oversize\",\"sha1\":\"ab\"}\nhead";
    let entries = [
        ("1-0", text("message")),
        ("1-1", Value::Nil),
        ("18446744073709551615-7", Value::Array(vec![text(note)])),
        ("2-0", Value::Array(vec![text("name"), text("value")])),
        ("1-0", text("message")),
    ];
    let reply = |entries: Vec<Value>| {
        let entries = Value::Array(entries);
        Value::Array(vec![
            text(""),
            Value::Int(0),
            text("9-0"),
            text(""),
            entries,
            Value::Int(1),
            Value::Int(0),
        ])
    };
    let flat = entries.into_iter().flat_map(|(id, content)| [text(id), content]).collect();
    let mut position = StreamPosition::default();
    let given = position.take(reply(flat), 0).unwrap();
    assert_eq!(bodies(&given), ["message", "head", "{\"name\":\"value\"}"], "and none twice");
    let defective: Vec<_> = given.messages.iter().map(|message| message.defect.is_some()).collect();
    assert_eq!(defective, [false, true, true]);
    assert_eq!(given.digests[4..8], digest(b"18446744073709551615-7", note.as_bytes()));
    assert_eq!(given.trimmed, 1);
    let ids = |ids: &mut dyn Iterator<Item = &EntryId>| {
        ids.flat_map(ToRedisArgs::to_redis_args).collect::<Vec<_>>()
    };
    assert_eq!(ids(&mut position.in_hand.iter()), [&b"1-0"[..], b"18446744073709551615-7", b"2-0"]);
    assert_eq!(ids(&mut position.done.iter()), [b"1-1"]);
    for bad in [vec![text("1-0")], vec![text("1"), text("")], vec![text("1-0"), Value::Int(1)]] {
        assert!(StreamPosition::default().take(reply(bad), 0).is_err());
    }
}
