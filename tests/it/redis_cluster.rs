//! Goal: with the streams in different slots of a Redis Cluster everything is delivered once and in order, even while a
//! slot moves to another node and when a primary is lost. Method: real nodes, joined by the test; with lists, names in one
//! slot.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use redis::cluster::ClusterClient;
use redis::cluster_async::ClusterConnection;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::harness::{
    Agent, DEAD_LETTERS, DEADLINE, LIFECYCLE, Port, QUOTA, QUOTA_ANSWERS, RedisServer, Sandbox, USAGE,
    free_port, load, memory_mib, until,
};

/// Where each primary's slots begin, and the end of the last: each primary has one of the streams.
const SLOTS: [u16; 4] = [0, 2048, 6144, 16_384];

struct Cluster {
    /// The three primaries, then replicas.
    nodes: Vec<RedisServer>,
    producer: ClusterConnection,
}

fn client(urls: impl Iterator<Item = String>) -> ClusterClient {
    ClusterClient::builder(urls).response_timeout(DEADLINE).build().expect("URLs")
}

/// Not started yet. Nodes communicate on a second port, 10,000 higher.
fn node() -> RedisServer {
    let mut node = RedisServer::with(&["--cluster-enabled", "yes", "--cluster-node-timeout", "3000"]);
    loop {
        if let Ok(bus) = Port::reserve(node.port.number() + 10_000) {
            node.bus_port = Some(bus);
            return node;
        }
        node.port = free_port();
    }
}

async fn ask<T: redis::FromRedisValue>(node: &RedisServer, command: &[&str]) -> T {
    let mut asked = redis::cmd("CLUSTER");
    asked.arg(command).query_async(&mut node.connection()).await.expect("the node answers")
}

async fn id(node: &RedisServer) -> String {
    ask(node, &["MYID"]).await
}

async fn agrees(node: &RedisServer, nodes: usize) -> Option<()> {
    let info: String = ask(node, &["INFO"]).await;
    let known = format!("cluster_known_nodes:{nodes}\r");
    (info.contains("cluster_state:ok") && info.contains(&known)).then_some(())
}

impl Cluster {
    /// Three primaries.
    async fn start() -> Self {
        Self::of(vec![node(), node(), node()]).await
    }

    /// Three primaries from these, and a replica of the first if there is one more.
    async fn of(mut nodes: Vec<RedisServer>) -> Self {
        for node in &mut nodes {
            node.restart().await;
        }
        let port = nodes[0].port.to_string();
        for node in &nodes[1..] {
            let () = ask(node, &["MEET", "127.0.0.1", &port]).await;
        }
        for (slots, node) in SLOTS.windows(2).zip(&nodes) {
            let slots: Vec<String> = (slots[0]..slots[1]).map(|slot| slot.to_string()).collect();
            let mut add = redis::cmd("CLUSTER");
            node.run(add.arg("ADDSLOTS").arg(slots)).await;
        }
        for node in &nodes {
            until("the nodes agree", async || agrees(node, nodes.len()).await).await;
        }
        if nodes.len() > 3 {
            let primary = id(&nodes[0]).await;
            let () = ask(&nodes[3], &["REPLICATE", &primary]).await;
            until("the replica is in step", async || {
                let info: String = redis::cmd("INFO")
                    .arg("replication")
                    .query_async(&mut nodes[0].connection())
                    .await
                    .expect("it answers");
                info.contains("state=online").then_some(())
            })
            .await;
        }
        let producer =
            client(nodes.iter().map(RedisServer::url)).get_async_connection().await.expect("a cluster");
        Self { nodes, producer }
    }

    fn url(&self) -> String {
        format!("redis+cluster://127.0.0.1:{},127.0.0.1:{}", self.nodes[0].port, self.nodes[1].port)
    }

    fn agent(&self, sandbox: &Sandbox, mode: &str) -> Agent {
        let mut agent = Agent::new(&self.nodes[0], &sandbox.url);
        agent.unset("REDIS_PORT");
        agent.set("REDIS_URL", &self.url());
        agent.set("SOURCE_MODE", mode);
        agent
    }

    async fn slot(&self, key: &str) -> u16 {
        ask(&self.nodes[0], &["KEYSLOT", key]).await
    }

    /// The primary that holds the key.
    async fn home(&self, key: &str) -> usize {
        let slot = self.slot(key).await;
        SLOTS.iter().rposition(|first| *first <= slot).expect("the first is 0")
    }

    /// Adds one message at a time, as producers do.
    async fn add(&self, stream: &str, messages: &[String]) {
        for message in messages {
            let mut command = redis::cmd("XADD");
            command.arg(stream).arg("*").arg("data").arg(message);
            let () = command.query_async(&mut self.producer.clone()).await.expect("the cluster obeys");
        }
    }

    async fn add_sessions(&self, prefix: &str, sessions: u32, usage_each: u32) -> u64 {
        for (queue, messages) in load::sessions(prefix, sessions, usage_each) {
            self.add(queue, &messages).await;
        }
        u64::from(sessions) * u64::from(usage_each + 3)
    }

    async fn len(&self, command: &str, key: &str) -> Option<u64> {
        redis::cmd(command).arg(key).query_async(&mut self.producer.clone()).await.ok()
    }

    /// Waits until the streams and the outbox are empty.
    async fn drained(&self, agent: &Agent) {
        until("everything is settled", async || {
            for queue in [USAGE, LIFECYCLE, QUOTA] {
                if self.len("XLEN", queue).await? > 0 {
                    return None;
                }
            }
            (agent.health().await?["outbox"]["depth"] == 0).then_some(())
        })
        .await;
    }

    /// Moves a key's slot to another primary, as `redis-cli --cluster reshard` does; `meanwhile` runs with half of it
    /// moved.
    async fn move_slot(&self, key: &str, to: usize, meanwhile: impl Future<Output = ()>) {
        let slot = self.slot(key).await.to_string();
        let (from, to) = (&self.nodes[self.home(key).await], &self.nodes[to]);
        let (from_id, to_id) = (id(from).await, id(to).await);
        let () = ask(to, &["SETSLOT", &slot, "IMPORTING", &from_id]).await;
        let () = ask(from, &["SETSLOT", &slot, "MIGRATING", &to_id]).await;
        let keys: Vec<String> = ask(from, &["GETKEYSINSLOT", &slot, "100"]).await;
        assert!(keys.len() > 1, "the stream and what is beside it: {keys:?}");
        let mut meanwhile = Some(meanwhile);
        for key in keys {
            let mut migrate = redis::cmd("MIGRATE");
            migrate.arg("127.0.0.1").arg(to.port.number()).arg(&key).arg(0).arg(5000);
            from.run(&migrate).await;
            if let Some(meanwhile) = meanwhile.take() {
                meanwhile.await;
            }
        }
        // Keys created meanwhile: on the new node, through ASK.
        for node in [to, from] {
            let () = ask(node, &["SETSLOT", &slot, "NODE", &to_id]).await;
        }
    }
}

async fn assert_each_once(sandbox: &Sandbox, agent: &Agent, pushed: u64) {
    let accounts = sandbox.accounts().await;
    assert_eq!(accounts.processed(), pushed);
    accounts.assert_in_order_and_recognisable();
    let metrics = agent.metrics().await;
    metrics.assert_conserved();
    let enqueued = metrics.sum("dataplane_outbox_enqueued_total", &[]);
    assert_eq!(enqueued as u64, pushed, "each was taken over exactly once");
}

#[tokio::test]
async fn streams_on_several_nodes_are_delivered_once_and_in_order_and_leave_nothing_behind() {
    let (cluster, sandbox) = (Cluster::start().await, Sandbox::start(&[]));
    for (n, queue) in [USAGE, LIFECYCLE, QUOTA].into_iter().enumerate() {
        assert_eq!(cluster.home(queue).await, n, "each on a node of its own");
    }
    let mut agent = cluster.agent(&sandbox, "stream");
    // As a user with only the permissions in docs/redis.md.
    let rules = "on >pass-word ~queue:* ~{queue:* -@all +@connection +@list +@stream +@string +@sortedset +@scripting \
                 +@keyspace -@dangerous +time +cluster|slots";
    for node in &cluster.nodes {
        node.run(
            redis::cmd("ACL").arg("SETUSER").arg("agent").arg(rules.split_whitespace().collect::<Vec<_>>()),
        )
        .await;
    }
    agent.set("REDIS_URL", &cluster.url().replace("://", "://agent:pass-word@"));
    // More events than a round takes, and the usage of the last sessions ahead of all other usage: it would overtake its
    // `started` event if it could.
    for (queue, mut messages) in load::sessions("waiting", 5000, 1) {
        if queue == USAGE {
            messages.reverse();
        }
        cluster.add(queue, &messages).await;
    }
    let mut pushed = 5000 * 4;
    agent.start();
    agent.ready().await;
    for part in 0..5 {
        pushed += cluster.add_sessions(&format!("coming-{part}"), 100, 5).await;
    }
    cluster.drained(&agent).await;
    // Also after an idle time.
    pushed += cluster.add_sessions("late", 3, 3).await;
    cluster.drained(&agent).await;
    assert_each_once(&sandbox, &agent, pushed).await;
    assert_eq!(cluster.len("LLEN", QUOTA_ANSWERS).await, Some(5000 + 500 + 3));
    cluster.add(USAGE, &["no record".to_owned()]).await;
    until("the dead letter is mirrored", async || {
        (cluster.len("LLEN", DEAD_LETTERS).await? == 1).then_some(())
    })
    .await;
    assert!(!agent.log().contains("NOPERM"), "{}", agent.log());
}

/// Forwards everything to a node. On request it loses the answer to one round of the agent, together with the connection.
async fn lossy(to: u16, lose: Arc<AtomicBool>) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let port = listener.local_addr().expect("its address").port();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(pass(client, to, Arc::clone(&lose)));
        }
    });
    port
}

async fn pass(mut client: TcpStream, to: u16, lose: Arc<AtomicBool>) -> std::io::Result<()> {
    let mut node = TcpStream::connect(("127.0.0.1", to)).await?;
    let (mut asked, mut answered) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        tokio::select! {
            read = client.read(&mut asked) => {
                let asked = &asked[..read?];
                if asked.is_empty() {
                    return Ok(());
                }
                node.write_all(asked).await?;
                let text = String::from_utf8_lossy(asked);
                if text.contains("EVALSHA") && text.contains("dataplane-agent") && lose.swap(false, Ordering::SeqCst) {
                    // The node has answered, so it has executed the call.
                    assert!(node.read(&mut answered).await? > 0);
                    return Ok(());
                }
            }
            read = node.read(&mut answered) => {
                let answered = &answered[..read?];
                if answered.is_empty() {
                    return Ok(());
                }
                client.write_all(answered).await?;
            }
        }
    }
}

#[tokio::test]
async fn a_call_whose_answer_is_lost_is_not_done_a_second_time() {
    let lose = Arc::new(AtomicBool::new(false));
    let mut first = node();
    let port = lossy(first.port.number(), Arc::clone(&lose)).await;
    first.add_flags(&["--cluster-announce-port", &port.to_string()]);
    first.add_flags(&["--cluster-announce-bus-port", &(first.port.number() + 10_000).to_string()]);
    let (cluster, sandbox) = (Cluster::of(vec![first, node(), node()]).await, Sandbox::start(&[]));
    let mut agent = cluster.agent(&sandbox, "stream");
    agent.start();
    agent.ready().await;
    // The cluster client repeats the call by itself. Nobody would know of the messages taken by the first call.
    let mut pushed = 0;
    for part in 0..20 {
        lose.store(true, Ordering::SeqCst);
        pushed += cluster.add_sessions(&format!("part-{part}"), 5, 5).await;
        until("an answer is lost", async || (!lose.load(Ordering::SeqCst)).then_some(())).await;
    }
    cluster.drained(&agent).await;
    assert_each_once(&sandbox, &agent, pushed).await;
}

#[tokio::test]
async fn oversized_entries_are_moved_within_the_slot_of_their_stream() {
    let (cluster, sandbox) = (Cluster::start().await, Sandbox::start(&[]));
    let mut agent = cluster.agent(&sandbox, "stream");
    agent.start();
    agent.ready().await;
    for queue in [USAGE, LIFECYCLE, QUOTA] {
        let mut push = redis::cmd("EVAL");
        push.arg("return redis.call('XADD', KEYS[1], '*', 'data', string.rep('x', ARGV[1]))");
        // Small enough for a busy machine: a node that works for seconds is considered gone by the others.
        push.arg(1).arg(queue).arg(8 << 20);
        let _: redis::Value = push.query_async(&mut cluster.producer.clone()).await.expect("it is added");
    }
    let pushed = cluster.add_sessions("s", 10, 10).await;
    cluster.drained(&agent).await;
    for queue in [USAGE, LIFECYCLE, QUOTA] {
        assert_eq!(cluster.len("LLEN", &format!("{{{queue}}}:oversize")).await, Some(1), "{queue}");
    }
    let accounts = sandbox.accounts().await;
    assert_eq!(accounts.processed(), pushed);
    accounts.assert_in_order_and_recognisable();
    let invalid = agent.metrics().await.sum("dataplane_dead_lettered_total", &[("reason", "invalid")]);
    assert_eq!(invalid, 3.0);
    let peak = memory_mib(agent.pid(), "VmHWM");
    assert!(peak < 96.0, "{peak} MiB resident");
}

#[tokio::test]
async fn a_slot_that_moves_while_records_flow_costs_none_and_doubles_none() {
    let (cluster, sandbox) = (Cluster::start().await, Sandbox::start(&[]));
    let mut agent = cluster.agent(&sandbox, "stream");
    agent.start();
    agent.ready().await;
    let mut pushed = cluster.add_sessions("before", 100, 10).await;
    for (n, queue) in [USAGE, LIFECYCLE].into_iter().enumerate() {
        let to = (cluster.home(queue).await + 1) % 3;
        let mut half = 0;
        cluster
            .move_slot(queue, to, async {
                half = cluster.add_sessions(&format!("half-{n}"), 20, 10).await;
            })
            .await;
        pushed += half + cluster.add_sessions(&format!("moved-{n}"), 100, 10).await;
    }
    cluster.drained(&agent).await;
    assert_each_once(&sandbox, &agent, pushed).await;
}

#[tokio::test]
async fn a_primary_that_is_gone_for_good_is_replaced_and_nothing_is_lost() {
    let (mut cluster, sandbox) =
        (Cluster::of(vec![node(), node(), node(), node()]).await, Sandbox::start(&[]));
    assert_eq!(cluster.home(USAGE).await, 0, "the primary with the replica has the usage");
    let mut agent = cluster.agent(&sandbox, "stream");
    agent.set("REDIS_SOCKET_TIMEOUT", "2");
    agent.start();
    agent.ready().await;
    let mut pushed = 0;
    for part in 0..5 {
        pushed += cluster.add_sessions(&format!("before-{part}"), 40, 10).await;
    }
    // A push counts only once the replica has it.
    let copies: u64 =
        redis::cmd("WAIT").arg(1).arg(10_000).query_async(&mut cluster.nodes[0].connection()).await.unwrap();
    assert_eq!(copies, 1);
    cluster.nodes[0].kill();
    until("the replica is the primary", async || {
        let info: String = ask(&cluster.nodes[3], &["INFO"]).await;
        let role: String = redis::cmd("INFO")
            .arg("replication")
            .query_async(&mut cluster.nodes[3].connection())
            .await
            .ok()?;
        (info.contains("cluster_state:ok") && role.contains("role:master")).then_some(())
    })
    .await;
    let fresh = client([cluster.nodes[1].url(), cluster.nodes[3].url()].into_iter());
    cluster.producer = until("producers find it", async || fresh.get_async_connection().await.ok()).await;
    pushed += cluster.add_sessions("after", 40, 10).await;
    cluster.drained(&agent).await;
    let accounts = sandbox.accounts().await;
    // Messages that the agent acknowledged but the replica missed are taken again; each is still processed once.
    assert_eq!(accounts.processed(), pushed);
    assert!(agent.log().matches("cannot use Redis").count() <= 3, "{}", agent.log());
}

#[tokio::test]
async fn lists_in_one_slot_will_do_and_others_are_a_configuration_error() {
    let (cluster, sandbox) = (Cluster::start().await, Sandbox::start(&[]));
    let mut agent = cluster.agent(&sandbox, "list");
    agent.start();
    assert_eq!(agent.ended().await.code(), Some(78), "{}", agent.log());
    for variable in ["USAGE_RECORDS_QUEUE", "SESSION_LIFECYCLE_QUEUE", "QUOTA_REFRESH_QUEUE"] {
        assert!(agent.log().contains(&format!("{variable}: ")), "{}", agent.log());
    }
    assert!(agent.log().contains("hash tag"), "{}", agent.log());
    let tagged = |queue: &str| queue.replace("queue:", "queue:{edge}:");
    agent.set("USAGE_RECORDS_QUEUE", &tagged(USAGE));
    agent.set("SESSION_LIFECYCLE_QUEUE", &tagged(LIFECYCLE));
    agent.set("QUOTA_REFRESH_QUEUE", &tagged(QUOTA));
    agent.start();
    agent.ready().await;
    for (queue, messages) in load::sessions("a", 50, 10) {
        let mut push = redis::cmd("LPUSH");
        push.arg(tagged(queue)).arg(messages);
        let () = push.query_async(&mut cluster.producer.clone()).await.unwrap();
    }
    until("all is delivered", async || (sandbox.accounts().await.processed() == 50 * 13).then_some(())).await;
    assert_each_once(&sandbox, &agent, 50 * 13).await;
}

#[tokio::test]
async fn a_cluster_node_configured_as_a_single_redis_is_reported_and_waited_out() {
    let (cluster, sandbox) = (Cluster::start().await, Sandbox::start(&[]));
    let mut agent = Agent::new(&cluster.nodes[0], &sandbox.url);
    agent.start();
    // CROSSSLOT or MOVED, depending on where the keys are.
    let refused = async || {
        let metrics = agent.metrics().await;
        metrics.sum("dataplane_redis_failures_total", &[("reason", "cluster")])
    };
    until("it has been tried again", async || (refused().await > 2.0).then_some(())).await;
    let health = agent.health().await.expect("it answers");
    assert_eq!(health["components"]["redis"]["status"], "degraded", "{health}");
    agent.says_times("cannot use Redis", 1).await;
}

#[tokio::test]
async fn check_works_on_a_cluster_and_leaves_nothing_behind() {
    let (cluster, sandbox) = (Cluster::start().await, Sandbox::start(&[]));
    let mut agent = cluster.agent(&sandbox, "stream");
    agent.set("OUTBOX_DURABILITY", "process");
    agent.set("OUTBOX_MIN_FREE_BYTES", "1MiB");
    agent.set("OUTBOX_MAX_BYTES", "16MiB");
    let said = agent.command(&[], &["check", "--json"]).await;
    assert_eq!(said.code, 0, "{said:?}");
    assert!(said.out.contains("3 nodes of version"), "{said:?}");
    for node in &cluster.nodes {
        let keys: Vec<String> =
            redis::cmd("KEYS").arg("*").query_async(&mut node.connection()).await.expect("keys");
        assert!(keys.is_empty(), "{keys:?}");
    }
    agent.start();
    agent.ready().await;
    let said = agent.command(&[], &["check", "--json"]).await;
    assert!(said.code == 0 && said.out.contains("in use by this agent"), "{said:?}");
    let lease = format!("{{{USAGE}}}:lease:edge-test-1");
    let other = uuid::Uuid::new_v4();
    agent.kill();
    let () = redis::cmd("SET")
        .arg(&lease)
        .arg(format!("{other}/1"))
        .query_async(&mut cluster.producer.clone())
        .await
        .expect("the cluster obeys");
    let said = agent.command(&[], &["check", "--json"]).await;
    assert!(said.code == 1 && said.out.contains(&other.to_string()), "{said:?}");
}
